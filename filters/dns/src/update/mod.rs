//! Moves names in the zones of other servers: RFC 2136 updates with prerequisites, signed (RFC 8945), A and AAAA together.

mod message;
mod tsig;

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::wire::{
    CLASS_IN, HEADER, Name, Reply, Section, flag2, parse_reply, rcode, rtype, skip_name, u16_at, u32_at,
};

pub use message::{Change, Prerequisite, code_label, encode, outcome};
pub use tsig::{Algorithm, Key, TsigError};

/// How often a change is tried again that another writer was faster than.
const RACES: usize = 3;

/// Why a name was not moved, or a server not asked.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// Nothing came in time, over UDP and over TCP.
    #[error("{server} gave no answer within {after:?}")]
    Timeout {
        /// The server.
        server: SocketAddr,
        /// For each of both.
        after: Duration,
    },
    /// The server cannot be reached.
    #[error("{server} cannot be reached: {why}")]
    Network {
        /// The server.
        server: SocketAddr,
        /// What the operating system said.
        why: io::Error,
    },
    /// It answered with something else than an answer.
    #[error("{0} gave no answer that makes sense")]
    Malformed(SocketAddr),
    /// Its answer is not believed, or it does not believe us.
    #[error("{0}: {1}")]
    Tsig(SocketAddr, TsigError),
    /// It said no.
    #[error("{0} answered {code}", code = code_label(*.1).to_uppercase())]
    Code(SocketAddr, u8),
    /// The name leads where neither the sidecar nor its node is: somebody else's, and left alone.
    #[error("{name} leads to {seen}, which is neither the sidecar nor the node; it is left alone")]
    Conflict {
        /// The name.
        name: String,
        /// Its addresses.
        seen: String,
    },
}

impl UpdateError {
    /// The metric label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Timeout { .. } => "timeout",
            Self::Network { .. } => "network",
            Self::Malformed(_) => "malformed",
            Self::Tsig(_, why) => why.label(),
            Self::Code(_, code) => code_label(*code),
            Self::Conflict { .. } => "conflict",
        }
    }

    /// Whether another server may do better.
    pub fn elsewhere(&self) -> bool {
        !matches!(self, Self::Conflict { .. })
    }
}

/// A name that a bypass moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The name.
    pub name: Name,
    /// The sidecar's addresses.
    pub sidecar: BTreeSet<IpAddr>,
    /// The node's own addresses, where the name rests.
    pub node: BTreeSet<IpAddr>,
}

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switched {
    /// The server has the new addresses now.
    Changed,
    /// It had them already.
    Already,
}

/// Who may change a zone.
pub struct Updater {
    /// The zone.
    pub zone: Name,
    /// The key that the servers know.
    pub key: Key,
    /// How long a server may take to answer, over UDP and then over TCP.
    pub timeout: Duration,
    /// The time to live of what is written, in seconds.
    pub ttl: u32,
}

impl Updater {
    /// Makes one server give a name these addresses, A and AAAA in one transaction, provided that it has now what was seen a moment
    /// before, and that this was the sidecar's, the node's or nothing.
    ///
    /// # Errors
    /// When the server cannot be asked or says no, or the name is somebody else's.
    pub async fn switch(
        &self,
        server: SocketAddr,
        moved: &Moved,
        direct: bool,
    ) -> Result<Switched, UpdateError> {
        let wanted = if direct { &moved.node } else { &moved.sidecar };
        let mut seen = BTreeSet::new();
        for _ in 0..RACES {
            seen = addresses(server, &moved.name, self.timeout).await?;
            if seen == *wanted {
                return Ok(Switched::Already);
            }
            if !seen.is_empty() && seen != moved.sidecar && seen != moved.node {
                break;
            }
            let (required, changes) = self.transaction(&moved.name, &seen, wanted);
            match self.send(server, &required, &changes).await {
                Ok(()) => return Ok(Switched::Changed),
                // Somebody changed it in between (RFC 2136 section 3.2).
                Err(UpdateError::Code(_, 7 | 8)) => {}
                Err(why) => return Err(why),
            }
        }
        let seen = seen.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        Err(UpdateError::Conflict { name: moved.name.to_string(), seen })
    }

    /// From what was seen to what is wanted, if it is still as it was seen.
    fn transaction(
        &self,
        name: &Name,
        seen: &BTreeSet<IpAddr>,
        wanted: &BTreeSet<IpAddr>,
    ) -> (Vec<Prerequisite>, Vec<Change>) {
        let (mut required, mut changes) = (Vec::new(), Vec::new());
        for family in [rtype::A, rtype::AAAA] {
            let data = of_family(seen, family);
            let name = || name.clone();
            required.push(match data.is_empty() {
                true => Prerequisite::None { name: name(), rtype: family },
                false => Prerequisite::Are { name: name(), rtype: family, data },
            });
            changes.push(Change::Delete { name: name(), rtype: family });
            let add = |data| Change::Add { name: name(), rtype: family, ttl: self.ttl, data };
            changes.extend(of_family(wanted, family).into_iter().map(add));
        }
        (required, changes)
    }

    /// Sends an update, signed with the time of now, and believes no answer but a signed one.
    ///
    /// # Errors
    /// When nothing was changed, or that cannot be known.
    pub async fn send(
        &self,
        server: SocketAddr,
        required: &[Prerequisite],
        changes: &[Change],
    ) -> Result<(), UpdateError> {
        let id = id();
        let mut message = encode(id, &self.zone, required, changes);
        let mac = self.key.sign(&mut message, now());
        let reply = exchange(server, &message, self.timeout).await?;
        let code = outcome(id, &reply).ok_or(UpdateError::Malformed(server))?;
        match self.key.verify(&reply, &mac, now()) {
            Ok(()) if code == rcode::NOERROR => Ok(()),
            Ok(()) => Err(UpdateError::Code(server, code)),
            // A refusal that is not signed cannot do harm, and says more than that it is not signed.
            Err(TsigError::Unsigned) if code != rcode::NOERROR => Err(UpdateError::Code(server, code)),
            Err(why) => Err(UpdateError::Tsig(server, why)),
        }
    }
}

fn of_family(addresses: &BTreeSet<IpAddr>, family: u16) -> Vec<Vec<u8>> {
    let data = |ip: &IpAddr| match (ip, family) {
        (IpAddr::V4(ip), rtype::A) => Some(ip.octets().to_vec()),
        (IpAddr::V6(ip), rtype::AAAA) => Some(ip.octets().to_vec()),
        _ => None,
    };
    addresses.iter().filter_map(data).collect()
}

/// The addresses that a server gives a name, of both families; none where the name does not exist.
///
/// # Errors
/// When the server cannot be asked, or answers with a failure.
pub async fn addresses(
    server: SocketAddr,
    name: &Name,
    limit: Duration,
) -> Result<BTreeSet<IpAddr>, UpdateError> {
    let (v4, v6) = tokio::join!(ask(server, name, rtype::A, limit), ask(server, name, rtype::AAAA, limit));
    let (v4, v6) = (v4?, v6?);
    let v4 = v4.data(rtype::A).filter_map(|data| Some(Ipv4Addr::from(*data.first_chunk::<4>()?).into()));
    let v6 = v6.data(rtype::AAAA).filter_map(|data| Some(Ipv6Addr::from(*data.first_chunk::<16>()?).into()));
    Ok(v4.chain(v6).collect())
}

/// The serial number of a zone on a server.
///
/// # Errors
/// When the server cannot be asked, or does not have the zone.
pub async fn serial(server: SocketAddr, zone: &Name, limit: Duration) -> Result<u32, UpdateError> {
    let reply = ask(server, zone, rtype::SOA, limit).await?;
    let serial = reply.data(rtype::SOA).find_map(|data| {
        let mailbox = skip_name(data, 0)?;
        u32_at(data, skip_name(data, mailbox)?)
    });
    serial.ok_or(UpdateError::Malformed(server))
}

/// A reply and where its records are.
struct Asked {
    wire: Vec<u8>,
    parsed: Reply,
}

impl Asked {
    /// The data of the answer's records of a type.
    fn data(&self, rtype: u16) -> impl Iterator<Item = &[u8]> {
        let records = self.parsed.records.iter();
        let of_type =
            records.filter(move |record| record.section == Section::Answer && record.rtype == rtype);
        of_type.filter_map(|record| self.wire.get(record.data.clone()))
    }
}

async fn ask(server: SocketAddr, name: &Name, qtype: u16, limit: Duration) -> Result<Asked, UpdateError> {
    let id = id();
    let mut query = Vec::with_capacity(HEADER + name.wire().len() + 4);
    query.extend(id.to_be_bytes());
    query.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    query.extend_from_slice(name.wire());
    query.extend(qtype.to_be_bytes());
    query.extend(CLASS_IN.to_be_bytes());
    let wire = exchange(server, &query, limit).await?;
    let parsed = parse_reply(&wire).filter(|reply| reply.name == *name && reply.qtype == qtype);
    let parsed = parsed.ok_or(UpdateError::Malformed(server))?;
    match parsed.rcode() {
        rcode::NOERROR | rcode::NXDOMAIN => Ok(Asked { wire, parsed }),
        code => Err(UpdateError::Code(server, code)),
    }
}

/// Sends a message and returns the reply with its id: over UDP, and over TCP where that gives none or a cut one.
async fn exchange(server: SocketAddr, message: &[u8], limit: Duration) -> Result<Vec<u8>, UpdateError> {
    if let Ok(Ok(reply)) = timeout(limit, over_udp(server, message)).await
        && reply.get(2).is_some_and(|flags| flags & flag2::TC == 0)
    {
        return Ok(reply);
    }
    match timeout(limit, over_tcp(server, message)).await {
        Ok(Ok(reply)) if u16_at(&reply, 0) == u16_at(message, 0) => Ok(reply),
        Ok(Ok(_)) => Err(UpdateError::Malformed(server)),
        Ok(Err(why)) => Err(UpdateError::Network { server, why }),
        Err(_) => Err(UpdateError::Timeout { server, after: limit }),
    }
}

async fn over_udp(server: SocketAddr, message: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr =
        if server.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(message).await?;
    let mut reply = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut reply).await?;
        if length >= HEADER && u16_at(&reply, 0) == u16_at(message, 0) {
            reply.truncate(length);
            return Ok(reply);
        }
    }
}

async fn over_tcp(server: SocketAddr, message: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await?;
    let mut reply = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut reply).await?;
    Ok(reply)
}

/// A number that nobody can guess: from the operating system's randomness by way of the hash of a key of its own.
fn id() -> u16 {
    let [high, low, ..] = RandomState::new().hash_one(0).to_be_bytes();
    u16::from_be_bytes([high, low])
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Whether a serial number is the same as another one or comes after it (RFC 1982 section 3.2).
pub fn not_before(serial: u32, other: u32) -> bool {
    serial.wrapping_sub(other) < 1 << 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_demands_what_was_seen_and_moves_both_families() {
        let set =
            |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<BTreeSet<IpAddr>>();
        let name = Name::from_text("a.example").unwrap();
        let key = Key::new(name.clone(), Algorithm::HmacSha512, b"x");
        let updater = Updater { zone: name.clone(), key, timeout: Duration::ZERO, ttl: 5 };
        let (required, changes) =
            updater.transaction(&name, &set(&["192.0.2.1"]), &set(&["192.0.2.2", "2001:db8::2"]));
        let one = |rtype, data: Vec<u8>| Prerequisite::Are { name: name.clone(), rtype, data: vec![data] };
        assert_eq!(
            required,
            [
                one(rtype::A, vec![192, 0, 2, 1]),
                Prerequisite::None { name: name.clone(), rtype: rtype::AAAA },
            ]
        );
        let kinds: Vec<_> = changes
            .iter()
            .map(|change| match change {
                Change::Delete { rtype, .. } => (false, *rtype),
                Change::Add { rtype, ttl: 5, .. } => (true, *rtype),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(kinds, [(false, 1), (true, 1), (false, 28), (true, 28)]);
    }

    #[tokio::test]
    async fn a_silent_server_is_given_up_in_time_and_a_closed_port_at_once() {
        let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = tcp.local_addr().unwrap();
        let udp = UdpSocket::bind(server).await.unwrap();
        let limit = Duration::from_millis(100);
        let name = Name::from_text("example").unwrap();
        let start = tokio::time::Instant::now();
        let silent = serial(server, &name, limit).await.unwrap_err();
        assert_eq!(silent.label(), "timeout");
        assert!(start.elapsed() >= 2 * limit, "over UDP and over TCP");
        drop((tcp, udp));
        let closed = serial(server, &name, Duration::from_secs(60)).await.unwrap_err();
        assert_eq!(closed.label(), "network");
    }

    #[test]
    fn serial_numbers_go_round() {
        assert!(not_before(5, 5) && not_before(6, 5) && !not_before(5, 6));
        assert!(not_before(3, u32::MAX) && !not_before(u32::MAX, 3));
    }
}
