//! A reply that is kept.

use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::key::{Key, Parts};
use crate::dns_cache::rules::{Life, Limits, Shown};
use crate::wire::{self, Section, flag2, parse_reply, patch_ttls, rcode, rtype, u16_at, u32_at};

/// The layout of entries. One of another layout is none.
pub(crate) const SCHEMA: u32 = 1;

/// No refresh is planned.
const UNPLANNED: u8 = 0;
/// A refresh is planned although nobody has asked since the last one.
const PLANNED: u8 = 1;
/// Somebody has asked since it was stored, and a refresh is planned.
const ASKED: u8 = 2;

/// So many bytes of data are part of the entry: a reply with an address or two for a name of usual length. With them the entry, and what
/// counts those who hold it, fill three cache lines, which are fetched together.
const NEAR: usize = 118;

/// Bytes, near or far.
#[derive(Clone)]
enum Data {
    Near(u8, [u8; NEAR]),
    Far(Box<[u8]>),
}

impl From<Vec<u8>> for Data {
    fn from(from: Vec<u8>) -> Self {
        let mut bytes = [0; NEAR];
        match bytes.get_mut(..from.len()) {
            Some(place) => {
                place.copy_from_slice(&from);
                // At most 118.
                Self::Near(from.len() as u8, bytes)
            }
            None => Self::Far(from.into()),
        }
    }
}

impl Deref for Data {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Near(length, bytes) => bytes.get(..usize::from(*length)).unwrap_or(bytes),
            Self::Far(bytes) => bytes,
        }
    }
}

/// A reply that may be kept. Knows no settings, so that a reload changes the life of what is there.
pub(crate) struct Entry {
    /// The key, the message without an OPT record, and where its times to live stand, two bytes each.
    data: Data,
    key_end: u16,
    message_end: u32,
    schema: u32,
    life: Life,
    /// When the data left the server that has the say; before the entry was made when they came from another cache.
    born: Instant,
    /// The flush that the cache was at when the data were asked for.
    epoch: u64,
    /// Of all above.
    checksum: u64,
    /// Cleared when the entry is replaced, flushed or evicted. Threads that still hold it must not serve it then.
    alive: AtomicBool,
    asked: AtomicU8,
}

impl Entry {
    /// The entry for a reply that arrived now with data of an age, if it may be kept at all: complete, and either data of the type
    /// asked for or a negative answer with the SOA record that says for how long (RFC 2308 section 5). `reply` has no OPT
    /// record, and its times to live are less the age already.
    pub(crate) fn new(key: &Key, reply: &[u8], now: Instant, age: Duration, epoch: u64) -> Option<Self> {
        let older = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        Self::made(key, reply, older, now.checked_sub(age)?, epoch)
    }

    /// The entry whose message this was at an age; its times to live are those that it was born with.
    pub(crate) fn restored(
        key: &Key,
        message: &[u8],
        now: Instant,
        age: Duration,
        epoch: u64,
    ) -> Option<Self> {
        Self::made(key, message, 0, now.checked_sub(age)?, epoch)
    }

    fn made(key: &Key, reply: &[u8], older: u32, born: Instant, epoch: u64) -> Option<Self> {
        let parsed = parse_reply(reply)?;
        let [flags2, _] = parsed.flags;
        let asked = Parts::of(key.bytes());
        let same =
            (parsed.name.wire(), parsed.qtype, parsed.qclass) == (asked.name, asked.qtype, asked.qclass);
        if flags2 & flag2::TC != 0 || !same {
            return None;
        }
        let answers =
            |record: &wire::Record| record.section == Section::Answer && record.rtype == asked.qtype;
        let positive = parsed.records.iter().any(answers);
        let negative = match parsed.rcode() {
            rcode::NOERROR => !positive,
            rcode::NXDOMAIN => true,
            _ => return None,
        };
        let mut lowest = parsed.records.iter().map(|record| record.ttl).min()?.saturating_add(older);
        if negative {
            let is_soa =
                |record: &&wire::Record| record.section == Section::Authority && record.rtype == rtype::SOA;
            let soa = parsed.records.iter().find(is_soa)?;
            // The last of the five numbers behind the two names (RFC 1035 section 3.3.13).
            let minimum = soa.data.end.checked_sub(4).filter(|at| *at >= soa.data.start + 18)?;
            lowest = lowest.min(u32_at(reply, minimum)?);
        }
        let key = key.bytes();
        let mut data = Vec::with_capacity(key.len() + reply.len() + 2 * parsed.records.len());
        data.extend_from_slice(key);
        data.extend_from_slice(reply);
        let message_end = data.len();
        for record in &parsed.records {
            data.extend(u16::try_from(record.ttl_at).ok()?.to_be_bytes());
        }
        if older > 0 {
            let offsets = parsed.records.iter().filter_map(|record| u16::try_from(record.ttl_at).ok());
            let message = data.get_mut(key.len()..message_end)?;
            patch_ttls(
                message,
                offsets,
                |ttl| if ttl > i32::MAX as u32 { 0 } else { ttl.saturating_add(older) },
            );
        }
        let mut entry = Self {
            data: data.into(),
            // At most 260, and at most 65 535 bytes of message.
            key_end: key.len() as u16,
            message_end: message_end as u32,
            schema: SCHEMA,
            life: Life { lowest, negative },
            born,
            epoch,
            checksum: 0,
            alive: AtomicBool::new(true),
            asked: AtomicU8::new(UNPLANNED),
        };
        entry.checksum = entry.sum();
        Some(entry)
    }

    fn sum(&self) -> u64 {
        // Every step can be undone, so no change of one field goes unnoticed.
        let mut fields = Fields(u64::from(self.schema));
        self.key_end.hash(&mut fields);
        self.message_end.hash(&mut fields);
        self.life.hash(&mut fields);
        self.born.hash(&mut fields);
        self.epoch.hash(&mut fields);
        xxh3_64_with_seed(&self.data, fields.finish())
    }

    /// Whether it is as it was stored.
    pub(super) fn is_sound(&self) -> bool {
        self.schema == SCHEMA && self.checksum == self.sum()
    }

    /// The bytes of its key.
    pub(crate) fn key(&self) -> &[u8] {
        self.data.get(..usize::from(self.key_end)).unwrap_or_default()
    }

    /// The message as it was stored.
    pub(crate) fn message(&self) -> &[u8] {
        self.data.get(usize::from(self.key_end)..self.message_end as usize).unwrap_or_default()
    }

    /// What its life depends on.
    pub(crate) fn life(&self) -> Life {
        self.life
    }

    /// How old its data are.
    pub(crate) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.born)
    }

    /// When its data have an age.
    pub(crate) fn at_age(&self, age: Duration) -> Instant {
        self.born + age
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }

    pub(super) fn kill(&self) {
        self.alive.store(false, Ordering::Release);
    }

    /// Somebody asks for it. Returns whether a refresh is to be planned: it is the first time.
    pub(super) fn first_asked(&self) -> bool {
        // Read first: a write would take the cache line from the other threads at every hit.
        self.asked.load(Ordering::Relaxed) != ASKED && self.asked.swap(ASKED, Ordering::Relaxed) == UNPLANNED
    }

    /// Whether anybody has asked for it since it was stored.
    pub(crate) fn was_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed) == ASKED
    }

    /// Marks that a refresh is planned although nobody has asked. Returns whether none was.
    pub(crate) fn plan_unasked(&self) -> bool {
        self.asked.compare_exchange(UNPLANNED, PLANNED, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Lets the next one who asks be the first again.
    pub(crate) fn forget_asked(&self) {
        self.asked.store(UNPLANNED, Ordering::Relaxed);
    }

    /// A number that spreads what is done with many entries.
    pub(crate) fn dice(&self) -> u64 {
        self.checksum
    }

    /// Puts the times to live in a copy of the message right.
    pub(crate) fn show(&self, message: &mut [u8], shown: Shown) {
        let offsets = self.data.get(self.message_end as usize..).unwrap_or_default();
        patch_ttls(message, offsets.chunks_exact(2).filter_map(|at| u16_at(at, 0)), |ttl| shown.of(ttl));
    }

    /// A copy of the message with these times to live.
    pub(crate) fn shown(&self, shown: Shown) -> Bytes {
        let mut message = self.message().to_vec();
        self.show(&mut message, shown);
        message.into()
    }

    /// The reply as it is to be sent now; `None` when its time is over.
    pub(crate) fn render(&self, limits: &Limits, now: Instant) -> Option<Bytes> {
        let age = self.age(now);
        (age < limits.soft(self.life)).then(|| self.shown(limits.shown(self.life, age)))
    }

    /// How many bytes of data it has.
    pub(super) fn size(&self) -> usize {
        self.data.len()
    }

    /// Roughly the bytes of memory that it takes.
    pub(super) fn weight(&self) -> u32 {
        let far = if let Data::Far(bytes) = &self.data { bytes.len() } else { 0 };
        // The entry, its key once more, and what the shared level itself needs for each.
        u32::try_from(far + self.key().len() + size_of::<Self>() + 216).unwrap_or(u32::MAX)
    }
}

#[cfg(any(test, feature = "fault-injection"))]
impl Entry {
    /// How many bits can be flipped.
    pub(super) fn bits(&self) -> usize {
        (self.data.len() + 8) * 8 + 4
    }

    /// A copy in which one bit is wrong: of the data, the checksum, or one of the other fields.
    pub(super) fn flipped(&self, bit: usize) -> Self {
        let mut copy = Self {
            data: self.data.clone(),
            alive: AtomicBool::new(self.is_alive()),
            asked: AtomicU8::new(self.asked.load(Ordering::Relaxed)),
            ..*self
        };
        let mut data = copy.data.to_vec();
        match data.get_mut(bit / 8) {
            Some(place) => *place ^= 1 << (bit % 8),
            None => match bit - data.len() * 8 {
                bit @ 0..64 => copy.checksum ^= 1 << bit,
                64 => copy.schema ^= 2,
                65 => copy.life.lowest ^= 1 << 9,
                66 => copy.life.negative = !copy.life.negative,
                _ => copy.epoch ^= 1 << 40,
            },
        }
        copy.data = data.into();
        copy
    }
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry").field("life", &self.life).field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

/// Mixes numbers; each step can be undone.
struct Fields(u64);

impl Fields {
    fn mix(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
}

impl Hasher for Fields {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.mix((*byte).into()));
    }

    fn write_u16(&mut self, value: u16) {
        self.mix(value.into());
    }

    fn write_u32(&mut self, value: u32) {
        self.mix(value.into());
    }

    fn write_u64(&mut self, value: u64) {
        self.mix(value);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dns_cache::rules::{HARD_LIMIT, NEGATIVE_LIMIT};
    use crate::testing::{query_wire, reply_wire, soa};
    use crate::wire::parse_query;

    const A: (u16, u32, &[u8]) = (rtype::A, 600, &[192, 0, 2, 1]);
    const WIDE: Limits = Limits {
        max_ttl: HARD_LIMIT,
        min_ttl: Duration::ZERO,
        negative_ttl: NEGATIVE_LIMIT,
        soft_ttl: Duration::from_secs(240),
        serve_stale: true,
    };

    fn key(query: &[u8]) -> Key {
        Key::of(&parse_query(query).unwrap()).unwrap()
    }

    fn aged(code: u8, records: &[(u16, u32, &[u8])], age: Duration) -> Option<Entry> {
        let query = query_wire("www.example", rtype::A, None);
        Entry::new(&key(&query), &reply_wire(&query, code, records), Instant::now(), age, 7)
    }

    fn entry(code: u8, records: &[(u16, u32, &[u8])]) -> Option<Entry> {
        aged(code, records, Duration::ZERO)
    }

    fn ttls(entry: &Entry, limits: &Limits, age: Duration) -> Option<Vec<u32>> {
        let wire = entry.render(limits, entry.at_age(age))?;
        Some(parse_reply(&wire).unwrap().records.iter().map(|record| record.ttl).collect())
    }

    #[test]
    fn only_complete_answers_are_kept() {
        assert!(entry(rcode::NOERROR, &[A]).is_some());
        let minimum = soa(60);
        let authority = (rtype::SOA, 60, minimum.as_slice());
        assert!(entry(rcode::NXDOMAIN, &[authority]).unwrap().life.negative);
        assert!(entry(rcode::NOERROR, &[authority]).unwrap().life.negative);
        for (code, records) in [
            (rcode::NXDOMAIN, vec![]),
            (rcode::NOERROR, vec![]),
            // Another type than the one asked for and no SOA: a referral, or an alias that leads nowhere.
            (rcode::NOERROR, vec![(rtype::CNAME, 60, &[0][..])]),
            (rcode::NOERROR, vec![(rtype::SOA, 60, &[0, 0, 0, 0])]),
            (rcode::SERVFAIL, vec![A]),
            (rcode::REFUSED, vec![A]),
        ] {
            assert!(entry(code, &records).is_none(), "{code} {records:?}");
        }
        let query = query_wire("www.example", rtype::A, None);
        let mut truncated = reply_wire(&query, rcode::NOERROR, &[A]);
        truncated[2] |= flag2::TC;
        let now = Instant::now();
        assert!(Entry::new(&key(&query), &truncated, now, Duration::ZERO, 0).is_none());
        let other = query_wire("other.example", rtype::A, None);
        let reply = reply_wire(&other, rcode::NOERROR, &[A]);
        assert!(Entry::new(&key(&query), &reply, now, Duration::ZERO, 0).is_none());
    }

    #[test]
    fn times_to_live_fall_and_end_with_the_shortest() {
        let short = (rtype::A, 10, &[192, 0, 2, 2][..]);
        let entry = entry(rcode::NOERROR, &[A, short]).unwrap();
        let secs = Duration::from_secs;
        assert_eq!(ttls(&entry, &WIDE, secs(0)), Some(vec![300, 10]));
        assert_eq!(ttls(&entry, &WIDE, Duration::from_millis(9_999)), Some(vec![291, 1]));
        assert_eq!(ttls(&entry, &WIDE, secs(10)), None);
        // The settings of the moment of reading decide.
        let shorter = Limits { max_ttl: secs(5), ..WIDE };
        assert_eq!(ttls(&entry, &shorter, secs(4)), Some(vec![1, 1]));
        assert_eq!(ttls(&entry, &shorter, secs(5)), None);
    }

    #[test]
    fn negative_answers_live_as_long_as_the_zone_says_and_never_long() {
        let (hour, ten, none) = (soa(3600), soa(10), soa(0));
        let of = |ttl, data: &[u8]| {
            let entry = entry(rcode::NXDOMAIN, &[(rtype::SOA, ttl, data)]).unwrap();
            (WIDE.soft(entry.life).as_secs(), ttls(&entry, &WIDE, Duration::ZERO).unwrap_or_default())
        };
        assert_eq!(of(3600, &hour), (30, vec![30]));
        assert_eq!(of(3600, &ten), (10, vec![10]));
        assert_eq!(of(5, &hour), (5, vec![5]));
        assert_eq!(of(5, &none), (0, vec![]));
    }

    #[test]
    fn data_that_were_old_already_stay_as_old_as_they_are() {
        let secs = Duration::from_secs;
        // 600 seconds at first, 100 of them gone.
        let entry = aged(rcode::NOERROR, &[(rtype::A, 500, A.2)], secs(100)).unwrap();
        let now = entry.at_age(secs(100));
        assert_eq!((entry.age(now), entry.life.lowest), (secs(100), 600));
        assert_eq!(ttls(&entry, &WIDE, secs(100)), Some(vec![200]), "with what is left of 300");
        assert_eq!(ttls(&entry, &WIDE, secs(240)), None);
        let entry = aged(rcode::NOERROR, &[(rtype::A, 5, A.2)], secs(100)).unwrap();
        assert_eq!(ttls(&entry, &WIDE, secs(104)), Some(vec![1]));
        assert_eq!(ttls(&entry, &WIDE, secs(105)), None);
    }

    #[test]
    fn an_entry_of_usual_size_is_three_cache_lines() {
        assert_eq!(size_of::<Entry>() + 2 * size_of::<usize>(), 192);
        for length in [0, 1, NEAR - 1, NEAR, NEAR + 1, 1000] {
            let bytes: Vec<u8> = (0..length).map(|i| i as u8).collect();
            let data = Data::from(bytes.clone());
            assert_eq!((&*data, matches!(data, Data::Near(..))), (&bytes[..], length <= NEAR));
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        for records in [vec![A], vec![A; 20]] {
            let entry = entry(rcode::NOERROR, &records).unwrap();
            assert!(entry.is_sound());
            for bit in 0..entry.bits() {
                assert!(!entry.flipped(bit).is_sound(), "bit {bit}");
            }
        }
        let entry = entry(rcode::NOERROR, &[A]).unwrap();
        let mut older = entry.flipped(0);
        older.data = entry.data.clone();
        assert!(older.is_sound());
        older.born += Duration::from_nanos(1);
        assert!(!older.is_sound());
    }

    proptest! {
        #[test]
        fn any_bytes_are_looked_at_without_a_panic(
            wire in proptest::collection::vec(any::<u8>(), 0..300), age in 0_u64..1_000
        ) {
            let query = query_wire("www.example", rtype::A, None);
            let mut damaged = reply_wire(&query, rcode::NOERROR, &[A]);
            for (place, byte) in damaged.iter_mut().skip(query.len()).zip(&wire) { *place = *byte; }
            for wire in [wire, damaged] {
                let age = Duration::from_secs(age);
                if let Some(entry) = Entry::new(&key(&query), &wire, Instant::now(), age, 0) {
                    prop_assert!(entry.is_sound());
                    prop_assert_eq!(entry.message().len(), wire.len());
                    entry.render(&WIDE, Instant::now());
                }
            }
        }
    }
}
