//! Which rule a query is of, and what makes its replies invalid.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::CacheRule;
use crate::session::{Fingerprint, Work};

/// How many statements and tables are remembered.
const STATEMENTS: usize = 10_000;
const TABLES: usize = 10_000;

/// Counts flushes of one thing. What was asked for before a flush is invalid after it, also when it arrives after it.
type Mark = Arc<AtomicU64>;

/// A rule, and what became of it.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) settings: CacheRule,
    flushes: Mark,
    pub(super) entries: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) hits: AtomicU64,
    pub(super) misses: AtomicU64,
    pub(super) stored: AtomicU64,
}

/// A statement that a rule names.
#[derive(Debug)]
pub(crate) struct Named {
    pub(super) rule: Arc<Rule>,
    /// Of which the cache is, by its number.
    pub(super) of: u64,
    /// The tables of the rule, and those that the text names.
    tables: Box<[Box<str>]>,
    marks: Box<[Mark]>,
}

impl Named {
    /// Another number after each flush that it is affected by, and the same otherwise: marks only grow.
    pub(super) fn stamp(&self) -> u64 {
        self.marks.iter().map(|mark| mark.load(SeqCst)).fold(0, u64::wrapping_add)
    }

    pub(super) fn is_of(&self, table: &str) -> bool {
        self.tables.iter().any(|known| **known == *table)
    }
}

/// A statement that was looked at, by the digest of its text.
type Known = (u64, Arc<Named>);

/// The rules of a cache.
pub(super) struct Rules {
    rules: Vec<Arc<Rule>>,
    by_fingerprint: HashMap<Fingerprint, Arc<Rule>>,
    /// With the digest of the text: a user must not decide what becomes of another's statement by one with its fingerprint.
    statements: RwLock<HashMap<Fingerprint, Option<Known>>>,
    tables: Mutex<HashMap<Box<str>, Mark>>,
    all: Mark,
    number: u64,
    seed: u64,
}

impl Rules {
    pub(super) fn new(settings: &[CacheRule], number: u64) -> Self {
        let rule = |settings: &CacheRule| {
            Arc::new(Rule {
                settings: settings.clone(),
                flushes: Mark::default(),
                entries: AtomicU64::new(0),
                bytes: AtomicU64::new(0),
                hits: AtomicU64::new(0),
                misses: AtomicU64::new(0),
                stored: AtomicU64::new(0),
            })
        };
        let rules: Vec<_> = settings.iter().map(rule).collect();
        let by_fingerprint =
            rules.iter().filter_map(|rule| Some((rule.settings.queries()?, Arc::clone(rule)))).collect();
        Self {
            rules,
            by_fingerprint,
            statements: RwLock::default(),
            tables: Mutex::default(),
            all: Mark::default(),
            number,
            seed: fastrand::u64(..),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Rule>> {
        self.rules.iter()
    }

    /// A statement as a rule names it: the rule for just this one, otherwise the first of the others that fits; `None` where there is none,
    /// and for what is no plain SELECT.
    pub(super) fn named(&self, statement: Fingerprint, work: &Work<'_>) -> Option<Arc<Named>> {
        let known = self.statements.read().unwrap_or_else(PoisonError::into_inner);
        let digest = match known.get(&statement) {
            Some(None) => return None,
            Some(Some((known, named))) => {
                let digest = work.digest(self.seed);
                if digest == *known {
                    return Some(Arc::clone(named));
                }
                digest
            }
            None => work.digest(self.seed),
        };
        drop(known);
        let named = self.find(statement, work).map(Arc::new);
        let mut known = self.statements.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= STATEMENTS {
            known.clear();
        }
        known.insert(statement, named.clone().map(|named| (digest, named)));
        named
    }

    fn find(&self, statement: Fingerprint, work: &Work<'_>) -> Option<Named> {
        let reads = work.reads();
        let fits = |rule: &&Arc<Rule>| {
            let CacheRule { pattern, reads: all_of, .. } = &rule.settings;
            let like = |pattern: &String| {
                let (pattern, shape) =
                    (pattern.to_ascii_lowercase(), work.whole_shape().to_ascii_lowercase());
                matches(pattern.as_bytes(), shape.as_bytes())
            };
            let only_from = |reads: &Vec<Box<str>>| {
                let listed = |table: &str| all_of.iter().any(|known| plain(known) == table);
                !reads.is_empty() && reads.iter().all(|table| listed(table))
            };
            pattern.as_ref().is_some_and(like) || !all_of.is_empty() && reads.as_ref().is_some_and(only_from)
        };
        let rule = self.by_fingerprint.get(&statement).or_else(|| self.rules.iter().find(fits))?;
        let CacheRule { tables, reads: listed, functions, .. } = &rule.settings;
        let vouched = |word: &[u8]| functions.iter().any(|known| plain(known).as_bytes() == word);
        if !work.is_plain_query(vouched) {
            return None;
        }
        let mut names: Vec<Box<str>> =
            tables.iter().chain(listed).map(|name| plain(name).into()).chain(reads?).collect();
        names.sort_unstable();
        names.dedup();
        let mut marks = vec![Arc::clone(&self.all), Arc::clone(&rule.flushes)];
        let mut known = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() + names.len() > TABLES {
            // What was read from tables that nobody can name any more must not stay.
            known.clear();
            self.all.fetch_add(1, SeqCst);
            self.statements.write().unwrap_or_else(PoisonError::into_inner).clear();
        }
        marks.extend(names.iter().map(|name| Arc::clone(known.entry(name.clone()).or_default())));
        Some(Named { rule: Arc::clone(rule), of: self.number, tables: names.into(), marks: marks.into() })
    }

    /// Makes everything invalid that was asked for before.
    pub(super) fn flush_all(&self) {
        self.all.fetch_add(1, SeqCst);
    }

    /// The same for what is of one rule; `false` when there is none of this name.
    pub(super) fn flush_rule(&self, name: &str) -> bool {
        let rule = self.rules.iter().find(|rule| rule.settings.name == name);
        rule.map(|rule| rule.flushes.fetch_add(1, SeqCst)).is_some()
    }

    /// The same for what was read from a table, by its [plain] name; whether anything ever was.
    pub(super) fn flush_table(&self, name: &str) -> bool {
        let known = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(name).map(|mark| mark.fetch_add(1, SeqCst)).is_some()
    }
}

impl Rule {
    pub(super) fn count(count: &AtomicU64) {
        count.fetch_add(1, Relaxed);
    }
}

/// A table's or function's name as texts are compared with it: in lower case, without its schema and quotes.
pub(super) fn plain(name: &str) -> String {
    let last = name.rsplit('.').next().unwrap_or(name);
    last.trim_matches('"').to_ascii_lowercase()
}

/// Whether a text is like a pattern, in which `*` stands for anything.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Behind the last `*`, and the place in the text up to which it goes.
    let mut star: Option<(usize, usize)> = None;
    while let Some(byte) = text.get(t) {
        match pattern.get(p) {
            Some(b'*') => {
                p += 1;
                star = Some((p, t));
            }
            Some(known) if known == byte => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((behind, upto)) => {
                    (p, t) = (behind, upto + 1);
                    star = Some((behind, upto + 1));
                }
                None => return false,
            },
        }
    }
    pattern.get(p..).unwrap_or_default().iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules(settings: &str) -> Rules {
        let rules: Vec<CacheRule> = serde_json::from_str(settings).unwrap();
        Rules::new(&rules, 1)
    }

    fn rule_of(rules: &Rules, text: &str) -> Option<String> {
        let work = Work::of_text(text.as_bytes());
        Some(rules.named(work.fingerprint(), &work)?.rule.settings.name.clone())
    }

    #[test]
    fn a_query_is_of_the_rule_that_names_it() {
        let rules = rules(
            r#"[{"name": "all", "pattern": "select * from prices*"},
                {"name": "one", "statement": "SELECT price FROM prices WHERE id = 0"},
                {"name": "reads", "reads": ["public.countries", "Cities"]},
                {"name": "f", "statement": "select f(1), g(2)", "functions": ["shop.F"]}]"#,
        );
        for (text, expected) in [
            ("SELECT  price FROM prices WHERE id=7", Some("one")),
            ("SELECT * FROM prices WHERE id = 7", Some("all")),
            ("SELECT * FROM prices, secrets", Some("all")),
            ("SELECT name FROM countries JOIN geo.cities USING (id)", Some("reads")),
            ("SELECT name FROM countries JOIN people USING (id)", None),
            ("SELECT name FROM people", None),
            ("SELECT 1", None),
            ("SELECT name FROM countries FOR UPDATE", None),
            ("SELECT nextval('s') FROM countries", None),
            ("WITH x AS (DELETE FROM countries RETURNING 1) SELECT * FROM countries", None),
            ("DELETE FROM countries", None),
            ("SELECT f(1), g(2)", None),
        ] {
            assert_eq!(rule_of(&rules, text).as_deref(), expected, "{text}");
            assert_eq!(rule_of(&rules, text).as_deref(), expected, "the second time: {text}");
        }
    }

    #[test]
    fn a_statement_is_not_taken_for_another_with_its_fingerprint() {
        let rules = rules(r#"[{"name": "a", "pattern": "select * from t"}, {"name": "b", "reads": ["u"]}]"#);
        let work = |text: &'static str| Work::of_text(text.as_bytes());
        let one = work("SELECT x FROM t").fingerprint();
        for (text, expected) in [
            ("SELECT x FROM t", Some("a")),
            ("SELECT x FROM u", Some("b")),
            ("SELECT y FROM t", Some("a")),
            ("DELETE FROM t", None),
        ] {
            let named = rules.named(one, &work(text));
            assert_eq!(named.map(|named| named.rule.settings.name.clone()).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_stamp_changes_by_what_affects_it() {
        let rules = rules(
            r#"[{"name": "a", "statement": "SELECT * FROM t", "tables": ["public.V"]},
                {"name": "b", "statement": "SELECT * FROM u"},
                {"name": "c", "pattern": "select ? from *"}]"#,
        );
        let named = |text: &str| {
            let work = Work::of_text(text.as_bytes());
            rules.named(work.fingerprint(), &work).unwrap()
        };
        let (a, b) = (named("SELECT * FROM t"), named("SELECT * FROM u"));
        let mut stamps = (a.stamp(), b.stamp());
        let mut changed = |what: bool| {
            assert!(what);
            let now = (a.stamp(), b.stamp());
            let before = std::mem::replace(&mut stamps, now);
            (before.0 != now.0, before.1 != now.1)
        };
        assert_eq!(changed(rules.flush_rule("a")), (true, false));
        assert_eq!(changed(rules.flush_table("u")), (false, true));
        assert_eq!(changed(rules.flush_table("v")), (true, false));
        assert_eq!(changed(rules.flush_table("t")), (true, false));
        rules.flush_all();
        assert_eq!(changed(true), (true, true));
        assert!(!rules.flush_rule("d") && !rules.flush_table("w"));
        assert_eq!(changed(true), (false, false));
        // However many statements and tables there are, what is known of them is bounded.
        for n in 0..=TABLES {
            named(&format!("SELECT 1 FROM t{n}"));
        }
        assert!(rules.statements.read().unwrap().len() <= STATEMENTS);
        assert!(rules.tables.lock().unwrap().len() <= TABLES);
        assert_eq!(changed(true), (true, true), "what was forgotten cannot be flushed any more");
    }

    #[test]
    fn names_are_compared_without_their_schemas() {
        for name in ["t", "T", "public.t", "\"t\"", "\"public\".\"T\""] {
            assert_eq!(plain(name), "t");
        }
    }

    proptest! {
        #[test]
        fn patterns_are_like_regular_expressions(pattern in "[ab*]{0,8}", text in "[ab]{0,8}") {
            let mut expected = vec![true];
            expected.resize(text.len() + 1, false);
            for p in pattern.bytes() {
                let mut next = vec![false; text.len() + 1];
                for t in 0..=text.len() {
                    next[t] = match p {
                        b'*' => expected[t] || t > 0 && next[t - 1],
                        _ => t > 0 && expected[t - 1] && text.as_bytes()[t - 1] == p,
                    };
                }
                expected = next;
            }
            prop_assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), expected[text.len()]);
        }
    }
}
