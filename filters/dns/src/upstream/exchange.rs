//! One query to one server.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::wire::{
    HEADER, OWN_UDP, Parsed, Stripped, flag2, flag3, parse_reply, put, rcode, rtype, strip_opt, u16_at,
};

/// The receive buffer: larger than what we say that we take.
const BUFFER: usize = 4096;

/// Why a server gave no answer that can be used.
#[derive(Debug)]
pub(super) enum Failure {
    /// The operating system says that it cannot be reached.
    Network(io::Error),
    /// Something came that is not a reply to this query.
    Mismatch,
    /// It answered with an error; the reply itself where it can be passed on.
    Code(u8, Option<Stripped>),
}

impl Failure {
    /// The metric label.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Network(_) => "connect",
            Self::Mismatch => "mismatch",
            Self::Code(code, _) => rcode::label(*code),
        }
    }
}

/// Ids that nobody can guess: a keyed hash, whose key is the operating system's randomness, of a counter.
#[derive(Debug, Default)]
pub(super) struct Ids {
    state: RandomState,
    count: AtomicU64,
}

impl Ids {
    fn next(&self) -> u16 {
        let [high, low, ..] = self.state.hash_one(self.count.fetch_add(1, Relaxed)).to_be_bytes();
        u16::from_be_bytes([high, low])
    }
}

/// The query as a server gets it: our own id and OPT record, the client's RD, CD and DO. AD says that we understand that bit in the
/// reply (RFC 6840 section 5.7).
fn query(parsed: &Parsed, id: u16) -> Vec<u8> {
    let mut wire = Vec::with_capacity(HEADER + parsed.question_len() + 11);
    wire.extend_from_slice(&id.to_be_bytes());
    wire.extend([u8::from(parsed.rd), flag3::AD | if parsed.cd { flag3::CD } else { 0 }]);
    wire.extend([0, 1, 0, 0, 0, 0, 0, 1]);
    wire.extend_from_slice(parsed.name.wire());
    wire.extend_from_slice(&parsed.qtype.to_be_bytes());
    wire.extend_from_slice(&parsed.qclass.to_be_bytes());
    wire.push(0);
    wire.extend_from_slice(&rtype::OPT.to_be_bytes());
    wire.extend_from_slice(&OWN_UDP.to_be_bytes());
    wire.extend([0, 0, if parsed.dnssec_ok() { 0x80 } else { 0 }, 0, 0, 0]);
    wire
}

enum Checked {
    Good(Stripped),
    Truncated,
}

/// Whether a message is the reply to a query, and what it says.
fn check(wire: Vec<u8>, id: u16, asked: &Parsed) -> Result<Checked, Failure> {
    let flags = wire.get(2..4).and_then(|flags| flags.first_chunk::<2>());
    let (Some(&[flags2, flags3]), Some(questions)) = (flags, u16_at(&wire, 4)) else {
        return Err(Failure::Mismatch);
    };
    if u16_at(&wire, 0) != Some(id) || flags2 & flag2::QR == 0 {
        return Err(Failure::Mismatch);
    }
    let code = flags3 & flag3::RCODE;
    if questions == 0 && code != rcode::NOERROR {
        // Some servers do not repeat a question that they do not like.
        return Err(Failure::Code(code, None));
    }
    // Not all of a truncated reply need be there; its question is.
    let question = wire.get(HEADER..HEADER + asked.question_len()).ok_or(Failure::Mismatch)?;
    let (name, rest) = question.split_at_checked(asked.name.wire().len()).ok_or(Failure::Mismatch)?;
    let numbers = [asked.qtype.to_be_bytes(), asked.qclass.to_be_bytes()].concat();
    if !name.eq_ignore_ascii_case(asked.name.wire()) || rest != numbers {
        return Err(Failure::Mismatch);
    }
    if flags2 & flag2::TC != 0 {
        return Ok(Checked::Truncated);
    }
    let parsed = parse_reply(&wire).ok_or(Failure::Mismatch)?;
    let mut reply = strip_opt(wire, &parsed);
    if reply.extended_rcode != 0 {
        return Err(Failure::Code(rcode::SERVFAIL, None));
    }
    match code {
        rcode::NOERROR | rcode::NXDOMAIN | rcode::YXDOMAIN => {
            // Explanations of what went well, stale data for instance, would be lost in a cache and so depend on it.
            reply.ede = None;
            Ok(Checked::Good(reply))
        }
        code => Err(Failure::Code(code, Some(reply))),
    }
}

/// Asks a server over UDP, and over TCP when the reply is truncated, until it answers or the future is dropped.
pub(super) async fn ask(server: SocketAddr, asked: &Parsed, ids: &Ids) -> Result<Stripped, Failure> {
    let id = ids.next();
    let reply = udp(server, &query(asked, id)).await.map_err(Failure::Network)?;
    if let Checked::Good(reply) = check(reply, id, asked)? {
        return Ok(reply);
    }
    let id = ids.next();
    let reply = tcp(server, &query(asked, id)).await.map_err(Failure::Network)?;
    match check(reply, id, asked)? {
        Checked::Good(reply) => Ok(reply),
        Checked::Truncated => Err(Failure::Mismatch),
    }
}

/// From a socket of its own, so from a port that the kernel draws, and open to this server only.
async fn udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any = match server {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut reply = vec![0; BUFFER];
    let length = socket.recv(&mut reply).await?;
    reply.truncate(length);
    Ok(reply)
}

/// On a connection of its own (RFC 7766 section 8: a length, then the message).
async fn tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    let mut framed = vec![0; 2];
    // A query has less than 300 bytes.
    put(&mut framed, 0, &(query.len() as u16).to_be_bytes());
    framed.extend_from_slice(query);
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut reply = vec![0; length.into()];
    stream.read_exact(&mut reply).await?;
    Ok(reply)
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
        let wire = query(&asked(), 7);
        let parsed = parse_query(&wire).unwrap();
        assert_eq!((parsed.id, parsed.rd, parsed.ad, parsed.cd), (7, true, true, false));
        assert_eq!(parsed.edns.map(|edns| (edns.udp_size, edns.dnssec_ok)), Some((1232, true)));
        assert_eq!(parsed.name, Name::from_text("www.example").unwrap());
    }

    #[test]
    fn only_the_reply_to_the_query_is_one() {
        let asked = asked();
        let good = reply_wire(&query(&asked, 7), rcode::NOERROR, &[(rtype::A, 60, &[192, 0, 2, 1])]);
        let of = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut wire = good.clone();
            change(&mut wire);
            match check(wire, 7, &asked) {
                Ok(Checked::Good(_)) => "good",
                Ok(Checked::Truncated) => "truncated",
                Err(failure) => failure.label(),
            }
        };
        assert_eq!(of(&|_| {}), "good");
        assert_eq!(of(&|wire| wire[13] = b'W'), "good", "another case");
        assert_eq!(of(&|wire| wire[3] |= rcode::NXDOMAIN), "good");
        assert_eq!(of(&|wire| wire[2] |= flag2::TC), "truncated");
        assert_eq!(of(&|wire| wire[1] = 8), "mismatch");
        assert_eq!(of(&|wire| wire[2] &= 0x7f), "mismatch");
        assert_eq!(of(&|wire| wire[13] = b'x'), "mismatch");
        assert_eq!(of(&|wire| wire.truncate(20)), "mismatch");
        assert_eq!(of(&|wire| wire.push(0)), "mismatch");
        assert_eq!(of(&|wire| wire[3] |= rcode::SERVFAIL), "servfail");
        assert_eq!(of(&|wire| wire[3] |= rcode::REFUSED), "refused");
        assert_eq!(
            of(&|wire| {
                wire[3] |= rcode::FORMERR;
                wire[5] = 0;
                wire.truncate(HEADER);
            }),
            "formerr"
        );
    }

    #[test]
    fn ids_are_spread() {
        let ids = Ids::default();
        let seen: std::collections::HashSet<_> = (0..1000).map(|_| ids.next()).collect();
        assert!(seen.len() > 950, "{}", seen.len());
    }

    proptest! {
        #[test]
        fn any_bytes_are_checked_without_a_panic(wire in proptest::collection::vec(any::<u8>(), 0..300), matching: bool) {
            let mut wire = wire;
            if matching { put(&mut wire, 0, &[0, 7, 0x81]); }
            let _ = check(wire, 7, &asked());
        }
    }
}
