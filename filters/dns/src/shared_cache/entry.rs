//! Entries as they lie in Redis. Bytes and times are arguments; nothing is asked here.
//!
//! ```text
//! 0   "QDC"                    who wrote it
//! 3   version                  of this layout
//! 4   flags                    1 negative, 2 sealed with a secret
//! 5   fetched at               milliseconds since 1970, when a server had answered (8 bytes)
//! 13  lifetime                 milliseconds in all, from then on (4 bytes)
//! 17  flush                    the last flush that was known when the server was asked (16 bytes)
//! 33  seal                     over the key and all the rest: 8 bytes XXH3, or 32 bytes keyed BLAKE3
//! …   the reply                without an OPT record
//! ```
//! Numbers are big-endian.

use std::time::Duration;

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use super::log::FlushId;
use super::rules::Asked;

/// The version of the layout. It is also part of every key, so that sidecars of different versions do not meet.
const VERSION: u8 = 1;
const MAGIC: [u8; 4] = [b'Q', b'D', b'C', VERSION];
const NEGATIVE: u8 = 1;
const SEALED: u8 = 2;
const HEADER: usize = 33;
/// The longest value that can be an entry.
pub(super) const MAX_VALUE: usize = HEADER + 32 + u16::MAX as usize;
/// How far ahead another sidecar's clock may be. It does not make entries older: their age is also bounded by what Redis says.
const SKEW: Duration = Duration::from_secs(1);
/// What a secret is turned into a key with (BLAKE3's key derivation).
const CONTEXT: &str = "qudag-sidecar dns_shared_cache entries, version 1";

/// What proves that an entry is whole, and with a secret also that it comes from a sidecar that knows the secret.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Seal {
    key: Option<[u8; 32]>,
    /// Tells the entries of different secrets apart, so that fleets with different ones do not delete each other's.
    id: String,
}

impl Seal {
    pub(super) fn new(secret: Option<&str>) -> Self {
        match secret.map(|secret| blake3::derive_key(CONTEXT, secret.as_bytes())) {
            None => Self { key: None, id: "-".to_owned() },
            Some(key) => {
                let id = blake3::keyed_hash(&key, b"id").to_hex();
                Self { key: Some(key), id: id.chars().take(8).collect() }
            }
        }
    }

    fn len(&self) -> usize {
        if self.key.is_some() { 32 } else { 8 }
    }

    fn flag(&self) -> u8 {
        if self.key.is_some() { SEALED } else { 0 }
    }

    /// Whether `seal` is what belongs to a key and an entry; for keyed seals in constant time.
    fn verify(&self, seal: &[u8], key: &[u8], header: &[u8], reply: &[u8]) -> bool {
        match &self.key {
            None => seal == self.xxh3(key, header, reply).to_be_bytes(),
            Some(secret) => {
                let Ok(seal) = <[u8; 32]>::try_from(seal) else { return false };
                blake3::Hash::from_bytes(seal) == blake3_of(secret, key, header, reply)
            }
        }
    }

    fn write(&self, value: &mut Vec<u8>, key: &[u8], reply: &[u8]) {
        match &self.key {
            None => value.extend(self.xxh3(key, value, reply).to_be_bytes()),
            Some(secret) => value.extend(blake3_of(secret, key, value, reply).as_bytes()),
        }
    }

    fn xxh3(&self, key: &[u8], header: &[u8], reply: &[u8]) -> u64 {
        let mut hash = Xxh3::new();
        hash.update(&length(key));
        hash.update(key);
        hash.update(header);
        hash.update(reply);
        hash.digest()
    }
}

fn blake3_of(secret: &[u8; 32], key: &[u8], header: &[u8], reply: &[u8]) -> blake3::Hash {
    let mut hash = blake3::Hasher::new_keyed(secret);
    hash.update(&length(key)).update(key).update(header).update(reply);
    hash.finalize()
}

/// In front of the key, so that what is key and what is entry cannot be shifted. Keys are shorter than 64 KiB.
fn length(key: &[u8]) -> [u8; 8] {
    (key.len() as u64).to_be_bytes()
}

/// Where the entry of a query lies. All that a reply may depend on is in it, readable in `redis-cli`.
pub(super) fn key(prefix: &str, seal: &Seal, of: &Asked) -> String {
    let Asked { name, qtype, qclass, dnssec_ok, cd } = of;
    let bit = |set: bool, name| if set { name } else { "" };
    let (dnssec_ok, cd) = (bit(*dnssec_ok, "do"), bit(*cd, "cd"));
    format!("{prefix}:{VERSION}:{}:{qclass}:{qtype}:{dnssec_ok}{cd}:{name}", seal.id)
}

/// A reply on its way to Redis, or from there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    /// Milliseconds since 1970 by the clock of the sidecar that wrote it.
    pub(super) fetched: u64,
    /// How long it lives in all.
    pub(super) lifetime: Duration,
    pub(super) negative: bool,
    /// The last flush that was known when the server was asked.
    pub(super) flush: FlushId,
    pub(super) reply: Bytes,
}

/// Why what lies under a key is not an entry that may be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// Something else: another program's, another layout, without an expiry.
    Foreign,
    /// The seal does not belong to it.
    Damaged,
    /// From the future.
    Future,
    /// Its time is over.
    Expired,
}

impl Unfit {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Foreign => "foreign",
            Self::Damaged => "damaged",
            Self::Future => "future",
            Self::Expired => "expired",
        }
    }
}

impl Stored {
    /// The value to store.
    pub(super) fn encode(&self, key: &str, seal: &Seal) -> Vec<u8> {
        let mut value = Vec::with_capacity(HEADER + seal.len() + self.reply.len());
        value.extend(MAGIC);
        value.push(seal.flag() | if self.negative { NEGATIVE } else { 0 });
        value.extend(self.fetched.to_be_bytes());
        value.extend(u32::try_from(self.lifetime.as_millis()).unwrap_or(0).to_be_bytes());
        value.extend(self.flush.ms.to_be_bytes());
        value.extend(self.flush.seq.to_be_bytes());
        seal.write(&mut value, key.as_bytes(), &self.reply);
        value.extend_from_slice(&self.reply);
        value
    }

    /// Reads a value.
    ///
    /// # Errors
    /// When it is not an entry of this key.
    pub(super) fn decode(value: &Bytes, key: &str, seal: &Seal) -> Result<Self, Unfit> {
        let (header, rest) = value.split_at_checked(HEADER).ok_or(Unfit::Foreign)?;
        if value.len() > MAX_VALUE || !header.starts_with(&MAGIC) {
            return Err(Unfit::Foreign);
        }
        let (found, reply) = rest.split_at_checked(seal.len()).ok_or(Unfit::Damaged)?;
        let flags = header.get(4).copied().unwrap_or_default();
        // The flags are under the seal; a value sealed in the other way fails here.
        if flags & SEALED != seal.flag() || !seal.verify(found, key.as_bytes(), header, reply) {
            return Err(Unfit::Damaged);
        }
        let number = |at: usize| {
            let bytes = header.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
            u64::from_be_bytes(bytes.unwrap_or_default())
        };
        Ok(Self {
            fetched: number(5),
            // The upper half of the eight bytes.
            lifetime: Duration::from_millis(number(13) >> 32),
            negative: flags & NEGATIVE != 0,
            flush: FlushId { ms: number(17), seq: number(25) },
            reply: value.slice(HEADER + seal.len()..),
        })
    }

    /// How old it is: the older of what the wall clocks say and what Redis says, which was told to forget it at the end of
    /// its life. So neither a clock that is wrong here nor one that is wrong there makes it younger than it is.
    ///
    /// `now` is in milliseconds since 1970; `left` is what Redis says is left of its life, `None` without an end.
    ///
    /// # Errors
    /// When its time is over, or the times make no sense.
    pub(super) fn age(&self, now: u64, left: Option<Duration>) -> Result<Duration, Unfit> {
        let left = left.filter(|left| *left <= self.lifetime + SKEW).ok_or(Unfit::Foreign)?;
        if Duration::from_millis(self.fetched.saturating_sub(now)) > SKEW {
            return Err(Unfit::Future);
        }
        let by_clock = Duration::from_millis(now.saturating_sub(self.fetched));
        let age = by_clock.max(self.lifetime.saturating_sub(left));
        if age >= self.lifetime { Err(Unfit::Expired) } else { Ok(age) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::query;
    use crate::wire::rtype;

    const SECRET: &str = "a secret that is long enough";

    fn stored(reply: &[u8]) -> Stored {
        Stored {
            fetched: 1_700_000_000_000,
            lifetime: Duration::from_secs(60),
            negative: true,
            flush: FlushId { ms: 1_699_999_999_999, seq: 7 },
            reply: Bytes::copy_from_slice(reply),
        }
    }

    #[test]
    fn keys_hold_all_that_a_reply_may_depend_on() {
        let key_of = |name: &str, qtype| {
            let of = Asked::of(&query(name, qtype)).unwrap();
            key("p", &Seal::new(None), &of)
        };
        assert_eq!(key_of("WWW.Example", rtype::A), "p:1:-:1:1::www.example");
        assert_ne!(key_of("a.example", rtype::A), key_of("a.example", rtype::AAAA));
        let mut of = Asked::of(&query("a.example", rtype::A)).unwrap();
        let mut keys = vec![key("p", &Seal::new(None), &of)];
        for (dnssec_ok, cd) in [(true, false), (false, true), (true, true)] {
            (of.dnssec_ok, of.cd) = (dnssec_ok, cd);
            keys.push(key("p", &Seal::new(None), &of));
            keys.push(key("q", &Seal::new(None), &of));
            keys.push(key("p", &Seal::new(Some(SECRET)), &of));
        }
        of.qclass = 3;
        keys.push(key("p", &Seal::new(None), &of));
        let distinct: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len(), "{keys:?}");
    }

    #[test]
    fn an_entry_belongs_to_its_key_and_its_secret() {
        let (open, sealed, other) =
            (Seal::new(None), Seal::new(Some(SECRET)), Seal::new(Some("another secret, as long")));
        for seal in [&open, &sealed] {
            let entry = stored(b"reply");
            let value = Bytes::from(entry.encode("key", seal));
            assert_eq!(Stored::decode(&value, "key", seal), Ok(entry));
            assert_eq!(Stored::decode(&value, "kez", seal), Err(Unfit::Damaged));
            assert_eq!(Stored::decode(&value, "ke", seal), Err(Unfit::Damaged));
            assert_eq!(Stored::decode(&value, "key", &other), Err(Unfit::Damaged));
        }
        let value = Bytes::from(stored(b"reply").encode("key", &open));
        assert_eq!(Stored::decode(&value, "key", &sealed), Err(Unfit::Damaged), "no seal, no trust");
        let value = Bytes::from(stored(b"reply").encode("key", &sealed));
        assert_eq!(Stored::decode(&value, "key", &open), Err(Unfit::Damaged));
        for foreign in [&b""[..], b"hello", &[0; 100], &[b'Q'; 70_000]] {
            assert_eq!(Stored::decode(&Bytes::copy_from_slice(foreign), "key", &open), Err(Unfit::Foreign));
        }
    }

    #[test]
    fn the_older_of_two_ages_counts() {
        let entry = stored(b"");
        let at = |seconds: i64| entry.fetched.checked_add_signed(seconds * 1000).unwrap();
        let secs = Duration::from_secs;
        assert_eq!(entry.age(at(10), Some(secs(50))), Ok(secs(10)));
        // Our clock is behind, or the writer's was ahead.
        assert_eq!(entry.age(at(0), Some(secs(20))), Ok(secs(40)));
        assert_eq!(entry.age(at(-1), Some(secs(20))), Ok(secs(40)));
        assert_eq!(entry.age(at(-2), Some(secs(20))), Err(Unfit::Future));
        // Somebody prolonged it in Redis, or Redis's clock went back.
        assert_eq!(entry.age(at(59), Some(secs(60))), Ok(secs(59)));
        assert_eq!(entry.age(at(60), Some(secs(60))), Err(Unfit::Expired));
        assert_eq!(entry.age(at(1), Some(secs(62))), Err(Unfit::Foreign));
        assert_eq!(entry.age(at(1), None), Err(Unfit::Foreign));
        assert_eq!(entry.age(at(1), Some(secs(0))), Err(Unfit::Expired));
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read(
            fetched: u64, millis: u32, negative: bool, ms: u64, seq: u64,
            reply in proptest::collection::vec(any::<u8>(), 0..200), keyed: bool,
        ) {
            let entry = Stored {
                fetched, negative, flush: FlushId { ms, seq },
                lifetime: Duration::from_millis(millis.into()), reply: reply.into(),
            };
            let seal = Seal::new(keyed.then_some(SECRET));
            let value = Bytes::from(entry.encode("key", &seal));
            prop_assert_eq!(Stored::decode(&value, "key", &seal), Ok(entry));
        }

        #[test]
        fn every_change_is_noticed(at in 0_usize..80, bit in 0_u8..8, cut in 0_usize..3, keyed: bool) {
            let seal = Seal::new(keyed.then_some(SECRET));
            let mut value = stored(b"the reply of a server").encode("key", &seal);
            let at = at % value.len();
            match cut {
                0 => value[at] ^= 1 << bit,
                1 => value.truncate(at),
                _ => value.push(bit),
            }
            prop_assert!(Stored::decode(&Bytes::from(value), "key", &seal).is_err());
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(value in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut with_magic = MAGIC.to_vec();
            with_magic.extend(&value);
            for value in [value, with_magic] {
                prop_assert!(Stored::decode(&Bytes::from(value), "key", &Seal::new(None)).is_err());
            }
        }

        /// `real` is how long ago the server answered; the clocks of writer, reader and Redis are off by as much as they like, but
        /// not all of them in the same way.
        #[test]
        fn one_wrong_clock_makes_nothing_older_than_its_lifetime(
            real in 0_u64..1_000_000, lifetime in 1_u64..=300_000, writer in -500_000_i64..500_000, redis in -500_000_i64..500_000,
            redis_is_right: bool,
        ) {
            let (writer, redis) = if redis_is_right { (writer, 0) } else { (0, redis) };
            let now = 2_000_000_000_000_u64;
            let entry = Stored {
                fetched: (now - real).checked_add_signed(writer).unwrap(),
                lifetime: Duration::from_millis(lifetime),
                ..stored(b"")
            };
            // What Redis thinks is left; it forgets an entry when nothing is.
            let left = lifetime as i64 - real as i64 - redis;
            if left > 0 && let Ok(age) = entry.age(now, Some(Duration::from_millis(left as u64))) {
                prop_assert!(real < lifetime);
                prop_assert!(age >= Duration::from_millis(real));
            }
        }
    }
}
