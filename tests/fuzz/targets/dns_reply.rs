//! A reply from an upstream server, on its way to a client.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qudag_filter_dns::wire::{finish, parse_query, parse_reply, patch_ttls, strip_opt};

/// `www.example. IN A`, with EDNS, from a client that takes 1232 bytes.
const QUERY: &[u8] =
    b"\x12\x34\x01\0\0\x01\0\0\0\0\0\x01\x03www\x07example\0\0\x01\0\x01\0\0\x29\x04\xd0\0\0\0\0\0\0";

fuzz_target!(|wire: &[u8]| {
    let Some(reply) = parse_reply(wire) else { return };
    for record in &reply.records {
        assert!(record.data.end <= wire.len() && record.ttl_at + 4 <= record.data.start);
    }
    let stripped = strip_opt(wire.to_vec(), &reply);
    assert!(stripped.wire.len() <= wire.len());
    let again = parse_reply(&stripped.wire).expect("a reply without its OPT record is a reply");
    assert_eq!((&again.name, again.qtype, again.rcode()), (&reply.name, reply.qtype, reply.rcode()));

    let mut aged = stripped.wire.clone();
    let offsets: Vec<u16> =
        again.records.iter().filter_map(|record| u16::try_from(record.ttl_at).ok()).collect();
    patch_ttls(&mut aged, offsets.iter().copied(), |ttl| ttl / 2);
    assert_eq!(aged.len(), stripped.wire.len());
    assert!(parse_reply(&aged).is_some(), "other times to live make another message");

    let query = parse_query(QUERY).expect("a good query");
    if (&again.name, again.qtype, again.qclass) == (&query.name, query.qtype, query.qclass) {
        for limit in [512, 1232, usize::from(u16::MAX)] {
            let sent = finish(QUERY, &query, &aged, [stripped.ede.as_ref(), None], limit);
            assert!(sent.len() <= limit);
            let read = parse_reply(&sent).expect("what is sent is a reply");
            assert_eq!(read.id, query.id);
        }
    }
});
