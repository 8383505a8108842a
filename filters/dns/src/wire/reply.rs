//! Replies from upstream servers.

use std::borrow::Cow;
use std::ops::Range;

use super::{Ede, HEADER, Name, put, rtype, skip_name, u16_at, u32_at};

/// How many characters of an upstream server's explanation are passed on.
const MAX_TEXT: usize = 60;
/// The EDNS option of extended errors (RFC 8914 section 2).
pub(super) const EDE: u16 = 15;

/// A section of a message that holds records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// What answers the question.
    Answer,
    /// Who is responsible.
    Authority,
    /// What may help.
    Additional,
}

/// Where a record is in its message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its section.
    pub section: Section,
    /// Its type.
    pub rtype: u16,
    /// Its class; the UDP size for OPT.
    pub class: u16,
    /// Its time to live in seconds, 0 when the top bit is set (RFC 2181 section 8); flags for OPT.
    pub ttl: u32,
    /// Where it begins.
    pub start: usize,
    /// Where its time to live stands.
    pub ttl_at: usize,
    /// Where its data stand.
    pub data: Range<usize>,
}

/// A reply, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The id.
    pub id: u16,
    /// The third and fourth byte of the header; see [`flag2`](super::flag2) and [`flag3`](super::flag3).
    pub flags: [u8; 2],
    /// The name in the question.
    pub name: Name,
    /// The type in the question.
    pub qtype: u16,
    /// The class in the question.
    pub qclass: u16,
    /// The records in order.
    pub records: Vec<Record>,
}

impl Reply {
    /// The response code in the header.
    pub fn rcode(&self) -> u8 {
        self.flags[1] & super::flag3::RCODE
    }
}

/// Takes a reply with one question apart. `None` when it is malformed, or has bytes behind its last record.
pub fn parse_reply(wire: &[u8]) -> Option<Reply> {
    if wire.len() > usize::from(u16::MAX) || u16_at(wire, 4)? != 1 {
        return None;
    }
    let flags = *wire.get(2..4)?.first_chunk::<2>()?;
    if flags[0] & super::flag2::QR == 0 {
        return None;
    }
    let (name, question) = Name::parse(wire, HEADER)?;
    let (qtype, qclass) = (u16_at(wire, question)?, u16_at(wire, question + 2)?);
    let mut at = question + 4;
    let mut records = Vec::new();
    for (section, count_at) in [(Section::Answer, 6), (Section::Authority, 8), (Section::Additional, 10)] {
        for _ in 0..u16_at(wire, count_at)? {
            let record = record(wire, at, section)?;
            at = record.data.end;
            records.push(record);
        }
    }
    (at == wire.len()).then_some(Reply { id: u16_at(wire, 0)?, flags, name, qtype, qclass, records })
}

fn record(wire: &[u8], start: usize, section: Section) -> Option<Record> {
    let at = skip_name(wire, start)?;
    let data = at + 10..at + 10 + usize::from(u16_at(wire, at + 8)?);
    wire.get(data.clone())?;
    let rtype = u16_at(wire, at)?;
    let ttl = match u32_at(wire, at + 4)? {
        ttl if ttl > i32::MAX as u32 && rtype != rtype::OPT => 0,
        ttl => ttl,
    };
    Some(Record { section, rtype, class: u16_at(wire, at + 2)?, ttl, start, ttl_at: at + 4, data })
}

/// A reply without the OPT record, which is between the upstream server and us (RFC 6891 section 6.1.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stripped {
    /// The message.
    pub wire: Vec<u8>,
    /// The upper eight bits of the response code.
    pub extended_rcode: u8,
    /// The upstream server's explanation, if it sent one.
    pub ede: Option<Ede>,
}

/// Takes the OPT record out of a reply.
///
/// Records behind it go as well, since names in them may be compressed by offsets that would shift; by RFC 6891 only
/// optional additional records and TSIG can stand there.
pub fn strip_opt(mut wire: Vec<u8>, reply: &Reply) -> Stripped {
    let is_opt = |record: &&Record| record.section == Section::Additional && record.rtype == rtype::OPT;
    let Some(opt) = reply.records.iter().find(is_opt) else {
        return Stripped { wire, extended_rcode: 0, ede: None };
    };
    let ede = wire.get(opt.data.clone()).and_then(explanation);
    wire.truncate(opt.start);
    let additional = |record: &&Record| record.section == Section::Additional && record.start < opt.start;
    let kept = reply.records.iter().filter(additional).count();
    put(&mut wire, 10, &u16::try_from(kept).unwrap_or(0).to_be_bytes());
    let [extended_rcode, ..] = opt.ttl.to_be_bytes();
    Stripped { wire, extended_rcode, ede }
}

fn explanation(mut options: &[u8]) -> Option<Ede> {
    loop {
        let (code, length) = (u16_at(options, 0)?, usize::from(u16_at(options, 2)?));
        let value = options.get(4..4 + length)?;
        if code == EDE {
            let text = String::from_utf8_lossy(value.get(2..)?);
            let text = text.trim_end_matches('\0').chars().take(MAX_TEXT).collect();
            return Some(Ede { code: u16_at(value, 0)?, text: Cow::Owned(text) });
        }
        options = options.get(4 + length..)?;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{query_wire, reply_wire};
    use crate::wire::{rcode, rtype};

    #[test]
    fn a_reply_is_taken_apart_and_loses_its_opt_record() {
        let query = query_wire("a.example", rtype::A, Some(1232));
        let mut wire = reply_wire(&query, rcode::NOERROR, &[(rtype::A, 60, &[192, 0, 2, 1])]);
        let plain = wire.clone();
        // OPT with extended code 1, a cookie, and the explanation "stale".
        wire[11] = 1;
        wire.extend([0, 0, 41, 4, 208, 1, 0, 0, 0, 0, 23]);
        wire.extend([0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
        wire.extend([0, 15, 0, 7, 0, 3]);
        wire.extend(b"stale");
        let reply = parse_reply(&wire).unwrap();
        assert_eq!((reply.records.len(), reply.records[0].ttl), (2, 60));
        let stripped = strip_opt(wire, &reply);
        assert_eq!(stripped.wire, plain);
        assert_eq!(stripped.extended_rcode, 1);
        assert_eq!(stripped.ede, Some(Ede { code: 3, text: "stale".into() }));
        assert!(parse_reply(&stripped.wire).is_some());
    }

    #[test]
    fn what_stands_behind_the_opt_record_goes_with_it() {
        let query = query_wire("a.example", rtype::A, None);
        let mut wire = reply_wire(&query, rcode::NOERROR, &[]);
        let plain = wire.clone();
        wire[11] = 2;
        wire.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
        wire.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 1, 2, 3, 4]);
        let reply = parse_reply(&wire).unwrap();
        assert_eq!(strip_opt(wire, &reply).wire, plain);
    }

    #[test]
    fn a_ttl_with_the_top_bit_is_zero() {
        let query = query_wire("a.example", rtype::A, None);
        let wire = reply_wire(&query, rcode::NOERROR, &[(rtype::A, 0x8000_0001, &[192, 0, 2, 1])]);
        assert_eq!(parse_reply(&wire).unwrap().records[0].ttl, 0);
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_apart_without_a_panic(wire in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Some(reply) = parse_reply(&wire) {
                strip_opt(wire, &reply);
            }
        }

        #[test]
        fn a_damaged_reply_is_taken_apart_without_a_panic(at in 0_usize..120, byte: u8, cut in 0_usize..120) {
            let query = query_wire("www.example.com", rtype::A, None);
            let data: &[u8] = &[192, 0, 2, 1];
            let mut wire = reply_wire(&query, rcode::NOERROR, &[(rtype::A, 60, data), (rtype::A, 61, data)]);
            wire[11] = 1;
            wire.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 6, 0, 15, 0, 2, 0, 3]);
            if let Some(place) = wire.get_mut(at) { *place = byte; }
            wire.truncate(wire.len().saturating_sub(cut));
            if let Some(reply) = parse_reply(&wire) {
                let stripped = strip_opt(wire, &reply);
                let again = parse_reply(&stripped.wire);
                prop_assert!(again.is_some_and(|again| again.records.len() <= reply.records.len()));
            }
        }
    }
}
