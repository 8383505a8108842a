//! The log file and its rotation.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::time::Duration;

use qudag_kit::program::Signal;
use qudag_kit::{HttpNode, TestSidecar, eventually, http};

const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_rotated_log_is_opened_again() {
    let node = HttpNode::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (file, old) = (dir.path().join("sidecar.log"), dir.path().join("sidecar.log.1"));
    let yaml = format!(
        "node: {{ http: \"{}\" }}\nlisteners:\n  http: {{ bind: \"127.0.0.1:0\" }}\ntelemetry:\n  log: {{ file: \"{}\" }}\n",
        node.addr(),
        file.display()
    );
    let mut sidecar = TestSidecar::start(&yaml).await;
    let door = sidecar.listener("http").await;
    let lines = |path: &std::path::Path| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().filter(|line| line.contains("flow")).count()
    };
    http::get(door, "/health").await.unwrap();
    eventually(PATIENCE, "a line in the file", async || (lines(&file) == 1).then_some(())).await;
    std::fs::rename(&file, &old).unwrap();
    sidecar.program().signal(Signal::USR1);
    // The file is opened before the next line, and the signal may be a moment behind.
    let mut asked = 1;
    let made = async || {
        http::get(door, "/health").await.unwrap();
        asked += 1;
        file.exists().then_some(())
    };
    eventually(PATIENCE, "the file is made anew", made).await;
    let all = async || (lines(&file) + lines(&old) == asked).then_some(());
    eventually(PATIENCE, "no line is lost", all).await;
    let before = lines(&old);
    http::get(door, "/health").await.unwrap();
    let all = async || (lines(&file) + lines(&old) == asked + 1).then_some(());
    eventually(PATIENCE, "another line", all).await;
    assert_eq!(lines(&old), before, "nothing more goes into the old file");
}

#[tokio::test]
async fn what_is_logged_follows_a_reload() {
    let node = HttpNode::start().await;
    let yaml = |choice: &str| {
        format!(
            "node: {{ http: \"{}\" }}\nlisteners:\n  http: {{ bind: \"127.0.0.1:0\" }}\ntelemetry:\n  flows: {{ http: \
             {choice} }}\n",
            node.addr()
        )
    };
    let sidecar = TestSidecar::start(&yaml("errors")).await;
    let door = sidecar.listener("http").await;
    http::get(door, "/health").await.unwrap();
    sidecar.reload_with(&yaml("all")).await.ok();
    http::get(door, "/mcp/tools").await.unwrap();
    let lines = || sidecar.log().lines().filter(|line| line.contains(" flow: ")).count();
    eventually(PATIENCE, "the second one is logged", async || (lines() >= 1).then_some(())).await;
    assert_eq!(lines(), 1, "{}", sidecar.log());
}
