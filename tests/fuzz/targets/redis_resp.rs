//! Redis commands and replies: any bytes in any pieces give the same answer.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| qudag_filter_db::redis::resp::fuzz_resp(bytes));
