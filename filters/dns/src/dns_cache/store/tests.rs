//! The two levels, and what flushes do to them.

use std::time::Duration;

use super::*;
use crate::testing::{query_wire, reply_wire};
use crate::wire::{rcode, rtype};
use crate::{DnsQuery, Transport};

const LIMITS: Limits =
    Limits { max_ttl: HARD_LIMIT, min_ttl: Duration::ZERO, negative_ttl: Duration::from_secs(30) };

fn made(name: &str, qtype: u16) -> (Key, Entry) {
    let query = query_wire(name, qtype, None);
    let reply = reply_wire(&query, rcode::NOERROR, &[(qtype, 60, &[192, 0, 2, 1])]).into();
    let client = ([127, 0, 0, 1], 1).into();
    let key = Key::of(&DnsQuery::parse(query.into(), client, Transport::Udp).unwrap()).unwrap();
    let entry = Entry::new(&key, &reply, Instant::now()).unwrap();
    (key, entry)
}

fn filled() -> CacheState {
    let cache = CacheState::new(1 << 20);
    for name in ["a.example", "b.example", "example", "badexample"] {
        for qtype in [rtype::A, rtype::AAAA] {
            let (key, entry) = made(name, qtype);
            cache.insert(key, entry, 0);
        }
    }
    cache
}

#[test]
fn a_flush_takes_what_it_names_and_nothing_else() {
    for (selector, gone) in [
        (FlushSelector::All, 8),
        (FlushSelector::name("A.Example.").unwrap(), 2),
        (FlushSelector::suffix("example").unwrap(), 6),
        (FlushSelector::suffix("*.example").unwrap(), 6),
        (FlushSelector::rtype("aaaa").unwrap(), 4),
        (FlushSelector::rtype("TYPE1").unwrap(), 4),
        (FlushSelector::rtype("MX").unwrap(), 0),
    ] {
        let cache = filled();
        assert_eq!(cache.flush(&selector), gone, "{selector:?}");
        assert_eq!(cache.stats().entries, 8 - gone, "{selector:?}");
        for name in ["a.example", "b.example", "example", "badexample"] {
            let (key, _) = made(name, rtype::A);
            assert_eq!(cache.peek(&key, &LIMITS, Instant::now()).is_none(), selector.matches(&key));
        }
    }
    assert!(FlushSelector::rtype("NOSUCH").is_err());
    assert!(FlushSelector::name("a..b").is_err());
}

#[test]
fn what_was_asked_for_before_a_flush_is_not_stored_after_it() {
    let cache = CacheState::new(1 << 20);
    let (key, entry) = made("a.example", rtype::A);
    let before = cache.epoch();
    cache.flush(&FlushSelector::name("other.example").unwrap());
    cache.insert(key.clone(), entry.clone(), before);
    assert_eq!(cache.peek(&key, &LIMITS, Instant::now()), None);
    cache.insert(key.clone(), entry, cache.epoch());
    assert!(cache.peek(&key, &LIMITS, Instant::now()).is_some());
}

#[test]
fn memory_is_bounded_and_evictions_are_counted() {
    let cache = CacheState::new(64 << 10);
    for i in 0..2_000 {
        let (key, entry) = made(&format!("n{i}.example"), rtype::A);
        cache.insert(key, entry, 0);
    }
    let stats = cache.stats();
    assert!(stats.bytes <= 64 << 10, "{stats:?}");
    assert!(stats.entries > 50 && stats.evictions == stats.inserts - stats.entries, "{stats:?}");
}

#[test]
fn another_size_keeps_the_entries_and_the_counts() {
    let cache = filled();
    let (key, _) = made("a.example", rtype::A);
    assert!(cache.get(&key, &LIMITS, Instant::now()).is_some());
    let larger = cache.resized(2 << 20);
    let stats = larger.stats();
    assert_eq!((stats.entries, stats.hits, stats.max_bytes), (8, 1, 2 << 20));
    assert!(larger.peek(&key, &LIMITS, Instant::now()).is_some());
}
