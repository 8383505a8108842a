//! A client of the ledger, a process of its own so that it can be killed: `qudag-ledger-client DOOR NUMBER SESSIONS JOURNAL`.

#![allow(clippy::expect_used, reason = "a test program reports by panicking")]

use std::path::PathBuf;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut args = std::env::args().skip(1);
    let mut next = || args.next().expect("DOOR NUMBER SESSIONS JOURNAL");
    let door = next().parse().expect("an address");
    let (number, sessions) = (next().parse().expect("a number"), next().parse().expect("a number"));
    qudag_e2e::ledger::client::run(door, number, sessions, &PathBuf::from(next())).await;
}
