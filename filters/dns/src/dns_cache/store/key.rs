//! What a reply may depend on, as bytes.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::LazyLock;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::wire::{Name, Parsed, is_within, rtype, u16_at};

/// Type, class and flags behind the name.
const TAIL: usize = 5;
/// A name has at most 255 bytes.
const MAX: usize = 255 + TAIL;

const DNSSEC_OK: u8 = 1;
const CHECKING_DISABLED: u8 = 2;

/// Drawn at random for each process, so that no client can aim at one bucket.
static SEED: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(()));

/// What a reply may depend on: the lower-cased name, type, class, DO and CD, one behind the other. Without CD one client that checks
/// signatures itself could make the cache serve forged data to all others. Needs no allocation.
#[derive(Clone)]
pub struct Key {
    bytes: [u8; MAX],
    length: u16,
}

impl Key {
    /// The key of a query that the cache has a say in. Others are not: without RD the client asks what the server has at hand,
    /// and `ANY` is not one thing.
    pub fn of(query: &Parsed) -> Option<Self> {
        if !query.rd || query.qtype == rtype::ANY {
            return None;
        }
        let flags = if query.dnssec_ok() { DNSSEC_OK } else { 0 };
        let flags = flags | if query.cd { CHECKING_DISABLED } else { 0 };
        let ([t, u], [c, d]) = (query.qtype.to_be_bytes(), query.qclass.to_be_bytes());
        let name = query.name.wire();
        let mut bytes = [0; MAX];
        let length = name.len() + TAIL;
        bytes.get_mut(..name.len())?.copy_from_slice(name);
        bytes.get_mut(name.len()..length)?.copy_from_slice(&[t, u, c, d, flags]);
        // At most 260.
        Some(Self { bytes, length: length as u16 })
    }

    /// The key with these bytes, as [`Key::bytes`] gave them; `None` when they are none.
    pub(crate) fn from_bytes(from: &[u8]) -> Option<Self> {
        let (_, end) = Name::parse(from, 0)?;
        if end + TAIL != from.len() || from.iter().take(end).any(u8::is_ascii_uppercase) {
            return None;
        }
        let mut bytes = [0; MAX];
        bytes.get_mut(..from.len())?.copy_from_slice(from);
        Some(Self { bytes, length: from.len() as u16 })
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or(&self.bytes)
    }

    /// The hash, another one in each process.
    pub(super) fn hash(&self) -> u64 {
        xxh3_64_with_seed(self.bytes(), *SEED)
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for Key {}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = Parts::of(self.bytes());
        write!(f, "{:?} {} {} {}", parts.name(), parts.qtype, parts.qclass, parts.flags)
    }
}

/// The parts of a key's bytes.
#[derive(Clone, Copy)]
pub(crate) struct Parts<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) qtype: u16,
    pub(crate) qclass: u16,
    flags: u8,
}

impl<'a> Parts<'a> {
    pub(crate) fn of(bytes: &'a [u8]) -> Self {
        let (name, tail) = bytes.split_at_checked(bytes.len().saturating_sub(TAIL)).unwrap_or_default();
        let (qtype, qclass) = (u16_at(tail, 0).unwrap_or(0), u16_at(tail, 2).unwrap_or(0));
        Self { name, qtype, qclass, flags: tail.last().copied().unwrap_or(0) }
    }

    pub(crate) fn name(&self) -> Option<Name> {
        Name::parse(self.name, 0).map(|(name, _)| name)
    }

    pub(crate) fn dnssec_ok(&self) -> bool {
        self.flags & DNSSEC_OK != 0
    }

    pub(crate) fn cd(&self) -> bool {
        self.flags & CHECKING_DISABLED != 0
    }

    /// Whether the name is `suffix` or lies below it.
    pub(crate) fn is_within(&self, suffix: &Name) -> bool {
        is_within(self.name, suffix.wire())
    }
}

/// Hashes the keys of the shared level in one step, with the seed of this process.
#[derive(Clone, Debug, Default)]
pub(super) struct Seeded;

impl BuildHasher for Seeded {
    type Hasher = OneStep;

    fn build_hasher(&self) -> OneStep {
        OneStep(*SEED)
    }
}

/// See [`Seeded`].
pub(super) struct OneStep(u64);

impl Hasher for OneStep {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }

    /// The length that goes before the bytes of a slice; the hash of the bytes depends on it anyway.
    fn write_usize(&mut self, length: usize) {
        self.0 = self.0.wrapping_add(length as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::query_wire;
    use crate::wire::parse_query;

    fn key(wire: &[u8]) -> Option<Key> {
        Key::of(&parse_query(wire).unwrap())
    }

    #[test]
    fn the_key_is_all_that_a_reply_may_depend_on() {
        let plain = query_wire("www.example", rtype::A, Some(1232));
        let change = |at: usize, bit: u8| {
            let mut wire = plain.clone();
            wire[at] |= bit;
            key(&wire)
        };
        assert_eq!(key(&plain), key(&query_wire("WWW.Example", rtype::A, None)));
        assert_ne!(key(&plain), change(3, 0x10), "CD");
        assert_ne!(key(&plain), change(plain.len() - 4, 0x80), "DO");
        assert_ne!(key(&plain), key(&query_wire("www.example", rtype::AAAA, None)));
        let mut without_rd = plain.clone();
        without_rd[2] = 0;
        for wire in [without_rd, query_wire("www.example", rtype::ANY, None)] {
            assert_eq!(key(&wire), None);
        }
    }

    #[test]
    fn bytes_become_the_same_key_again_and_others_none() {
        let key = key(&query_wire("www.example", rtype::A, None)).unwrap();
        assert_eq!(Key::from_bytes(key.bytes()), Some(key.clone()));
        let longest = Name::from_text(&format!("{0}.{0}.{0}.{1}", "a".repeat(63), "b".repeat(61))).unwrap();
        let longest = [longest.wire(), &[0, 1, 0, 1, 3]].concat();
        let parts = Parts::of(&longest);
        assert_eq!((longest.len(), parts.qtype, parts.dnssec_ok(), parts.cd()), (MAX, 1, true, true));
        assert_eq!(Key::from_bytes(&longest).unwrap().bytes(), longest);
        for wrong in [&key.bytes()[1..], &key.bytes()[..10], b"", b"\x01A\0\0\x01\0\x01\0"] {
            assert_eq!(Key::from_bytes(wrong), None);
        }
    }
}
