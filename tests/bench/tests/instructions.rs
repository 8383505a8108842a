//! Instructions of what must not become more expensive unnoticed. They do not depend on how busy the machine is.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests report by panicking")]

use std::path::Path;

use qudag_bench::chain::{With, instructions_with};
use qudag_bench::crypto::{How, instructions};
use qudag_mldsa::Backend;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_qudag-bench"))
}

#[test]
fn filters_that_are_off_take_no_instruction() {
    let bare = instructions_with(program(), With::None).unwrap();
    assert_eq!(instructions_with(program(), With::Off).unwrap(), bare);
    assert!(instructions_with(program(), With::One).unwrap() > bare);
}

/// Of one signature of 32 bytes by a key that was made ready before, in the build that tests use. Larger by a tenth than they are (rustc 1.95), so
/// that another compiler changes nothing and another algorithm does. Sixteen lanes take no more than eight.
const MOST: [(Backend, u64); 3] =
    [(Backend::Portable, 623_000), (Backend::Avx2, 211_000), (Backend::Avx512, 211_000)];

#[test]
fn a_verification_takes_no_more_instructions_than_it_did() {
    for (backend, most) in MOST {
        if backend.is_available() {
            let count = instructions(program(), backend, How::Cached).unwrap();
            println!("{backend}: {count}");
            assert!(count <= most, "{backend} takes {count} instructions, which were {most} at most");
        }
    }
}
