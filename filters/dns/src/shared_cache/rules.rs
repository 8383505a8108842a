//! Which replies are shared, and for how long. The rules are those of `dns_cache` at its widest settings.

use std::time::Duration;

use crate::dns_cache::{HARD_LIMIT, NEGATIVE_LIMIT};
use crate::wire::{Name, Reply, Section, flag2, parse_reply, put, rcode, rtype, u32_at};
use crate::{DnsQuery, FlushSelector};

/// What a reply may depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// The name, lower-cased.
    pub(super) name: Name,
    pub(super) qtype: u16,
    pub(super) qclass: u16,
    /// Whether DNSSEC records were asked for.
    pub(super) dnssec_ok: bool,
    /// Whether the client checks signatures itself.
    pub(super) cd: bool,
}

impl Asked {
    /// What a query asks for, if the answer is not the client's alone: without RD it asks what the server has at hand, and `ANY` is not
    /// one thing.
    pub(super) fn of(query: &DnsQuery) -> Option<Self> {
        let parsed = query.parsed();
        (parsed.rd && parsed.qtype != rtype::ANY).then(|| Self {
            name: parsed.name.clone(),
            qtype: parsed.qtype,
            qclass: parsed.qclass,
            dnssec_ok: parsed.dnssec_ok(),
            cd: parsed.cd,
        })
    }

    /// Whether a flush concerns it.
    pub(super) fn is_in(&self, selector: &FlushSelector) -> bool {
        match selector {
            FlushSelector::All => true,
            FlushSelector::Name(name) => self.name == *name,
            FlushSelector::Suffix(name) => self.name.is_within(name),
            FlushSelector::Type(rtype) => self.qtype == *rtype,
        }
    }
}

/// How long a reply lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Life {
    /// In all, at most 300 s, for a negative answer at most 30 s.
    pub(super) whole: Duration,
    pub(super) negative: bool,
}

/// The life of a reply to this question; `None` when it must not be kept: it is not complete, or neither has data of the type asked for nor the SOA
/// record of a negative answer (RFC 2308 section 5), or lives for no time.
pub(super) fn life(asked: &Asked, reply: &[u8]) -> Option<Life> {
    let parsed = parse_reply(reply)?;
    let same = (&parsed.name, parsed.qtype, parsed.qclass) == (&asked.name, asked.qtype, asked.qclass);
    let [flags2, _] = parsed.flags;
    if !same || flags2 & flag2::TC != 0 {
        return None;
    }
    let negative = match parsed.rcode() {
        rcode::NXDOMAIN => true,
        rcode::NOERROR => !parsed
            .records
            .iter()
            .any(|record| record.section == Section::Answer && record.rtype == asked.qtype),
        _ => return None,
    };
    let lowest = parsed.records.iter().map(|record| record.ttl).min()?;
    let (lowest, limit) = match negative {
        true => (lowest.min(minimum(&parsed, reply)?), NEGATIVE_LIMIT),
        false => (lowest, HARD_LIMIT),
    };
    let whole = Duration::from_secs(lowest.into()).min(limit);
    (!whole.is_zero()).then_some(Life { whole, negative })
}

/// The zone's MINIMUM: the last of the five numbers behind the two names of its SOA record (RFC 1035 section 3.3.13).
fn minimum(parsed: &Reply, reply: &[u8]) -> Option<u32> {
    let is_soa =
        |record: &&crate::wire::Record| record.section == Section::Authority && record.rtype == rtype::SOA;
    let soa = parsed.records.iter().find(is_soa)?;
    u32_at(reply, soa.data.end.checked_sub(4).filter(|at| *at >= soa.data.start + 18)?)
}

/// The reply with its times to live less by its age; none is longer than what is left of its life. `None` when its time is over.
pub(super) fn aged(asked: &Asked, reply: &[u8], age: Duration) -> Option<Vec<u8>> {
    let Life { whole, negative } = life(asked, reply)?;
    if age >= whole {
        return None;
    }
    let limit = if negative { whole } else { HARD_LIMIT };
    let seconds = |duration: Duration| u32::try_from(duration.as_secs()).unwrap_or(u32::MAX);
    let mut aged = reply.to_vec();
    for record in parse_reply(reply)?.records {
        let ttl = record.ttl.min(seconds(limit)).saturating_sub(seconds(age));
        put(&mut aged, record.ttl_at, &ttl.to_be_bytes());
    }
    Some(aged)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{query, reply_wire, soa};

    const A: (u16, u32, &[u8]) = (rtype::A, 600, &[192, 0, 2, 1]);

    fn made(code: u8, records: &[(u16, u32, &[u8])]) -> (Asked, Vec<u8>) {
        let query = query("www.example", rtype::A);
        (Asked::of(&query).unwrap(), reply_wire(query.wire(), code, records))
    }

    fn ttls(asked: &Asked, reply: &[u8], age: u64) -> Option<Vec<u32>> {
        let aged = aged(asked, reply, Duration::from_secs(age))?;
        Some(parse_reply(&aged).unwrap().records.iter().map(|record| record.ttl).collect())
    }

    #[test]
    fn only_complete_answers_are_shared() {
        let minimum = soa(60);
        let authority = (rtype::SOA, 60, minimum.as_slice());
        for (code, records, seconds) in [
            (rcode::NOERROR, vec![A], Some((300, false))),
            (rcode::NOERROR, vec![A, (rtype::A, 7, A.2)], Some((7, false))),
            (rcode::NOERROR, vec![authority], Some((30, true))),
            (rcode::NXDOMAIN, vec![authority], Some((30, true))),
            (rcode::NXDOMAIN, vec![(rtype::SOA, 9, minimum.as_slice())], Some((9, true))),
            (rcode::NXDOMAIN, vec![], None),
            (rcode::NOERROR, vec![], None),
            (rcode::NOERROR, vec![(rtype::CNAME, 60, &[0][..])], None),
            (rcode::NOERROR, vec![(rtype::SOA, 60, &[0, 0, 0, 0])], None),
            (rcode::NOERROR, vec![(rtype::A, 0, A.2)], None),
            (rcode::SERVFAIL, vec![A], None),
            (rcode::REFUSED, vec![A], None),
        ] {
            let (asked, mut reply) = made(code, &records);
            let life_of =
                |reply: &[u8]| life(&asked, reply).map(|life| (life.whole.as_secs(), life.negative));
            assert_eq!(life_of(&reply), seconds, "{code} {records:?}");
            reply[2] |= flag2::TC;
            assert_eq!(life_of(&reply), None, "truncated");
        }
        let (_, reply) = made(rcode::NOERROR, &[A]);
        for other in [query("other.example", rtype::A), query("www.example", rtype::AAAA)] {
            assert_eq!(life(&Asked::of(&other).unwrap(), &reply), None);
        }
        assert_eq!(Asked::of(&query("www.example", rtype::ANY)), None);
    }

    #[test]
    fn times_to_live_fall_and_end() {
        let (asked, reply) = made(rcode::NOERROR, &[A, (rtype::A, 20, A.2)]);
        assert_eq!(ttls(&asked, &reply, 0), Some(vec![300, 20]));
        assert_eq!(ttls(&asked, &reply, 19), Some(vec![281, 1]));
        assert_eq!(ttls(&asked, &reply, 20), None);
        let minimum = soa(10);
        let (asked, reply) = made(rcode::NXDOMAIN, &[(rtype::SOA, 3600, &minimum)]);
        assert_eq!(ttls(&asked, &reply, 4), Some(vec![6]));
        assert_eq!(ttls(&asked, &reply, 10), None);
    }

    proptest! {
        #[test]
        fn nothing_is_ever_older_than_its_limit(
            raw in proptest::collection::vec(any::<u32>(), 1..6), negative: bool, low: u32, age in 0_u64..400,
        ) {
            let data = soa(low);
            let kind = |&ttl: &u32| if negative { (rtype::SOA, ttl, &data[..]) } else { (rtype::A, ttl, A.2) };
            let records: Vec<_> = raw.iter().map(kind).collect();
            let (asked, reply) = made(if negative { rcode::NXDOMAIN } else { rcode::NOERROR }, &records);
            let limit = if negative { 30 } else { 300 };
            for ttl in ttls(&asked, &reply, age).unwrap_or_default() {
                prop_assert!(u64::from(ttl) + age <= limit);
            }
        }

        #[test]
        fn any_bytes_are_looked_at_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let (asked, mut damaged) = made(rcode::NOERROR, &[A]);
            let question = damaged.len() - 16;
            for (place, byte) in damaged[question..].iter_mut().zip(&bytes) { *place = *byte; }
            for wire in [bytes, damaged] {
                aged(&asked, &wire, Duration::from_secs(1));
            }
        }
    }
}
