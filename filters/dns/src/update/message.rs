//! Dynamic updates on the wire (RFC 2136), without I/O.

use crate::wire::{CLASS_IN, HEADER, Name, flag2, flag3, rtype, u16_at};

const CLASS_NONE: u16 = 254;
const CLASS_ANY: u16 = 255;
const UPDATE: u8 = 5 << 3;

/// What must hold, or nothing is changed (RFC 2136 section 2.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prerequisite {
    /// These are the records of the type at the name, all of them (section 2.4.2).
    Are {
        /// The name.
        name: Name,
        /// The type.
        rtype: u16,
        /// The data of each, at least one.
        data: Vec<Vec<u8>>,
    },
    /// There is no record of the type at the name (section 2.4.3).
    None {
        /// The name.
        name: Name,
        /// The type.
        rtype: u16,
    },
}

/// What is changed (RFC 2136 section 2.5). All changes of a message happen, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// All records of the type at the name go (section 2.5.2).
    Delete {
        /// The name.
        name: Name,
        /// The type.
        rtype: u16,
    },
    /// A record comes (section 2.5.1).
    Add {
        /// The name.
        name: Name,
        /// The type.
        rtype: u16,
        /// In seconds.
        ttl: u32,
        /// Its data.
        data: Vec<u8>,
    },
}

/// An update of a zone, unsigned.
pub fn encode(id: u16, zone: &Name, prerequisites: &[Prerequisite], changes: &[Change]) -> Vec<u8> {
    let mut wire = Vec::with_capacity(512);
    let (mut required, mut changed) = (0_u16, 0_u16);
    wire.extend(id.to_be_bytes());
    wire.extend([UPDATE, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    wire.extend_from_slice(zone.wire());
    wire.extend(rtype::SOA.to_be_bytes());
    wire.extend(CLASS_IN.to_be_bytes());
    let mut record = |count: &mut u16, name: &Name, rtype: u16, class: u16, ttl: u32, data: &[u8]| {
        // Addresses and the like; the caller has nothing longer.
        let Ok(length) = u16::try_from(data.len()) else { return };
        wire.extend_from_slice(name.wire());
        wire.extend(rtype.to_be_bytes());
        wire.extend(class.to_be_bytes());
        wire.extend(ttl.to_be_bytes());
        wire.extend(length.to_be_bytes());
        wire.extend_from_slice(data);
        *count += 1;
    };
    for prerequisite in prerequisites {
        match prerequisite {
            Prerequisite::Are { name, rtype, data } => {
                data.iter().for_each(|data| record(&mut required, name, *rtype, CLASS_IN, 0, data));
            }
            Prerequisite::None { name, rtype } => record(&mut required, name, *rtype, CLASS_NONE, 0, &[]),
        }
    }
    for change in changes {
        match change {
            Change::Delete { name, rtype } => record(&mut changed, name, *rtype, CLASS_ANY, 0, &[]),
            Change::Add { name, rtype, ttl, data } => {
                record(&mut changed, name, *rtype, CLASS_IN, *ttl, data)
            }
        }
    }
    crate::wire::put(&mut wire, 6, &required.to_be_bytes());
    crate::wire::put(&mut wire, 8, &changed.to_be_bytes());
    wire
}

/// The response code of a reply to the update with this id; `None` when it is something else.
pub fn outcome(id: u16, reply: &[u8]) -> Option<u8> {
    let flags = reply.get(2..HEADER)?;
    let (high, low) = (*flags.first()?, *flags.get(1)?);
    let ours = u16_at(reply, 0)? == id && high & flag2::QR != 0 && high & flag2::OPCODE == UPDATE;
    ours.then_some(low & flag3::RCODE)
}

/// The name of a response code of updates (RFC 2136 section 2.2).
pub fn code_label(code: u8) -> &'static str {
    match code {
        6 => "yxdomain",
        7 => "yxrrset",
        8 => "nxrrset",
        9 => "notauth",
        10 => "notzone",
        code => crate::wire::rcode::label(code),
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Message, OpCode};
    use hickory_proto::rr::{DNSClass, RecordType};

    use super::*;

    #[test]
    fn another_implementation_reads_what_is_meant() {
        let name = |text| Name::from_text(text).unwrap();
        let host = name("a.example");
        let wire = encode(
            7,
            &name("example"),
            &[
                Prerequisite::Are {
                    name: host.clone(),
                    rtype: rtype::A,
                    data: vec![vec![192, 0, 2, 1], vec![192, 0, 2, 2]],
                },
                Prerequisite::None { name: host.clone(), rtype: rtype::AAAA },
            ],
            &[
                Change::Delete { name: host.clone(), rtype: rtype::A },
                Change::Add { name: host, rtype: rtype::A, ttl: 5, data: vec![192, 0, 2, 3] },
            ],
        );
        let message = Message::from_vec(&wire).unwrap();
        assert_eq!((message.metadata.id, message.metadata.op_code), (7, OpCode::Update));
        assert_eq!(message.queries[0].query_type(), RecordType::SOA);
        let seen = |records: &[hickory_proto::rr::Record]| -> Vec<_> {
            records.iter().map(|record| (record.record_type(), record.dns_class, record.ttl)).collect()
        };
        assert_eq!(
            seen(&message.answers),
            [
                (RecordType::A, DNSClass::IN, 0),
                (RecordType::A, DNSClass::IN, 0),
                (RecordType::AAAA, DNSClass::NONE, 0),
            ]
        );
        assert_eq!(
            seen(&message.authorities),
            [(RecordType::A, DNSClass::ANY, 0), (RecordType::A, DNSClass::IN, 5)]
        );
    }

    #[test]
    fn only_the_reply_to_the_update_counts() {
        let reply = [0, 7, 0xa8, 8, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(outcome(7, &reply), Some(8));
        assert_eq!(outcome(8, &reply), None);
        assert_eq!(outcome(7, &[0, 7, 0x28, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None, "a request");
        assert_eq!(outcome(7, &[0, 7, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None, "a reply to a query");
        assert_eq!(outcome(7, &reply[..3]), None);
    }
}
