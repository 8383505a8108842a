//! What the service manager is told, as sd_notify(3) describes it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests report by panicking")]

use qudag_kit::program::Signal;
use qudag_kit::wait::PATIENCE;
use qudag_kit::{TestSidecar, sidecar::Setup, within};
use tokio::net::UnixDatagram;

/// The next message that has the line `wanted`.
async fn told(manager: &UnixDatagram, wanted: &str) -> String {
    within(PATIENCE, wanted, async {
        loop {
            let mut message = [0; 512];
            let length = manager.recv(&mut message).await.unwrap();
            let message = String::from_utf8_lossy(&message[..length]).into_owned();
            if message.lines().any(|line| line == wanted) {
                return message;
            }
        }
    })
    .await
}

#[tokio::test]
async fn systemd_is_told_of_start_reload_and_end() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    let env = [("NOTIFY_SOCKET", socket.to_str().unwrap())];
    let yaml = "listeners:\n  dns: { bind: \"127.0.0.1:0\" }\n";
    let mut sidecar = TestSidecar::with(Setup { yaml, env: &env, ..Setup::default() }).await;
    told(&manager, "READY=1").await;

    let before = sidecar.generation().await;
    sidecar.program().signal(Signal::HUP);
    let reloading = told(&manager, "RELOADING=1").await;
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    told(&manager, "READY=1").await;
    assert_eq!(sidecar.generation().await, before + 1);

    sidecar.program().signal(Signal::TERM);
    told(&manager, "STOPPING=1").await;
}
