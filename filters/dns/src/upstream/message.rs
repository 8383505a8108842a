//! Queries to servers and the replies to them, as bytes.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::wire::{
    Edns, HEADER, OWN_UDP, Parsed, Stripped, flag2, flag3, parse_reply, put, rcode, rtype, strip_opt, u16_at,
};

/// The EDNS option of padding (RFC 7830).
const PADDING: u16 = 12;
/// Encrypted queries have a multiple of so many bytes (RFC 8467 section 4.1).
const BLOCK: usize = 128;

/// Why a server gave no answer that can be used.
#[derive(Debug)]
pub(super) enum Failure {
    /// The operating system says that it cannot be reached.
    Network(io::Error),
    /// It closed the connection while it owed a reply.
    Closed,
    /// It is not who it should be, or does not speak TLS as it should.
    Tls(String),
    /// It answered with something else than DNS over HTTPS.
    Http(String),
    /// Its name has no address.
    Resolve(String),
    /// Something came that is not a reply to this query.
    Mismatch,
    /// It answered with an error; the reply itself where it can be passed on.
    Code(u8, Option<Stripped>),
    /// It is this process.
    Own,
}

impl Failure {
    /// The metric label.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Network(_) => "connect",
            Self::Closed => "closed",
            Self::Tls(_) => "tls",
            Self::Http(_) => "http",
            Self::Resolve(_) => "resolve",
            Self::Mismatch => "mismatch",
            Self::Code(code, _) => rcode::label(*code),
            Self::Own => "own_address",
        }
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Network(why) => why.to_string(),
            Self::Closed => "closed the connection".to_owned(),
            Self::Tls(why) => format!("TLS: {why}"),
            Self::Http(why) => format!("HTTP: {why}"),
            Self::Resolve(why) => format!("its name cannot be resolved: {why}"),
            Self::Mismatch => "a reply to another query".to_owned(),
            Self::Code(code, _) => rcode::label(*code).to_uppercase(),
            Self::Own => "this sidecar itself".to_owned(),
        }
    }
}

/// Numbers that nobody can guess: a keyed hash, whose key is the operating system's randomness, of a counter.
#[derive(Debug, Default)]
pub(super) struct Randomness {
    state: RandomState,
    count: AtomicU64,
}

impl Randomness {
    /// 64 bits.
    pub(super) fn next(&self) -> u64 {
        self.state.hash_one(self.count.fetch_add(1, Relaxed))
    }

    /// An id for a query.
    pub(super) fn id(&self) -> u16 {
        let [high, low, ..] = self.next().to_be_bytes();
        u16::from_be_bytes([high, low])
    }

    /// A name in random case. The bits of an id, a port and each letter are what a forged reply has to guess.
    pub(super) fn case(&self, name: &[u8]) -> Vec<u8> {
        let mut name = name.to_vec();
        for chunk in name.chunks_mut(64) {
            let mut bits = self.next();
            for byte in chunk {
                // Length bytes are below b'A'.
                if bits & 1 != 0 {
                    *byte = byte.to_ascii_uppercase();
                }
                bits >>= 1;
            }
        }
        name
    }
}

/// A query as a server gets it: our own id and OPT record, the client's RD, CD and DO. AD says that we understand that bit in the
/// reply (RFC 6840 section 5.7).
pub(super) fn query(asked: &Parsed, name: &[u8], id: u16, padded: bool) -> Vec<u8> {
    let mut wire = Vec::with_capacity(HEADER + asked.question_len() + 11 + BLOCK);
    wire.extend_from_slice(&id.to_be_bytes());
    wire.extend([u8::from(asked.rd), flag3::AD | if asked.cd { flag3::CD } else { 0 }]);
    wire.extend([0, 1, 0, 0, 0, 0, 0, 1]);
    wire.extend_from_slice(name);
    wire.extend_from_slice(&asked.qtype.to_be_bytes());
    wire.extend_from_slice(&asked.qclass.to_be_bytes());
    wire.push(0);
    wire.extend_from_slice(&rtype::OPT.to_be_bytes());
    wire.extend_from_slice(&OWN_UDP.to_be_bytes());
    wire.extend([0, 0, if asked.dnssec_ok() { 0x80 } else { 0 }, 0]);
    if !padded {
        wire.extend([0, 0]);
        return wire;
    }
    let whole = (wire.len() + 6).next_multiple_of(BLOCK);
    // Below 128.
    let padding = (whole - wire.len() - 6) as u16;
    wire.extend_from_slice(&(padding + 4).to_be_bytes());
    wire.extend_from_slice(&PADDING.to_be_bytes());
    wire.extend_from_slice(&padding.to_be_bytes());
    wire.resize(whole, 0);
    wire
}

/// A question of our own, as if a client had asked it.
pub(super) fn question(name: crate::wire::Name, qtype: u16) -> Parsed {
    let edns = Some(Edns { udp_size: OWN_UDP, dnssec_ok: false });
    Parsed { id: 0, rd: true, ad: false, cd: false, name, qtype, qclass: crate::wire::CLASS_IN, edns }
}

/// What a message is to a query.
pub(super) enum Checked {
    /// A good answer.
    Good(Stripped),
    /// Part of one.
    Truncated,
    /// The reply, but for the case of its name.
    OtherCase,
    /// An error: [`Failure::Code`].
    Bad(Failure),
    /// No reply to it.
    Strange,
}

/// Whether a message is the reply to a query, and what it says. `name` is the name as it was sent; its case has to come back where
/// `exact`.
pub(super) fn check(wire: Vec<u8>, id: u16, asked: &Parsed, name: &[u8], exact: bool) -> Checked {
    read(wire, id, asked, name, exact).unwrap_or(Checked::Strange)
}

fn read(wire: Vec<u8>, id: u16, asked: &Parsed, name: &[u8], exact: bool) -> Option<Checked> {
    let &[flags2, flags3] = wire.get(2..4).and_then(|flags| flags.first_chunk::<2>())?;
    if u16_at(&wire, 0) != Some(id) || flags2 & flag2::QR == 0 || flags2 & flag2::OPCODE != 0 {
        return None;
    }
    let code = flags3 & flag3::RCODE;
    if u16_at(&wire, 4)? == 0 && code != rcode::NOERROR {
        // Some servers do not repeat a question that they do not like.
        return Some(Checked::Bad(Failure::Code(code, None)));
    }
    // Not all of a truncated reply need be there; its question is.
    let question = wire.get(HEADER..HEADER + asked.question_len())?;
    let (theirs, rest) = question.split_at_checked(name.len())?;
    let numbers = [asked.qtype.to_be_bytes(), asked.qclass.to_be_bytes()].concat();
    if !theirs.eq_ignore_ascii_case(name) || rest != numbers {
        return None;
    }
    if exact && theirs != name {
        return Some(Checked::OtherCase);
    }
    if flags2 & flag2::TC != 0 {
        return Some(Checked::Truncated);
    }
    let parsed = parse_reply(&wire)?;
    let mut wire = wire;
    // The server may be an authority; who passes its answer on is none (RFC 1035 section 4.1.1).
    put(&mut wire, 2, &[flags2 & !flag2::AA]);
    let mut reply = strip_opt(wire, &parsed);
    if reply.extended_rcode != 0 {
        return Some(Checked::Bad(Failure::Code(rcode::SERVFAIL, None)));
    }
    Some(match code {
        rcode::NOERROR | rcode::NXDOMAIN | rcode::YXDOMAIN => {
            // Explanations of what went well, stale data for instance, would be lost in a cache and so depend on it.
            reply.ede = None;
            Checked::Good(reply)
        }
        code => Checked::Bad(Failure::Code(code, Some(reply))),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::reply_wire;
    use crate::wire::{Name, parse_query};

    fn asked() -> Parsed {
        let mut wire = crate::testing::query_wire("www.example", rtype::A, Some(4096));
        let dnssec_ok = wire.len() - 4;
        wire[dnssec_ok] = 0x80;
        parse_query(&wire).unwrap()
    }

    #[test]
    fn our_query_is_our_own() {
        let asked = asked();
        let name = Randomness::default().case(asked.name.wire());
        for padded in [false, true] {
            let wire = query(&asked, &name, 7, padded);
            let parsed = parse_query(&wire).unwrap();
            assert_eq!((parsed.id, parsed.rd, parsed.ad, parsed.cd), (7, true, true, false));
            assert_eq!(parsed.edns.map(|edns| (edns.udp_size, edns.dnssec_ok)), Some((1232, true)));
            assert_eq!(parsed.name, Name::from_text("www.example").unwrap());
            assert_eq!(&wire[HEADER..HEADER + name.len()], name);
            assert_eq!(wire.len().is_multiple_of(BLOCK), padded);
        }
    }

    #[test]
    fn only_the_reply_to_the_query_is_one() {
        let asked = asked();
        let name = asked.name.wire();
        let good =
            reply_wire(&query(&asked, name, 7, false), rcode::NOERROR, &[(rtype::A, 60, &[192, 0, 2, 1])]);
        let of = |exact, change: &dyn Fn(&mut Vec<u8>)| {
            let mut wire = good.clone();
            change(&mut wire);
            match check(wire, 7, &asked, name, exact) {
                Checked::Good(_) => "good",
                Checked::Truncated => "truncated",
                Checked::OtherCase => "case",
                Checked::Bad(failure) => failure.label(),
                Checked::Strange => "strange",
            }
        };
        for exact in [false, true] {
            assert_eq!(of(exact, &|_| {}), "good");
            assert_eq!(of(exact, &|wire| wire[13] = b'W'), if exact { "case" } else { "good" });
            assert_eq!(of(exact, &|wire| wire[3] |= rcode::NXDOMAIN), "good");
            assert_eq!(of(exact, &|wire| wire[2] |= flag2::TC), "truncated");
            assert_eq!(of(exact, &|wire| wire[1] = 8), "strange");
            assert_eq!(of(exact, &|wire| wire[2] &= 0x7f), "strange");
            assert_eq!(of(exact, &|wire| wire[2] |= 0x28), "strange", "an UPDATE");
            assert_eq!(of(exact, &|wire| wire[13] = b'x'), "strange");
            assert_eq!(of(exact, &|wire| wire[12] = 3 ^ 0x20), "strange", "a length is no letter");
            assert_eq!(of(exact, &|wire| wire.truncate(20)), "strange");
            assert_eq!(of(exact, &|wire| wire.push(0)), "strange");
            assert_eq!(of(exact, &|wire| wire[3] |= rcode::SERVFAIL), "servfail");
            assert_eq!(of(exact, &|wire| wire[3] |= rcode::REFUSED), "refused");
            let without_question = |wire: &mut Vec<u8>| {
                wire[3] |= rcode::FORMERR;
                wire[5] = 0;
                wire.truncate(HEADER);
            };
            assert_eq!(of(exact, &without_question), "formerr");
        }
    }

    #[test]
    fn what_an_authority_says_is_passed_on_without_its_authority() {
        let asked = asked();
        let name = asked.name.wire();
        for code in [rcode::NOERROR, rcode::NXDOMAIN, rcode::REFUSED] {
            let mut wire =
                reply_wire(&query(&asked, name, 7, false), code, &[(rtype::A, 60, &[192, 0, 2, 1])]);
            wire[2] |= flag2::AA;
            let (Checked::Good(reply) | Checked::Bad(Failure::Code(_, Some(reply)))) =
                check(wire, 7, &asked, name, true)
            else {
                panic!("{code}")
            };
            assert_eq!(reply.wire[2] & (flag2::AA | flag2::QR), flag2::QR);
        }
    }

    #[test]
    fn ids_and_cases_are_spread() {
        let random = Randomness::default();
        let seen: std::collections::HashSet<_> = (0..1000).map(|_| random.id()).collect();
        assert!(seen.len() > 950, "{}", seen.len());
        let name = Name::from_text(&format!("{}.example", "a".repeat(60))).unwrap();
        let seen: std::collections::HashSet<_> = (0..1000).map(|_| random.case(name.wire())).collect();
        assert_eq!(seen.len(), 1000);
        // Each letter is upper-case in about half of them.
        for at in [1, 30, 60, 62, 68] {
            let upper = seen.iter().filter(|name| name[at].is_ascii_uppercase()).count();
            assert!((400..600).contains(&upper), "{upper} of 1000 at {at}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_checked_without_a_panic(
            wire in proptest::collection::vec(any::<u8>(), 0..300), matching: bool, exact: bool
        ) {
            let mut wire = wire;
            if matching { put(&mut wire, 0, &[0, 7, 0x81]); }
            let asked = asked();
            let _ = check(wire, 7, &asked, asked.name.wire(), exact);
        }

        #[test]
        fn a_name_in_random_case_is_the_same_name(labels in proptest::collection::vec("[a-z0-9_-]{1,20}", 1..8)) {
            let name = Name::from_text(&labels.join(".")).unwrap();
            let random = Randomness::default().case(name.wire());
            prop_assert_eq!(Name::parse(&random, 0), Some((name, random.len())));
        }
    }
}
