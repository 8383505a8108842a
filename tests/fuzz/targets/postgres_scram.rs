//! Both sides of a SCRAM exchange, and verifiers: nobody gets in without the password, whatever the other side says.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| qudag_filter_db::auth::scram::fuzz_scram(bytes));
