//! Messages for unit tests.

pub(crate) use qudag_filter_common::testing::env;

use crate::wire::{CLASS_IN, HEADER, Name};
use crate::{DnsQuery, Transport};

/// A query with RD set; `edns` is the UDP size of its OPT record. The name keeps its case.
pub(crate) fn query_wire(name: &str, qtype: u16, edns: Option<u16>) -> Vec<u8> {
    let mut wire = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns.is_some())];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        wire.push(label.len() as u8);
        wire.extend(label.as_bytes());
    }
    wire.push(0);
    wire.extend(qtype.to_be_bytes());
    wire.extend(CLASS_IN.to_be_bytes());
    if let Some(size) = edns {
        wire.extend([0, 0, 41]);
        wire.extend(size.to_be_bytes());
        wire.extend([0; 6]);
    }
    wire
}

/// A reply to a query, with records for the name asked for: `(type, TTL, data)`. SOA records go to the authority section.
pub(crate) fn reply_wire(query: &[u8], rcode: u8, records: &[(u16, u32, &[u8])]) -> Vec<u8> {
    let (_, end) = Name::parse(query, HEADER).unwrap();
    let mut wire = query[..end + 4].to_vec();
    wire[2] |= 0x80;
    wire[3] = 0x80 | rcode;
    wire[11] = 0;
    let (authority, answers): (Vec<_>, Vec<_>) = records.iter().partition(|record| record.0 == 6);
    wire[7] = answers.len() as u8;
    wire[9] = authority.len() as u8;
    for (rtype, ttl, data) in answers.into_iter().chain(authority) {
        wire.extend([0xc0, 12]);
        wire.extend(rtype.to_be_bytes());
        wire.extend(CLASS_IN.to_be_bytes());
        wire.extend(ttl.to_be_bytes());
        wire.extend((data.len() as u16).to_be_bytes());
        wire.extend_from_slice(data);
    }
    wire
}

/// The data of an SOA record with a MINIMUM.
pub(crate) fn soa(minimum: u32) -> Vec<u8> {
    let mut data = vec![0, 0];
    for value in [1, 3600, 600, 86400, minimum] {
        data.extend(value.to_be_bytes());
    }
    data
}

/// Waits for a condition; fails with its description after ten seconds.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// A query of a client on loopback.
pub(crate) fn query(name: &str, qtype: u16) -> DnsQuery {
    let client = ([127, 0, 0, 1], 1).into();
    DnsQuery::parse(query_wire(name, qtype, None).into(), client, Transport::Udp).unwrap()
}
