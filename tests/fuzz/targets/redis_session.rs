//! Pooled Redis sessions: several clients share connections of a model, in any pieces and order, and each sees what it would see alone.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| qudag_filter_db::redis::fuzz_redis_session(bytes));
