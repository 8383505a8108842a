//! The messages of PostgreSQL sessions, in both directions: any bytes in any pieces give the same answer.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| qudag_filter_db::wire::fuzz_wire(bytes));
