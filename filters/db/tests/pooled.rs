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

use std::process::Stdio;
use std::sync::{Arc, Mutex};

use bytes::BytesMut;
use postgres::Postgres;
use qudag_filter_common::testing::PATIENCE;
use qudag_filter_db::session::{Client, Down, Parameters, Sent, Server, Step, Texts, Tidy};
use qudag_filter_db::wire::{HEADER, backend, body, build};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// A connection to the server with its machine.
struct Link {
    machine: Server,
    stream: TcpStream,
    up: BytesMut,
    down: BytesMut,
}

/// The least pooler that drives the machines.
struct Pooler {
    server: u16,
    idle: Mutex<Vec<Link>>,
    places: Semaphore,
    texts: Mutex<Texts>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    connects: usize,
    sessions: usize,
    closed: Vec<String>,
}

async fn login(port: u16) -> (Link, Arc<Parameters>) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let body = b"\0\x03\0\0user\0ann\0database\0postgres\0\0";
    stream.write_u32(body.len() as u32 + 4).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut parameters = Parameters::default();
    loop {
        let mut header = [0; HEADER];
        stream.read_exact(&mut header).await.unwrap();
        let mut body = vec![0; u32::from_be_bytes(header[1..].try_into().unwrap()) as usize - 4];
        stream.read_exact(&mut body).await.unwrap();
        match header[0] {
            b'R' => assert_eq!(body, [0; 4]),
            backend::PARAMETER => {
                let (name, value) = backend::parameter(&body).unwrap();
                parameters.report(name, value);
            }
            backend::KEY_DATA => drop(backend::key_data(&body).unwrap()),
            backend::READY => break,
            other => panic!("{other}"),
        }
    }
    stream.set_nodelay(true).unwrap();
    let parameters = Arc::new(parameters);
    let machine = Server::new(Arc::clone(&parameters), 3);
    (Link { machine, stream, up: BytesMut::new(), down: BytesMut::new() }, parameters)
}

impl Pooler {
    /// Listens; the port.
    async fn start(server: u16, places: usize) -> (Arc<Self>, u16) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let pooler = Arc::new(Self {
            server,
            idle: Mutex::default(),
            places: Semaphore::new(places),
            texts: Mutex::new(Texts::new(100)),
            seen: Mutex::default(),
        });
        let accepting = Arc::clone(&pooler);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                accepting.seen.lock().unwrap().sessions += 1;
                let pooler = Arc::clone(&accepting);
                tokio::spawn(async move { pooler.serve(stream).await });
            }
        });
        (pooler, port)
    }

    async fn take(&self) -> Link {
        if let Some(link) = self.idle.lock().unwrap().pop() {
            return link;
        }
        self.seen.lock().unwrap().connects += 1;
        login(self.server).await.0
    }

    async fn serve(&self, mut stream: TcpStream) {
        let name = loop {
            let length = stream.read_u32().await.unwrap() as usize;
            let mut packet = vec![0; length - 4];
            stream.read_exact(&mut packet).await.unwrap();
            if packet[..2] == [0, 3] {
                let mut words = packet[4..].split(|byte| *byte == 0);
                words.by_ref().find(|word| *word == b"application_name");
                break words.next().unwrap_or_default().to_vec();
            }
            stream.write_all(b"N").await.unwrap();
        };
        stream.set_nodelay(true).unwrap();
        let (link, parameters) = login(self.server).await;
        drop(link);
        let mut parameters = Parameters::clone(&parameters);
        parameters.report(b"application_name", &name);
        let (mut inbox, mut out) = (BytesMut::new(), BytesMut::from(&b"R\0\0\0\x08\0\0\0\0"[..]));
        for (name, value) in parameters.iter() {
            build::parameter(&mut out, name, value);
        }
        build::key_data(&mut out, 1, b"none");
        out.extend_from_slice(&build::ready(backend::Status::Idle));
        let mut client = Client::new(Arc::new(parameters));
        loop {
            let step = client.feed(&mut inbox, &mut out).unwrap();
            stream.write_all(&out.split()).await.unwrap();
            match step {
                Step::Terminate => return,
                Step::More => {
                    if stream.read_buf(&mut inbox).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                Step::Batch => {
                    let place = self.places.acquire().await.unwrap();
                    let mut link = self.take().await;
                    let alive = self.transaction(&mut client, &mut link, &mut stream, &mut inbox).await;
                    let tidy = link.machine.leave(&mut client, &mut link.up);
                    self.clean(link, tidy).await;
                    drop(place);
                    if !alive {
                        return;
                    }
                }
            }
        }
    }

    /// Until the client is free again; `false` when it is gone.
    async fn transaction(
        &self,
        client: &mut Client,
        link: &mut Link,
        stream: &mut TcpStream,
        inbox: &mut BytesMut,
    ) -> bool {
        let mut ready = link.machine.attach(client, &mut link.up);
        let mut out = BytesMut::new();
        loop {
            let mut held = !ready;
            if ready {
                let mut texts = self.texts.lock().unwrap();
                match client.up(&mut link.machine, &mut texts, inbox, &mut link.up, &mut out).unwrap() {
                    Sent::More => {}
                    Sent::Held => held = true,
                    Sent::Terminate => return false,
                }
            }
            let up = link.up.split();
            link.stream.write_all(&up).await.unwrap();
            if stream.write_all(&out.split()).await.is_err() {
                return false;
            }
            tokio::select! {
                read = link.stream.read_buf(&mut link.down) => assert!(read.unwrap() > 0, "the server is gone"),
                read = stream.read_buf(inbox), if !held => if read.unwrap_or(0) == 0 { return false },
            }
            let down = link.machine.down(&mut link.down, &mut out, Some(&mut client.seen)).unwrap();
            match down {
                Down::Free => return stream.write_all(&out).await.is_ok(),
                Down::Ready => ready = true,
                Down::More => {}
                other => panic!("{other:?}"),
            }
        }
    }

    async fn clean(&self, mut link: Link, mut tidy: Tidy) {
        loop {
            let up = link.up.split();
            link.stream.write_all(&up).await.unwrap();
            match tidy {
                Tidy::Clean => return self.idle.lock().unwrap().push(link),
                Tidy::Close(why) => return self.seen.lock().unwrap().closed.push(why.label().to_owned()),
                Tidy::Wait | Tidy::Cancelling => {}
            }
            loop {
                assert!(link.stream.read_buf(&mut link.down).await.unwrap() > 0);
                match link.machine.down(&mut link.down, &mut BytesMut::new(), None) {
                    Ok(Down::Tidy) => break,
                    Ok(_) => {}
                    Err(why) => return self.seen.lock().unwrap().closed.push(why.label().to_owned()),
                }
            }
            tidy = link.machine.tidy(&mut link.up);
        }
    }
}

const HOST: &str = "127.0.0.1";

#[tokio::test(flavor = "multi_thread")]
async fn psql_sees_through_a_pool_what_it_sees_directly() {
    let Some(postgres) = Postgres::start().await else { return };
    let (pooler, port) = Pooler::start(postgres.port, 2).await;
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
        "SELECT pg_try_advisory_lock(4)",
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'",
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
    let seen = pooler.seen.lock().unwrap();
    assert!(seen.connects <= 2 && seen.sessions >= 20, "{} connects", seen.connects);
    assert_eq!(seen.closed, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn pgbench_runs_with_more_clients_than_servers() {
    let Some(postgres) = Postgres::start().await else { return };
    Postgres::run(postgres.client("pgbench", HOST, postgres.port).args(["-i", "-q", "-s", "1"]))
        .await
        .unwrap();
    let (pooler, port) = Pooler::start(postgres.port, 2).await;
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
    let seen = pooler.seen.lock().unwrap();
    assert!(seen.connects <= 2, "{} connects", seen.connects);
    assert_eq!(seen.closed, Vec::<String>::new());
    drop(seen);
    for link in pooler.idle.lock().unwrap().iter() {
        assert!(link.machine.statements() <= 3, "the least recently used are closed");
    }
}

/// pgbench's own pipelines: several statements and Syncs are on their way before the first reply.
#[tokio::test(flavor = "multi_thread")]
async fn pipelines_of_libpq_run() {
    let Some(postgres) = Postgres::start().await else { return };
    let (_pooler, port) = Pooler::start(postgres.port, 1).await;
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
    let (pooler, port) = Pooler::start(postgres.port, 1).await;
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
    assert_eq!(pooler.seen.lock().unwrap().connects, 1);
}

/// One client's own messages, for what no program sends.
#[tokio::test(flavor = "multi_thread")]
async fn errors_of_the_server_reach_the_client_unchanged() {
    let Some(postgres) = Postgres::start().await else { return };
    let (_pooler, port) = Pooler::start(postgres.port, 1).await;
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
        let mut stream = login(port).await.0.stream;
        stream.write_all(&sent).await.unwrap();
        let mut got = BytesMut::new();
        let mut said = Vec::new();
        let mut ready = 0;
        while ready < batches {
            assert!(timeout(PATIENCE, stream.read_buf(&mut got)).await.unwrap().unwrap() > 0);
            while let Ok(Some(head)) = backend::head(&got) {
                let Some(body) = body(&got, head) else { break };
                said.push((head.kind, String::from_utf8_lossy(body).into_owned()));
                ready += usize::from(head.kind == backend::READY);
                let _ = got.split_to(head.len);
            }
        }
        seen.push(said);
    }
    assert!(seen[0].iter().any(|(_, text)| text.contains("prepared statement \"s1\" already exists")));
    assert_eq!(seen[0], seen[1]);
}
