//! The first packets of a PostgreSQL client: any bytes in any pieces give the same answer.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| qudag_filter_db::fuzz_startup(bytes));
