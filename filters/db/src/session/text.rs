//! What a statement's text says about the session: a conservative look, so that a statement may be taken for one that needs its
//! session, and none that needs it is missed, as long as the text itself says it. What a function does that is called by its name
//! cannot be seen.

use super::lexer::{Lexer, Token, WORD};
use super::pins::Pins;

/// Parameters that PostgreSQL reports by ParameterStatus when they change and that a client may set, in lower case. Whether a server
/// reports one of them depends on its version.
pub(super) const REPORTED: [&[u8]; 9] = [
    b"application_name",
    b"client_encoding",
    b"datestyle",
    b"default_transaction_read_only",
    b"intervalstyle",
    b"scram_iterations",
    b"search_path",
    b"standard_conforming_strings",
    b"timezone",
];

/// Which of [`REPORTED`] a server reports, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reported(u16);

impl Reported {
    pub(super) fn insert(&mut self, name: &[u8]) {
        self.0 |= Self::bit(name);
    }

    pub(super) fn contains(self, name: &[u8]) -> bool {
        self.0 & Self::bit(name) != 0
    }

    fn bit(name: &[u8]) -> u16 {
        REPORTED.iter().position(|known| known.eq_ignore_ascii_case(name)).map_or(0, |place| 1 << place)
    }
}

/// What the words before the present one have begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum In {
    /// The start of a statement.
    Start,
    /// A statement of which only the words that matter anywhere matter.
    Any,
    Prepare,
    Set,
    SetSession,
    SetTime,
    /// `set_config`, before its parenthesis.
    Config,
    /// Within `set_config(`, at so many nested parentheses and after so many commas at the first.
    ConfigArguments(u32, u32),
    /// After the `true` that is the third argument.
    ConfigLocal,
}

/// The look at one text, in pieces of any length.
#[derive(Clone, Debug)]
pub(super) struct Look {
    lexer: Lexer,
    state: State,
}

#[derive(Clone, Debug)]
struct State {
    reported: Reported,
    at: In,
    /// The word before, as far as it matters.
    before: Before,
    pins: Pins,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Other,
    /// CREATE, REPLACE, LOCAL, GLOBAL or INTO: TEMP after it is a keyword.
    Create,
    With,
}

impl Look {
    /// `escapes`: whether a backslash escapes in plain strings.
    pub(super) fn new(reported: Reported, escapes: bool) -> Self {
        let state = State { reported, at: In::Start, before: Before::Other, pins: Pins::default() };
        Self { lexer: Lexer::new(escapes), state }
    }

    pub(super) fn feed(&mut self, text: &[u8]) {
        let state = &mut self.state;
        self.lexer.feed(text, &mut |token| state.token(token));
    }

    pub(super) fn end(mut self) -> Pins {
        let state = &mut self.state;
        self.lexer.end(&mut |token| state.token(token));
        // A statement that ends in the middle is an error for the server.
        state.token(Token::Other(b';'));
        self.state.pins
    }
}

/// The reasons in a whole text.
pub(super) fn look(text: &[u8], reported: Reported, escapes: bool) -> Pins {
    let mut look = Look::new(reported, escapes);
    look.feed(text);
    look.end()
}

impl State {
    fn token(&mut self, token: Token<'_>) {
        let before = std::mem::replace(&mut self.before, Before::Other);
        match token {
            Token::Unicode => self.pins |= Pins::CODE,
            Token::Word(word) => self.anywhere(word, before),
            Token::String | Token::Other(_) => {}
        }
        self.at = match (self.at, token) {
            (In::ConfigArguments(depth, commas), _) => self.config(depth, commas, token),
            (In::ConfigLocal, Token::Other(b')')) => In::Any,
            (In::Config, Token::Other(b'(')) => In::ConfigArguments(0, 0),
            (In::Config | In::ConfigLocal, _) => self.pinned(Pins::SET, token),
            // `;` ends a statement also within parentheses and SQL bodies: what follows is looked at as one of its own.
            (In::Set | In::SetSession | In::SetTime, Token::Other(b';')) => {
                self.pins |= Pins::SET;
                In::Start
            }
            (_, Token::Other(b';')) => In::Start,
            (In::Start, Token::Word(word)) => self.first(word),
            // `(SELECT …)`, or nonsense.
            (In::Start, Token::Other(b'(')) => In::Start,
            (In::Start, _) => In::Any,
            // PREPARE TRANSACTION 'name' leaves nothing in the session; a statement named `transaction` does.
            (In::Prepare, Token::Word(b"transaction")) => In::Prepare,
            (In::Prepare, Token::String) => In::Any,
            (In::Prepare, _) => self.pinned(Pins::PREPARE, token),
            (In::Set, Token::Word(word)) => self.set(word),
            (In::SetSession, Token::Word(word)) => self.set_session(word),
            (In::SetTime, Token::Word(b"zone")) if self.reported.contains(b"timezone") => In::Any,
            (In::Set | In::SetSession | In::SetTime, _) => self.pinned(Pins::SET, token),
            (In::Any, Token::Word(b"set_config")) => In::Config,
            (In::Any, _) => In::Any,
        };
    }

    fn pinned(&mut self, pin: Pins, token: Token<'_>) -> In {
        self.pins |= pin;
        if token == Token::Other(b';') { In::Start } else { In::Any }
    }

    /// Words that matter wherever they stand; quoted ones are taken for them as well.
    fn anywhere(&mut self, word: &[u8], before: Before) {
        match word {
            b"create" | b"replace" | b"local" | b"global" | b"into" => self.before = Before::Create,
            b"with" => self.before = Before::With,
            b"temp" | b"temporary" if before == Before::Create => self.pins |= Pins::TEMPORARY,
            b"hold" if before == Before::With => self.pins |= Pins::HOLD,
            b"setseed" | b"pg_replication_origin_session_setup" => self.pins |= Pins::SET,
            _ if word.starts_with(b"pg_temp") => self.pins |= Pins::TEMPORARY,
            _ if word.starts_with(b"pg_advisory_lock") || word.starts_with(b"pg_try_advisory_lock") => {
                self.pins |= Pins::ADVISORY_LOCK;
            }
            _ if word.starts_with(b"dblink_connect") => self.pins |= Pins::CODE,
            // Cut: it cannot be told what it is, but it is none of PostgreSQL's own.
            _ => debug_assert!(word.len() <= WORD),
        }
    }

    fn first(&mut self, word: &[u8]) -> In {
        match word {
            b"listen" => self.pins |= Pins::LISTEN,
            b"load" => self.pins |= Pins::LOAD,
            b"do" => self.pins |= Pins::CODE,
            b"prepare" => return In::Prepare,
            b"set" => return In::Set,
            b"set_config" => return In::Config,
            _ => {}
        }
        In::Any
    }

    /// The word after SET.
    fn set(&mut self, word: &[u8]) -> In {
        match word {
            b"session" => In::SetSession,
            b"time" => In::SetTime,
            // For the transaction only.
            b"local" | b"transaction" | b"constraints" => In::Any,
            b"names" if self.reported.contains(b"client_encoding") => In::Any,
            _ => self.set_parameter(word),
        }
    }

    /// The word after SET SESSION.
    fn set_session(&mut self, word: &[u8]) -> In {
        match word {
            b"time" => In::SetTime,
            b"names" if self.reported.contains(b"client_encoding") => In::Any,
            _ => self.set_parameter(word),
        }
    }

    fn set_parameter(&mut self, name: &[u8]) -> In {
        if !self.reported.contains(name) {
            self.pins |= Pins::SET;
        }
        In::Any
    }

    /// Within the arguments of `set_config`: only a third one that is the word `true` makes it local to the transaction.
    fn config(&mut self, depth: u32, commas: u32, token: Token<'_>) -> In {
        match token {
            Token::Other(b'(' | b'[') => In::ConfigArguments(depth.saturating_add(1), commas),
            Token::Other(b')' | b']') if depth > 0 => In::ConfigArguments(depth - 1, commas),
            Token::Other(b',') if depth == 0 => In::ConfigArguments(0, commas.saturating_add(1)),
            Token::Word(b"true") if depth == 0 && commas == 2 => In::ConfigLocal,
            Token::Word(b"set_config") => self.pinned(Pins::SET, token),
            Token::Other(b';' | b')') => self.pinned(Pins::SET, token),
            _ if depth == 0 && commas >= 2 => self.pinned(Pins::SET, token),
            _ => In::ConfigArguments(depth, commas),
        }
    }
}

/// The entry for fuzzing: a text gives the same answer in any pieces, and no panic.
///
/// # Panics
/// When it does not.
pub fn fuzz_text(bytes: &[u8]) {
    let Some((first, text)) = bytes.split_first() else { return };
    let (mut reported, escapes) = (Reported::default(), first & 1 == 1);
    reported.insert(b"timezone");
    let whole = look(text, reported, escapes);
    let mut pieces = Look::new(reported, escapes);
    for piece in text.chunks(usize::from(first >> 4) + 1) {
        pieces.feed(piece);
    }
    assert!(pieces.end() == whole, "pieces change the answer");
    // A comment in front or a statement behind takes nothing away.
    let before = [b"/* ' $ */", text].concat();
    assert!(look(&before, reported, escapes).contains(whole), "a comment hides a pin");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reported() -> Reported {
        let mut reported = Reported::default();
        for name in ["application_name", "client_encoding", "DateStyle", "IntervalStyle", "TimeZone"] {
            reported.insert(name.as_bytes());
        }
        reported
    }

    fn pins(text: &str) -> Pins {
        look(text.as_bytes(), reported(), false)
    }

    const PINNING: &[(&str, Pins)] = &[
        ("LISTEN a", Pins::LISTEN),
        ("/* x */ listen \"A\"", Pins::LISTEN),
        ("SELECT 1; Listen a", Pins::LISTEN),
        ("SELECT pg_advisory_lock(1)", Pins::ADVISORY_LOCK),
        ("SELECT * FROM \"pg_try_advisory_lock_shared\"(1, 2)", Pins::ADVISORY_LOCK),
        ("SELECT pg_catalog.pg_advisory_lock_shared($1)", Pins::ADVISORY_LOCK),
        ("CREATE TEMP TABLE t (a int)", Pins::TEMPORARY),
        ("CREATE LOCAL TEMPORARY TABLE t AS SELECT 1", Pins::TEMPORARY),
        ("CREATE OR REPLACE TEMP VIEW v AS SELECT 1", Pins::TEMPORARY),
        ("CREATE/**/TEMP SEQUENCE s", Pins::TEMPORARY),
        ("SELECT 1 INTO TEMP t", Pins::TEMPORARY),
        ("EXPLAIN ANALYZE CREATE TEMP TABLE t AS SELECT 1", Pins::TEMPORARY),
        ("CREATE TABLE pg_temp.t (a int)", Pins::TEMPORARY),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", Pins::HOLD),
        ("PREPARE p AS SELECT 1", Pins::PREPARE),
        ("PREPARE p(int) AS SELECT $1", Pins::PREPARE),
        ("PREPARE transaction AS SELECT 1", Pins::PREPARE),
        ("SET statement_timeout = 1", Pins::SET),
        ("SET work_mem TO '1MB'", Pins::SET),
        ("SET SESSION search_path = a", Pins::SET),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", Pins::SET),
        ("SET SESSION AUTHORIZATION ann", Pins::SET),
        ("SET ROLE ann", Pins::SET),
        ("SET a.b = 1", Pins::SET),
        ("SELECT 1; SET search_path = x; SELECT 2", Pins::SET),
        ("SELECT set_config('a.b', 'c', false)", Pins::SET),
        ("SELECT set_config('a.b', f('c', 'd'), $1)", Pins::SET),
        ("SELECT set_config('a', 'b', true and false)", Pins::SET),
        ("SELECT set_config('a', 'b', not true)", Pins::SET),
        ("SELECT set_config(a => 'a', is_local => true)", Pins::SET),
        ("SELECT set_config('a', set_config('b', 'c', false), true)", Pins::SET),
        ("SELECT pg_catalog.\"set_config\"('a', 'b', false)", Pins::SET),
        ("SELECT setseed(0.5)", Pins::SET),
        ("DO $$ BEGIN EXECUTE 'LIS' || 'TEN a'; END $$", Pins::CODE),
        ("SELECT U&\"pg\\005fadvisory_lock\"(1)", Pins::CODE),
        ("SELECT dblink_connect('x')", Pins::CODE),
        ("LOAD 'auto_explain'", Pins::LOAD),
    ];

    #[test]
    fn what_needs_its_session_is_found() {
        for (text, pin) in PINNING {
            assert!(pins(text).contains(*pin), "{text}: {:?}", pins(text));
        }
    }

    #[test]
    fn ordinary_statements_do_not_pin() {
        for text in [
            "",
            ";",
            "SELECT 1",
            "SELECT temp, hold, prepare, listen FROM sensors WHERE temp > 3",
            "UPDATE a SET temp = 1, search_path = 2",
            "INSERT INTO temperatures VALUES ('SET x; LISTEN y; pg_advisory_lock')",
            "SELECT pg_advisory_xact_lock(1), pg_try_advisory_xact_lock(2)",
            "-- LISTEN a\nSELECT 1",
            "/* ; LISTEN a */ SELECT $$; LISTEN a$$",
            "UNLISTEN *",
            "NOTIFY a",
            "BEGIN; SET LOCAL work_mem = '1MB'; COMMIT",
            "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            "SET CONSTRAINTS ALL DEFERRED",
            "SET application_name = 'x'",
            "SET SESSION timezone TO 'UTC'",
            "SET TIME ZONE 'UTC'",
            "SET NAMES 'UTF8'",
            "RESET work_mem",
            "PREPARE TRANSACTION 'x'",
            "DECLARE c CURSOR WITHOUT HOLD FOR SELECT 1",
            "DECLARE c CURSOR FOR WITH x AS (SELECT 1) SELECT * FROM x",
            "SELECT set_config('a', 'b', true), 1",
            "select set_config('a', f($1, g(2)), true), set_config('b', $2, true)",
            "CREATE TABLE t (temp int)",
            "EXECUTE p",
            "DEALLOCATE p",
            "DISCARD ALL",
        ] {
            assert!(pins(text).is_empty(), "{text}: {:?}", pins(text));
        }
    }

    #[test]
    fn only_what_the_server_reports_is_tracked() {
        assert!(look(b"SET application_name = 'x'", Reported::default(), false).contains(Pins::SET));
        assert!(look(b"SET TIME ZONE 'UTC'", Reported::default(), false).contains(Pins::SET));
        let mut newer = reported();
        newer.insert(b"search_path");
        assert!(look(b"SET search_path = a", newer, false).is_empty());
    }

    proptest! {
        #[test]
        fn nothing_around_a_statement_hides_it(
            which in 0..PINNING.len(), before in "(SELECT 1;|/\\*[^*/]{0,9}\\*/|--[^\n\r]{0,9}\n|SELECT '[^'\\\\]{0,9}';|SELECT \\$a\\$[^$]{0,9}\\$a\\$;| |\n|;|BEGIN;){0,5}",
            after in "(;SELECT 1| |--x|;COMMIT){0,2}", pieces in 1_usize..9,
        ) {
            let (text, pin) = PINNING[which];
            let text = format!("{before}{text}{after}");
            prop_assert!(pins(&text).contains(pin), "{}", text);
            let mut look = Look::new(reported(), false);
            for piece in text.as_bytes().chunks(pieces) {
                look.feed(piece);
            }
            prop_assert_eq!(look.end(), pins(&text));
        }
    }
}
