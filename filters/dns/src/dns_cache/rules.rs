//! What may be kept, for how long, and how it looks later. The time is an argument.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::DnsQuery;
use crate::wire::{self, Name, Section, flag2, parse_reply, patch_ttls, rcode, rtype, u32_at};

/// Nothing is ever older.
pub const HARD_LIMIT: Duration = Duration::from_secs(300);
/// No negative answer is ever older.
pub const NEGATIVE_LIMIT: Duration = Duration::from_secs(30);

/// What a reply may depend on. Compared as a whole, so a hash that collides mixes nothing up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The name, lower-cased.
    pub name: Name,
    /// The type.
    pub qtype: u16,
    /// The class.
    pub qclass: u16,
    /// Whether DNSSEC records were asked for.
    pub dnssec_ok: bool,
    /// Whether the client checks signatures itself; without this bit one such client could make the cache serve forged
    /// data to all others.
    pub cd: bool,
}

impl Key {
    /// The key of a query that the cache has a say in. Others are not: without RD the client asks what the server has at hand,
    /// and `ANY` is not one thing.
    pub fn of(query: &DnsQuery) -> Option<Self> {
        let parsed = query.parsed();
        (parsed.rd && parsed.qtype != rtype::ANY).then(|| Self {
            name: parsed.name.clone(),
            qtype: parsed.qtype,
            qclass: parsed.qclass,
            dnssec_ok: parsed.dnssec_ok(),
            cd: parsed.cd,
        })
    }
}

/// How long entries live, as the settings say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// At most.
    pub max_ttl: Duration,
    /// At least, for positive answers.
    pub min_ttl: Duration,
    /// At most, for negative answers.
    pub negative_ttl: Duration,
}

/// A reply that may be kept. Knows no settings, so that a reload changes the life of what is there.
#[derive(Clone, Debug)]
pub struct Entry {
    wire: Bytes,
    ttls: Box<[u16]>,
    /// The shortest time to live of its records, for a negative answer also the zone's MINIMUM; in seconds.
    lowest: u32,
    negative: bool,
    stored: Instant,
}

impl Entry {
    /// The entry for a reply that arrived now, if it may be kept at all: complete, and either data of the type asked for or a
    /// negative answer with the SOA record that says for how long (RFC 2308 section 5). `reply` has no OPT record.
    pub fn new(key: &Key, reply: &Bytes, now: Instant) -> Option<Self> {
        let parsed = parse_reply(reply)?;
        let [flags2, _] = parsed.flags;
        let same = (&parsed.name, parsed.qtype, parsed.qclass) == (&key.name, key.qtype, key.qclass);
        if flags2 & flag2::TC != 0 || !same {
            return None;
        }
        let answers = |record: &&wire::Record| record.section == Section::Answer && record.rtype == key.qtype;
        let positive = parsed.records.iter().any(|record| answers(&record));
        let negative = match parsed.rcode() {
            rcode::NOERROR => !positive,
            rcode::NXDOMAIN => true,
            _ => return None,
        };
        let mut lowest = parsed.records.iter().map(|record| record.ttl).min()?;
        if negative {
            let is_soa =
                |record: &&wire::Record| record.section == Section::Authority && record.rtype == rtype::SOA;
            let soa = parsed.records.iter().find(is_soa)?;
            // The last of the five numbers behind the two names (RFC 1035 section 3.3.13).
            let minimum = soa.data.end.checked_sub(4).filter(|at| *at >= soa.data.start + 18)?;
            lowest = lowest.min(u32_at(reply, minimum)?);
        }
        let ttls = parsed.records.iter().map(|record| u16::try_from(record.ttl_at));
        let ttls = ttls.collect::<Result<_, _>>().ok()?;
        // A copy of the right size; the reply may be a part of a larger buffer.
        Some(Self { wire: Bytes::copy_from_slice(reply), ttls, lowest, negative, stored: now })
    }

    /// How long it lives in all. Zero when it must not be kept.
    pub fn lifetime(&self, limits: &Limits) -> Duration {
        let own = Duration::from_secs(self.lowest.into());
        let own = match self.negative {
            true => own.min(limits.negative_ttl).min(NEGATIVE_LIMIT),
            false => own.max(limits.min_ttl),
        };
        own.min(limits.max_ttl).min(HARD_LIMIT)
    }

    /// The reply as it is to be sent now: times to live within the limits and less its age. `None` when its time is over.
    pub fn render(&self, limits: &Limits, now: Instant) -> Option<Bytes> {
        let age = now.saturating_duration_since(self.stored);
        let lifetime = self.lifetime(limits);
        if age >= lifetime {
            return None;
        }
        let seconds = |duration: Duration| u32::try_from(duration.as_secs()).unwrap_or(u32::MAX);
        let (least, most) = match self.negative {
            true => (0, seconds(lifetime)),
            false => (seconds(limits.min_ttl.min(lifetime)), seconds(limits.max_ttl.min(HARD_LIMIT))),
        };
        let mut wire = self.wire.to_vec();
        patch_ttls(&mut wire, &self.ttls, |ttl| {
            // RFC 2181 section 8: the top bit makes it zero.
            let ttl = if ttl > i32::MAX as u32 { 0 } else { ttl };
            ttl.max(least).min(most).saturating_sub(seconds(age))
        });
        Some(wire.into())
    }

    /// Roughly the bytes of memory that it takes, with a key.
    pub fn weight(&self, key: &Key) -> u32 {
        let own = self.wire.len() + 2 * self.ttls.len() + key.name.wire().len();
        // The entry, the key, and what the cache itself needs for each.
        u32::try_from(own + size_of::<Self>() + size_of::<Key>() + 200).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Transport;
    use crate::testing::{query_wire, reply_wire, soa};

    const A: (u16, u32, &[u8]) = (rtype::A, 600, &[192, 0, 2, 1]);
    const WIDE: Limits =
        Limits { max_ttl: HARD_LIMIT, min_ttl: Duration::ZERO, negative_ttl: NEGATIVE_LIMIT };

    fn key(query: &[u8]) -> Key {
        let client = ([127, 0, 0, 1], 1).into();
        Key::of(&DnsQuery::parse(query.to_vec().into(), client, Transport::Udp).unwrap()).unwrap()
    }

    fn entry(code: u8, records: &[(u16, u32, &[u8])]) -> Option<Entry> {
        let query = query_wire("www.example", rtype::A, None);
        Entry::new(&key(&query), &reply_wire(&query, code, records).into(), Instant::now())
    }

    fn ttls(entry: &Entry, limits: &Limits, age: Duration) -> Option<Vec<u32>> {
        let wire = entry.render(limits, entry.stored + age)?;
        Some(parse_reply(&wire).unwrap().records.iter().map(|record| record.ttl).collect())
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
        let client = ([127, 0, 0, 1], 1).into();
        let mut without_rd = plain.clone();
        without_rd[2] = 0;
        for wire in [without_rd, query_wire("www.example", rtype::ANY, None)] {
            assert_eq!(Key::of(&DnsQuery::parse(wire.into(), client, Transport::Udp).unwrap()), None);
        }
    }

    #[test]
    fn only_complete_answers_are_kept() {
        assert!(entry(rcode::NOERROR, &[A]).is_some());
        let minimum = soa(60);
        let authority = (rtype::SOA, 60, minimum.as_slice());
        assert!(entry(rcode::NXDOMAIN, &[authority]).unwrap().negative);
        assert!(entry(rcode::NOERROR, &[authority]).unwrap().negative);
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
        assert!(Entry::new(&key(&query), &truncated.into(), Instant::now()).is_none());
        let other = query_wire("other.example", rtype::A, None);
        let reply = reply_wire(&other, rcode::NOERROR, &[A]);
        assert!(Entry::new(&key(&query), &reply.into(), Instant::now()).is_none());
    }

    #[test]
    fn times_to_live_fall_and_end() {
        let short = (rtype::A, 10, &[192, 0, 2, 2][..]);
        let entry = entry(rcode::NOERROR, &[A, short]).unwrap();
        let secs = Duration::from_secs;
        assert_eq!(ttls(&entry, &WIDE, secs(0)), Some(vec![300, 10]));
        assert_eq!(ttls(&entry, &WIDE, Duration::from_millis(9_999)), Some(vec![291, 1]));
        assert_eq!(ttls(&entry, &WIDE, secs(10)), None);
        // The settings of the moment of reading decide.
        let long = Limits { min_ttl: secs(100), ..WIDE };
        assert_eq!(ttls(&entry, &long, secs(90)), Some(vec![210, 10]));
        let shorter = Limits { max_ttl: secs(5), ..WIDE };
        assert_eq!(ttls(&entry, &shorter, secs(4)), Some(vec![1, 1]));
        assert_eq!(ttls(&entry, &shorter, secs(5)), None);
    }

    #[test]
    fn negative_answers_live_as_long_as_the_zone_says_and_never_long() {
        let (hour, ten) = (soa(3600), soa(10));
        let of = |ttl, data: &[u8]| {
            let entry = entry(rcode::NXDOMAIN, &[(rtype::SOA, ttl, data)]).unwrap();
            (entry.lifetime(&WIDE).as_secs(), ttls(&entry, &WIDE, Duration::ZERO).unwrap_or_default())
        };
        assert_eq!(of(3600, &hour), (30, vec![30]));
        assert_eq!(of(3600, &ten), (10, vec![10]));
        assert_eq!(of(5, &hour), (5, vec![5]));
        assert_eq!(of(0, &hour), (0, vec![]));
    }

    proptest! {
        #[test]
        fn nothing_is_ever_older_than_300_seconds(
            raw in proptest::collection::vec(any::<u32>(), 1..6),
            negative: bool,
            minimum: u32,
            max_ttl in 0_u64..100_000, min_ttl in 0_u64..100_000, negative_ttl in 0_u64..100_000,
            age_ms in 0_u64..400_000,
        ) {
            let data = soa(minimum);
            let records: Vec<(u16, u32, &[u8])> = raw
                .iter()
                .map(|&ttl| if negative { (rtype::SOA, ttl, &data[..]) } else { (rtype::A, ttl, A.2) })
                .collect();
            let entry = entry(if negative { rcode::NXDOMAIN } else { rcode::NOERROR }, &records).unwrap();
            let limits = Limits {
                max_ttl: Duration::from_secs(max_ttl),
                min_ttl: Duration::from_secs(min_ttl),
                negative_ttl: Duration::from_secs(negative_ttl),
            };
            let age = Duration::from_millis(age_ms);
            if let Some(shown) = ttls(&entry, &limits, age) {
                let limit = if negative { NEGATIVE_LIMIT } else { HARD_LIMIT };
                prop_assert!(age < limit && age < limits.max_ttl);
                for ttl in shown {
                    prop_assert!(u64::from(ttl) + age.as_secs() <= limit.as_secs());
                    prop_assert!(u64::from(ttl) + age.as_secs() <= max_ttl);
                }
            }
        }

        #[test]
        fn any_bytes_are_looked_at_without_a_panic(wire in proptest::collection::vec(any::<u8>(), 0..300)) {
            let query = query_wire("www.example", rtype::A, None);
            let mut damaged = reply_wire(&query, rcode::NOERROR, &[A]);
            for (place, byte) in damaged.iter_mut().skip(query.len()).zip(&wire) { *place = *byte; }
            for wire in [wire, damaged] {
                if let Some(entry) = Entry::new(&key(&query), &wire.into(), Instant::now()) {
                    entry.render(&WIDE, Instant::now());
                }
            }
        }
    }
}
