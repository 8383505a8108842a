//! What a server answers to an update: whoever does not know the key is not believed, and neither is a changed reply.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qudag_filter_dns::update::{Algorithm, Key, outcome};
use qudag_filter_dns::wire::Name;

const NOW: u64 = 1_800_000_000;
const REQUEST_MAC: &[u8] = &[7; 32];

fuzz_target!(|input: &[u8]| {
    let name = Name::from_text("key.test").expect("a name");
    let key = Key::new(name, Algorithm::HmacSha256, b"nobody else knows this");
    let _ = outcome(0x1234, input);
    // A signature that binds no request can be made with the key itself; it must not be taken for a reply's.
    let mut signed = input.to_vec();
    if signed.len() >= 12 {
        key.sign(&mut signed, NOW);
    }
    for reply in [input, &signed] {
        assert!(key.verify(reply, REQUEST_MAC, NOW).is_err(), "believed: {reply:02x?}");
    }
});
