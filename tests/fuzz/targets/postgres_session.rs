//! Pooled PostgreSQL sessions: several clients share servers of a model, in any pieces and order, and each sees what it would see alone.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| qudag_filter_db::session::fuzz_session(bytes));
