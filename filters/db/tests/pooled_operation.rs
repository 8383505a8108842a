//! Pools in operation: who waits, who is refused, what is switched or goes away, and what administrators see.

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

use std::collections::HashSet;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use pool::{HOST, Raw, Sidecar, closed, filters, listener, pooled, refused};
use postgres::Postgres;
use qudag_filter_common::testing::{metric, nowhere, until};
use qudag_filter_db::wire::{backend, build};
use serde_json::json;
use tokio::time::{sleep, timeout};

#[tokio::test(flavor = "multi_thread")]
async fn transactions_wait_for_places_and_are_refused_in_time() {
    let Some(postgres) = Postgres::start().await else { return };
    let pressure = json!({ "enabled": true, "wait": "300ms" });
    let mut with = filters(json!({ "size": 2, "idle_in_transaction": "3s" }));
    with["db_backpressure"] = pressure;
    let mut sidecar = Sidecar::start(nowhere(), listener(&postgres), with.clone()).await;
    let port = sidecar.tcp().port();
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(Raw::connect(port, "ann", "postgres").await);
    }
    // Two hold the servers; the third waits no longer than it may, and its session goes on.
    for client in &mut clients[..2] {
        client.query("BEGIN").await;
    }
    let begun = Instant::now();
    assert_eq!(refused(&clients[2].query("SELECT 1").await), "53300");
    assert!(begun.elapsed() >= Duration::from_millis(250) && begun.elapsed() < Duration::from_secs(5));
    // An extended batch is refused once, however many messages it has.
    let mut batch = BytesMut::new();
    build::parse(&mut batch, b"", b"SELECT 1\0\0\0");
    build::target(&mut batch, b'D', b"");
    batch.extend_from_slice(build::SYNC);
    clients[2].send(&batch).await;
    assert_eq!(refused(&clients[2].answer().await), "53300");
    // Who leaves its transaction open loses its connection, and the place is free.
    let (kind, text) = clients[0].message().await;
    assert!(kind == backend::ERROR && text.contains("25P03"), "{text}");
    clients[0].until_closed().await;
    // So does the other one.
    clients[1].until_closed().await;
    assert_eq!(clients[2].value("SELECT 5").await, "5");

    with["db_backpressure"]["wait"] = "20s".into();
    sidecar.reload(listener(&postgres), with.clone());
    // Fewer places, more places, while everything is in use.
    let (mut one, mut two) =
        (Raw::connect(port, "ann", "postgres").await, Raw::connect(port, "ann", "postgres").await);
    one.begin("SELECT pg_sleep(0.3)").await;
    two.begin("SELECT pg_sleep(0.3)").await;
    with["db_pool"]["size"] = 1.into();
    sidecar.reload(listener(&postgres), with.clone());
    assert_eq!(clients[2].value("SELECT 6").await.len(), 1);
    assert_eq!((one.answer().await.len(), two.answer().await.len()), (4, 4));
    let backends = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'";
    until("one is left", || closed("shrunk") >= 1.0).await;
    assert_eq!(clients[2].value(backends).await, "1");

    // Off and on again: nobody notices.
    with["db_pool"]["enabled"] = false.into();
    sidecar.reload(listener(&postgres), with.clone());
    for client in [&mut one, &mut two] {
        assert_eq!(client.value("SELECT 7").await, "7");
    }
    assert_eq!(one.value("SELECT count(DISTINCT pid) FROM pg_stat_activity WHERE application_name <> 'x' AND backend_type = 'client backend'").await, "3");
    with["db_pool"]["enabled"] = true.into();
    with["db_pool"]["size"] = 2.into();
    sidecar.reload(listener(&postgres), with);
    for client in [&mut one, &mut two] {
        assert_eq!(client.value("SELECT 8").await, "8");
    }
}

/// Those that the server has no connection for are led by the pool on.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_fails_when_the_pool_is_switched_off_and_the_server_has_too_few_connections() {
    let Some(postgres) = Postgres::start().await else { return };
    postgres.psql(HOST, postgres.port, &[], "CREATE ROLE few LOGIN CONNECTION LIMIT 5").await.unwrap();
    let mut with = filters(json!({ "size": 2 }));
    let mut sidecar = Sidecar::start(nowhere(), listener(&postgres), with.clone()).await;
    let port = sidecar.tcp().port();
    let mut clients = Vec::new();
    for _ in 0..12 {
        clients.push(Raw::connect(port, "few", "postgres").await);
    }
    for enabled in [true, false, true] {
        with["db_pool"]["enabled"] = enabled.into();
        sidecar.reload(listener(&postgres), with.clone());
        let mut processes = HashSet::new();
        for round in 0..3 {
            for client in &mut clients {
                client.begin("SELECT pg_backend_pid()").await;
            }
            processes.clear();
            for client in &mut clients {
                let answer = client.answer().await;
                let row = answer.iter().find(|(kind, _)| *kind == backend::DATA_ROW);
                processes.insert(row.unwrap_or_else(|| panic!("{enabled}, {round}: {answer:?}")).1.clone());
            }
        }
        let right = if enabled { 1..=2 } else { 3..=5 };
        assert!(right.contains(&processes.len()), "{enabled}: {processes:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_console_shows_and_pauses() {
    let Some(postgres) = Postgres::start().await else { return };
    let (_sidecar, port) = pooled(&postgres, 2).await;
    let mut client = Raw::connect(port, "ann", "postgres").await;
    client.query("SELECT 'secret', 987654321").await;
    let console = async |sql: &str| {
        let mut psql = postgres.client("psql", HOST, port);
        Postgres::run(psql.args(["-XAt", "-d", "qudag_sidecar", "-c", sql])).await
    };
    let pools = console("SHOW POOLS").await.unwrap();
    assert!(
        pools.starts_with(&format!("postgres|ann|{HOST}:{}|2|0|1|0|1|0|0|false|", postgres.port)),
        "{pools}"
    );
    assert!(console("show clients").await.unwrap().contains("|idle|"));
    assert!(console("SHOW SERVERS;").await.unwrap().contains("|idle|"));
    let stats = console("SHOW STATS").await.unwrap();
    assert!(
        stats.contains("select ?") && !stats.contains("secret") && !stats.contains("987654321"),
        "{stats}"
    );
    assert!(console("SHOW CONFIG").await.unwrap().contains("size|2\n"));
    assert!(console("SHOW HELP").await.unwrap().contains("PAUSE [database]"));
    assert!(console("SHOW NONSENSE").await.unwrap_err().contains("unknown command"));
    assert!(console("PAUSE nowhere").await.unwrap_err().contains("has no pool"));
    console("PAUSE").await.unwrap();
    client.begin("SELECT 9").await;
    assert!(timeout(Duration::from_millis(200), client.message()).await.is_err());
    assert!(console("SHOW QUEUE").await.unwrap().starts_with("postgres|ann|1|"));
    console("RESUME postgres").await.unwrap();
    assert_eq!(client.answer().await.len(), 4);
    let mut other = postgres.client("psql", HOST, port);
    other.env("PGUSER", "bob").args(["-XAt", "-d", "qudag_sidecar", "-c", "SHOW POOLS"]);
    assert!(Postgres::run(&mut other).await.unwrap_err().contains("not an administrator"));
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_are_as_the_server_would_have_them() {
    let Some(mut postgres) = Postgres::start().await else { return };
    let (_sidecar, port) = pooled(&postgres, 2).await;
    let startup = |more: &str| format!("\0\x03\0\0user\0ann\0database\0postgres\0{more}\0");
    for more in [
        "",
        "client_encoding\0utf-8\0",
        "TimeZone\0utc\0DateStyle\0german\0",
        "options\0-c work_mem=3MB\0",
        "application_name\0\u{e4}\0",
    ] {
        let mut values = Vec::new();
        for port in [postgres.port, port] {
            let mut raw = Raw::with(port, startup(more).as_bytes()).await.unwrap();
            let mut parameters = raw.parameters.clone();
            parameters.sort();
            values.push((parameters, raw.value("SHOW work_mem").await, raw.value("SHOW TimeZone").await));
        }
        assert_eq!(values[0], values[1], "{more}");
    }
    for wrong in ["nonsense\x001\x00", "options\0-c nonsense=1\0", "client_encoding\0martian\0"] {
        let mut errors = Vec::new();
        for port in [postgres.port, port] {
            let error = Raw::with(port, startup(wrong).as_bytes()).await.err().unwrap();
            errors.push(
                error
                    .split('\0')
                    .filter(|field| field.starts_with(['S', 'V', 'C', 'M']))
                    .map(str::to_owned)
                    .collect::<Vec<_>>(),
            );
        }
        assert_eq!(errors[0], errors[1], "{wrong}");
    }
    let newer = Raw::with(port, b"\0\x03\0\x09user\0ann\0database\0postgres\0_pq_.x\0y\0\0").await.unwrap();
    assert!(newer.parameters.iter().any(|(name, _)| name == "negotiated") && newer.secret.len() == 32);
    let nowhere = Raw::with(port, b"\0\x03\0\0user\0ann\0database\0nowhere\0\0").await.err().unwrap();
    assert!(
        nowhere.contains("3D000") && nowhere.contains("database \"nowhere\" does not exist"),
        "{nowhere}"
    );
    let replication = Raw::with(port, startup("replication\0true\0").as_bytes()).await.err().unwrap();
    assert!(replication.contains("0A000"), "{replication}");

    // The server goes and comes back: idle sessions stay, what is asked meanwhile is refused in the session.
    let mut client = Raw::connect(port, "ann", "postgres").await;
    let mut within = Raw::connect(port, "ann", "postgres").await;
    within.query("BEGIN").await;
    postgres.shut_down();
    let said = within.until_closed().await;
    assert!(
        said.contains("57P01") && !said.contains("qudag-sidecar"),
        "the server's own words alone: {said}"
    );
    client.begin("SELECT 1").await;
    sleep(Duration::from_millis(300)).await;
    postgres.start_again().await;
    assert_eq!(client.answer().await.len(), 4, "it has waited for the server");
    assert_eq!(client.value("SELECT 3").await, "3");

    // A server that goes without a word, or with no more than a notice.
    client.query("BEGIN").await;
    postgres.stop();
    let said = client.until_closed().await;
    assert!(said.contains("08006") && said.contains("qudag-sidecar"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_keep_their_servers_are_counted_and_capped() {
    let Some(postgres) = Postgres::start().await else { return };
    let (_sidecar, port) = pooled(&postgres, 2).await;
    let mut listening = Raw::connect(port, "ann", "postgres").await;
    listening.query("LISTEN news").await;
    let mut second = Raw::connect(port, "ann", "postgres").await;
    second.query("NOTIFY news, 'heard'").await;
    let (kind, text) = listening.message().await;
    assert!(kind == backend::NOTIFICATION && text.contains("heard"));
    assert_eq!(metric("qudag_sidecar_db_pins_total", &["reason=\"listen\""]), 1.0);
    // One of two is all that may be kept.
    let answer = second.query("CREATE TEMP TABLE t (i int)").await;
    assert_eq!(answer.last().map(|(kind, _)| *kind), Some(backend::READY));
    let (kind, text) = second.message().await;
    assert!(
        kind == backend::ERROR && text.contains("53300") && text.contains("keep their servers"),
        "{text}"
    );
    second.until_closed().await;
    let mut third = Raw::connect(port, "ann", "postgres").await;
    assert_eq!(third.value("SELECT 1").await, "1", "the server of the second is clean and free");
    drop(listening);
    let mut fourth = Raw::connect(port, "ann", "postgres").await;
    fourth.query("LISTEN news").await;
    assert_eq!(fourth.value("SELECT 4").await, "4");
}
