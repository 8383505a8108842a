//! Queries from clients.

use super::{HEADER, Name, error_reply, flag2, flag3, rcode, rtype, skip_name, u16_at, u32_at};

/// What a client says about itself with EDNS (RFC 6891 section 6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    /// The largest UDP reply that it takes.
    pub udp_size: u16,
    /// Whether it wants DNSSEC records (RFC 3225).
    pub dnssec_ok: bool,
}

/// What the sidecar needs to know of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// The client's id.
    pub id: u16,
    /// Recursion desired.
    pub rd: bool,
    /// The client understands the AD bit (RFC 6840 section 5.7).
    pub ad: bool,
    /// Checking disabled.
    pub cd: bool,
    /// The name asked for, lower-cased; the bytes behind the header have the client's own case.
    pub name: Name,
    /// The type asked for.
    pub qtype: u16,
    /// The class asked for.
    pub qclass: u16,
    /// The client's EDNS, if it sent one.
    pub edns: Option<Edns>,
}

impl Parsed {
    /// Whether the client wants DNSSEC records.
    pub fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }

    /// How long the question is, behind the header.
    pub fn question_len(&self) -> usize {
        self.name.wire().len() + 4
    }
}

/// Why a message is not a query that can be answered from the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It deserves no reply: shorter than a header, or itself a reply. The label says which.
    Silent(&'static str),
    /// It is answered with an error: the outcome's label and the whole reply.
    Reply(&'static str, Vec<u8>),
}

/// Reads a query strictly: operation QUERY, one uncompressed question, no other records but additional ones, at most one OPT,
/// nothing behind the last record.
///
/// # Errors
/// What to do with the message instead: nothing, or FORMERR, NOTIMP (another operation, or a transfer of a zone) or BADVERS
/// (RFC 6891 section 6.1.3).
pub fn parse_query(wire: &[u8]) -> Result<Parsed, Refusal> {
    let (Some(id), Some(&[flags2, flags3]), Some(counts)) =
        (u16_at(wire, 0), wire.get(2..4).and_then(|flags| flags.first_chunk::<2>()), counts(wire))
    else {
        return Err(Refusal::Silent("short"));
    };
    if flags2 & flag2::QR != 0 {
        return Err(Refusal::Silent("response"));
    }
    let refuse = |label, code: u16, known: Option<&Parsed>| {
        Err(Refusal::Reply(label, error_reply(wire, known.map(Parsed::question_len), code, known)))
    };
    let formerr = |known| refuse("malformed", rcode::FORMERR.into(), known);
    if flags2 & flag2::OPCODE != 0 {
        return refuse("notimp", rcode::NOTIMP.into(), None);
    }
    let [questions, answers, authorities, additionals] = counts;
    if questions != 1 || flags2 & flag2::TC != 0 {
        return formerr(None);
    }
    let Some((name, at)) = Name::parse(wire, HEADER) else { return formerr(None) };
    let (Some(qtype), Some(qclass)) = (u16_at(wire, at), u16_at(wire, at + 2)) else { return formerr(None) };
    let mut parsed = Parsed {
        id,
        rd: flags2 & flag2::RD != 0,
        ad: flags3 & flag3::AD != 0,
        cd: flags3 & flag3::CD != 0,
        name,
        qtype,
        qclass,
        edns: None,
    };
    if answers != 0 || authorities != 0 || qtype == rtype::OPT || qtype == 0 {
        return formerr(Some(&parsed));
    }
    let (edns, version) = match additional(wire, at + 4, additionals) {
        Some(found) => found,
        None => return formerr(Some(&parsed)),
    };
    parsed.edns = edns;
    if version > 0 {
        return refuse("badvers", rcode::BADVERS, Some(&parsed));
    }
    if matches!(qtype, rtype::AXFR | rtype::IXFR) {
        return refuse("notimp", rcode::NOTIMP.into(), Some(&parsed));
    }
    Ok(parsed)
}

fn counts(wire: &[u8]) -> Option<[u16; 4]> {
    Some([u16_at(wire, 4)?, u16_at(wire, 6)?, u16_at(wire, 8)?, u16_at(wire, 10)?])
}

/// Reads the additional records: EDNS and its version. `None` when they are malformed.
fn additional(wire: &[u8], mut at: usize, count: u16) -> Option<(Option<Edns>, u8)> {
    let mut found = None;
    let mut version = 0;
    for _ in 0..count {
        let owner = at;
        at = skip_name(wire, at)?;
        let kind = u16_at(wire, at)?;
        let class = u16_at(wire, at + 2)?;
        let ttl = u32_at(wire, at + 4)?;
        let data = at + 10;
        let end = data + usize::from(u16_at(wire, at + 8)?);
        let options = wire.get(data..end)?;
        if kind == rtype::OPT {
            // RFC 6891 sections 6.1.1 and 6.1.2: the owner is the root, and there is only one.
            if found.is_some() || at != owner + 1 {
                return None;
            }
            // The TTL holds the extended code, the version, and the flags, of which the first is DO.
            let [_, its_version, flags, _] = ttl.to_be_bytes();
            version = its_version;
            found = Some(Edns { udp_size: class, dnssec_ok: flags & 0x80 != 0 });
            well_formed(options)?;
        }
        at = end;
    }
    (at == wire.len()).then_some((found, version))
}

/// Whether EDNS options fill their space exactly.
fn well_formed(mut options: &[u8]) -> Option<()> {
    while !options.is_empty() {
        let length = usize::from(u16_at(options, 2)?);
        options = options.get(4 + length..)?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::query_wire;

    fn refused(wire: &[u8]) -> (u8, Vec<u8>) {
        match parse_query(wire) {
            Err(Refusal::Reply(_, reply)) => (reply[3] & 0xf, reply),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_query_is_read() {
        let mut wire = query_wire("WwW.Example.com", rtype::AAAA, Some(4096));
        wire[3] |= flag3::CD;
        let parsed = parse_query(&wire).unwrap();
        assert_eq!(parsed.name, Name::from_text("www.example.com").unwrap());
        assert_eq!(
            (parsed.qtype, parsed.qclass, parsed.rd, parsed.cd, parsed.ad),
            (28, 1, true, true, false)
        );
        assert_eq!(parsed.edns, Some(Edns { udp_size: 4096, dnssec_ok: false }));
        assert!(wire[HEADER..].starts_with(b"\x03WwW"));
    }

    #[test]
    fn what_is_no_query_is_dropped_and_what_is_a_wrong_one_is_told_so() {
        let good = query_wire("example.com", rtype::A, Some(1232));
        assert_eq!(parse_query(&good[..11]), Err(Refusal::Silent("short")));
        let mut response = good.clone();
        response[2] |= flag2::QR;
        assert_eq!(parse_query(&response), Err(Refusal::Silent("response")));

        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut wire = good.clone();
            change(&mut wire);
            refused(&wire)
        };
        // Opcode STATUS; the reply echoes id, opcode and RD.
        let (code, reply) = with(&|wire| wire[2] |= 2 << 3);
        assert_eq!((code, reply.len(), reply[2]), (rcode::NOTIMP, HEADER, 0x80 | 2 << 3 | 1));
        assert_eq!(reply[..2], good[..2]);
        for change in [
            &(|wire: &mut Vec<u8>| wire[5] = 0) as &dyn Fn(&mut Vec<u8>),
            &|wire| wire[5] = 2,
            &|wire| wire[7] = 1,
            &|wire| wire[9] = 1,
            &|wire| wire[11] = 2,
            &|wire| wire[2] |= flag2::TC,
            &|wire| wire[HEADER] = 0xc0,
            &|wire| wire[HEADER] = 64,
            &|wire| wire.push(0),
            &|wire| wire.truncate(20),
            // Two OPT records.
            &|wire| {
                wire[11] = 2;
                let opt = wire[wire.len() - 11..].to_vec();
                wire.extend(opt);
            },
            // An option that is longer than its record.
            &|wire| {
                let length = wire.len() - 1;
                wire[length] = 4;
                wire.extend([0, 10, 0, 9]);
            },
        ] {
            assert_eq!(with(change).0, rcode::FORMERR);
        }
        // EDNS version 1: code 16 is 1 in the OPT record and 0 in the header.
        let (code, reply) = with(&|wire| {
            let version = wire.len() - 5;
            wire[version] = 1;
        });
        assert_eq!((code, reply[reply.len() - 6]), (0, 1));
        assert_eq!(refused(&query_wire("example.com", rtype::AXFR, None)).0, rcode::NOTIMP);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(wire in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = parse_query(&wire);
        }

        #[test]
        fn a_damaged_query_is_read_without_a_panic(
            at in 0_usize..60, byte: u8, cut in 0_usize..60, edns in proptest::option::of(any::<u16>())
        ) {
            let mut wire = query_wire("www.example.com", rtype::A, edns);
            if let Some(place) = wire.get_mut(at) { *place = byte; }
            let keep = wire.len().saturating_sub(cut);
            if let Err(Refusal::Reply(_, reply)) = parse_query(&wire[..keep]) {
                // An error is never larger than the query and an OPT record.
                prop_assert!(reply.len() >= HEADER && reply.len() <= keep + 11);
                prop_assert_eq!(&reply[..2], &wire[..2]);
                prop_assert!(reply[2] & flag2::QR != 0);
            }
        }
    }
}
