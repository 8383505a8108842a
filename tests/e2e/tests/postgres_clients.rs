//! Programs of several languages see through the sidecar what they see without it, check by check.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use qudag_e2e::postgres::{Stand, Way};
use qudag_e2e::soak_time;
use qudag_kit::postgres::psql;
use qudag_kit::{Postgres, PostgresClient, skip};
use serde_json::Value;

/// The size of one large result, in MB.
fn stream_mb() -> u32 {
    if soak_time().is_some() { 1000 } else { 64 }
}

/// More resident memory than this is a result that is kept.
const MOST_MEMORY_MB: f64 = 100.0;

/// What a program's checks came to, in its own words.
async fn run(
    client: PostgresClient,
    server: SocketAddr,
    database: &str,
    dir: &Path,
) -> BTreeMap<String, String> {
    let mut program = client.start(server, database, stream_mb()).named(database).spawn(dir);
    let status = program.wait_for_end(Duration::from_secs(100 + u64::from(stream_mb()))).await;
    let log = program.log();
    let checks = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let checks = checks.filter_map(|check| Some((check["check"].as_str()?.to_owned(), check)));
    let checks: BTreeMap<_, _> =
        checks.map(|(name, check)| (name, format!("ok: {}, {}", check["ok"], check["detail"]))).collect();
    assert!(status.success() && checks.contains_key("all"), "{client:?} at {database}: {status}\n{log}");
    checks
}

/// Runs a program at the server and through the sidecar. `inherent` names the checks that must come to something else there.
async fn compare(client: PostgresClient, way: Way, inherent: &[&str]) {
    if let Err(reason) = Postgres::available().and_then(|()| client.available()) {
        skip!("{reason}");
    }
    let stand = Stand::start(way).await;
    for database in ["direct", "through"] {
        psql(stand.postgres.addr(), &["-qc", &format!("create database {database}")]).await.ok();
    }
    let (start, dir) = (Instant::now(), tempfile::tempdir().unwrap());
    let (direct, through) = tokio::join!(
        run(client, stand.postgres.addr(), "direct", dir.path()),
        run(client, stand.door, "through", dir.path())
    );
    let failed: Vec<_> = direct.iter().filter(|(_, came)| came.starts_with("ok: false")).collect();
    assert!(failed.is_empty(), "without a sidecar: {failed:#?}");
    let differs = |name: &&String| direct.get(*name) != through.get(*name);
    let differ: Vec<_> = direct.keys().filter(differs).map(String::as_str).collect();
    let told = |name: &&str| format!("{name}: {:?} instead of {:?}", through.get(*name), direct.get(*name));
    let unexpected: Vec<_> = differ.iter().filter(|name| !inherent.contains(name)).map(told).collect();
    assert!(unexpected.is_empty(), "{client:?} sees a difference: {unexpected:#?}");
    assert_eq!((direct.len(), differ.len()), (through.len(), inherent.len()), "{differ:?} differ");
    let memory = peak_mb(stand.sidecar.pid());
    println!(
        "{client:?} {way:?}: {} checks in {:.1?}, the sidecar had {memory:.1} MB",
        direct.len(),
        start.elapsed()
    );
    assert!(memory < MOST_MEMORY_MB, "the sidecar had {memory} MB");
}

/// The most memory that a process ever had.
fn peak_mb(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1024.0
}

#[tokio::test]
async fn psycopg_notices_nothing() {
    compare(PostgresClient::Psycopg, Way::PassThrough, &[]).await;
}

#[tokio::test]
async fn asyncpg_notices_nothing() {
    compare(PostgresClient::Asyncpg, Way::PassThrough, &[]).await;
}

#[tokio::test]
async fn node_postgres_notices_nothing() {
    compare(PostgresClient::NodePostgres, Way::PassThrough, &[]).await;
}

#[tokio::test]
async fn tokio_postgres_notices_nothing() {
    compare(PostgresClient::TokioPostgres, Way::PassThrough, &[]).await;
}

#[tokio::test]
async fn sqlx_notices_nothing() {
    compare(PostgresClient::Sqlx, Way::PassThrough, &[]).await;
}

#[tokio::test]
async fn psycopg_notices_no_pool() {
    compare(PostgresClient::Psycopg, Way::Pooled(8), &[]).await;
}

#[tokio::test]
async fn asyncpg_notices_no_pool() {
    compare(PostgresClient::Asyncpg, Way::Pooled(8), &[]).await;
}

#[tokio::test]
async fn node_postgres_notices_no_pool() {
    compare(PostgresClient::NodePostgres, Way::Pooled(8), &["aChangedTable"]).await;
}

#[tokio::test]
async fn tokio_postgres_notices_no_pool() {
    compare(PostgresClient::TokioPostgres, Way::Pooled(8), &[]).await;
}

#[tokio::test]
async fn sqlx_notices_no_pool() {
    compare(PostgresClient::Sqlx, Way::Pooled(8), &[]).await;
}
