//! The first level: a small table of each thread, over the level that all threads share.
//!
//! A hit writes nothing that another thread reads.

use std::cell::RefCell;
use std::sync::Arc;

use super::counts::{Counts, Shard};
use super::entry::Entry;

/// Entries with more data stay in the shared level.
const LARGEST: usize = 1_536;
/// The most entries in a table.
const MOST: usize = 16 << 10;
/// The fewest.
const FEWEST: usize = 64;
/// How many bytes of the shared level go with one place in a table.
const BYTES_PER_PLACE: u64 = 512;
/// Places for keys with the same lower bits of their hash: enough that 10,000 names hardly ever get into each other's way.
const WAYS: usize = 16;
/// One of so many hits is also one of the shared level, which must not think that nobody needs the entry.
const TOUCH_EVERY: u32 = 64;

#[derive(Default)]
#[repr(align(64))]
struct Set {
    /// The upper bits of the hashes of the entries.
    tags: [u16; WAYS],
    /// Which entries were hit since the last search for a victim.
    used: u16,
    next: u8,
    entries: [Option<Arc<Entry>>; WAYS],
}

impl Set {
    /// The places that may hold an entry with a tag.
    fn ways(&self, tag: u16) -> impl Iterator<Item = usize> + use<> {
        // Without a branch for each place.
        let mut found = 0_u32;
        for (way, held) in self.tags.iter().enumerate() {
            found |= u32::from(*held == tag) << way;
        }
        std::iter::from_fn(move || {
            let way = found.trailing_zeros();
            found &= found.wrapping_sub(1);
            (way < u32::BITS).then_some(way as usize)
        })
    }

    fn find(&mut self, tag: u16, key: &[u8]) -> Option<&Arc<Entry>> {
        let is_it = |way: &usize| matches!(self.entries.get(*way), Some(Some(entry)) if entry.key() == key);
        let way = self.ways(tag).find(is_it)?;
        let place = self.entries.get_mut(way)?;
        if !place.as_ref()?.is_alive() {
            *place = None;
            return None;
        }
        self.used |= 1 << way;
        place.as_ref()
    }

    /// The place for a new entry: an empty one, one that was not hit lately, or any.
    fn place(&mut self) -> usize {
        if let Some(way) = self.entries.iter().position(Option::is_none) {
            return way;
        }
        let start = usize::from(self.next);
        self.next = self.next.wrapping_add(1) % WAYS as u8;
        let unused = (start..start + WAYS).map(|way| way % WAYS).find(|way| self.used & (1 << way) == 0);
        unused.unwrap_or_else(|| {
            self.used = 0;
            start
        })
    }
}

/// The entries that one thread hits most.
struct Sets {
    sets: Box<[Set]>,
    /// The next set to be freed of what is gone.
    hand: usize,
    /// The generation of flushes that all entries were found in.
    generation: u32,
}

impl Sets {
    fn new(max_bytes: u64) -> Self {
        let places = usize::try_from(max_bytes / BYTES_PER_PLACE).unwrap_or(MOST);
        let sets = places.clamp(FEWEST, MOST).next_power_of_two() / WAYS;
        Self { sets: (0..sets).map(|_| Set::default()).collect(), hand: 0, generation: 0 }
    }

    /// The set and the tag of a hash. There is a power of two of sets.
    fn set(&mut self, hash: u64) -> Option<(&mut Set, u16)> {
        let mask = self.sets.len().wrapping_sub(1);
        // The upper sixteen bits.
        Some((self.sets.get_mut(hash as usize & mask)?, (hash >> 48) as u16))
    }

    /// Forgets everything when there was a flush: it is looked up again in the shared level.
    fn at(&mut self, generation: u32) {
        if self.generation != generation {
            self.generation = generation;
            self.sets.iter_mut().for_each(|set| *set = Set::default());
        }
    }

    fn find(&mut self, hash: u64, key: &[u8], generation: u32) -> Option<&Arc<Entry>> {
        self.at(generation);
        let (set, tag) = self.set(hash)?;
        set.find(tag, key)
    }

    fn put(&mut self, hash: u64, entry: &Arc<Entry>, generation: u32) {
        if entry.size() > LARGEST {
            return;
        }
        self.at(generation);
        if let Some((set, tag)) = self.set(hash) {
            let way = set.place();
            if let (Some(held), Some(place)) = (set.tags.get_mut(way), set.entries.get_mut(way)) {
                (*held, *place) = (tag, Some(Arc::clone(entry)));
                set.used &= !(1 << way);
            }
        }
        self.sweep();
    }

    /// Frees one more set of what is gone, so that nothing gone takes memory for long.
    fn sweep(&mut self) {
        self.hand = (self.hand + 1) % self.sets.len().max(1);
        let Some(set) = self.sets.get_mut(self.hand) else { return };
        for place in &mut set.entries {
            if place.as_ref().is_some_and(|entry| !entry.is_alive()) {
                *place = None;
            }
        }
    }
}

/// One thread's table for one cache.
pub(super) struct Table {
    cache: u64,
    sets: Sets,
    shard: Arc<Shard>,
    touches: u32,
}

impl Table {
    fn new(cache: u64, max_bytes: u64, counts: &Counts) -> Self {
        Self { cache, sets: Sets::new(max_bytes), shard: counts.shard(), touches: 0 }
    }

    /// Gives an entry of the generation to `with`, unless it is gone. The second value that `with` returns says whether it was a hit.
    pub(super) fn hit<R>(
        &mut self,
        hash: u64,
        key: &[u8],
        generation: u32,
        with: impl FnOnce(&Arc<Entry>) -> (R, bool),
    ) -> Option<Hit<R>> {
        let (value, hit) = with(self.sets.find(hash, key, generation)?);
        if hit {
            self.shard.hit();
            self.touches = self.touches.wrapping_add(1);
        }
        Some(Hit { value, touch: hit && self.touches.is_multiple_of(TOUCH_EVERY) })
    }

    /// Counts a hit of the shared level and remembers its entry.
    pub(super) fn remember(&mut self, hash: u64, entry: &Arc<Entry>, generation: u32) {
        self.shard.hit();
        self.sets.put(hash, entry, generation);
    }

    #[cfg(any(test, feature = "fault-injection"))]
    pub(super) fn replace_each(&mut self, mut with: impl FnMut(&Entry) -> Entry) -> usize {
        let held = self.sets.sets.iter_mut().flat_map(|set| &mut set.entries).flatten();
        held.map(|entry| *entry = Arc::new(with(entry))).count()
    }
}

/// What came of an entry in a thread's table.
pub(super) struct Hit<R> {
    pub(super) value: R,
    /// Whether the shared level is to be told.
    pub(super) touch: bool,
}

thread_local! {
    static TABLE: RefCell<Option<Table>> = const { RefCell::new(None) };
}

/// Gives this thread's table for a cache to `with`; a thread has one for the cache that it used last. `None` at the end of a thread.
pub(super) fn with<R>(
    cache: u64,
    max_bytes: u64,
    counts: &Counts,
    with: impl FnOnce(&mut Table) -> R,
) -> Option<R> {
    TABLE
        .try_with(|table| {
            let mut table = table.try_borrow_mut().ok()?;
            let table = match &mut *table {
                Some(table) if table.cache == cache => table,
                other => other.insert(Table::new(cache, max_bytes, counts)),
            };
            Some(with(table))
        })
        .ok()
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns_cache::store::tests::entry;

    #[test]
    fn a_table_finds_what_is_alive_and_of_its_generation() {
        let mut sets = Sets::new(1 << 20);
        let held = Arc::new(entry("a.example", 1));
        sets.put(9, &held, 3);
        assert!(Arc::ptr_eq(sets.find(9, held.key(), 3).unwrap(), &held));
        assert!(sets.find(8, held.key(), 3).is_none());
        assert!(sets.find(9, b"another key", 3).is_none(), "a hash is not a key");
        let same_hash = Arc::new(entry("b.example", 1));
        sets.put(9, &same_hash, 3);
        assert!(Arc::ptr_eq(sets.find(9, held.key(), 3).unwrap(), &held));
        assert!(Arc::ptr_eq(sets.find(9, same_hash.key(), 3).unwrap(), &same_hash));
        assert!(sets.find(9, held.key(), 4).is_none());
        assert_eq!(Arc::strong_count(&held), 1, "nothing old takes memory");
        sets.put(9, &held, 4);
        held.kill();
        assert!(sets.find(9, held.key(), 4).is_none());
    }

    #[test]
    fn what_is_hit_stays_when_places_are_short() {
        let mut sets = Sets::new(0);
        let hot = Arc::new(entry("hot.example", 1));
        sets.put(0, &hot, 0);
        for i in 1..100_u64 {
            assert!(sets.find(0, hot.key(), 0).is_some(), "{i}");
            // The same set each time.
            sets.put(i << 32, &Arc::new(entry("cold.example", 1)), 0);
        }
    }

    #[test]
    fn what_is_gone_is_freed_although_nobody_asks() {
        let mut sets = Sets::new(0);
        let gone = Arc::new(entry("gone.example", 1));
        sets.put(5, &gone, 0);
        gone.kill();
        for _ in 0..sets.sets.len() {
            sets.put(0, &Arc::new(entry("a.example", 1)), 0);
        }
        assert_eq!(Arc::strong_count(&gone), 1);
    }

    #[test]
    fn ten_thousand_names_hardly_get_into_each_other_s_way() {
        let mut sets = Sets::new(32 << 20);
        let names: Vec<_> = (0..10_000).map(|i| Arc::new(entry(&format!("n{i}.example"), 1))).collect();
        let hash = |entry: &Entry| xxhash_rust::xxh3::xxh3_64(entry.key());
        names.iter().for_each(|entry| sets.put(hash(entry), entry, 0));
        let found = names.iter().filter(|entry| sets.find(hash(entry), entry.key(), 0).is_some()).count();
        assert!(found > 9_900, "{found}");
    }

    #[test]
    fn tables_are_as_large_as_their_cache_makes_sense_of() {
        let places = |bytes: u64| Sets::new(bytes).sets.len() * WAYS;
        assert_eq!((places(128 << 10), places(32 << 20), places(1 << 40)), (256, MOST, MOST));
        assert!(size_of::<Set>() <= 192);
    }
}
