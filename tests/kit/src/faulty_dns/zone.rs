//! What there is to ask for. The first label of a name says what it has:
//!
//! | first label begins with | answer |
//! |---|---|
//! | `many50-` | so many A or AAAA records, 50 here |
//! | `txt60000-` | a TXT record with so many bytes of text |
//! | `chain8-` | a chain of so many CNAME records, to `chain7-` and so on, then the records of `chain0-` |
//! | `nx-` | NXDOMAIN with an SOA record |
//! | `nodata-` | no data with an SOA record |
//! | `nosoa-` | no data without an SOA record |
//! | `servfail-`, `refused-` | that code |
//! | anything else | one A record, one AAAA record, one TXT record `text`, opaque data for types from 65280 on, and no data of other types |

use std::net::{Ipv4Addr, Ipv6Addr};

const A: u16 = 1;
const CNAME: u16 = 5;
const SOA: u16 = 6;
const TXT: u16 = 16;
const AAAA: u16 = 28;
const OPT: u16 = 41;
/// The first type for private use (RFC 6895 section 3.1).
const PRIVATE: u16 = 65_280;

/// The IPv4 address of a name: 10, the epoch, and two bytes of a hash of the name without regard to case.
pub fn address_of(name: &str, epoch: u8) -> Ipv4Addr {
    address(&wire_name(name), epoch, 0)
}

/// The same of a name in wire form, which is in lower case.
pub fn address_of_wire(name: &[u8], epoch: u8) -> Ipv4Addr {
    address(name, epoch, 0)
}

/// The IPv6 address of a name.
pub fn address_v6_of(name: &str, epoch: u8) -> Ipv6Addr {
    v6(address(&wire_name(name), epoch, 0))
}

/// 2001:db8::/96 with an IPv4 address at the end.
fn v6(address: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(0x2001_0db8_u128 << 96 | u128::from(address.to_bits()))
}

/// Record `number` of a name; the numbers of one name give different addresses.
fn address(name: &[u8], epoch: u8, number: u16) -> Ipv4Addr {
    // FNV-1a
    let hash = name.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let [high, low] = ((hash >> 24) as u16).wrapping_add(number).to_be_bytes();
    Ipv4Addr::new(10, epoch, high, low)
}

/// A name in wire form, lower case.
pub(super) fn wire_name(name: &str) -> Vec<u8> {
    let mut wire = Vec::with_capacity(name.len() + 2);
    for label in name.split('.').filter(|label| !label.is_empty()) {
        wire.push(u8::try_from(label.len()).unwrap());
        wire.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
    }
    wire.push(0);
    wire
}

/// A query, as far as it is needed.
pub(super) struct Query<'a> {
    /// Header and question, as they came.
    head: &'a [u8],
    /// The name in wire form, lower case.
    pub(super) name: Vec<u8>,
    /// The type.
    pub(super) record_type: u16,
    class: [u8; 2],
    edns: bool,
    dnssec_ok: bool,
    /// How large a reply by UDP may be.
    pub(super) udp_size: usize,
}

impl<'a> Query<'a> {
    /// `None` of what is not a query with one question.
    pub(super) fn read(message: &'a [u8]) -> Option<Self> {
        let header = message.get(..12)?;
        if header[2] & 0x80 != 0 || header[4..6] != [0, 1] {
            return None;
        }
        let mut end = 12;
        while message.get(end)? != &0 {
            let length = usize::from(message[end]);
            if length > 63 {
                return None;
            }
            end += 1 + length;
        }
        end += 1;
        let name = message.get(12..end)?.to_ascii_lowercase();
        let tail = message.get(end..end + 4)?;
        let mut query = Self {
            head: &message[..end + 4],
            name,
            record_type: u16::from_be_bytes([tail[0], tail[1]]),
            class: [tail[2], tail[3]],
            edns: false,
            dnssec_ok: false,
            udp_size: 512,
        };
        // An OPT record of clients comes first and has the root's name.
        if let Some([0, high, low, size_high, size_low, _, _, flags, ..]) = message.get(end + 4..)
            && u16::from_be_bytes([*high, *low]) == OPT
        {
            query.edns = true;
            query.udp_size = usize::from(u16::from_be_bytes([*size_high, *size_low])).max(512);
            query.dnssec_ok = flags & 0x80 != 0;
        }
        Some(query)
    }

    /// Header and question of a reply: QR and RA, opcode, RD and CD of the query.
    fn begin(&self, code: u8) -> Vec<u8> {
        let mut reply = Vec::with_capacity(128);
        reply.extend_from_slice(self.head);
        reply[2] = 0x80 | self.head[2] & 0x79;
        reply[3] = 0x80 | self.head[3] & 0x10 | code;
        reply[6..12].fill(0);
        reply
    }

    fn finish(&self, mut reply: Vec<u8>, answers: u16, authorities: u16) -> Vec<u8> {
        reply[6..8].copy_from_slice(&answers.to_be_bytes());
        reply[8..10].copy_from_slice(&authorities.to_be_bytes());
        if self.edns {
            reply[11] = 1;
            let flags = if self.dnssec_ok { 0x80 } else { 0 };
            reply.extend([0, 0, OPT as u8, 4, 208, 0, 0, flags, 0, 0, 0]);
        }
        reply
    }

    /// A code and nothing else.
    pub(super) fn refusal(&self, code: u8) -> Vec<u8> {
        self.finish(self.begin(code), 0, 0)
    }

    /// A header with a code, without the question.
    pub(super) fn bare(&self, code: u8) -> Vec<u8> {
        let mut reply = self.begin(code);
        reply[4..6].fill(0);
        reply.truncate(12);
        reply
    }

    /// No records, and TC.
    pub(super) fn truncated(&self) -> Vec<u8> {
        let mut reply = self.begin(0);
        reply[2] |= 2;
        self.finish(reply, 0, 0)
    }
}

/// The number behind `prefix` at the beginning of the first label, up to the dash.
fn number(label: &[u8], prefix: &str) -> Option<u16> {
    let rest = label.strip_prefix(prefix.as_bytes())?;
    let dash = rest.iter().position(|byte| *byte == b'-')?;
    std::str::from_utf8(&rest[..dash]).ok()?.parse().ok()
}

/// A reply under construction.
struct Records<'a> {
    bytes: Vec<u8>,
    count: u16,
    class: [u8; 2],
    ttl: [u8; 4],
    /// The owner of the next record.
    owner: [u8; 2],
    name: std::borrow::Cow<'a, [u8]>,
}

impl Records<'_> {
    fn add(&mut self, record_type: u16, data: &[u8]) {
        self.bytes.extend(self.owner);
        self.bytes.extend(record_type.to_be_bytes());
        self.bytes.extend(self.class);
        self.bytes.extend(self.ttl);
        self.bytes.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        self.bytes.extend(data);
        self.count += 1;
    }

    /// A link to the name with another first label; what is added then belongs to that name.
    fn link(&mut self, label: &[u8]) {
        let rest = &self.name[1 + usize::from(self.name[0])..];
        let target = [&[u8::try_from(label.len()).unwrap()][..], label, rest].concat();
        self.add(CNAME, &target);
        let at = self.bytes.len() - target.len();
        self.owner = (0xc000 | u16::try_from(at).unwrap()).to_be_bytes();
        self.name = target.into();
    }
}

/// The right answer, whatever its size.
pub(super) fn answer(query: &Query<'_>, ttl: u32, epoch: u8) -> Vec<u8> {
    let length = usize::from(query.name[0]);
    let label = &query.name[1..=length];
    let mut records = Records {
        bytes: query.begin(0),
        count: 0,
        class: query.class,
        ttl: ttl.to_be_bytes(),
        owner: [0xc0, 12],
        name: (&query.name).into(),
    };
    match label {
        _ if label.starts_with(b"servfail-") => return query.refusal(2),
        _ if label.starts_with(b"refused-") => return query.refusal(5),
        _ if label.starts_with(b"nosoa-") => return query.refusal(0),
        _ if label.starts_with(b"nodata-") => {}
        _ if label.starts_with(b"nx-") => records.bytes[3] |= 3,
        _ => {
            if let Some(links) = number(label, "chain") {
                let dash = label.iter().position(|byte| *byte == b'-').unwrap_or(0);
                // A pointer reaches 16 KiB.
                let links = links.min(200);
                for left in (0..links).rev() {
                    let next = [b"chain", left.to_string().as_bytes(), &label[dash..]].concat();
                    if query.record_type == CNAME && left + 1 < links {
                        break;
                    }
                    records.link(&next);
                }
            }
            data(&mut records, query, label, epoch);
        }
    }
    let answers = records.count;
    if answers == 0 {
        // The owner is the zone: the last label, or the root.
        records.owner = zone_offset(&query.name);
        let minimum = ttl.to_be_bytes();
        let numbers = [[0, 0, 0, 1], [0, 0, 14, 16], [0, 0, 2, 88], [0, 1, 81, 128], minimum].concat();
        records.add(SOA, &[&b"\x02ns\x04test\0\x05admin\x04test\0"[..], &numbers].concat());
        return query.finish(records.bytes, 0, 1);
    }
    query.finish(records.bytes, answers, 0)
}

fn data(records: &mut Records<'_>, query: &Query<'_>, label: &[u8], epoch: u8) {
    let many = number(label, "many").unwrap_or(1).min(2_000);
    let name = records.name.clone();
    match query.record_type {
        A => (0..many).for_each(|n| records.add(A, &address(&name, epoch, n).octets())),
        AAAA => (0..many).for_each(|n| records.add(AAAA, &v6(address(&name, epoch, n)).octets())),
        TXT => {
            let size = number(label, "txt").map_or(4, usize::from).min(64_000);
            let text: Vec<u8> = b"text".iter().copied().cycle().take(size).collect();
            let strings: Vec<u8> = text
                .chunks(255)
                .flat_map(|part| [&[u8::try_from(part.len()).unwrap()][..], part].concat())
                .collect();
            records.add(TXT, &strings);
        }
        SOA | CNAME => {}
        PRIVATE.. => records.add(query.record_type, &address(&name, epoch, 0).octets()),
        _ => {}
    }
}

/// A pointer to the last label of the name in the question.
fn zone_offset(name: &[u8]) -> [u8; 2] {
    let (mut at, mut last) = (0, 0);
    while name[at] != 0 {
        last = at;
        at += 1 + usize::from(name[at]);
    }
    (0xc000 | u16::try_from(12 + last).unwrap()).to_be_bytes()
}
