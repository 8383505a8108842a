//! Which entries are to go, and how they are gone at once although taking them out takes time.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use arc_swap::ArcSwap;
use hickory_proto::rr::RecordType;
use tokio::time::Instant;

use super::entry::Entry;
use super::key::Parts;
use crate::dns_cache::rules::HARD_LIMIT;
use crate::wire::{Name, NameError};

/// How many flushes are remembered; when there are more within five minutes, the oldest takes all entries of its time with it.
const MOST: usize = 1_000;

/// Which entries are to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FlushSelector {
    /// All of them.
    All,
    /// Those of one name.
    Name(Name),
    /// Those of a name and of every name below it.
    Suffix(Name),
    /// Those of one type.
    Type(u16),
}

impl FlushSelector {
    /// The entries of a name as people write it.
    ///
    /// # Errors
    /// When it is not a name.
    pub fn name(name: &str) -> Result<Self, NameError> {
        Name::from_text(name).map(Self::Name)
    }

    /// The entries of a name as people write it, and of every name below it.
    ///
    /// # Errors
    /// When it is not a name.
    pub fn suffix(name: &str) -> Result<Self, NameError> {
        Name::from_text(name.trim_start_matches("*.")).map(Self::Suffix)
    }

    /// The entries of a type, by its name or as `TYPE123` (RFC 3597 section 5).
    ///
    /// # Errors
    /// When there is no such type.
    pub fn rtype(rtype: &str) -> Result<Self, String> {
        parse_type(rtype).map(Self::Type).ok_or_else(|| format!("{rtype:?} is not a record type"))
    }

    /// Whether an entry with this key is to go.
    pub(super) fn matches(&self, key: &[u8]) -> bool {
        let parts = Parts::of(key);
        match self {
            Self::All => true,
            Self::Name(name) => parts.name == name.wire(),
            Self::Suffix(name) => parts.is_within(name),
            Self::Type(rtype) => parts.qtype == *rtype,
        }
    }
}

/// A record type by its name or number.
pub(crate) fn parse_type(rtype: &str) -> Option<u16> {
    let rtype = rtype.trim().to_ascii_uppercase();
    match rtype.strip_prefix("TYPE") {
        Some(number) => number.parse().ok(),
        None => rtype.parse::<RecordType>().ok().map(u16::from),
    }
}

/// A flush: what was asked for in an earlier epoch and matches is gone.
#[derive(Clone)]
struct Grave {
    epoch: u64,
    selector: FlushSelector,
    at: Instant,
}

#[derive(Clone, Default)]
struct Graves {
    /// Whatever was asked for in an earlier epoch is gone.
    floor: u64,
    graves: Vec<Grave>,
}

/// The flushes so far. An entry that was asked for before one that concerns it is gone from the moment of the flush, in every store
/// that it may be in.
#[derive(Default)]
pub(super) struct Flushes {
    /// Grows with every flush. Held for reading while an entry is stored and for writing during a flush, so that no reply from before
    /// a flush is stored after it.
    epoch: RwLock<u64>,
    graves: ArcSwap<Graves>,
    /// Grows with every flush; the tables of the threads ask the shared level again for what they hold from before.
    generation: AtomicU32,
}

impl Flushes {
    /// Which flush the cache is at.
    pub(super) fn epoch(&self) -> u64 {
        *self.hold()
    }

    /// As [`Flushes::epoch`]; there is no flush while this is held.
    pub(super) fn hold(&self) -> RwLockReadGuard<'_, u64> {
        self.epoch.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the entries in a thread's table are valid for.
    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// From the moment when this returns, what matches and was asked for before is gone. `also` runs meanwhile.
    pub(super) fn bury(&self, selector: &FlushSelector, now: Instant, also: impl FnOnce()) {
        let mut epoch = self.epoch.write().unwrap_or_else(PoisonError::into_inner);
        *epoch += 1;
        let mut new = Graves::clone(&self.graves.load());
        if *selector == FlushSelector::All {
            new = Graves { floor: *epoch, graves: Vec::new() };
        } else {
            // What was there is gone by age as well.
            let recent =
                |at: Instant| now.saturating_duration_since(at) <= HARD_LIMIT + Duration::from_secs(1);
            new.graves.retain(|grave| recent(grave.at));
            if new.graves.len() >= MOST {
                new.floor = new.floor.max(new.graves.remove(0).epoch);
            }
            new.graves.push(Grave { epoch: *epoch, selector: selector.clone(), at: now });
        }
        self.graves.store(new.into());
        also();
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Whether a flush took the entry.
    pub(super) fn took(&self, entry: &Entry) -> bool {
        let graves = self.graves.load();
        entry.epoch() < graves.floor
            || graves
                .graves
                .iter()
                .any(|grave| entry.epoch() < grave.epoch && grave.selector.matches(entry.key()))
    }
}
