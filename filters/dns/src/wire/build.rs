//! Replies from the sidecar.

use std::borrow::Cow;

use super::reply::EDE;
use super::{CLASS_IN, HEADER, OWN_UDP, Parsed, flag2, flag3, put, rcode, rtype, u16_at, u32_at};

/// An extended error: why a reply is what it is (RFC 8914).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ede {
    /// The code.
    pub code: u16,
    /// More words, for people.
    pub text: Cow<'static, str>,
}

/// A reply without records. `question` is how many bytes behind the header of the query are echoed; `code` may be above 15 when the
/// client sent EDNS.
pub fn error_reply(query: &[u8], question: Option<usize>, code: u16, known: Option<&Parsed>) -> Vec<u8> {
    let question = question.and_then(|length| query.get(HEADER..HEADER + length));
    let [high, low] = code.to_be_bytes();
    let flags2 = query.get(2).copied().unwrap_or(0) & (flag2::OPCODE | flag2::RD);
    let cd = query.get(3).copied().unwrap_or(0) & flag3::CD;
    let mut reply = Vec::with_capacity(HEADER + 300);
    reply.extend_from_slice(query.get(..2).unwrap_or(&[0, 0]));
    reply.extend([flags2 | flag2::QR, flag3::RA | cd | low & flag3::RCODE]);
    reply.extend([0, u8::from(question.is_some()), 0, 0, 0, 0, 0, 0]);
    reply.extend_from_slice(question.unwrap_or_default());
    if let Some(edns) = known.and_then(|known| known.edns) {
        put(&mut reply, 10, &[0, 1]);
        // The upper eight of the code's twelve bits.
        opt(&mut reply, high << 4 | low >> 4, edns.dnssec_ok, Reasons::default());
    }
    reply
}

/// A reply whose records all belong to the name asked for: `(type, TTL in seconds, data)`. Authoritative: the sidecar answers from
/// what it knows itself.
pub fn answer(query: &Parsed, records: &[(u16, u32, Vec<u8>)]) -> Vec<u8> {
    let mut reply = Vec::with_capacity(HEADER + query.question_len() + records.len() * 28);
    reply.extend_from_slice(&query.id.to_be_bytes());
    reply.extend([flag2::QR | flag2::AA | u8::from(query.rd), flag3::RA, 0, 1]);
    reply.extend([0; 6]);
    reply.extend_from_slice(query.name.wire());
    reply.extend_from_slice(&query.qtype.to_be_bytes());
    reply.extend_from_slice(&query.qclass.to_be_bytes());
    let mut count = 0_u16;
    for (rtype, ttl, data) in records {
        let Ok(length) = u16::try_from(data.len()) else { continue };
        if reply.len() + HEADER + data.len() > usize::from(u16::MAX) {
            break;
        }
        // A pointer to the name in the question.
        reply.extend([0xc0, 12]);
        reply.extend_from_slice(&rtype.to_be_bytes());
        reply.extend_from_slice(&CLASS_IN.to_be_bytes());
        reply.extend_from_slice(&ttl.to_be_bytes());
        reply.extend_from_slice(&length.to_be_bytes());
        reply.extend_from_slice(data);
        count += 1;
    }
    put(&mut reply, 6, &count.to_be_bytes());
    reply
}

/// The answer to a query for `ANY`: one HINFO record that says why there is no more (RFC 8482 section 4.2).
pub fn hinfo(query: &Parsed) -> Vec<u8> {
    answer(query, &[(rtype::HINFO, 300, b"\x07RFC8482\0".to_vec())])
}

/// Why a reply is what it is: none, one or two reasons.
pub type Reasons<'a> = [Option<&'a Ede>; 2];

/// As [`finish_into`], into a buffer of its own.
pub fn finish(query: &[u8], known: &Parsed, reply: &[u8], reasons: Reasons<'_>, limit: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(reply.len() + 32);
    finish_into(&mut out, query, known, reply, reasons, limit);
    out
}

/// Fits a reply to the client that asked: its id and its question's case, RD and CD as it sent them, RA set, the reserved bit clear,
/// AD only where the client can read it (RFC 6840 section 5.8), an OPT record of our own exactly when the client sent one. A
/// reply larger than `limit` bytes becomes an empty one with TC set; reasons for which there is no room are left out (RFC 8914 section 3).
///
/// `query` is the client's message that `known` was read from; `reply` has the same question, in any case, and no OPT record. The
/// message is appended to `out`, without an allocation when it has room. Returns whether the records are in it, at the offsets from its
/// beginning where they were in `reply`.
pub fn finish_into(
    out: &mut Vec<u8>,
    query: &[u8],
    known: &Parsed,
    reply: &[u8],
    reasons: Reasons<'_>,
    limit: usize,
) -> bool {
    let question = known.question_len();
    let (Some(&[_, _, flags2, flags3, ..]), Some(asked), Some(records)) =
        (reply.first_chunk::<HEADER>(), query.get(HEADER..HEADER + question), reply.get(HEADER + question..))
    else {
        out.extend(error_reply(query, Some(question), rcode::SERVFAIL.into(), Some(known)));
        return false;
    };
    let size = |reasons| reply.len() + if known.edns.is_some() { opt_size(reasons) } else { 0 };
    let reasons = if size(reasons) <= limit { reasons } else { Reasons::default() };
    let whole = size(reasons) <= limit;
    let when = |condition, bit| if condition { bit } else { 0 };
    let authenticated = flags3 & when(known.ad || known.dnssec_ok(), flag3::AD);
    let flags2 = flag2::QR | flags2 & flag2::AA | when(known.rd, flag2::RD) | when(!whole, flag2::TC);
    let flags3 = flag3::RA | authenticated | when(known.cd, flag3::CD) | flags3 & flag3::RCODE;
    let own = u16::from(known.edns.is_some());
    let [i, d] = known.id.to_be_bytes();
    out.extend_from_slice(&[i, d, flags2, flags3, 0, 1]);
    match reply.get(6..10) {
        Some(counts) if whole => out.extend_from_slice(counts),
        _ => out.extend_from_slice(&[0; 4]),
    }
    let additional = if whole { u16_at(reply, 10).unwrap_or(0) } else { 0 };
    out.extend_from_slice(&additional.saturating_add(own).to_be_bytes());
    out.extend_from_slice(asked);
    if whole {
        out.extend_from_slice(records);
    }
    if let Some(edns) = known.edns {
        opt(out, 0, edns.dnssec_ok, if whole { reasons } else { Reasons::default() });
    }
    whole
}

/// The text of a reason, at most 255 bytes.
fn text(ede: &Ede) -> &[u8] {
    let text = ede.text.as_bytes();
    text.get(..255).unwrap_or(text)
}

fn opt_size(reasons: Reasons<'_>) -> usize {
    11 + reasons.iter().flatten().map(|ede| 6 + text(ede).len()).sum::<usize>()
}

/// Appends our OPT record (RFC 6891 section 6.1.2).
fn opt(out: &mut Vec<u8>, extended_rcode: u8, dnssec_ok: bool, reasons: Reasons<'_>) {
    let ([t, u], [s, z]) = (rtype::OPT.to_be_bytes(), OWN_UDP.to_be_bytes());
    out.extend_from_slice(&[0, t, u, s, z]);
    // At most two options of 261 bytes.
    let [high, low] = ((opt_size(reasons) - 11) as u16).to_be_bytes();
    out.extend_from_slice(&[extended_rcode, 0, if dnssec_ok { 0x80 } else { 0 }, 0, high, low]);
    for ede in reasons.into_iter().flatten() {
        let text = text(ede);
        out.extend_from_slice(&EDE.to_be_bytes());
        out.extend_from_slice(&(text.len() as u16 + 2).to_be_bytes());
        out.extend_from_slice(&ede.code.to_be_bytes());
        out.extend_from_slice(text);
    }
}

/// Changes the times to live at the given offsets.
pub fn patch_ttls(wire: &mut [u8], offsets: impl IntoIterator<Item = u16>, change: impl Fn(u32) -> u32) {
    for at in offsets {
        let at = usize::from(at);
        if let Some(ttl) = u32_at(wire, at) {
            put(wire, at, &change(ttl).to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{query_wire, reply_wire};
    use crate::wire::{parse_query, parse_reply};

    fn asked(name: &str, edns: Option<u16>) -> (Vec<u8>, Parsed) {
        let wire = query_wire(name, rtype::A, edns);
        let known = parse_query(&wire).unwrap();
        (wire, known)
    }

    #[test]
    fn a_reply_is_fitted_to_its_client() {
        let (query, known) = asked("WwW.example", None);
        let (other, _) = asked("www.EXAMPLE", None);
        let mut reply = reply_wire(&other, rcode::NOERROR, &[(rtype::A, 60, &[192, 0, 2, 1])]);
        reply[..2].copy_from_slice(&[9, 9]);
        reply[3] |= flag3::AD | 0x40;
        let out = finish(&query, &known, &reply, [None, None], 512);
        assert_eq!(out[..2], query[..2]);
        assert_eq!(out[HEADER..query.len()], query[HEADER..]);
        assert_eq!(out[3], flag3::RA, "no AD and no reserved bit for a client that asked for neither");
        assert_eq!(out.len(), reply.len(), "no OPT for a client without EDNS");

        let (query, known) = asked("www.example", Some(1232));
        let ede = Ede { code: 22, text: "timeout".into() };
        let out = finish(&query, &known, &reply, [Some(&ede), None], 512);
        assert_eq!(out[3], flag3::RA);
        let parsed = parse_reply(&out).unwrap();
        assert_eq!((parsed.records[1].rtype, parsed.records[1].class), (rtype::OPT, OWN_UDP));
        assert!(out.ends_with(b"\0\x0f\0\x09\0\x16timeout"));
        // A second reason; and no reason where there is no room for one.
        let also = Ede { code: 13, text: "".into() };
        let out = finish(&query, &known, &reply, [Some(&ede), Some(&also)], 512);
        assert!(out.ends_with(b"\0\x0f\0\x09\0\x16timeout\0\x0f\0\x02\0\x0d"));
        let short = finish(&query, &known, &reply, [Some(&ede), Some(&also)], out.len() - 1);
        assert_eq!(short, finish(&query, &known, &reply, [None, None], 512));
    }

    #[test]
    fn a_reply_is_appended_without_an_allocation() {
        let (query, known) = asked("www.example", Some(1232));
        let reply = reply_wire(&query, rcode::NOERROR, &[(rtype::A, 60, &[192, 0, 2, 1])]);
        let mut out = Vec::with_capacity(600);
        out.extend([1, 2]);
        let before = out.as_ptr();
        assert!(finish_into(&mut out, &query, &known, &reply, [None, None], 512));
        assert_eq!((out.as_ptr(), &out[..2]), (before, &[1, 2][..]));
        assert_eq!(out[2..], finish(&query, &known, &reply, [None, None], 512));
        let at = usize::from(u16::try_from(parse_reply(&reply).unwrap().records[0].ttl_at).unwrap());
        assert_eq!(out[2 + at..2 + at + 4], [0, 0, 0, 60]);
        assert!(!finish_into(&mut out, &query, &known, &reply, [None, None], 40));
    }

    #[test]
    fn what_does_not_fit_is_cut_at_once() {
        let (query, known) = asked("www.example", Some(1232));
        let records: Vec<(u16, u32, &[u8])> = vec![(rtype::A, 60, &[192, 0, 2, 1]); 40];
        let reply = reply_wire(&query, rcode::NOERROR, &records);
        let whole = finish(&query, &known, &reply, [None, None], 1232);
        assert_eq!(parse_reply(&whole).unwrap().records.len(), 41);
        let cut = finish(&query, &known, &reply, [None, None], 512);
        assert_eq!(cut[2] & flag2::TC, flag2::TC);
        assert_eq!(parse_reply(&cut).unwrap().records.len(), 1);
        assert_eq!(cut.len(), query.len());
    }

    #[test]
    fn any_is_answered_as_rfc_8482_says() {
        let (_, known) = asked("www.example", None);
        let reply = hinfo(&Parsed { qtype: rtype::ANY, ..known });
        let parsed = parse_reply(&reply).unwrap();
        assert_eq!(parsed.records[0].rtype, rtype::HINFO);
        assert_eq!(reply[parsed.records[0].data.clone()], *b"\x07RFC8482\0");
    }

    proptest! {
        #[test]
        fn no_reply_is_larger_than_its_limit_or_malformed(
            reply in proptest::collection::vec(any::<u8>(), 0..2000),
            count in 0_usize..60,
            damaged: bool,
            edns in proptest::option::of(any::<u16>()),
            limit in 512_usize..1500,
        ) {
            let (query, known) = asked("www.example", edns);
            let records: Vec<(u16, u32, &[u8])> = vec![(rtype::A, 60, &[192, 0, 2, 1]); count];
            let good = reply_wire(&query, rcode::NOERROR, &records);
            let out = finish(&query, &known, if damaged { &reply } else { &good }, [None, None], limit);
            prop_assert!(out.len() <= limit);
            prop_assert_eq!(&out[..2], &query[..2]);
            prop_assert!(damaged || parse_reply(&out).is_some());
        }

        #[test]
        fn offsets_outside_of_the_message_are_ignored(
            mut wire in proptest::collection::vec(any::<u8>(), 0..100),
            offsets in proptest::collection::vec(any::<u16>(), 0..20)
        ) {
            patch_ttls(&mut wire, offsets, |ttl| ttl / 2);
        }
    }
}
