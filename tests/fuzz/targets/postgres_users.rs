//! Files of users: any bytes are a list or none, and a list that is written is read as it was.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| qudag_filter_db::auth::fuzz_users(bytes));
