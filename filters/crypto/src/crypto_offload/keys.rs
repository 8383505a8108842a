//! Keys that are ready for use.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::{Counter, Gauge, counter, gauge};
use qudag_mldsa::{Backend, PublicKey};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::work::{Found, KeptKey, Keys};
use crate::{KeyId, KeyRef};

/// How many keys that came once are remembered for each one that may be kept.
const SEEN: usize = 4;

/// What a key is looked up by: a hash of its bytes, with a seed of this process. Equal hashes of different keys do no harm.
type Print = u64;

/// The keys. A key that programs send along is kept from its second signature on, so that keys that are used once displace none; one that is
/// registered is kept at once and can be called by its name. The one that was not used for longest is forgotten first.
pub(crate) struct Registry {
    shelf: Mutex<Shelf>,
    seed: u64,
    /// As `Shelf::most`, to be looked at without the lock.
    most: AtomicUsize,
    /// The share of late look-ups that found no key, in 256 parts.
    fresh: AtomicU8,
    meters: Meters,
}

struct Shelf {
    most: usize,
    kept: HashMap<Print, Entry>,
    names: HashMap<KeyId, Print>,
    /// The keys by their last use.
    order: BTreeMap<u64, Print>,
    /// One more at each change of the order.
    tick: u64,
    /// Keys that came once: each has one place, which the next one takes.
    seen: Box<[Print]>,
    /// As `Registry::fresh`, in 65,536 parts.
    fresh: u32,
}

struct Entry {
    key: Arc<KeptKey>,
    name: Option<KeyId>,
    /// Its place in the order.
    used: u64,
}

struct Meters {
    hits: Counter,
    misses: Counter,
    admitted: Counter,
    registered: Counter,
    evicted: Counter,
    kept: Gauge,
    bytes: Gauge,
}

impl Meters {
    fn new() -> Self {
        let keys = |event: &'static str| counter!("qudag_sidecar_crypto_keys_total", "event" => event);
        Self {
            hits: keys("hit"),
            misses: keys("miss"),
            admitted: keys("admitted"),
            registered: keys("registered"),
            evicted: keys("evicted"),
            kept: gauge!("qudag_sidecar_crypto_keys"),
            bytes: gauge!("qudag_sidecar_crypto_keys_bytes"),
        }
    }
}

impl Registry {
    /// Room for so many keys, each of [`KeptKey::BYTES`].
    pub(crate) fn new(most: usize) -> Self {
        let shelf = Shelf {
            most,
            kept: HashMap::new(),
            names: HashMap::new(),
            order: BTreeMap::new(),
            tick: 0,
            seen: vec![0; most.saturating_mul(SEEN)].into(),
            fresh: 0,
        };
        Self {
            shelf: Mutex::new(shelf),
            seed: RandomState::new().build_hasher().finish(),
            most: AtomicUsize::new(most),
            fresh: AtomicU8::new(0),
            meters: Meters::new(),
        }
    }

    /// Changes how many keys there may be.
    pub(crate) fn resize(&self, most: usize) {
        if self.most.load(Relaxed) == most {
            return;
        }
        let mut shelf = self.shelf();
        self.most.store(most, Relaxed);
        shelf.most = most;
        shelf.seen = vec![0; most.saturating_mul(SEEN)].into();
        self.make_room(&mut shelf, 0);
    }

    /// How many keys are kept, and how many of them have a name.
    pub(crate) fn count(&self) -> (usize, usize) {
        let shelf = self.shelf();
        (shelf.kept.len(), shelf.names.len())
    }

    /// The share of keys sent along that have to be expanded at the moment, in 256 parts.
    pub(crate) fn fresh(&self) -> u8 {
        self.fresh.load(Relaxed)
    }

    /// Keeps a key, and returns its name.
    pub(crate) fn register(&self, key: &PublicKey, backend: Backend) -> KeyId {
        let (name, print) = (KeyId::of(key), self.print(key));
        let known = self.shelf().kept.get(&print).is_some_and(|entry| entry.serves(key, backend));
        let fresh = (!known).then(|| KeptKey::new(key, backend));
        let mut shelf = self.shelf();
        if let Some(fresh) = fresh {
            self.keep(&mut shelf, print, fresh);
        }
        shelf.touch(print);
        // Forgotten in between, or another key with this hash: the name is not known then.
        if let Some(entry) = shelf.kept.get_mut(&print).filter(|entry| entry.key.public == *key) {
            entry.name = Some(name);
            shelf.names.insert(name, print);
        }
        self.meters.registered.increment(1);
        name
    }

    fn named(&self, name: &KeyId, backend: Backend) -> Option<Arc<KeptKey>> {
        let mut shelf = self.shelf();
        let found = shelf.names.get(name).copied().and_then(|print| Some((print, shelf.kept.get(&print)?)));
        let Some((print, entry)) = found else {
            self.meters.misses.increment(1);
            return None;
        };
        let key = Arc::clone(&entry.key);
        shelf.touch(print);
        if key.by <= backend {
            self.meters.hits.increment(1);
            return Some(key);
        }
        drop(shelf);
        self.meters.misses.increment(1);
        let again = KeptKey::new(&key.public, backend);
        self.keep(&mut self.shelf(), print, Arc::clone(&again));
        Some(again)
    }

    fn given(&self, key: &PublicKey, backend: Backend) -> Option<Arc<KeptKey>> {
        let print = self.print(key);
        let mut shelf = self.shelf();
        let hit = shelf.kept.get(&print).filter(|entry| entry.serves(key, backend));
        let hit = hit.map(|entry| Arc::clone(&entry.key));
        self.fresh.store(shelf.looked(hit.is_some()), Relaxed);
        if let Some(key) = hit {
            shelf.touch(print);
            self.meters.hits.increment(1);
            return Some(key);
        }
        self.meters.misses.increment(1);
        if !shelf.kept.contains_key(&print) && !shelf.comes_again(print) {
            return None;
        }
        drop(shelf);
        let fresh = KeptKey::new(key, backend);
        self.keep(&mut self.shelf(), print, Arc::clone(&fresh));
        self.meters.admitted.increment(1);
        Some(fresh)
    }

    /// Keeps a key, in place of one with the same hash.
    fn keep(&self, shelf: &mut Shelf, print: Print, key: Arc<KeptKey>) {
        match shelf.kept.get_mut(&print) {
            Some(entry) if entry.key.public == key.public => entry.key = key,
            // Of two keys with one hash, which nobody can find on purpose, the first one stays.
            Some(_) => {}
            None => {
                self.make_room(shelf, 1);
                shelf.tick += 1;
                let used = shelf.tick;
                shelf.order.insert(used, print);
                shelf.kept.insert(print, Entry { key, name: None, used });
            }
        }
        self.show(shelf);
    }

    /// Forgets keys until so many more may come.
    fn make_room(&self, shelf: &mut Shelf, more: usize) {
        while shelf.kept.len() + more > shelf.most {
            let Some((_, print)) = shelf.order.pop_first() else { break };
            if let Some(name) = shelf.kept.remove(&print).and_then(|entry| entry.name) {
                shelf.names.remove(&name);
            }
            self.meters.evicted.increment(1);
        }
        self.show(shelf);
    }

    fn show(&self, shelf: &Shelf) {
        self.meters.kept.set(shelf.kept.len() as f64);
        self.meters.bytes.set((shelf.kept.len() * KeptKey::BYTES) as f64);
    }

    fn print(&self, key: &PublicKey) -> Print {
        xxh3_64_with_seed(&key.0, self.seed)
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keys for Registry {
    fn find<'a>(&self, key: &'a KeyRef, backend: Backend, independent: bool) -> Found<'a> {
        match key {
            KeyRef::Id(name) => match self.named(name, backend) {
                None => Found::Nowhere,
                Some(key) if independent => Found::Bare(key),
                Some(key) => Found::Kept(key),
            },
            KeyRef::Public(key) if independent => Found::Given(key),
            KeyRef::Public(key) => self.given(key, backend).map_or(Found::Given(key), Found::Kept),
        }
    }
}

impl Entry {
    /// Whether it is this key, and was not expanded by a faster backend, which may have been found faulty.
    fn serves(&self, key: &PublicKey, backend: Backend) -> bool {
        self.key.by <= backend && self.key.public == *key
    }
}

impl Shelf {
    /// Notes the use of a key. One that is among the last quarter of those used stays where it is, which changes little and saves most of the work.
    fn touch(&mut self, print: Print) {
        let Some(entry) = self.kept.get_mut(&print) else { return };
        if self.tick - entry.used > (self.most / 4) as u64 {
            self.tick += 1;
            self.order.remove(&entry.used);
            entry.used = self.tick;
            self.order.insert(self.tick, print);
        }
    }

    /// Whether a key came before; if not, it has now.
    fn comes_again(&mut self, print: Print) -> bool {
        let places = self.seen.len() as u64;
        let place = print.checked_rem(places).and_then(|place| usize::try_from(place).ok());
        let Some(seen) = place.and_then(|place| self.seen.get_mut(place)) else { return false };
        std::mem::replace(seen, print) == print
    }

    /// Notes whether a look-up found a key, and returns the share of late ones that did not, in 256 parts.
    fn looked(&mut self, found: bool) -> u8 {
        let now = if found { 0 } else { 65_535 };
        self.fresh = (self.fresh * 31 + now) / 32;
        u8::try_from(self.fresh / 256).unwrap_or(u8::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKEND: Backend = Backend::Portable;

    fn key(number: u8) -> PublicKey {
        let mut key = PublicKey([7; _]);
        key.0[0] = number;
        key
    }

    fn is_kept(registry: &Registry, key: &PublicKey) -> bool {
        matches!(registry.find(&KeyRef::Public(Box::new(key.clone())), BACKEND, false), Found::Kept(_))
    }

    fn is_named(registry: &Registry, name: KeyId) -> bool {
        matches!(registry.find(&KeyRef::Id(name), BACKEND, false), Found::Kept(_))
    }

    #[test]
    fn a_key_is_kept_from_its_second_signature_on() {
        let registry = Registry::new(4);
        assert!(!is_kept(&registry, &key(1)));
        assert_eq!(registry.count(), (0, 0));
        assert!(is_kept(&registry, &key(1)) && is_kept(&registry, &key(1)));
        assert_eq!(registry.count(), (1, 0));
        assert!(!is_named(&registry, KeyId::of(&key(1))), "it was not registered");
        assert_eq!(registry.register(&key(1), BACKEND), KeyId::of(&key(1)));
        assert!(is_named(&registry, KeyId::of(&key(1))));
        assert_eq!(registry.count(), (1, 1));
    }

    #[test]
    fn the_key_that_was_not_used_for_longest_goes() {
        let registry = Registry::new(4);
        let names: Vec<_> = (0..4).map(|number| registry.register(&key(number), BACKEND)).collect();
        assert!(is_named(&registry, names[0]));
        let fifth = registry.register(&key(4), BACKEND);
        assert!(!is_named(&registry, names[1]));
        assert!(is_named(&registry, names[0]) && is_named(&registry, fifth));
        assert_eq!(registry.count(), (4, 4));
        registry.resize(1);
        assert_eq!(registry.count(), (1, 1));
        assert!(is_named(&registry, fifth));
        registry.resize(2);
        assert!(!is_kept(&registry, &key(9)) && is_kept(&registry, &key(9)), "it admits again");
    }

    #[test]
    fn what_a_faster_backend_made_is_not_used_by_a_slower_one() {
        let registry = Registry::new(4);
        let name = registry.register(&key(1), Backend::Avx512);
        let made_by = |backend| match registry.find(&KeyRef::Id(name), backend, false) {
            Found::Kept(key) => key.by,
            _ => panic!(),
        };
        assert_eq!(made_by(Backend::Avx512), Backend::Avx512);
        assert_eq!(made_by(Backend::Avx2), Backend::Avx2);
        assert_eq!(made_by(Backend::Avx512), Backend::Avx2, "the other way round is no matter");
        let public = KeyRef::Public(Box::new(key(1)));
        assert!(matches!(registry.find(&public, BACKEND, false), Found::Kept(key) if key.by == BACKEND));
        assert_eq!(registry.count(), (1, 1), "and it keeps its name");
    }

    #[test]
    fn independent_checks_use_nothing_that_was_made_before() {
        let registry = Registry::new(4);
        let name = registry.register(&key(1), BACKEND);
        assert!(matches!(registry.find(&KeyRef::Id(name), BACKEND, true), Found::Bare(_)));
        let public = KeyRef::Public(Box::new(key(1)));
        assert!(matches!(registry.find(&public, BACKEND, true), Found::Given(_)));
    }

    #[test]
    fn the_share_of_fresh_keys_follows_what_comes() {
        let registry = Registry::new(200);
        (0..200).for_each(|number| assert!(!is_kept(&registry, &key(number))));
        assert!(registry.fresh() > 250, "{}", registry.fresh());
        (0..200).for_each(|_| _ = is_kept(&registry, &key(1)));
        assert!(registry.fresh() < 5, "{}", registry.fresh());
    }
}
