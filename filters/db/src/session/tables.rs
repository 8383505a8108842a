//! The tables that a text names: those that it reads, and those that it may change. More than there are may be found, so that a cache
//! forgets too much rather than too little; what views, triggers and functions do cannot be seen.

use super::lexer::{Lexer, Token};

/// The deepest parentheses in which tables are looked for.
const DEEPEST: u32 = 63;
/// The most tables of a transaction that are told apart.
const TABLES: usize = 64;

/// What is done to a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Read,
    Write,
    /// Anything to whatever table: a statement that does not say it.
    Unseen,
}

/// Tells each table of a text, without its schema, as it is used.
pub(super) fn tables(text: &[u8], escapes: bool, found: impl FnMut(Use, &[u8])) {
    let mut walk = Walk {
        found,
        at: At::Any,
        first: First::Start,
        before: Before::Other,
        truncates: false,
        name: Vec::new(),
        depth: 0,
        lists: 0,
        calls: 0,
    };
    let mut lexer = Lexer::new(escapes);
    let mut each = |token: Token<'_>| walk.token(token);
    lexer.feed(text, &mut each);
    lexer.end(&mut each);
    walk.token(Token::Other(b';'));
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Any,
    /// A name follows.
    Name(Use),
    /// Behind a name, which may have been a schema.
    After(Use),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum First {
    Start,
    Create,
    Commit,
    Past,
}

/// The word before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    Other,
    Delete,
    /// FOR, KEY, DO: UPDATE after it changes no table of its own.
    Clause,
    /// IS DISTINCT FROM.
    Distinct,
    /// `extract (… from …)` and the like.
    Call,
}

struct Walk<F> {
    found: F,
    at: At,
    first: First,
    before: Before,
    truncates: bool,
    name: Vec<u8>,
    depth: u32,
    /// The depths at which a comma leads to another table, and those at which FROM leads to none, as bits.
    lists: u64,
    calls: u64,
}

impl<F: FnMut(Use, &[u8])> Walk<F> {
    fn bit(&self) -> u64 {
        1 << self.depth.min(DEEPEST)
    }

    fn token(&mut self, token: Token<'_>) {
        match (std::mem::replace(&mut self.at, At::Any), token) {
            (At::Name(to), Token::Word(b"only" | b"table" | b"lateral")) => self.at = At::Name(to),
            (At::Name(Use::Read), Token::Word(b"select" | b"with" | b"values")) => self.other(token),
            (At::Name(to), Token::Word(word)) => {
                self.name.clear();
                self.name.extend(word.iter().map(u8::to_ascii_lowercase));
                self.at = At::After(to);
            }
            (At::Name(_), Token::Unicode) => (self.found)(Use::Unseen, b""),
            (At::Name(to), Token::Other(b'(')) => {
                self.other(token);
                if to == Use::Read {
                    self.at = At::Name(to);
                }
            }
            (At::After(to), Token::Other(b'.')) => self.at = At::Name(to),
            (At::After(to), _) => {
                (self.found)(to, &self.name);
                self.other(token);
            }
            _ => self.other(token),
        }
    }

    fn other(&mut self, token: Token<'_>) {
        let before = std::mem::replace(&mut self.before, Before::Other);
        match token {
            Token::Word(word) => self.word(word, before),
            Token::Other(b';') => {
                (self.first, self.truncates) = (First::Start, false);
                (self.depth, self.lists, self.calls) = (0, 0, 0);
            }
            Token::Other(b'(') => {
                self.depth += 1;
                if self.depth > DEEPEST {
                    (self.found)(Use::Unseen, b"");
                }
                self.lists &= !self.bit();
                self.calls &= !self.bit();
                if before == Before::Call {
                    self.calls |= self.bit();
                }
            }
            Token::Other(b')') => self.depth = self.depth.saturating_sub(1),
            Token::Other(b',') if self.truncates => self.at = At::Name(Use::Write),
            Token::Other(b',') if self.lists & self.bit() != 0 => self.at = At::Name(Use::Read),
            _ => {}
        }
    }

    fn word(&mut self, word: &[u8], before: Before) {
        match std::mem::replace(&mut self.first, First::Past) {
            First::Start => match word {
                b"truncate" => {
                    self.truncates = true;
                    self.at = At::Name(Use::Write);
                    return;
                }
                b"copy" => {
                    self.at = At::Name(Use::Write);
                    return;
                }
                b"create" => {
                    self.first = First::Create;
                    return;
                }
                b"commit" => {
                    self.first = First::Commit;
                    return;
                }
                b"alter" | b"drop" | b"refresh" | b"call" | b"do" | b"execute" | b"import" | b"grant"
                | b"revoke" | b"reassign" => {
                    (self.found)(Use::Unseen, b"");
                    return;
                }
                _ => {}
            },
            // What is the session's own is nobody else's business.
            First::Create if !matches!(word, b"temp" | b"temporary" | b"local" | b"global") => {
                (self.found)(Use::Unseen, b"");
            }
            First::Commit if word == b"prepared" => (self.found)(Use::Unseen, b""),
            _ => {}
        }
        let bit = self.bit();
        match word {
            b"from" if before == Before::Delete => self.at = At::Name(Use::Write),
            b"from" if before == Before::Distinct || self.calls & bit != 0 => {}
            b"from" => {
                self.lists |= bit;
                self.at = At::Name(Use::Read);
            }
            b"join" => self.at = At::Name(Use::Read),
            b"into" => self.at = At::Name(Use::Write),
            b"update" if before != Before::Clause => self.at = At::Name(Use::Write),
            b"delete" => self.before = Before::Delete,
            b"key" | b"do" => self.before = Before::Clause,
            b"for" => {
                self.lists &= !bit;
                self.before = Before::Clause;
            }
            b"distinct" => self.before = Before::Distinct,
            b"extract" | b"trim" | b"substring" | b"overlay" => self.before = Before::Call,
            b"select" => {
                self.lists &= !bit;
                self.calls &= !bit;
            }
            b"where" | b"group" | b"order" | b"having" | b"limit" | b"offset" | b"union" | b"intersect"
            | b"except" | b"window" | b"fetch" | b"returning" | b"set" => self.lists &= !bit,
            _ => {}
        }
    }
}

/// The tables that a query reads; `None` when that cannot be seen.
pub(super) fn reads(text: &[u8], escapes: bool) -> Option<Vec<Box<str>>> {
    let (mut names, mut seen) = (Vec::new(), true);
    tables(text, escapes, |to, name| match to {
        Use::Read => names.push(Box::from(&*String::from_utf8_lossy(name))),
        Use::Write | Use::Unseen => seen = false,
    });
    names.sort_unstable();
    names.dedup();
    seen.then_some(names)
}

/// What a client's transaction may have changed.
#[derive(Debug, Default)]
pub struct Writes {
    tables: Vec<Box<str>>,
    all: bool,
    missed: bool,
}

impl Writes {
    /// Of a transaction of which something may have passed unseen.
    pub(super) fn from_the_middle() -> Self {
        Self { missed: true, ..Self::default() }
    }

    /// Takes in a text.
    pub(crate) fn look(&mut self, text: &[u8], escapes: bool) {
        tables(text, escapes, |to, name| match to {
            Use::Read => {}
            Use::Unseen => self.all = true,
            Use::Write if self.tables.len() >= TABLES => self.all = true,
            Use::Write => {
                let name = String::from_utf8_lossy(name);
                if !self.tables.iter().any(|known| **known == *name) {
                    self.tables.push(Box::from(&*name));
                }
            }
        });
    }

    /// Something that cannot be looked at was carried out.
    pub(super) fn everything(&mut self) {
        self.all = true;
    }

    /// The tables, in lower case and without schemas; `None` when it may have been any table. `changed`: by the tags of its commands
    /// something was.
    pub fn tables(&self, changed: bool) -> Option<&[Box<str>]> {
        (!(self.all || self.missed && changed)).then_some(&*self.tables)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(text: &str) -> (Vec<String>, Vec<String>, bool) {
        let (mut read, mut written, mut unseen) = (Vec::new(), Vec::new(), false);
        tables(text.as_bytes(), false, |to, name| {
            let name = String::from_utf8(name.to_vec()).unwrap();
            match to {
                Use::Read => read.push(name),
                Use::Write => written.push(name),
                Use::Unseen => unseen = true,
            }
        });
        (read, written, unseen)
    }

    #[test]
    fn tables_that_are_read_are_found() {
        for (text, expected) in [
            ("SELECT 1", &[][..]),
            ("SELECT * FROM t", &["t"]),
            ("select a, b from only public.t as x, \"U\" y where a in (1, 2) order by a, b", &["t", "u"]),
            ("SELECT * FROM a JOIN b USING (id) LEFT JOIN s.c ON a.x = c.x, d", &["a", "b", "c", "d"]),
            ("SELECT (SELECT max(x) FROM a), b FROM (SELECT 1, 2 FROM c, e) q, d", &["a", "c", "e", "d"]),
            ("SELECT * FROM (a JOIN b ON true)", &["a", "b"]),
            ("SELECT extract(year FROM at), x IS DISTINCT FROM y FROM t", &["t"]),
            ("SELECT substring((SELECT x FROM u) FROM 2) FROM t -- FROM v", &["u", "t"]),
            ("SELECT 'FROM a' FROM t UNION SELECT x, y FROM u GROUP BY a, b", &["t", "u"]),
            ("SELECT * FROM t FOR UPDATE", &["t"]),
        ] {
            let (read, written, unseen) = of(text);
            assert_eq!(read, expected, "{text}");
            assert!(written.is_empty() && !unseen, "{text}");
        }
        assert_eq!(reads(b"SELECT * FROM b, a, b", false), Some(vec!["a".into(), "b".into()]));
        assert_eq!(reads(b"SELECT * FROM U&\"\\0061\"", false), None);
        assert_eq!(reads(b"SELECT * INTO u FROM t", false), None);
    }

    #[test]
    fn tables_that_are_changed_are_found() {
        for (text, expected) in [
            ("INSERT INTO public.t (a) VALUES (1) ON CONFLICT DO UPDATE SET a = 2", &["t"][..]),
            ("UPDATE ONLY t SET a = 1 FROM u", &["t"]),
            ("DELETE FROM t USING u", &["t"]),
            ("WITH x AS (DELETE FROM t RETURNING 1) INSERT INTO u SELECT * FROM x", &["t", "u"]),
            ("TRUNCATE TABLE a, s.b RESTART IDENTITY", &["a", "b"]),
            ("COPY t (a, b) FROM STDIN", &["t"]),
            ("MERGE INTO t USING u ON true WHEN MATCHED THEN DELETE", &["t"]),
            ("BEGIN; UPDATE t SET a = 1; COMMIT", &["t"]),
            ("SELECT * FROM t FOR NO KEY UPDATE", &[]),
            ("EXPLAIN ANALYZE UPDATE t SET a = 1", &["t"]),
        ] {
            let (_, written, unseen) = of(text);
            assert_eq!(written, expected, "{text}");
            assert!(!unseen, "{text}");
        }
        for text in [
            "DROP TABLE t",
            "/* x */ ALTER TABLE t ADD a int",
            "CREATE TABLE t ()",
            "SELECT 1; CALL f()",
            "DO 'x'",
            "REVOKE SELECT ON t FROM bob",
            "EXECUTE p",
            "COMMIT PREPARED 'x'",
            "UPDATE U&\"\\0061\" SET a = 1",
        ] {
            assert!(of(text).2, "{text}");
        }
        for text in ["CREATE TEMP TABLE t ()", "COMMIT", "BEGIN", "SET x = 1", ""] {
            assert!(!of(text).2, "{text}");
        }
        let mut writes = Writes::default();
        (0..=TABLES).for_each(|n| writes.look(format!("UPDATE t{n} SET a = 1").as_bytes(), false));
        assert_eq!(writes.tables(false), None, "too many to be told apart");
        let middle = Writes::from_the_middle();
        assert_eq!((middle.tables(true), middle.tables(false)), (None, Some(&[][..])));
    }

    proptest! {
        #[test]
        fn any_bytes_are_looked_at(bytes in proptest::collection::vec(any::<u8>(), 0..300), escapes: bool) {
            let _ = reads(&bytes, escapes);
            Writes::default().look(&bytes, escapes);
        }

        #[test]
        fn a_table_is_found_wherever_it_stands(
            before in "(a, |\\(select x from y\\) z, |b join |s\\.){0,3}", after in "( where a = 1| q| order by 1)?",
        ) {
            let before = before.trim_end_matches("s.");
            let text = format!("select * from {before}needle{after}");
            prop_assert!(of(&text).0.iter().any(|name| name == "needle"), "{}", text);
        }
    }
}
