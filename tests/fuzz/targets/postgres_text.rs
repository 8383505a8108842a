//! The look at the texts of statements: pieces change nothing, and there is no panic.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| qudag_filter_db::session::fuzz_text(bytes));
