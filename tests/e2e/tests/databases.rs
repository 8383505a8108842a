//! PostgreSQL's own programs notice no difference.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::net::SocketAddr;
use std::time::Duration;

use qudag_kit::postgres::{client, pgbench, psql};
use qudag_kit::{Postgres, TestSidecar, skip};

async fn pair(tls: bool) -> (Postgres, TestSidecar, SocketAddr) {
    let postgres = Postgres::start_with(tls).await;
    let yaml = format!(
        "listeners:\n  postgres: {{ bind: \"127.0.0.1:0\", server: \"{}\" }}\nfilters:\n  db:\n    rate_limit: {{ \
         enabled: true }}\n    circuit_breaker: {{ enabled: true }}\n",
        postgres.addr()
    );
    let sidecar = TestSidecar::start(&yaml).await;
    let door = sidecar.listener("db").await;
    (postgres, sidecar, door)
}

macro_rules! needs_postgres {
    () => {
        if let Err(reason) = Postgres::available() {
            skip!("{reason}");
        }
    };
}

#[tokio::test]
async fn psql_prints_the_same() {
    needs_postgres!();
    let (postgres, sidecar, door) = pair(false).await;
    let script = [
        "-c",
        "create table if not exists t (id int primary key, text text); truncate t; insert into t select n, repeat('x', n) \
         from generate_series(1, 2000) n",
        "-c",
        "copy t to stdout",
        "-c",
        "select count(*), sum(length(text)) from t",
        "-c",
        "prepare p as select text from t where id = $1; execute p(3)",
        "-c",
        "begin; delete from t; rollback; select count(*) from t",
    ];
    let direct = psql(postgres.addr(), &script).await.ok();
    let through = psql(door, &script).await.ok();
    assert!(through.len() > 2_000_000, "{} bytes", through.len());
    assert!(through == direct, "{} and {} bytes", through.len(), direct.len());
    let failing = ["-c", "select nothing from nowhere"];
    let (direct, through) = (psql(postgres.addr(), &failing).await, psql(door, &failing).await);
    assert_eq!((through.code, &through.stderr), (direct.code, &direct.stderr));
    assert!(through.stderr.contains("nowhere"), "{}", through.stderr);
    assert!(sidecar.metric("qudag_sidecar_bytes_total", &[("kind", "db")]).await > 2_000_000.0);
}

#[tokio::test]
async fn tls_is_negotiated_with_the_server_itself() {
    needs_postgres!();
    let (_postgres, _sidecar, door) = pair(true).await;
    let query = "select ssl, cipher <> '' from pg_stat_ssl where pid = pg_backend_pid()";
    let through =
        client("psql", door, "qudag").env("PGSSLMODE", "require").args(["-XAtc", query]).output().await;
    assert_eq!(through.ok().trim(), "t|t");
    let plain =
        client("psql", door, "qudag").env("PGSSLMODE", "disable").args(["-XAtc", query]).output().await;
    assert_eq!(plain.ok().trim(), "f|");
}

#[tokio::test]
async fn a_server_without_tls_says_so() {
    needs_postgres!();
    let (_postgres, _sidecar, door) = pair(false).await;
    let wanted =
        client("psql", door, "qudag").env("PGSSLMODE", "require").args(["-c", "select 1"]).output().await;
    assert!(wanted.stderr.contains("server does not support SSL"), "{}", wanted.stderr);
    let preferred =
        client("psql", door, "qudag").env("PGSSLMODE", "prefer").args(["-c", "select 1"]).output().await;
    preferred.ok();
}

#[tokio::test]
async fn pgbench_fails_nowhere() {
    needs_postgres!();
    let (postgres, _sidecar, door) = pair(false).await;
    pgbench(postgres.addr(), &["-i", "-q", "-s", "1"]).await.ok();
    for mode in ["simple", "extended", "prepared"] {
        let run = pgbench(door, &["-M", mode, "-c", "8", "-j", "2", "-t", "100"]).await;
        let printed = run.ok();
        let processed = "number of transactions actually processed: 800/800";
        assert!(printed.contains(processed), "{mode}: {printed}");
        assert!(!printed.contains("aborted"), "{mode}: {printed}");
        // Each run empties this table first.
        let total = psql(door, &["-Atc", "select count(*) from pgbench_history"]).await.ok();
        assert_eq!(total.trim(), "800", "{mode}");
    }
}

#[tokio::test]
async fn a_query_is_cancelled() {
    needs_postgres!();
    let (_postgres, _sidecar, door) = pair(false).await;
    // psql sends a cancel request, on a connection of its own, when it is interrupted.
    let dir = tempfile::tempdir().unwrap();
    let sleeping = client("psql", door, "qudag").args(["-Xc", "select pg_sleep(600)"]);
    let mut sleeping = sleeping.spawn(dir.path());
    let running = async || {
        let count =
            "select count(*) from pg_stat_activity where query = 'select pg_sleep(600)' and state = 'active'";
        (psql(door, &["-Atc", count]).await.ok().trim() == "1").then_some(())
    };
    qudag_kit::eventually(Duration::from_secs(10), "the query runs", running).await;
    sleeping.signal(qudag_kit::program::Signal::INT);
    let cancelled = |line: &str| line.contains("canceling statement due to user request").then_some(());
    sleeping.wait_for_log("the cancellation", cancelled).await;
}

#[tokio::test]
async fn sessions_outlive_a_reload() {
    needs_postgres!();
    let (_postgres, sidecar, door) = pair(false).await;
    let dir = tempfile::tempdir().unwrap();
    let script = "select 'before'; select pg_sleep(2); select 'after'";
    let mut session = client("psql", door, "qudag").args(["-XAtc", script]).spawn(dir.path());
    let active = async || {
        let count = "select count(*) from pg_stat_activity where query like 'select ''before''%' and state = 'active'";
        (psql(door, &["-Atc", count]).await.ok().trim() == "1").then_some(())
    };
    qudag_kit::eventually(Duration::from_secs(10), "the query runs", active).await;
    sidecar.toggle("db.circuit_breaker", false).await;
    sidecar.toggle("db.rate_limit", false).await;
    let status = session.wait_for_end(Duration::from_secs(10)).await;
    assert!(status.success(), "{}", session.log());
    assert!(session.log().contains("after"), "{}", session.log());
}
