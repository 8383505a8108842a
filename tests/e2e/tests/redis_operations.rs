//! Pooled Redis sessions as an operator sees and steers them while they are used.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::net::SocketAddr;
use std::time::Duration;

use qudag_kit::{Redis, Start, TestSidecar, eventually};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);
/// A value that must not be seen anywhere.
const SECRET: &str = "4711471147";

fn redis_cli(door: SocketAddr) -> Start {
    Start::new("redis-cli").arg("-p").arg(door.port().to_string())
}

#[tokio::test]
async fn pools_of_redis_are_shown_held_back_tapped_and_changed() {
    let dir = tempfile::tempdir().unwrap();
    let redis = Redis::start().await;
    let server = redis.url().replace("?db=0", "");
    let sidecar = TestSidecar::start(&format!(
        "listeners:\n  redis: {{ bind: \"127.0.0.1:0\", server: \"{server}\" }}\nfilters:\n  redis:\n    redis_pool: {{ enabled: true, size: 4 }}\n"
    ))
    .await;
    let door = sidecar.listener("redis").await;
    assert_eq!(sidecar.cli(&["db"]).await.ok(), "no session has been pooled\n");
    let mut tap = sidecar
        .command(&["tap", "redis", "--batches", "--json", "--limit", "1"])
        .named("tap")
        .spawn(dir.path());
    tap.wait_for_log("the tap is open", |line| line.contains("live; Ctrl-C ends").then_some(())).await;
    let said = redis_cli(door).args(["SET", SECRET, SECRET]).output().await;
    assert_eq!(said.stdout.trim(), "OK", "{said:?}");
    assert!(tap.wait_for_end(SOON).await.success(), "{}", tap.log());
    let tapped = tap.log();
    assert!(tapped.contains("\"names\":\"SET\"") && !tapped.contains(SECRET), "{tapped}");
    let pools = sidecar.cli(&["db"]).await.ok();
    assert!(pools.contains("REDIS DATABASE") && pools.contains("1 of 100 connections to Redis"), "{pools}");

    let nobody = sidecar.cli(&["db", "pause", "5"]).await;
    assert!(nobody.code != 0 && nobody.stderr.contains("has no pool"), "{nobody:?}");
    let postgres = sidecar.cli(&["db", "pause", "--kind", "db"]).await;
    assert!(postgres.code != 0 && postgres.stderr.contains("db_pool has not been on"), "{postgres:?}");
    assert_eq!(sidecar.cli(&["db", "pause", "--kind", "redis"]).await.ok(), "paused: 1 pool\n");
    let mut held = redis_cli(door).args(["GET", SECRET]).named("held").spawn(dir.path());
    let pool = eventually(SOON, "the command waits", async || {
        let pool = sidecar.admin("GET", "/db", Value::Null).await.ok()["redis"]["pools"][0].clone();
        (pool["waiting"] == 1).then_some(pool)
    })
    .await;
    assert_eq!((&pool["paused"], &pool["size"]), (&json!(true), &json!(4)));
    let page = sidecar.cli(&["top", "db", "--once", "--interval", "100ms"]).await.ok();
    assert!(page.contains("COMMANDS/S") && page.contains("paused"), "{page}");
    let queue = sidecar.cli(&["db", "queue"]).await.ok();
    assert!(queue.contains("redis 0 RESP2"), "{queue}");
    assert!(held.ended().is_none());
    sidecar.cli(&["set", "filters.redis.redis_pool.size=5", "--for", "10m"]).await.ok();
    assert_eq!(sidecar.cli(&["db", "resume", "0"]).await.ok(), "resumed: 1 pool of 0\n");
    assert!(held.wait_for_end(SOON).await.success(), "{}", held.log());
    redis_cli(door).args(["GET", SECRET]).output().await;
    let size = sidecar.admin("GET", "/db", Value::Null).await.ok()["redis"]["pools"][0]["size"].clone();
    assert_eq!(size, 5);
}
