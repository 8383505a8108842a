//! The bodies of calls of the RPC: who sends one is read as the node reads it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| qudag_filter_rpc::rpc_auth::fuzz_credentials(body));
