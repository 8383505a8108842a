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

use qudag_e2e::postgres::{Stand, Way};
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

/// `psql` at the server and through the sidecar.
async fn psql_prints_the_same(way: Way) {
    needs_postgres!();
    let stand = Stand::start(way).await;
    let (server, door) = (stand.postgres.addr(), stand.door);
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
    let direct = psql(server, &script).await.ok();
    let through = psql(door, &script).await.ok();
    assert!(through.len() > 2_000_000, "{} bytes", through.len());
    assert!(through == direct, "{} and {} bytes", through.len(), direct.len());
    let failing = ["-c", "select nothing from nowhere"];
    let (direct, through) = (psql(server, &failing).await, psql(door, &failing).await);
    assert_eq!((through.code, &through.stderr), (direct.code, &direct.stderr));
    assert!(through.stderr.contains("nowhere"), "{}", through.stderr);
    assert!(stand.sidecar.metric("qudag_sidecar_bytes_total", &[("kind", "db")]).await > 2_000_000.0);
}

#[tokio::test]
async fn psql_prints_the_same_through_sessions_of_their_own() {
    psql_prints_the_same(Way::PassThrough).await;
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

/// `pgbench` in all its modes, and in pipelines.
async fn pgbench_fails_nowhere(way: Way) {
    needs_postgres!();
    let stand = Stand::start(way).await;
    pgbench(stand.postgres.addr(), &["-i", "-q", "-s", "1"]).await.ok();
    let dir = tempfile::tempdir().unwrap();
    let pipeline = dir.path().join("pipeline.sql");
    std::fs::write(
        &pipeline,
        "\\startpipeline\nbegin;\ninsert into pgbench_history (tid, bid, aid, delta) values (1, 1, 1, 1);\nselect 1;\ncommit;\n\\endpipeline\n",
    )
    .unwrap();
    let pipeline = pipeline.display().to_string();
    let scripts: [&[&str]; 3] = [&["-b", "tpcb-like"], &["-b", "simple-update"], &["-f", &pipeline]];
    for mode in ["simple", "extended", "prepared"] {
        for script in scripts {
            if mode == "simple" && script == scripts[2] {
                continue;
            }
            // A thread for each: one with several clients waits for a reply to the Parse of one of them while others are in transactions.
            let run =
                pgbench(stand.door, &[&["-M", mode, "-c", "8", "-j", "8", "-t", "40"], script].concat())
                    .await;
            let printed = run.ok();
            assert!(printed.contains("actually processed: 320/320"), "{mode} {script:?}: {printed}");
            assert!(!printed.contains("aborted"), "{mode} {script:?}: {printed}");
            // Each run empties this table first.
            let total = psql(stand.door, &["-Atc", "select count(*) from pgbench_history"]).await.ok();
            assert_eq!(total.trim(), "320", "{mode} {script:?}");
        }
    }
}

#[tokio::test]
async fn pgbench_fails_nowhere_through_sessions_of_their_own() {
    pgbench_fails_nowhere(Way::PassThrough).await;
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

#[tokio::test]
async fn psql_prints_the_same_through_a_pool() {
    psql_prints_the_same(Way::Pooled(4)).await;
}

#[tokio::test]
async fn pgbench_fails_nowhere_through_a_pool() {
    pgbench_fails_nowhere(Way::Pooled(4)).await;
}
