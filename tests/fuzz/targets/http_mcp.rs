//! The bodies of MCP requests: no call of the node's mock of cryptography passes, and each is answered in its form.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| qudag_filter_http::fuzz_mcp(body));
