//! Batches as questions of the query cache: whatever a client sends, answering a batch from the cache takes that batch and nothing else.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| qudag_filter_db::session::fuzz_question(bytes));
