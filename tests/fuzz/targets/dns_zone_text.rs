//! The text of a zone file: it is refused with the line that is wrong, or served, each record as it was written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qudag_filter_dns::wire::{Name, parse_query, parse_reply};
use qudag_filter_dns::zone::{Answer, MAX_TTL, Zone};

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let origin = Name::from_text("qudag.test").expect("a name");
    let zone = match Zone::from_text(origin, text, 60) {
        Ok(zone) => zone,
        Err(wrong) => {
            assert!((1..=text.lines().count() + 1).contains(&wrong.line), "{wrong:?}");
            return;
        }
    };
    // The first word of each line is the owner of a record, if anything.
    let owners = text.lines().filter_map(|line| line.split_ascii_whitespace().next());
    for owner in owners.chain(["@", "www"]).take(20) {
        let owner = owner.trim_end_matches('.');
        let below = format!("{owner}.qudag.test");
        for name in [owner, &below, "qudag.test"] {
            let Ok(name) = Name::from_text(name) else { continue };
            for qtype in [1_u16, 5, 6, 16, 28, 255] {
                let mut wire = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0".to_vec();
                wire.extend_from_slice(name.wire());
                wire.extend(qtype.to_be_bytes());
                wire.extend([0, 1]);
                let query = parse_query(&wire).expect("a good query");
                let reply = match zone.answer(&query) {
                    None => continue,
                    Some(Answer::Whole(wire)) => wire,
                    Some(Answer::Alias(chase)) => chase.wire,
                };
                let reply = parse_reply(&reply).expect("an answer is a reply");
                assert_eq!((&reply.name, reply.qtype), (&query.name, qtype));
                assert!(reply.records.iter().all(|record| record.ttl <= MAX_TTL), "{reply:?}");
            }
        }
    }
});
