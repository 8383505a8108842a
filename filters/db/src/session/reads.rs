//! Where a batch may be carried out, as far as its text says it: at the primary only, or at a replica as well.

use super::lexer::{Lexer, Token};

/// What a batch says about where it wants to be carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Asks {
    /// Nothing.
    #[default]
    Nothing,
    /// `/* qudag: primary */`.
    Primary,
    /// `/* qudag: replica */`.
    Replica,
    /// It begins a transaction that only reads: `BEGIN READ ONLY`.
    ReadOnly,
    /// It is one SELECT that looks as if it changed nothing.
    Select,
}

/// The hint at the start of a text.
pub(super) fn hint(text: &[u8]) -> Option<Asks> {
    let comment = text.trim_ascii_start().strip_prefix(b"/*")?.trim_ascii_start();
    let word = comment.strip_prefix(b"qudag:")?.trim_ascii_start();
    let of =
        |name: &[u8]| word.strip_prefix(name).is_some_and(|rest| rest.trim_ascii_start().starts_with(b"*/"));
    match (of(b"replica"), of(b"primary")) {
        (true, _) => Some(Asks::Replica),
        (_, true) => Some(Asks::Primary),
        _ => None,
    }
}

/// The statements of a text, each to its `;`, as far as the following rules need them.
fn tokens(text: &[u8], escapes: bool, mut each: impl FnMut(Token<'_>)) {
    let mut lexer = Lexer::new(escapes);
    lexer.feed(text, &mut each);
    lexer.end(&mut each);
}

/// Whether a text begins with `BEGIN` or `START TRANSACTION` of a transaction that reads only, and stays within it: nothing follows its
/// end. SERIALIZABLE is refused by replicas.
pub(super) fn begins_read_only(text: &[u8], escapes: bool) -> bool {
    let first = text.trim_ascii_start().first().map(u8::to_ascii_lowercase);
    // Most texts are told by their first byte; those that begin with a comment are looked at.
    if !matches!(first, Some(b'b' | b's' | b'/' | b'-')) {
        return false;
    }
    let mut state = Begin { at: At::First, read: false, only: false, fits: true };
    tokens(text, escapes, |token| state.token(token));
    state.fits && state.only
}

struct Begin {
    at: At,
    /// The word before was READ.
    read: bool,
    only: bool,
    fits: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    First,
    Start,
    Modes,
    /// The first word of a later statement, and what follows it.
    Next,
    Within,
    /// Within the statement that ends the transaction, and behind it.
    End,
    Ended,
}

impl Begin {
    fn token(&mut self, token: Token<'_>) {
        let read = std::mem::take(&mut self.read);
        self.at = match (self.at, token) {
            (At::First, Token::Word(b"begin")) => At::Modes,
            (At::First, Token::Word(b"start")) => At::Start,
            (At::Start, Token::Word(b"transaction")) => At::Modes,
            (At::Modes | At::Next | At::Within, Token::Other(b';')) => At::Next,
            (At::Modes, Token::Other(b',')) => At::Modes,
            (At::Modes, Token::Word(word)) => {
                match word {
                    b"read" => self.read = true,
                    b"only" if read => self.only = true,
                    b"work" | b"transaction" | b"isolation" | b"level" | b"repeatable" | b"committed"
                    | b"uncommitted" | b"not" | b"deferrable" => {}
                    // WRITE, SERIALIZABLE, or nonsense.
                    _ => self.fits = false,
                }
                At::Modes
            }
            (At::Next, Token::Word(word)) if ends(word) => At::End,
            (At::Next | At::Within, _) => At::Within,
            (At::End, Token::Other(b';')) => At::Ended,
            (At::End, _) => At::End,
            _ => {
                self.fits = false;
                self.at
            }
        };
    }
}

fn ends(word: &[u8]) -> bool {
    matches!(word, b"commit" | b"end" | b"rollback" | b"abort" | b"prepare")
}

/// Whether the first word of a text ends a transaction.
pub(super) fn ends_transaction(text: &[u8], escapes: bool) -> bool {
    let (mut first, mut found) = (true, false);
    tokens(text, escapes, |token| {
        if std::mem::take(&mut first) {
            found = matches!(token, Token::Word(word) if ends(word));
        }
    });
    found
}

/// Words that may stand before a parenthesis without being a function that could change something: keywords, types, and functions that
/// only compute.
const HARMLESS: [&[u8]; 76] = [
    b"abs",
    b"all",
    b"and",
    b"any",
    b"as",
    b"avg",
    b"between",
    b"bool_and",
    b"bool_or",
    b"by",
    b"case",
    b"cast",
    b"ceil",
    b"char",
    b"coalesce",
    b"concat",
    b"count",
    b"cume_dist",
    b"date_part",
    b"date_trunc",
    b"decimal",
    b"dense_rank",
    b"distinct",
    b"else",
    b"except",
    b"exists",
    b"extract",
    b"filter",
    b"first_value",
    b"floor",
    b"from",
    b"greatest",
    b"group",
    b"having",
    b"ilike",
    b"in",
    b"intersect",
    b"is",
    b"join",
    b"lag",
    b"last_value",
    b"lateral",
    b"lead",
    b"least",
    b"length",
    b"like",
    b"limit",
    b"lower",
    b"max",
    b"min",
    b"not",
    b"now",
    b"nullif",
    b"numeric",
    b"offset",
    b"on",
    b"or",
    b"over",
    b"rank",
    b"replace",
    b"round",
    b"row",
    b"row_number",
    b"select",
    b"some",
    b"sum",
    b"then",
    b"trim",
    b"union",
    b"upper",
    b"using",
    b"values",
    b"varchar",
    b"when",
    b"where",
    b"within",
];

/// Whether a text is one SELECT that looks as if it changed nothing and locked nothing. What operators, views and casts call cannot be
/// seen; a replica refuses what they would change.
pub(super) fn is_plain_select(text: &[u8], escapes: bool) -> bool {
    is_plain(text, escapes, false, |_| false)
}

/// The same of a text that may begin with WITH, and may call functions that somebody vouches for.
pub(super) fn is_plain_query(text: &[u8], escapes: bool, vouched: impl Fn(&[u8]) -> bool) -> bool {
    is_plain(text, escapes, true, vouched)
}

fn is_plain(text: &[u8], escapes: bool, with: bool, vouched: impl Fn(&[u8]) -> bool) -> bool {
    let (mut fits, mut started, mut over, mut qualified) = (true, false, false, false);
    // Whether a parenthesis now would be a call of something that is not known.
    let mut call = false;
    tokens(text, escapes, |token| {
        let called = std::mem::take(&mut call);
        let after_point = std::mem::take(&mut qualified);
        fits &= !over || token == Token::Other(b';');
        if !std::mem::replace(&mut started, true) {
            fits &= token == Token::Word(b"select") || with && token == Token::Word(b"with");
            return;
        }
        match token {
            Token::Word(b"for" | b"into" | b"insert" | b"update" | b"delete" | b"merge" | b"lock") => {
                fits = false;
            }
            Token::Word(b"with") => fits &= with,
            Token::Word(word) => {
                call = (after_point || HARMLESS.binary_search(&word).is_err()) && !vouched(word);
            }
            Token::Unicode => fits = false,
            Token::Other(b'(') => fits &= !called,
            Token::Other(b'.') => qualified = true,
            Token::Other(b';') => over = true,
            Token::String | Token::Other(_) => {}
        }
    });
    fits && started
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_hint_stands_at_the_start() {
        for text in ["/* qudag: replica */ SELECT 1", " \n/*qudag:replica*/", "/*  qudag:  replica  */"] {
            assert_eq!(hint(text.as_bytes()), Some(Asks::Replica), "{text}");
        }
        assert_eq!(hint(b"/* qudag: primary */ SELECT 1"), Some(Asks::Primary));
        for text in [
            "",
            "SELECT /* qudag: replica */ 1",
            "/* qudag: replicas */",
            "/* replica */",
            "-- qudag: replica",
        ] {
            assert_eq!(hint(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn transactions_that_read_only_are_known() {
        for text in [
            "BEGIN READ ONLY",
            "begin transaction isolation level repeatable read, read only",
            "START TRANSACTION READ ONLY, NOT DEFERRABLE;",
            "/* x */ BEGIN READ ONLY; SELECT 1; COMMIT",
            "BEGIN READ ONLY; SELECT 'COMMIT; x'; END;",
        ] {
            assert!(begins_read_only(text.as_bytes(), false), "{text}");
        }
        for text in [
            "BEGIN",
            "BEGIN READ WRITE",
            "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY",
            "BEGIN READ ONLY, READ WRITE",
            "BEGIN READ, ONLY",
            "BEGIN READ ONLY; COMMIT; INSERT INTO t VALUES (1)",
            "BEGIN READ ONLY; END; ;",
            "SELECT 1; BEGIN READ ONLY",
            "SET TRANSACTION READ ONLY",
            "",
        ] {
            assert!(!begins_read_only(text.as_bytes(), false), "{text}");
        }
    }

    #[test]
    fn plain_selects_are_known_and_others_are_not() {
        assert!(HARMLESS.is_sorted());
        for text in [
            "SELECT 1",
            "select a.b, count(*) from a join b using (id) where id in (1, 2) and x = $1 and p = 'nextval(1)';",
            "SELECT (SELECT max(x) FROM t), now()",
        ] {
            assert!(is_plain_select(text.as_bytes(), false), "{text}");
        }
        for text in [
            "SELECT nextval('s')",
            "SELECT public.count (1)",
            "SELECT 1; DELETE FROM t",
            "SELECT 1; SELECT 2",
            "SELECT * INTO t FROM u",
            "SELECT * FROM t FOR UPDATE",
            "SELECT \"f\"(1)",
            "SELECT U&\"\\0066\"(1)",
            "SELECT f/* */(1)",
            "WITH x AS (DELETE FROM t RETURNING 1) SELECT * FROM x",
            "TABLE t",
            "",
        ] {
            assert!(!is_plain_select(text.as_bytes(), false), "{text}");
        }
    }

    #[test]
    fn queries_may_begin_with_with_and_call_what_is_vouched_for() {
        let vouched = |word: &[u8]| word == b"price_of";
        for text in [
            "WITH x AS (SELECT 1) SELECT * FROM x",
            "SELECT price_of(id), shop.price_of(id) FROM t",
            "select count(*) from t where p = 'for update'",
        ] {
            assert!(is_plain_query(text.as_bytes(), false, vouched), "{text}");
        }
        for text in [
            "WITH x AS (DELETE FROM t RETURNING 1) SELECT * FROM x",
            "WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x",
            "SELECT other(1)",
            "SELECT price_of(nextval('s'))",
            "SELECT price_of(1) FOR SHARE",
            "SELECT 1; SELECT 1",
            "EXPLAIN SELECT 1",
            "",
        ] {
            assert!(!is_plain_query(text.as_bytes(), false, vouched), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_looked_at(bytes in proptest::collection::vec(any::<u8>(), 0..200), escapes: bool) {
            let _ = (hint(&bytes), begins_read_only(&bytes, escapes), is_plain_select(&bytes, escapes));
            let _ = ends_transaction(&bytes, escapes);
        }

        #[test]
        fn a_call_of_something_unknown_is_never_plain(
            before in "[a-z0-9 ,]{0,12}", name in "f_[a-z]{1,6}", space in "( |/\\* x \\*/|\n){0,2}",
        ) {
            let text = format!("select {before} {name}{space}(1)");
            prop_assert!(!is_plain_select(text.as_bytes(), false));
        }
    }
}
