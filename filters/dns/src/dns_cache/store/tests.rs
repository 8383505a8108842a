//! The two levels, and what flushes do to them.

use std::sync::atomic::AtomicUsize;

use super::*;
use crate::dns_cache::rules::NEGATIVE_LIMIT;
use crate::testing::{query_wire, reply_wire};
use crate::wire::{parse_query, rcode, rtype};

const LIMITS: Limits = Limits {
    max_ttl: HARD_LIMIT,
    min_ttl: Duration::ZERO,
    negative_ttl: NEGATIVE_LIMIT,
    soft_ttl: Duration::from_secs(240),
    serve_stale: true,
};

fn key(name: &str, qtype: u16) -> Key {
    Key::of(&parse_query(&query_wire(name, qtype, None)).unwrap()).unwrap()
}

/// An entry whose address ends in `last`.
fn made(name: &str, qtype: u16, ttl: u32, last: u8, epoch: u64) -> Entry {
    let query = query_wire(name, qtype, None);
    let reply = reply_wire(&query, rcode::NOERROR, &[(qtype, ttl, &[192, 0, 2, last])]);
    Entry::new(&key(name, qtype), &reply, Instant::now(), Duration::ZERO, epoch).unwrap()
}

/// An entry for the tests of the parts.
pub(crate) fn entry(name: &str, ttl: u32) -> Entry {
    made(name, rtype::A, ttl, 1, 0)
}

/// The last byte of the address that is served.
fn ask(cache: &CacheState, name: &str, qtype: u16) -> Option<u8> {
    cache.hit(&key(name, qtype), &LIMITS, Instant::now(), |entry, _| *entry.message().last().unwrap())
}

fn filled() -> CacheState {
    let cache = CacheState::new(1 << 20);
    for name in ["a.example", "b.example", "example", "badexample"] {
        for qtype in [rtype::A, rtype::AAAA] {
            assert!(cache.insert(made(name, qtype, 60, 1, 0)));
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
        for name in ["a.example", "b.example", "example", "badexample"] {
            // Into this thread's table.
            assert_eq!(ask(&cache, name, rtype::A), Some(1));
        }
        assert_eq!(cache.flush(&selector), gone, "{selector:?}");
        assert_eq!(cache.stats().entries, 8 - gone, "{selector:?}");
        for name in ["a.example", "b.example", "example", "badexample"] {
            let gone = selector.matches(key(name, rtype::A).bytes());
            assert_eq!(ask(&cache, name, rtype::A).is_none(), gone, "{selector:?} {name}");
            assert_eq!(cache.find(key(name, rtype::A).bytes()).is_none(), gone);
        }
    }
    assert!(FlushSelector::rtype("NOSUCH").is_err());
    assert!(FlushSelector::name("a..b").is_err());
}

#[test]
fn what_was_asked_for_before_a_flush_is_not_stored_after_it() {
    let cache = CacheState::new(1 << 20);
    let before = cache.epoch();
    cache.flush(&FlushSelector::name("other.example").unwrap());
    assert!(!cache.insert(made("a.example", rtype::A, 60, 1, before)));
    assert_eq!(ask(&cache, "a.example", rtype::A), None);
    assert!(cache.insert(made("a.example", rtype::A, 60, 1, cache.epoch())));
    assert_eq!(ask(&cache, "a.example", rtype::A), Some(1));
}

#[test]
fn more_flushes_than_are_remembered_take_rather_too_much() {
    let cache = filled();
    for i in 0..1_100 {
        cache.flush(&FlushSelector::name(&format!("n{i}.example")).unwrap());
    }
    assert_eq!(ask(&cache, "a.example", rtype::A), None);
    assert!(cache.insert(made("a.example", rtype::A, 60, 2, cache.epoch())));
    assert_eq!(ask(&cache, "a.example", rtype::A), Some(2));
}

#[test]
fn memory_is_bounded_and_evictions_are_counted() {
    let cache = CacheState::new(64 << 10);
    for i in 0..2_000 {
        cache.insert(made(&format!("n{i}.example"), rtype::A, 60, 1, 0));
    }
    let stats = cache.stats();
    assert!(stats.bytes <= 64 << 10, "{stats:?}");
    assert!(stats.entries > 50 && stats.evictions == stats.inserts - stats.entries, "{stats:?}");
}

#[test]
fn what_is_hit_in_a_thread_s_table_only_is_not_evicted() {
    let cache = CacheState::new(128 << 10);
    cache.insert(made("hot.example", rtype::A, 240, 1, 0));
    let mut lost = 0;
    for i in 0..3_000 {
        for _ in 0..70 {
            lost += usize::from(ask(&cache, "hot.example", rtype::A).is_none());
        }
        cache.insert(made(&format!("cold{i}.example"), rtype::A, 240, 1, 0));
    }
    assert!(cache.stats().evictions > 2_000);
    assert_eq!(lost, 0);
}

#[test]
fn another_size_keeps_the_entries_and_the_counts_and_a_flush_of_either_counts_for_both() {
    let cache = filled();
    assert!(ask(&cache, "a.example", rtype::A).is_some());
    let larger = cache.resized(2 << 20);
    let stats = larger.stats();
    assert_eq!((stats.entries, stats.hits, stats.max_bytes), (8, 1, 2 << 20));
    assert!(ask(&larger, "a.example", rtype::A).is_some());
    cache.flush(&FlushSelector::name("a.example").unwrap());
    assert!(ask(&larger, "a.example", rtype::A).is_none());
    assert!(ask(&larger, "b.example", rtype::A).is_some());
    cache.flush(&FlushSelector::All);
    assert!(ask(&larger, "b.example", rtype::A).is_none());
}

#[test]
fn a_newer_entry_is_served_by_every_thread_at_once() {
    let cache = Arc::new(CacheState::new(1 << 20));
    cache.insert(made("a.example", rtype::A, 60, 0, 0));
    let (latest, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let (cache, latest, stop) = (Arc::clone(&cache), Arc::clone(&latest), Arc::clone(&stop));
            std::thread::spawn(move || {
                // Once more after the last change, however busy the machine is.
                for last in std::iter::repeat_with(|| stop.load(Ordering::SeqCst)) {
                    let least = latest.load(Ordering::SeqCst);
                    let served = ask(&cache, "a.example", rtype::A).unwrap();
                    assert!(usize::from(served) >= least, "{served} after {least}");
                    if last {
                        return;
                    }
                }
            })
        })
        .collect();
    for last in 1..200 {
        cache.insert(made("a.example", rtype::A, 60, last, 0));
        latest.store(last.into(), Ordering::SeqCst);
        std::thread::yield_now();
    }
    stop.store(true, Ordering::SeqCst);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn no_thread_serves_what_was_flushed() {
    let cache = Arc::new(CacheState::new(1 << 20));
    let (flushed, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let (cache, flushed, stop) = (Arc::clone(&cache), Arc::clone(&flushed), Arc::clone(&stop));
            std::thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    let least = flushed.load(Ordering::SeqCst);
                    for name in ["a.example", "b.example"] {
                        let served = ask(&cache, name, rtype::A);
                        assert!(
                            served.is_none_or(|served| usize::from(served) >= least),
                            "{served:?} {least}"
                        );
                    }
                }
            })
        })
        .collect();
    let selectors =
        [FlushSelector::All, FlushSelector::suffix("example").unwrap(), FlushSelector::rtype("A").unwrap()];
    for (round, selector) in (1..=200_u8).zip(selectors.iter().cycle()) {
        for name in ["a.example", "b.example"] {
            cache.insert(made(name, rtype::A, 60, round - 1, cache.epoch()));
        }
        std::thread::yield_now();
        cache.flush(selector);
        flushed.store(round.into(), Ordering::SeqCst);
    }
    stop.store(true, Ordering::SeqCst);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn damage_in_either_level_is_noticed_counted_and_never_served() {
    let cache = CacheState::new(1 << 20);
    let mut damaged = 0;
    let bits = made("a.example", rtype::A, 60, 1, 0).bits();
    for bit in 0..bits {
        cache.insert(made("a.example", rtype::A, 60, 1, 0));
        if bit % 2 == 0 {
            assert_eq!(ask(&cache, "a.example", rtype::A), Some(1));
        }
        assert_eq!(cache.corrupt(|_| bit), 1);
        damaged += 1;
        assert_eq!(ask(&cache, "a.example", rtype::A), None, "bit {bit}");
        assert_eq!(cache.stats().checksum_failures, damaged, "bit {bit}");
        assert_eq!(cache.stats().entries, 0, "it is thrown away");
    }
    for bit in 0..bits {
        cache.insert(made("a.example", rtype::A, 60, 1, 0));
        assert_eq!(ask(&cache, "a.example", rtype::A), Some(1));
        assert!(cache.corrupt_table(|_| bit) > 0);
        // From the shared level, which is sound.
        assert_eq!(ask(&cache, "a.example", rtype::A), Some(1), "bit {bit}");
    }
}

#[test]
fn large_replies_are_served_from_the_shared_level() {
    let cache = CacheState::new(1 << 20);
    let query = query_wire("large.example", rtype::A, None);
    let records: Vec<(u16, u32, &[u8])> = vec![(rtype::A, 60, &[192, 0, 2, 7]); 200];
    let reply = reply_wire(&query, rcode::NOERROR, &records);
    let entry = Entry::new(&key("large.example", rtype::A), &reply, Instant::now(), Duration::ZERO, 0);
    cache.insert(entry.unwrap());
    assert_eq!(
        (ask(&cache, "large.example", rtype::A), ask(&cache, "large.example", rtype::A)),
        (Some(7), Some(7))
    );
    assert_eq!(cache.corrupt_table(|_| 0), 0);
    assert_eq!(cache.stats().hits, 2);
}

/// What one flush of a full cache costs until nothing old is served, and until it returns. Prints; run in release.
#[test]
#[ignore = "a measurement"]
fn measure_flushes() {
    for selector in [
        FlushSelector::All,
        FlushSelector::suffix("example").unwrap(),
        FlushSelector::name("n1.example").unwrap(),
    ] {
        let cache = CacheState::new(256 << 20);
        for i in 0..100_000 {
            cache.insert(made(&format!("n{i}.example"), rtype::A, 300, 1, 0));
        }
        assert_eq!(cache.stats().entries, 100_000);
        // This thread's table is full.
        for i in 0..100_000 {
            assert!(ask(&cache, &format!("n{i}.example"), rtype::A).is_some());
        }
        assert!(ask(&cache, "n1.example", rtype::A).is_some());
        let start = std::time::Instant::now();
        let old = cache.forbid(&selector, Instant::now());
        assert_eq!(ask(&cache, "n1.example", rtype::A), None);
        let effect = start.elapsed();
        drop(old);
        let start = std::time::Instant::now();
        cache.flush(&selector);
        let returned = start.elapsed();
        println!("{selector:?}: no old answer after {effect:?}, a whole flush returns after {returned:?}");
    }
}

/// What an entry costs in memory. Prints; run in release.
#[test]
#[ignore = "a measurement"]
fn measure_memory() {
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/statm").unwrap();
        status.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    };
    let before = resident();
    let cache = CacheState::new(1 << 30);
    for i in 0..100_000 {
        cache.insert(made(&format!("name-{i}.example.com"), rtype::A, 300, 1, 0));
    }
    let stats = cache.stats();
    println!(
        "{} entries: {} bytes resident each, {} by our own reckoning",
        stats.entries,
        (resident() - before) / stats.entries,
        stats.bytes / stats.entries
    );
}
