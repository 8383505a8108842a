//! PostgreSQL itself behind the sidecar, with its own client programs in front.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by a panic"
)]

mod postgres;

use std::process::Stdio;
use std::time::Duration;

use postgres::Postgres;
use qudag_filter_common::testing::{self, PATIENCE, metric, nowhere, until};
use qudag_filter_db::PostgresListener;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep, timeout};

type Sidecar = testing::Sidecar<PostgresListener>;

const HOST: &str = "127.0.0.1";
const TLS: &[(&str, &str)] = &[("PGSSLMODE", "require")];
const PLAIN: &[(&str, &str)] = &[("PGSSLMODE", "disable")];

async fn sidecar_of(postgres: &Postgres) -> (Sidecar, u16) {
    let listener = json!({ "bind": "127.0.0.1:0", "server": format!("{HOST}:{}", postgres.port) });
    let filters = json!({ "circuit_breaker": { "enabled": true }, "rate_limit": { "enabled": true } });
    let sidecar = Sidecar::start(nowhere(), listener, filters).await;
    let port = sidecar.tcp().port();
    (sidecar, port)
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_and_errors_are_as_direct_in_the_clear_and_over_tls() {
    let Some(postgres) = Postgres::start().await else { return };
    let (_sidecar, port) = sidecar_of(&postgres).await;
    for settings in [PLAIN, TLS, &[]] {
        for sql in [
            "SELECT 1 AS one, 'ä' AS text, NULL, repeat('x', 100000) FROM generate_series(1, 20)",
            "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()",
            "SELECT nothing FROM nowhere",
            "DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '40001'; END $$",
        ] {
            let direct = postgres.psql(HOST, postgres.port, settings, sql).await;
            assert_eq!(postgres.psql(HOST, port, settings, sql).await, direct);
        }
    }
    let encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    assert!(postgres.psql(HOST, port, TLS, encrypted).await.unwrap().contains(" t"));
    let wrong = [("PGDATABASE", "missing")];
    let error = postgres.psql(HOST, port, &wrong, "SELECT 1").await.unwrap_err();
    assert!(error.contains("database \"missing\" does not exist"), "{error}");
    let ended = "SELECT pg_terminate_backend(pg_backend_pid())";
    let error = postgres.psql(HOST, port, PLAIN, ended).await.unwrap_err();
    assert!(error.contains("57P01"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unix_sockets_on_both_sides() {
    let Some(postgres) = Postgres::start().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let bind = format!("unix:{}/.s.PGSQL.6432", folder.path().display());
    let _sidecar =
        Sidecar::start(nowhere(), json!({ "bind": bind, "server": postgres.unix() }), json!({})).await;
    let host = folder.path().to_str().unwrap();
    let seen = postgres.psql(host, 6432, &[], "SELECT inet_client_addr() IS NULL AS unix").await.unwrap();
    assert!(seen.contains(" t"), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn copy_passes_both_ways() {
    let Some(postgres) = Postgres::start().await else { return };
    let (_sidecar, port) = sidecar_of(&postgres).await;
    let rows: String = (0..50_000).map(|row| format!("{row}\trow number {row}\n")).collect();
    postgres.psql(HOST, port, PLAIN, "CREATE TABLE rows (id int PRIMARY KEY, text text)").await.unwrap();
    for settings in [PLAIN, TLS] {
        let mut psql = postgres.client("psql", HOST, port);
        psql.envs(settings.iter().copied()).args(["-X", "-q", "-v", "ON_ERROR_STOP=1"]);
        psql.args(["-c", "TRUNCATE rows", "-c", "COPY rows FROM STDIN"]);
        let mut psql = psql.stdin(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let mut input = psql.stdin.take().unwrap();
        input.write_all(rows.as_bytes()).await.unwrap();
        drop(input);
        assert!(timeout(PATIENCE, psql.wait()).await.unwrap().unwrap().success());
        let copied =
            postgres.psql(HOST, port, settings, "COPY (TABLE rows ORDER BY id) TO STDOUT").await.unwrap();
        assert!(copied == rows, "{} bytes of {}", copied.len(), rows.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_is_cancelled_from_psql() {
    let Some(postgres) = Postgres::start().await else { return };
    let (_sidecar, port) = sidecar_of(&postgres).await;
    for settings in [PLAIN, TLS] {
        let mut psql = postgres.client("psql", HOST, port);
        psql.envs(settings.iter().copied()).args([
            "-X",
            "-v",
            "VERBOSITY=verbose",
            "-c",
            "SELECT pg_sleep(600)",
        ]);
        psql.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let psql = psql.spawn().unwrap();
        let pid = psql.id().unwrap().to_string();
        let asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        let deadline = Instant::now() + PATIENCE;
        while !postgres.psql(HOST, postgres.port, PLAIN, asleep).await.unwrap().contains(" 1\n") {
            assert!(Instant::now() < deadline, "the query does not run");
            sleep(Duration::from_millis(20)).await;
        }
        // psql sends a CancelRequest on SIGINT.
        Postgres::run(tokio::process::Command::new("kill").args(["-INT", &pid])).await.unwrap();
        let output = timeout(PATIENCE, psql.wait_with_output()).await.expect("cancelled in time").unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains("57014"), "{error}");
    }
    assert!(metric("qudag_sidecar_db_startup_packets_total", &["packet=\"cancel_request\""]) >= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn pgbench_runs_and_a_stopped_server_is_told() {
    let Some(mut postgres) = Postgres::start().await else { return };
    let (sidecar, port) = sidecar_of(&postgres).await;
    Postgres::run(postgres.client("pgbench", HOST, port).args(["-i", "-q", "-s", "1"])).await.unwrap();
    for mode in ["simple", "extended", "prepared"] {
        let mut pgbench = postgres.client("pgbench", HOST, port);
        pgbench.args(["-S", "-n", "-c", "8", "-j", "2", "-t", "200", "-M", mode]);
        let report = Postgres::run(&mut pgbench).await.unwrap();
        assert!(report.contains("number of transactions actually processed: 1600/1600"), "{report}");
    }
    let mut connects = postgres.client("pgbench", HOST, port);
    let report = Postgres::run(connects.args(["-S", "-n", "-C", "-c", "4", "-t", "20"])).await.unwrap();
    assert!(report.contains("processed: 80/80"), "{report}");

    postgres.stop();
    for settings in [PLAIN, &[]] {
        let error = postgres.psql(HOST, port, settings, "SELECT 1").await.unwrap_err();
        assert!(error.contains("qudag-sidecar: cannot connect to"), "{error}");
    }
    until("all sessions have ended", || sidecar.drain.in_flight() == 0).await;
}
