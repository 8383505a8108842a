//! PostgreSQL itself and its own client programs, with the machines of pooled sessions between them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    dead_code,
    reason = "a test fails by a panic, and not every test file uses all of the server's helpers"
)]

mod postgres;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use postgres::Postgres;
use qudag_filter_common::testing::{self, PATIENCE, metric, nowhere, until};
use qudag_filter_db::PostgresListener;
use qudag_filter_db::wire::{backend, build};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

type Sidecar = testing::Sidecar<PostgresListener>;

fn listener(postgres: &Postgres) -> Value {
    json!({
        "bind": "127.0.0.1:0",
        "server": format!("{HOST}:{}", postgres.port),
        "auth": { "method": "trust", "admins": ["ann"] },
        // Tests count connections.
        "probe": { "load": { "enabled": false } },
    })
}

fn filters(pool: Value) -> Value {
    let mut pool = pool;
    pool["enabled"] = true.into();
    json!({ "db_pool": pool })
}

/// A sidecar with a pool of so many connections; its port.
async fn pooled(postgres: &Postgres, size: usize) -> (Sidecar, u16) {
    let sidecar = Sidecar::start(nowhere(), listener(postgres), filters(json!({ "size": size }))).await;
    let port = sidecar.tcp().port();
    (sidecar, port)
}

fn connects() -> f64 {
    metric("qudag_sidecar_db_connects_total", &[])
}

fn closed(reason: &str) -> f64 {
    metric("qudag_sidecar_db_servers_closed_total", &[&format!("reason=\"{reason}\"")])
}

/// A client that sends its own messages.
struct Raw {
    stream: TcpStream,
    inbox: BytesMut,
    process: u32,
    secret: Vec<u8>,
    parameters: Vec<(String, String)>,
}

/// A message: its type, and its body as text.
type Message = (u8, String);

impl Raw {
    async fn connect(port: u16, user: &str, database: &str) -> Self {
        let body = format!("\0\x03\0\0user\0{user}\0database\0{database}\0\0");
        Self::with(port, body.as_bytes()).await.unwrap()
    }

    /// With a StartupMessage; the ErrorResponse when there is one.
    async fn with(port: u16, startup: &[u8]) -> Result<Self, String> {
        let stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut raw =
            Self { stream, inbox: BytesMut::new(), process: 0, secret: Vec::new(), parameters: Vec::new() };
        let length = u32::try_from(startup.len() + 4).unwrap();
        raw.send(&[&length.to_be_bytes()[..], startup].concat()).await;
        loop {
            let (kind, body) = raw.message_bytes().await;
            match kind {
                b'R' => assert_eq!(body, [0; 4]),
                backend::PARAMETER => {
                    let (name, value) = backend::parameter(&body).unwrap();
                    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                    raw.parameters.push((text(name), text(value)));
                }
                backend::KEY_DATA => {
                    let (process, secret) = backend::key_data(&body).unwrap();
                    (raw.process, raw.secret) = (process, secret.to_vec());
                }
                backend::READY => return Ok(raw),
                backend::ERROR => return Err(String::from_utf8_lossy(&body).into_owned()),
                backend::NEGOTIATE => raw.parameters.push(("negotiated".to_owned(), format!("{body:?}"))),
                other => panic!("{other}"),
            }
        }
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    async fn message_bytes(&mut self) -> (u8, Vec<u8>) {
        loop {
            // `R` is a message of the login only.
            if self.inbox.len() >= 5 {
                let length = u32::from_be_bytes(self.inbox[1..5].try_into().unwrap()) as usize;
                if self.inbox.len() > length {
                    let message = self.inbox.split_to(length + 1);
                    return (message[0], message[5..].to_vec());
                }
            }
            let read = timeout(PATIENCE, self.stream.read_buf(&mut self.inbox)).await.unwrap().unwrap();
            assert!(read > 0, "the connection ended");
        }
    }

    async fn message(&mut self) -> Message {
        let (kind, body) = self.message_bytes().await;
        (kind, String::from_utf8_lossy(&body).into_owned())
    }

    /// Everything through the next ReadyForQuery.
    async fn answer(&mut self) -> Vec<Message> {
        let mut seen = Vec::new();
        loop {
            let message = self.message().await;
            let ready = message.0 == backend::READY;
            seen.push(message);
            if ready {
                return seen;
            }
        }
    }

    async fn begin(&mut self, sql: &str) {
        let mut out = BytesMut::new();
        build::query(&mut out, sql.as_bytes());
        self.send(&out).await;
    }

    async fn query(&mut self, sql: &str) -> Vec<Message> {
        self.begin(sql).await;
        self.answer().await
    }

    /// The only value of the only row.
    async fn value(&mut self, sql: &str) -> String {
        let answer = self.query(sql).await;
        let row = answer.iter().find(|(kind, _)| *kind == backend::DATA_ROW);
        let (_, row) = row.unwrap_or_else(|| panic!("{sql}: {answer:?}"));
        row.chars().skip(6).collect()
    }

    /// What is left to be read until the connection is closed, as text.
    async fn until_closed(&mut self) -> String {
        assert!(self.is_closed().await);
        String::from_utf8_lossy(&self.inbox).into_owned()
    }

    async fn is_closed(&mut self) -> bool {
        timeout(PATIENCE, async {
            loop {
                match self.stream.read_buf(&mut self.inbox).await {
                    Ok(0) | Err(_) => return true,
                    Ok(_) => {}
                }
            }
        })
        .await
        .is_ok()
    }

    /// Sends a CancelRequest with this session's key, of which `wrong` changes the secret.
    async fn cancel(&self, port: u16, wrong: bool) {
        let mut secret = self.secret.clone();
        secret[0] ^= u8::from(wrong);
        let length = u32::try_from(12 + secret.len()).unwrap().to_be_bytes();
        let packet = [&length[..], &[4, 210, 22, 46], &self.process.to_be_bytes(), &secret].concat();
        let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).await.unwrap();
        stream.write_all(&packet).await.unwrap();
        let mut nothing = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut nothing)).await.unwrap().unwrap();
        assert!(nothing.is_empty());
    }
}

fn sqlstate(answer: &[Message]) -> Option<String> {
    let (_, text) = answer.iter().find(|(kind, _)| *kind == backend::ERROR)?;
    text.split('\0').find_map(|field| field.strip_prefix('C')).map(str::to_owned)
}

/// An ErrorResponse of the sidecar: its SQLSTATE, and exactly one ReadyForQuery behind it.
fn refused(answer: &[Message]) -> String {
    let kinds: Vec<_> = answer.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [backend::ERROR, backend::READY], "{answer:?}");
    assert!(
        answer[0].1.split('\0').any(|field| field.starts_with('H') && field.contains("qudag-sidecar")),
        "{answer:?}"
    );
    sqlstate(answer).unwrap()
}

const HOST: &str = "127.0.0.1";

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
    assert_eq!(sqlstate(&answer).as_deref(), Some("57014"));
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
    assert!(clients[0].is_closed().await);
    assert!(clients[1].is_closed().await, "so does the other one");
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
    assert!(second.is_closed().await);
    let mut third = Raw::connect(port, "ann", "postgres").await;
    assert_eq!(third.value("SELECT 1").await, "1", "the server of the second is clean and free");
    drop(listening);
    let mut fourth = Raw::connect(port, "ann", "postgres").await;
    fourth.query("LISTEN news").await;
    assert_eq!(fourth.value("SELECT 4").await, "4");
}
