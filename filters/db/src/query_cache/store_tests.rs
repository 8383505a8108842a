//! The cache without a server: times are arguments.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::store::{Entry, LONGEST, Look, QueryCacheState};
use super::{Asked, CacheRule, QueryCache};
use crate::session::{Client, Question, Work, Writes};
use crate::wire::backend::Status;
use crate::wire::build;

const A: &str = "SELECT a FROM t, u";
const B: &str = "SELECT b FROM u";

fn settings(change: impl FnOnce(&mut QueryCache)) -> QueryCache {
    let rule = |name: &str, statement: &str| CacheRule {
        name: name.to_owned(),
        statement: Some(statement.to_owned()),
        ..CacheRule::default()
    };
    let mut settings = QueryCache { rules: vec![rule("a", A), rule("b", B)], ..QueryCache::default() };
    change(&mut settings);
    settings
}

fn cache() -> Arc<QueryCacheState> {
    Arc::new(QueryCacheState::new(&settings(|_| {})))
}

fn question(text: &str, who: &str) -> Question {
    let mut batch = BytesMut::new();
    build::query(&mut batch, text.as_bytes());
    Client::new(Arc::default()).question(&batch, &[who.as_bytes()]).unwrap()
}

/// A query of somebody.
fn asked(cache: &QueryCacheState, text: &str, who: &str) -> Asked {
    let work = Work::of_text(text.as_bytes());
    let named = cache.named(work.fingerprint(), &work).unwrap();
    Asked { question: question(text, who), named }
}

fn reply(rows: usize) -> BytesMut {
    let mut out = BytesMut::new();
    for _ in 0..rows {
        build::message(&mut out, b'D', |out| out.extend_from_slice(&[0; 100]));
    }
    build::command_complete(&mut out, &format!("SELECT {rows}"));
    out.extend_from_slice(&build::ready(Status::Idle));
    out
}

fn fill(cache: &Arc<QueryCacheState>, asked: &Asked, rows: usize, reads: bool, now: Instant) {
    let Look::Ask(filling) = cache.look(asked, None, now) else { panic!("it is there") };
    filling.filled(&reply(rows), reads, now);
}

fn hits(cache: &Arc<QueryCacheState>, asked: &Asked, now: Instant) -> bool {
    matches!(cache.look(asked, None, now), Look::Hit(_))
}

#[test]
fn a_reply_is_given_until_its_time_is_over() {
    let (cache, now) = (cache(), Instant::now());
    let (one, other) = (asked(&cache, A, "ann"), asked(&cache, A, "bob"));
    fill(&cache, &one, 2, false, now);
    let after = |seconds| now + Duration::from_secs(seconds);
    let Look::Hit(hit) = cache.look(&one, None, after(9)) else { panic!("nothing") };
    assert_eq!(hit, reply(2));
    assert!(!hits(&cache, &one, after(10)));
    assert!(!hits(&cache, &other, now), "another user's");
}

#[test]
fn a_session_is_given_nothing_from_before_its_own_changes() {
    let (cache, now) = (cache(), Instant::now());
    let after = |seconds| now + Duration::from_secs(seconds);
    for (reads, changed, expected) in [
        (false, now, true),
        (false, after(1), false),
        (true, now, false),
        (true, now.checked_sub(LONGEST).unwrap(), true),
    ] {
        let asked = asked(&cache, A, &format!("{reads}{changed:?}"));
        fill(&cache, &asked, 1, reads, now);
        let hit = matches!(cache.look(&asked, Some(changed), after(2)), Look::Hit(_));
        assert_eq!(hit, expected, "{reads} {changed:?}");
        assert!(hits(&cache, &asked, after(2)), "others are given it");
    }
}

#[test]
fn one_asks_and_others_wait_for_its_end_whatever_that_is() {
    let (cache, now) = (cache(), Instant::now());
    let asked = asked(&cache, A, "ann");
    let (ask, wait) = (
        || match cache.look(&asked, None, now) {
            Look::Ask(filling) => filling,
            other => panic!("{other:?}"),
        },
        || match cache.look(&asked, None, now) {
            Look::Wait(flight) => flight,
            other => panic!("{other:?}"),
        },
    );
    // It goes without a word: another one leads.
    let (filling, waiting) = (ask(), wait());
    assert_eq!(waiting.has_changed().ok(), Some(false));
    drop(filling);
    assert!(waiting.has_changed().is_err());
    // Its reply is not kept, which is said at once.
    let (filling, waiting) = (ask(), wait());
    filling.filled(b"no reply", false, now);
    assert_eq!(waiting.has_changed().ok(), Some(true));
    drop(filling);
    let (filling, waiting) = (ask(), wait());
    filling.too_large();
    assert_eq!(waiting.has_changed().ok(), Some(true));
    drop(filling);
    // It is kept.
    let (filling, waiting) = (ask(), wait());
    filling.filled(&reply(1), false, now);
    drop(filling);
    assert!(waiting.has_changed().is_err() && hits(&cache, &asked, now));
}

#[test]
fn a_reply_that_comes_too_late_or_is_too_long_is_not_kept() {
    let now = Instant::now();
    let cache = Arc::new(QueryCacheState::new(&settings(|settings| {
        settings.max_reply = qudag_filter_api::ByteSize(500);
        settings.rules[1].max_reply = Some(qudag_filter_api::ByteSize(200));
    })));
    let (a, b) = (asked(&cache, A, "ann"), asked(&cache, B, "ann"));
    for (asked, rows, late, expected) in
        [(&a, 5, 0, false), (&b, 2, 0, false), (&a, 2, 10, false), (&a, 2, 9, true), (&b, 1, 0, true)]
    {
        let Look::Ask(filling) = cache.look(asked, None, now) else { panic!("it is there") };
        filling.filled(&reply(rows), false, now + Duration::from_secs(late));
        drop(filling);
        assert_eq!(hits(&cache, asked, now), expected, "{rows} rows after {late} s");
    }
}

#[test]
fn flushes_are_by_rule_and_table_and_reach_what_is_on_its_way() {
    let (cache, now) = (cache(), Instant::now());
    let (a, b) = (asked(&cache, A, "ann"), asked(&cache, B, "ann"));
    let refill = || {
        for asked in [&a, &b] {
            if !hits(&cache, asked, now) {
                fill(&cache, asked, 1, false, now);
            }
        }
    };
    let left = || (hits(&cache, &a, now), hits(&cache, &b, now));
    refill();
    assert_eq!((cache.flush_rule("a"), left()), (Some(1), (false, true)));
    refill();
    assert_eq!((cache.flush_table("public.T"), left()), (1, (false, true)));
    refill();
    assert_eq!((cache.flush_table("u"), left()), (2, (false, false)));
    refill();
    assert_eq!((cache.flush_rule("c"), cache.flush_table("v"), left()), (None, 0, (true, true)));
    assert_eq!((cache.flush(), left()), (2, (false, false)));
    assert_eq!(cache.stats().entries, 0);

    let flush: [&dyn Fn() -> usize; 4] =
        [&|| cache.flush(), &|| cache.flush_rule("a").unwrap(), &|| cache.flush_table("t"), &|| {
            cache.wrote(&written("UPDATE t SET a = 1"), true);
            0
        }];
    for (n, flush) in flush.iter().enumerate() {
        let Look::Ask(filling) = cache.look(&a, None, now) else { panic!("{n}") };
        assert_eq!(flush(), 0, "nothing is there yet");
        filling.filled(&reply(1), false, now);
        drop(filling);
        assert!(!hits(&cache, &a, now), "{n}");
    }
}

/// What a client has written that has sent this.
fn written(text: &str) -> Writes {
    let mut writes = Writes::default();
    writes.look(text.as_bytes(), false);
    writes
}

#[test]
fn what_is_written_is_forgotten() {
    let (cache, now) = (cache(), Instant::now());
    for (text, expected) in [
        ("INSERT INTO public.t VALUES (1)", (false, true)),
        ("UPDATE u SET b = 1", (false, false)),
        ("UPDATE v SET b = 1", (true, true)),
        ("WITH x AS (DELETE FROM t RETURNING 1) SELECT * FROM x", (false, true)),
        ("DROP TABLE v", (false, false)),
        ("SELECT 1", (true, true)),
    ] {
        let (a, b) = (asked(&cache, A, text), asked(&cache, B, text));
        fill(&cache, &a, 1, false, now);
        fill(&cache, &b, 1, false, now);
        cache.wrote(&written(text), true);
        assert_eq!((hits(&cache, &a, now), hits(&cache, &b, now)), expected, "{text}");
    }
}

#[test]
fn the_memory_of_all_and_of_a_rule_is_bounded() {
    let now = Instant::now();
    let cache = Arc::new(QueryCacheState::new(&settings(|settings| {
        settings.max_bytes = qudag_filter_api::ByteSize(64 << 10);
        settings.rules[1].max_bytes = Some(qudag_filter_api::ByteSize(4 << 10));
    })));
    for n in 0..200 {
        for text in [A, B] {
            let asked = asked(&cache, text, &n.to_string());
            // What was evicted is asked for again.
            if let Look::Ask(filling) = cache.look(&asked, None, now) {
                filling.filled(&reply(8), false, now);
            }
        }
    }
    let stats = cache.stats();
    assert!(stats.bytes <= 64 << 10 && stats.bytes > 32 << 10, "{stats:?}");
    assert!((1..=3).contains(&stats.rules[1].entries) && stats.rules[1].bytes <= 4 << 10, "{stats:?}");
    assert_eq!(stats.entries, stats.rules[0].entries + stats.rules[1].entries);
    assert_eq!((cache.flush(), cache.stats().bytes), (usize::try_from(stats.entries).unwrap(), 0));
}

#[test]
fn a_damaged_reply_is_not_given() {
    let (cache, now) = (cache(), Instant::now());
    let asked = asked(&cache, A, "ann");
    let key = asked.question.key();
    let entry = |change: &dyn Fn(&mut Entry)| {
        let named = Arc::clone(&asked.named);
        let (reply, stamp) = (reply(1).freeze(), named.stamp());
        let mut entry = Entry { reply, begun: now, reads: false, stamp, named, checksum: 0 };
        entry.checksum = entry.sum(key);
        change(&mut entry);
        cache.entries.insert(key.clone(), Arc::new(entry));
        // What the accounts say is not looked at here.
        asked.named.rule.entries.fetch_add(1, Relaxed);
        asked.named.rule.bytes.fetch_add(10_000, Relaxed);
        hits(&cache, &asked, now)
    };
    assert!(entry(&|_| {}));
    for bit in 0..reply(1).len() * 8 {
        let damage = |entry: &mut Entry| {
            let mut damaged = entry.reply.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            entry.reply = Bytes::from(damaged);
        };
        assert!(!entry(&damage), "bit {bit}");
    }
    assert!(!entry(&|entry| entry.checksum ^= 1));
    assert!(!entry(&|entry| entry.reads = true));
    assert!(!entry(&|entry| entry.begun += Duration::from_secs(1)));
    assert!(!entry(&|entry| entry.stamp ^= 1 << 40));
    // Somebody else's, under this key.
    let other = question(A, "bob");
    assert!(!entry(&|entry| entry.checksum = entry.sum(other.key())));
}

#[test]
fn what_one_cache_has_named_is_not_another_ones() {
    let (one, other) = (cache(), cache());
    let asked = asked(&one, A, "ann");
    assert!(one.knows(&asked) && !other.knows(&asked));
}

/// Something that happens to a cache.
#[derive(Clone, Debug)]
enum Step {
    Ask(usize, usize),
    Write(usize),
    Pass(u64),
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whoever is given a reply is given one for its own question, not older than its time, and from after the last write.
    #[test]
    fn replies_are_never_stale_nor_somebody_elses(steps in proptest::collection::vec(
        prop_oneof![
            (0..2usize, 0..3usize).prop_map(|(query, who)| Step::Ask(query, who)),
            (0..3usize).prop_map(Step::Write),
            (0..6u64).prop_map(Step::Pass),
        ], 1..60,
    )) {
        let cache = cache();
        let begin = Instant::now();
        let mut now = begin;
        // The version of the rows that each query returns, and of each reply that was given to somebody: when, and which.
        let mut versions = [0usize; 2];
        let mut given = std::collections::HashMap::new();
        for step in steps {
            match step {
                Step::Pass(seconds) => now += Duration::from_secs(seconds),
                Step::Write(table) => {
                    let name = ["t", "u", "v"][table];
                    if table < 2 { versions[0] += 1; }
                    if table == 1 { versions[1] += 1; }
                    cache.wrote(&written(&format!("DELETE FROM {name}")), true);
                }
                Step::Ask(query, who) => {
                    let asked = asked(&cache, [A, B][query], &who.to_string());
                    // A reply that nobody else has: so many rows.
                    let rows = versions[query] * 6 + query * 3 + who;
                    match cache.look(&asked, None, now) {
                        Look::Hit(hit) => {
                            prop_assert_eq!(&hit[..], &reply(rows)[..]);
                            let since: Instant = given[&(query, who)];
                            prop_assert!(now - since < Duration::from_secs(10));
                        }
                        Look::Ask(filling) => {
                            filling.filled(&reply(rows), false, now);
                            given.insert((query, who), now);
                        }
                        Look::Wait(_) => prop_assert!(false, "nobody asks"),
                    }
                }
            }
        }
    }
}
