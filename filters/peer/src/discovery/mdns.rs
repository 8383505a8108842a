//! Messages of libp2p's discovery by multicast DNS (RFC 6762, <https://github.com/libp2p/specs/blob/master/discovery/mdns.md>).

use hickory_proto::op::{Message, MessageType, OpCode};
use hickory_proto::rr::rdata::{PTR, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record};

use crate::libp2p::PeerId;

/// The port of multicast DNS.
pub const PORT: u16 = 5353;
/// The name under which nodes are found.
pub const SERVICE: &str = "_p2p._udp.local.";
/// The name under which services are found (RFC 6763 section 9).
pub const SERVICES: &str = "_services._dns-sd._udp.local.";
/// The most bytes of a message: it fits one packet of an Ethernet.
pub const MAX_MESSAGE: usize = 1400;
/// What a record of a node takes of a message at most: names, an address, the id twice 61 letters long.
const RECORDS: usize = 340;
/// The Internet, and that no others have this record (RFC 6762 section 10.2).
const OURS: DNSClass = DNSClass::Unknown(0x8001);

/// What is told of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The name of its records: a random word of 32 to 63 letters and digits.
    pub word: String,
    /// Who it is.
    pub id: PeerId,
    /// Where it is reached: the beginning of a multiaddr, `/ip4/127.0.0.1/tcp/4101` for instance.
    pub at: String,
}

impl Announcement {
    /// An announcement with a word of its own.
    pub fn new(id: PeerId, at: String) -> Self {
        let word = std::iter::repeat_with(fastrand::alphanumeric).take(fastrand::usize(32..=63)).collect();
        Self { word, id, at }
    }

    /// The whole multiaddr.
    pub fn multiaddr(&self) -> String {
        format!("{}/p2p/{}", self.at, self.id)
    }

    /// The records that say so: a pointer to the name, and the text of the name.
    fn records(&self, service: &Name, ttl: u32) -> Option<(Record, Record)> {
        let name = Name::from_labels([self.word.as_bytes(), b"_p2p", b"_udp", b"local"]).ok()?;
        let text = format!("dnsaddr={}", self.multiaddr());
        if text.len() > 255 {
            return None;
        }
        let pointer = Record::from_rdata(service.clone(), ttl, RData::PTR(PTR(name.clone())));
        let mut text = Record::from_rdata(name, ttl, RData::TXT(TXT::new(vec![text])));
        text.dns_class = OURS;
        Some((pointer, text))
    }
}

/// The messages that tell of nodes for `ttl` seconds, or with 0 that they are gone (RFC 6762 section 10.1).
pub fn announce(nodes: &[Announcement], ttl: u32) -> Vec<Vec<u8>> {
    let Ok(service) = Name::from_ascii(SERVICE) else { return Vec::new() };
    let messages = nodes.chunks(MAX_MESSAGE / RECORDS).filter_map(|nodes| {
        let mut message = response();
        for node in nodes {
            let (pointer, text) = node.records(&service, ttl)?;
            message.add_answer(pointer);
            message.add_additional(text);
        }
        message.to_vec().ok()
    });
    messages.collect()
}

/// The message that tells of the service, for `ttl` seconds.
pub fn service(ttl: u32) -> Option<Vec<u8>> {
    let mut message = response();
    let (services, service) = (Name::from_ascii(SERVICES).ok()?, Name::from_ascii(SERVICE).ok()?);
    message.add_answer(Record::from_rdata(services, ttl, RData::PTR(PTR(service))));
    message.to_vec().ok()
}

/// A response of multicast DNS (RFC 6762 section 18).
fn response() -> Message {
    let mut message = Message::new(0, MessageType::Response, OpCode::Query);
    message.metadata.authoritative = true;
    message
}

/// What somebody asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Nodes.
    Nodes,
    /// Services.
    Services,
}

/// What a message asks for; `None` for one that is no query, or is about something else.
pub fn asked(message: &[u8]) -> Option<Asked> {
    let message = Message::from_vec(message).ok()?;
    if message.metadata.message_type != MessageType::Query {
        return None;
    }
    let is =
        |name: &str| message.queries.iter().any(|query| query.name().to_ascii().eq_ignore_ascii_case(name));
    if is(SERVICE) {
        return Some(Asked::Nodes);
    }
    is(SERVICES).then_some(Asked::Services)
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;
    use hickory_proto::rr::RecordType;
    use proptest::prelude::*;

    use super::*;

    fn query(name: &str) -> Vec<u8> {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::PTR));
        message.to_vec().unwrap()
    }

    #[test]
    fn questions_are_recognised() {
        assert_eq!(asked(&query(SERVICE)), Some(Asked::Nodes));
        assert_eq!(asked(&query("_P2P._udp.LOCAL.")), Some(Asked::Nodes));
        assert_eq!(asked(&query(SERVICES)), Some(Asked::Services));
        assert_eq!(asked(&query("_http._tcp.local.")), None);
        assert_eq!(
            asked(
                &announce(&[Announcement::new(PeerId::of_key(&[1; 36]), "/ip4/1.2.3.4/tcp/1".into())], 9)[0]
            ),
            None
        );
        assert_eq!(asked(b""), None);
        // As rust-libp2p sends it.
        let theirs = b"\x12\x34\0\0\0\x01\0\0\0\0\0\0\x04_p2p\x04_udp\x05local\0\0\x0c\0\x01";
        assert_eq!(asked(theirs), Some(Asked::Nodes));
    }

    /// Reads an answer as rust-libp2p does: each pointer, and the texts of the name that it points to.
    fn read(message: &[u8]) -> Vec<(String, u32)> {
        let message = Message::from_vec(message).unwrap();
        assert!(message.queries.is_empty() && message.metadata.authoritative);
        let mut read = Vec::new();
        for pointer in message.answers.iter().filter(|record| record.name.to_string() == SERVICE) {
            let RData::PTR(to) = &pointer.data else { panic!("{pointer}") };
            for record in message.additionals.iter().filter(|record| record.name == to.0) {
                let RData::TXT(text) = &record.data else { panic!("{record}") };
                assert_eq!((record.ttl, record.dns_class), (pointer.ttl, OURS));
                read.extend(
                    text.txt_data.iter().map(|text| (String::from_utf8(text.to_vec()).unwrap(), record.ttl)),
                );
            }
        }
        read
    }

    #[test]
    fn the_service_is_told() {
        let message = Message::from_vec(&service(20).unwrap()).unwrap();
        assert_eq!(
            message.answers[0].to_string(),
            "_services._dns-sd._udp.local. 20 IN PTR _p2p._udp.local."
        );
    }

    proptest! {
        #[test]
        fn every_node_is_told_in_messages_that_fit(count in 0_usize..40, port: u16, ttl in 0_u32..1000, byte: u8) {
            let nodes: Vec<_> = (0..count)
                .map(|at| Announcement::new(PeerId::of_key(&[byte, at as u8]), format!("/ip4/255.255.255.255/tcp/{port}")))
                .collect();
            let messages = announce(&nodes, ttl);
            prop_assert!(messages.iter().all(|message| message.len() <= MAX_MESSAGE));
            let told: Vec<_> = messages.iter().flat_map(|message| read(message)).collect();
            let expected: Vec<_> = nodes.iter().map(|node| (format!("dnsaddr={}", node.multiaddr()), ttl)).collect();
            prop_assert_eq!(told, expected);
        }

        #[test]
        fn any_bytes_ask_for_something_or_nothing(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = asked(&bytes);
        }
    }
}
