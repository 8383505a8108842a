//! A query from a client: it is answered, refused with a message that any implementation reads, or ignored.
#![no_main]

use hickory_proto::op::Message;
use libfuzzer_sys::fuzz_target;
use qudag_filter_dns::wire::{Refusal, finish, hinfo, parse_query};

fuzz_target!(|wire: &[u8]| {
    let reply = match parse_query(wire) {
        Err(Refusal::Silent(_)) => return,
        Err(Refusal::Reply(_, reply)) => reply,
        Ok(query) => {
            assert!(wire.len() >= 12 + query.question_len());
            let limit = query.edns.map_or(512, |edns| usize::from(edns.udp_size).clamp(512, 1232));
            let reply = finish(wire, &query, &hinfo(&query), [None, None], limit);
            assert_eq!(reply.get(12..12 + query.question_len()), wire.get(12..12 + query.question_len()));
            assert!(reply.len() <= limit, "{} bytes, where the client takes {limit}", reply.len());
            reply
        }
    };
    assert_eq!(reply.get(..2), wire.get(..2), "another id");
    assert!(reply.len() < wire.len() + 128, "more than the question and a short answer");
    let read = Message::from_vec(&reply);
    assert!(read.is_ok(), "{read:?}: {reply:?}");
});
