//! The messages of a login: what clients answer, and what a server asks for, which has an answer or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    qudag_filter_db::wire::fuzz_auth(bytes);
    qudag_filter_db::auth::fuzz_login(bytes);
});
