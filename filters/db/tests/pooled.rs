//! PostgreSQL itself and its own client programs, with the machines of pooled sessions between them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    dead_code,
    reason = "a test fails by a panic, and not every test file uses all of the server's helpers"
)]

mod pool;
mod postgres;

use std::process::Stdio;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use pool::{HOST, Raw, connects, pooled, refused, sqlstate};
use postgres::Postgres;
use qudag_filter_common::testing::{PATIENCE, metric};
use qudag_filter_db::wire::build;
use tokio::io::AsyncWriteExt;
use tokio::time::{sleep, timeout};

#[tokio::test(flavor = "multi_thread")]
async fn psql_sees_through_a_pool_what_it_sees_directly() {
    let Some(postgres) = Postgres::start().await else { return };
    let (_sidecar, port) = pooled(&postgres, 2).await;
    for sql in [
        "SELECT 1 AS one, 'ä' AS text, NULL, repeat('x', 200000) FROM generate_series(1, 20)",
        "SELECT nothing FROM nowhere",
        "DO $$ BEGIN RAISE NOTICE 'heard'; RAISE EXCEPTION 'no' USING ERRCODE = '40001'; END $$",
        "SELECT current_setting('application_name')",
        "BEGIN; CREATE TABLE IF NOT EXISTS kept (id int); SELECT count(*) FROM kept; ROLLBACK",
        "SET TimeZone TO 'Asia/Tokyo'; SHOW TimeZone",
        "SHOW TimeZone",
        "SET work_mem TO '77kB'; SHOW work_mem",
        "SHOW work_mem",
        "CREATE TEMP TABLE mine AS SELECT 7 AS seven; SELECT * FROM mine",
        "SELECT * FROM mine",
        "PREPARE p AS SELECT 8; EXECUTE p",
        "EXECUTE p",
        "SELECT pg_advisory_lock(4)",
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        "LISTEN a; NOTIFY a, 'payload'",
        "SELECT pg_listening_channels()",
        "COPY (SELECT generate_series(1, 50000)) TO STDOUT",
        "COPY nowhere FROM STDIN",
        "DISCARD ALL",
        "",
    ] {
        let direct = postgres.psql(HOST, postgres.port, &[], sql).await;
        // An asynchronous notification names its backend.
        let general = |seen: Result<String, String>| {
            let mask = |text: String| text.split(" with PID ").next().unwrap_or_default().to_owned();
            seen.map(mask).map_err(mask)
        };
        let pooled = postgres.psql(HOST, port, &[("PGAPPNAME", "test")], sql).await;
        assert_eq!(general(pooled), general(direct), "{sql}");
    }
    assert!(connects() <= 2.0, "{} connects", connects());
    assert_eq!(metric("qudag_sidecar_db_servers_closed_total", &[]), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn pgbench_runs_with_more_clients_than_servers() {
    let Some(postgres) = Postgres::start().await else { return };
    Postgres::run(postgres.client("pgbench", HOST, postgres.port).args(["-i", "-q", "-s", "1"]))
        .await
        .unwrap();
    let (_sidecar, port) = pooled(&postgres, 2).await;
    for mode in ["simple", "extended", "prepared"] {
        for script in [&["-S"][..], &["-b", "simple-update"], &["-b", "tpcb-like"]] {
            let mut pgbench = postgres.client("pgbench", HOST, port);
            // In prepared mode, a thread of pgbench waits for one client's Parse while others hold servers: a thread for each.
            pgbench.args(["-n", "-c", "6", "-j", "6", "-t", "15", "-M", mode]).args(script);
            let report = Postgres::run(&mut pgbench).await.unwrap();
            assert!(
                report.contains("number of transactions actually processed: 90/90"),
                "{mode} {script:?}: {report}"
            );
        }
    }
    assert!(connects() <= 2.0, "{} connects", connects());
    assert_eq!(metric("qudag_sidecar_db_servers_closed_total", &[]), 0.0);
}

/// pgbench's own pipelines: several statements and Syncs are on their way before the first reply.
#[tokio::test(flavor = "multi_thread")]
async fn pipelines_of_libpq_run() {
    let Some(postgres) = Postgres::start().await else { return };
    let (_sidecar, port) = pooled(&postgres, 1).await;
    let script = postgres.folder.path().join("pipeline.sql");
    let text = "\\startpipeline\nSELECT 1;\nSELECT 2;\n\\endpipeline\nBEGIN;\n\\startpipeline\nSELECT 3;\nSELECT 4;\n\\endpipeline\nCOMMIT;\n";
    std::fs::write(&script, text).unwrap();
    for mode in ["extended", "prepared"] {
        let mut pgbench = postgres.client("pgbench", HOST, port);
        pgbench.args(["-n", "-c", "4", "-j", "4", "-t", "25", "-M", mode, "-f"]).arg(&script);
        let report = Postgres::run(&mut pgbench).await.unwrap();
        assert!(report.contains("number of transactions actually processed: 100/100"), "{mode}: {report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn copy_passes_and_a_client_that_goes_leaves_a_clean_server() {
    let Some(postgres) = Postgres::start().await else { return };
    let (_sidecar, port) = pooled(&postgres, 1).await;
    let rows: String = (0..50_000).map(|row| format!("{row}\trow number {row}\n")).collect();
    postgres.psql(HOST, port, &[], "CREATE TABLE rows (id int PRIMARY KEY, text text)").await.unwrap();
    let copy = async |lines: &str, ends: bool| {
        let mut psql = postgres.client("psql", HOST, port);
        psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", "COPY rows FROM STDIN"]);
        let mut psql = psql.stdin(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
        let mut input = psql.stdin.take().unwrap();
        let written = input.write_all(lines.as_bytes()).await;
        if ends {
            drop(input);
            timeout(PATIENCE, psql.wait()).await.unwrap().unwrap().success()
        } else {
            written.unwrap();
            psql.kill().await.unwrap();
            false
        }
    };
    assert!(copy(&rows, true).await);
    let count = "SELECT count(*) FROM rows";
    assert!(postgres.psql(HOST, port, &[], count).await.unwrap().contains(" 50000\n"));
    assert!(!copy("not a number\tx\n", true).await, "an error in COPY");
    assert!(!copy(&rows.replace("\trow", "9\trow"), false).await, "killed in COPY");
    assert!(postgres.psql(HOST, port, &[], count).await.unwrap().contains(" 50000\n"));
    assert_eq!(connects(), 1.0);
}

/// One client's own messages, for what no program sends.
#[tokio::test(flavor = "multi_thread")]
async fn errors_of_the_server_reach_the_client_unchanged() {
    let Some(postgres) = Postgres::start().await else { return };
    let (_sidecar, port) = pooled(&postgres, 1).await;
    let mut sent = BytesMut::new();
    let sync = build::SYNC;
    let parse = |sent: &mut BytesMut, name: &str, text: &str| {
        build::parse(sent, name.as_bytes(), &[text.as_bytes(), b"\0\0\0"].concat());
    };
    parse(&mut sent, "s1", "SELECT 1");
    sent.extend_from_slice(sync);
    parse(&mut sent, "s1", "SELECT 2");
    sent.extend_from_slice(sync);
    parse(&mut sent, "s2", "SELECT FROM WHERE");
    sent.extend_from_slice(sync);
    build::target(&mut sent, b'D', b"missing");
    sent.extend_from_slice(sync);
    build::target(&mut sent, b'D', b"");
    sent.extend_from_slice(sync);
    build::target(&mut sent, b'C', b"s1");
    build::target(&mut sent, b'D', b"s1");
    sent.extend_from_slice(sync);
    let batches = 6;
    let mut seen = Vec::new();
    for port in [postgres.port, port] {
        let mut raw = Raw::connect(port, "ann", "postgres").await;
        raw.send(&sent).await;
        let mut said = Vec::new();
        for _ in 0..batches {
            said.extend(raw.answer().await);
        }
        seen.push(said);
    }
    assert!(seen[0].iter().any(|(_, text)| text.contains("prepared statement \"s1\" already exists")));
    assert_eq!(seen[0], seen[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_reaches_its_own_session_wherever_that_stands() {
    let Some(postgres) = Postgres::start().await else { return };
    let (_sidecar, port) = pooled(&postgres, 1).await;
    let mut first = Raw::connect(port, "ann", "postgres").await;
    let mut second = Raw::connect(port, "ann", "postgres").await;
    let begun = Instant::now();
    first.begin("SELECT pg_sleep(30)").await;
    let running =
        "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(30)' AND state = 'active'";
    let deadline = Instant::now() + PATIENCE;
    while !postgres.psql(HOST, postgres.port, &[], running).await.unwrap().contains(" 1\n") {
        assert!(Instant::now() < deadline, "it does not run");
    }
    second.begin("SELECT 2").await;
    // The one that waits leaves the queue, and the one that runs goes on.
    sleep(Duration::from_millis(100)).await;
    second.cancel(port, false).await;
    assert_eq!(refused(&second.answer().await), "57014");
    first.cancel(port, true).await;
    first.cancel(port, false).await;
    let answer = first.answer().await;
    assert_eq!(sqlstate(&answer), Some("57014"));
    assert!(
        answer[1].1.contains("canceling statement due to user request") || answer[0].1.contains("canceling")
    );
    assert!(begun.elapsed() < Duration::from_secs(20));
    // Nothing of it hits the next one, and one for an idle session hits nobody.
    first.cancel(port, false).await;
    for number in 0..20 {
        assert_eq!(second.value(&format!("SELECT {number}")).await, number.to_string());
    }
}

/// A client decodes rows by what it was told when it prepared the statement.
#[tokio::test(flavor = "multi_thread")]
async fn a_statement_whose_table_has_changed_fails_on_every_server() {
    let Some(postgres) = Postgres::start().await else { return };
    let (_sidecar, port) = pooled(&postgres, 2).await;
    postgres
        .psql(HOST, postgres.port, &[], "CREATE TABLE t (a int); INSERT INTO t VALUES (1)")
        .await
        .unwrap();
    let mut client = Raw::connect(port, "ann", "postgres").await;
    let prepare = |name: &str| {
        let mut batch = BytesMut::new();
        build::parse(&mut batch, name.as_bytes(), b"SELECT * FROM t\0\0\0");
        build::target(&mut batch, b'D', name.as_bytes());
        batch.extend_from_slice(build::SYNC);
        batch
    };
    let run = |name: &str| {
        let mut batch = BytesMut::new();
        build::header(&mut batch, b'B', name.len() + 8);
        batch.extend_from_slice(&[b"\0", name.as_bytes(), &[0; 7]].concat());
        batch.extend_from_slice(b"E\0\0\0\x09\0\0\0\0\0");
        batch.extend_from_slice(build::SYNC);
        batch
    };
    async fn kinds(client: &mut Raw, batch: &[u8]) -> String {
        client.send(batch).await;
        let answer = client.answer().await;
        answer
            .iter()
            .map(|(kind, text)| if text.contains("C0A000") { '!' } else { char::from(*kind) })
            .collect()
    }
    assert_eq!(kinds(&mut client, &prepare("s")).await, "1tTZ");
    let mut other = Raw::connect(port, "ann", "postgres").await;
    // On the server that has it and on one that has not, before and after the change.
    for right in ["2DCZ", "!Z"] {
        assert_eq!(kinds(&mut client, &run("s")).await, right);
        other.query("BEGIN").await;
        assert_eq!(kinds(&mut client, &run("s")).await, right);
        other.query("COMMIT").await;
        postgres.psql(HOST, postgres.port, &[], "ALTER TABLE t ADD COLUMN b text").await.ok();
    }
    assert_eq!(kinds(&mut client, &prepare("again")).await, "1tTZ");
    for _ in 0..2 {
        assert_eq!(kinds(&mut client, &run("again")).await, "2DCZ");
        assert_eq!(kinds(&mut client, &run("s")).await, "!Z");
        other.query("BEGIN").await;
    }
}
