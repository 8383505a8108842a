//! The bodies of HTTP requests to the crypto listener.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| qudag_filter_crypto::fuzz_json(body));
