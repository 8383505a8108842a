//! Replies of PostgreSQL itself that are given again.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    dead_code,
    reason = "a test fails by a panic, and not every test file uses all of the server's helpers"
)]

mod postgres;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::{BufMut, BytesMut};
use postgres::Postgres;
use qudag_filter_common::testing::{self, PATIENCE, metric, nowhere, until};
use qudag_filter_db::PostgresListener;
use qudag_filter_db::wire::{backend, build};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

type Sidecar = testing::Sidecar<PostgresListener>;

const HOST: &str = "127.0.0.1";
/// Each call of these functions takes one more of the sequence, whatever becomes of its transaction.
const SCHEMA: &str = "
    CREATE SEQUENCE asks;
    CREATE FUNCTION counted() RETURNS int LANGUAGE plpgsql AS
        $$ BEGIN PERFORM nextval('public.asks'); RETURN 1; END $$;
    CREATE FUNCTION counted_slowly() RETURNS int LANGUAGE plpgsql AS
        $$ BEGIN PERFORM nextval('public.asks'); PERFORM pg_sleep(0.5); RETURN 1; END $$;
    CREATE FUNCTION counted_in_vain(x int) RETURNS int LANGUAGE plpgsql AS
        $$ BEGIN PERFORM nextval('public.asks'); PERFORM pg_sleep(0.5); RETURN 1 / x; END $$;
    CREATE FUNCTION counted_aloud() RETURNS int LANGUAGE plpgsql AS
        $$ BEGIN PERFORM nextval('public.asks'); RAISE NOTICE 'heard'; RETURN 1; END $$;
    CREATE TABLE items (id int, name text, made timestamptz);
    INSERT INTO items SELECT n, 'item ' || n, '2024-05-06 07:08:09+00'::timestamptz FROM generate_series(1, 3) n;
    CREATE VIEW named AS SELECT * FROM items;
    CREATE TABLE others (id int);
    CREATE SCHEMA side;
    CREATE TABLE side.items (id int, name text, made timestamptz);
    INSERT INTO side.items VALUES (1, 'beside', '2024-05-06 07:08:09+00');
    CREATE ROLE bob LOGIN;
    GRANT ALL ON ALL TABLES IN SCHEMA public TO bob;
    GRANT ALL ON SEQUENCE asks TO bob;
";

const ITEM: &str = "SELECT counted(), id, name, made FROM items WHERE id = $1";

fn rules() -> Value {
    let functions = json!(["counted", "counted_slowly", "counted_in_vain", "counted_aloud", "repeat"]);
    let rule = |name: &str, statement: &str| json!({ "name": name, "statement": statement, "functions": functions, "ttl": "300s" });
    let mut view = rule("view", "SELECT (SELECT counted()), id FROM named");
    view["tables"] = json!(["items"]);
    let mut short = rule("short", "SELECT counted(), 'short'::text AS short");
    short["ttl"] = "300ms".into();
    json!([
        rule("item", ITEM),
        rule("all", "SELECT (SELECT counted()), id FROM items"),
        view,
        short,
        rule("who", "SELECT counted(), current_user"),
        rule("slow", "SELECT counted_slowly()"),
        rule("vain", "SELECT counted_in_vain(1)"),
        rule("aloud", "SELECT counted_aloud()"),
        rule("large", "SELECT counted(), repeat('x', 1)"),
        rule("writes", "WITH x AS (DELETE FROM others RETURNING id) SELECT counted(), count(*) FROM x"),
        rule("locks", "SELECT counted(), id FROM items WHERE id = 1 FOR UPDATE"),
    ])
}

fn filters(on: bool) -> Value {
    let cache = json!({ "enabled": on, "rules": rules(), "max_reply": "64KiB" });
    json!({ "db_pool": { "enabled": true, "size": 10 }, "db_query_cache": cache })
}

fn listener(postgres: &Postgres) -> Value {
    let server = format!("{HOST}:{}", postgres.port);
    json!({ "bind": "127.0.0.1:0", "server": server, "auth": { "method": "trust", "admins": ["ann"] } })
}

/// A server, a sidecar before it whose cache is in use, and a session that goes past the sidecar.
struct Stand {
    sidecar: Sidecar,
    direct: Client,
    postgres: Postgres,
}

impl Stand {
    async fn start() -> Option<Self> {
        let postgres = Postgres::start().await?;
        postgres.psql(HOST, postgres.port, &[], SCHEMA).await.unwrap();
        let sidecar = Sidecar::start(nowhere(), listener(&postgres), filters(true)).await;
        let direct = Client::connect(postgres.port, "ann", "").await;
        let mut stand = Self { sidecar, direct, postgres };
        // The first transaction of all shows the cache to the sessions.
        stand.client("").await.query("SELECT 1").await;
        assert_eq!(stand.asks().await, 0);
        Some(stand)
    }

    fn port(&self) -> u16 {
        self.sidecar.tcp().port()
    }

    async fn client(&self, options: &str) -> Client {
        Client::connect(self.port(), "ann", options).await
    }

    /// How often the server has carried out one of the functions.
    async fn asks(&mut self) -> u64 {
        let row = self.direct.query("SELECT last_value, is_called FROM asks").await;
        let values = values(&row);
        if values[0][1] == "t" { values[0][0].parse().unwrap() } else { 0 }
    }

    async fn console(&self, command: &str) -> Result<String, String> {
        let settings = [("PGDATABASE", "qudag_sidecar")];
        self.postgres.psql(HOST, self.port(), &settings, command).await
    }
}

/// A client that sends its own messages.
struct Client {
    stream: TcpStream,
    inbox: BytesMut,
}

impl Client {
    async fn connect(port: u16, user: &str, options: &str) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let body = format!("\0\x03\0\0user\0{user}\0database\0postgres\0options\0{options}\0\0");
        let length = u32::try_from(body.len() + 4).unwrap();
        stream.write_all(&[&length.to_be_bytes()[..], body.as_bytes()].concat()).await.unwrap();
        let mut client = Self { stream, inbox: BytesMut::new() };
        client.answer().await;
        client
    }

    /// All bytes through the next ReadyForQuery.
    async fn answer(&mut self) -> BytesMut {
        let mut at = 0;
        loop {
            while let Some(header) = self.inbox.get(at..at + 5) {
                let length = u32::from_be_bytes(header[1..5].try_into().unwrap()) as usize + 1;
                if self.inbox.len() < at + length {
                    break;
                }
                let kind = header[0];
                at += length;
                if kind == backend::READY {
                    return self.inbox.split_to(at);
                }
            }
            let read = timeout(PATIENCE, self.stream.read_buf(&mut self.inbox)).await.unwrap().unwrap();
            assert!(read > 0, "the connection ended");
        }
    }

    async fn send(&mut self, batch: &[u8]) {
        self.stream.write_all(batch).await.unwrap();
    }

    async fn ask(&mut self, batch: &[u8]) -> BytesMut {
        self.send(batch).await;
        self.answer().await
    }

    async fn query(&mut self, sql: &str) -> BytesMut {
        self.ask(&query(sql)).await
    }
}

fn query(sql: &str) -> BytesMut {
    let mut out = BytesMut::new();
    build::query(&mut out, sql.as_bytes());
    out
}

fn message(out: &mut BytesMut, kind: u8, body: impl FnOnce(&mut BytesMut)) {
    let mut written = BytesMut::new();
    body(&mut written);
    build::header(out, kind, written.len());
    out.extend_from_slice(&written);
}

/// The bodies of messages of a type.
fn bodies(mut reply: &[u8], kind: u8) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while !reply.is_empty() {
        let length = u32::from_be_bytes(reply[1..5].try_into().unwrap()) as usize + 1;
        if reply[0] == kind {
            found.push(&reply[5..length]);
        }
        reply = &reply[length..];
    }
    found
}

/// The rows of a reply, in text.
fn values(reply: &[u8]) -> Vec<Vec<String>> {
    let row = |mut body: &[u8]| {
        body = &body[2..];
        let mut row = Vec::new();
        while !body.is_empty() {
            let length = u32::from_be_bytes(body[..4].try_into().unwrap()) as usize;
            row.push(String::from_utf8(body[4..4 + length].to_vec()).unwrap());
            body = &body[4 + length..];
        }
        row
    };
    bodies(reply, backend::DATA_ROW).into_iter().map(row).collect()
}

/// What an extended query is sent as.
#[derive(Clone, Copy)]
struct Form {
    /// With a Parse under this name, or without, of one that was prepared before.
    parse: bool,
    name: &'static str,
    describe: bool,
    close: bool,
    /// Formats of the results.
    formats: &'static [u8],
}

const PLAIN: Form = Form { parse: true, name: "", describe: true, close: false, formats: &[] };

fn extended(form: Form, sql: &str, value: &str) -> BytesMut {
    let mut out = BytesMut::new();
    if form.parse {
        build::parse(&mut out, form.name.as_bytes(), &[sql.as_bytes(), &[0, 0, 0]].concat());
    }
    message(&mut out, b'B', |out| {
        out.put_u8(0);
        out.put_slice(form.name.as_bytes());
        out.put_u8(0);
        out.put_u16(0);
        out.put_u16(1);
        out.put_u32(u32::try_from(value.len()).unwrap());
        out.put_slice(value.as_bytes());
        out.put_u16(u16::try_from(form.formats.len()).unwrap());
        form.formats.iter().for_each(|format| out.put_u16((*format).into()));
    });
    if form.describe {
        message(&mut out, b'D', |out| out.put_slice(b"P\0"));
    }
    message(&mut out, b'E', |out| out.put_slice(&[0; 5]));
    if form.close {
        message(&mut out, b'C', |out| out.put_slice(b"P\0"));
    }
    out.extend_from_slice(build::SYNC);
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_that_is_given_again_is_the_servers_byte_for_byte() {
    let Some(mut stand) = Stand::start().await else { return };
    let mut prepared = stand.client("").await;
    let named = Form { name: "s", ..PLAIN };
    let mut direct = Client::connect(stand.postgres.port, "ann", "").await;
    let forms = [
        PLAIN,
        Form { describe: false, ..PLAIN },
        Form { close: true, ..PLAIN },
        Form { formats: &[1], ..PLAIN },
        Form { formats: &[0, 1, 0, 1], ..PLAIN },
        named,
        Form { parse: false, ..named },
        Form { parse: false, describe: false, formats: &[1], ..named },
    ];
    let mut asks = 0;
    for (n, form) in forms.into_iter().enumerate() {
        let batch = extended(form, ITEM, "2");
        let expected = direct.ask(&batch).await;
        assert_eq!(bodies(&expected, backend::DATA_ROW).len(), 1, "{n}");
        let mut fresh = stand.client("").await;
        let first = if form.name.is_empty() { &mut fresh } else { &mut prepared };
        assert_eq!(first.ask(&batch).await, expected, "{n}: the server's");
        // What a statement is called makes no difference.
        asks += if form.name == "s" && form.parse { 1 } else { 2 };
        assert_eq!(stand.asks().await, asks, "{n}");
        // Other sessions, which may have to prepare it first.
        for round in 0..3 {
            let mut other = stand.client("").await;
            if form.name == "s" && !form.parse {
                let mut parse = BytesMut::new();
                build::parse(&mut parse, b"s", &[ITEM.as_bytes(), &[0, 0, 0]].concat());
                parse.extend_from_slice(build::SYNC);
                other.ask(&parse).await;
            }
            assert_eq!(other.ask(&batch).await, expected, "{n}: the cache's");
            if form.parse && form.name == "s" {
                // It has the statement, though no server was asked.
                let again = extended(Form { parse: false, ..named }, ITEM, "3");
                assert_eq!(values(&other.ask(&again).await)[0][2], "item 3");
                asks += u64::from(round == 0);
                assert_eq!(stand.asks().await, asks, "{n}");
                let twice = other.ask(&batch).await;
                assert_eq!(bodies(&twice, backend::ERROR).len(), 1, "the name is taken");
            }
        }
        assert_eq!(stand.asks().await, asks, "{n}");
    }
    // Simple queries, within a pipeline as well; values are a part of the question.
    let simple = |id: u32| query(&ITEM.replace("$1", &id.to_string()));
    let mut client = stand.client("").await;
    for id in [1, 2] {
        let expected = direct.ask(&simple(id)).await;
        assert_eq!(client.ask(&simple(id)).await, expected);
        assert_eq!(client.ask(&simple(id)).await, expected);
        asks += 2;
        assert_eq!(stand.asks().await, asks);
        let others = query("SELECT 5");
        let pipeline = [&simple(id)[..], &extended(PLAIN, ITEM, "2"), &simple(id), &others, &others].concat();
        let (mut through, mut past) =
            (stand.client("").await, Client::connect(stand.postgres.port, "ann", "").await);
        through.send(&pipeline).await;
        past.send(&pipeline).await;
        for _ in 0..5 {
            assert_eq!(through.answer().await, past.answer().await);
        }
        asks += 3;
        assert_eq!(stand.asks().await, asks, "only what went past the sidecar");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_of_long_replies_waits_for_its_client() {
    let Some(mut stand) = Stand::start().await else { return };
    let long = "SELECT counted(), repeat('x', 60000)";
    let mut client = stand.client("").await;
    let expected = client.query(long).await;
    // Much more than the sidecar holds for a client, which reads nothing before it has sent all of it.
    let others = ["SELECT 'one after'", "SELECT 'two after'"].map(query);
    client.send(&[&query(long).repeat(300)[..], &others.concat()].concat()).await;
    for n in 0..300 {
        assert_eq!(client.answer().await, expected, "{n}");
    }
    assert_eq!(values(&client.answer().await), [["one after"]]);
    assert_eq!(values(&client.answer().await), [["two after"]]);
    assert_eq!(stand.asks().await, 1);
    // Who takes nothing holds nobody up.
    let mut idle = stand.client("").await;
    idle.send(&query(long).repeat(300)).await;
    assert_eq!(stand.client("").await.query(long).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_given_what_was_not_asked_for_by_one_like_it() {
    let Some(mut stand) = Stand::start().await else { return };
    let (port, mut asks) = (stand.port(), 0);
    let all = "SELECT (SELECT counted()), id FROM items";
    let item = ITEM.replace("$1", "1");
    // Each of them for the first time, then again.
    for (user, options, sets, sql, expected) in [
        ("ann", "", "", "SELECT counted(), current_user", "ann"),
        ("bob", "", "", "SELECT counted(), current_user", "bob"),
        ("ann", "", "", &item, "2024-05-06 07:08:09+00"),
        ("ann", "-c search_path=side,public", "", &item, "beside"),
        ("ann", "-c TimeZone=Asia/Tokyo", "", &item, "2024-05-06 16:08:09+09"),
        (
            "ann",
            "",
            "SET TimeZone = 'Asia/Tokyo'; SET DateStyle = 'German'",
            &item,
            "06.05.2024 16:08:09 JST",
        ),
        ("ann", "-c geqo=off", "", all, "3"),
        ("ann", "-c geqo=on", "", all, "3"),
    ] {
        let mut first = None;
        for n in 0..3 {
            let mut client = Client::connect(port, user, options).await;
            if !sets.is_empty() {
                client.query(sets).await;
            }
            let reply = client.query(sql).await;
            let rows = values(&reply);
            assert!(
                rows.iter().flatten().any(|value| value == expected),
                "{user} {options} {sets}: {rows:?}"
            );
            assert_eq!(first.get_or_insert(reply.clone()), &reply);
            asks += u64::from(n == 0);
            assert_eq!(stand.asks().await, asks, "{user} {options} {sets} {sql}");
        }
    }
    // Values and formats of an extended query.
    for (form, value) in [
        (PLAIN, "1"),
        (PLAIN, "2"),
        (PLAIN, "02"),
        (Form { formats: &[1], ..PLAIN }, "1"),
        (Form { formats: &[0], ..PLAIN }, "1"),
    ] {
        for n in 0..3 {
            let mut client = stand.client("").await;
            let reply = client.ask(&extended(form, ITEM, value)).await;
            assert_eq!(bodies(&reply, backend::DATA_ROW).len(), 1);
            asks += u64::from(n == 0);
            assert_eq!(stand.asks().await, asks, "{value} {:?}", form.formats);
        }
    }
    // What the sidecar cannot bring along is not shared.
    for _ in 0..2 {
        let mut client = stand.client("").await;
        client.query("SET search_path = side, public").await;
        assert_eq!(values(&client.query(&item).await)[0][2], "beside");
        asks += 1;
        assert_eq!(stand.asks().await, asks);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn some_are_never_kept_and_none_for_long() {
    let Some(mut stand) = Stand::start().await else { return };
    let mut client = stand.client("").await;
    let all = "SELECT (SELECT counted()), id FROM items";
    let mut asks = 0;
    let refused =
        |reason: &str| metric("qudag_sidecar_db_cache_refused_total", &[&format!("reason=\"{reason}\"")]);
    // Errors, notices, what is too long, no plain SELECT, and what no rule names.
    for (sql, reason) in [
        ("SELECT counted_in_vain(0)", "error"),
        ("SELECT counted_aloud()", "notice"),
        ("SELECT counted(), repeat('x', 5000000)", "large"),
        ("WITH x AS (DELETE FROM others RETURNING id) SELECT counted(), count(*) FROM x", ""),
        ("SELECT counted(), id FROM items WHERE id = 1 FOR UPDATE", ""),
        ("SELECT counted(), 5", ""),
        ("SELECT (SELECT counted()), id FROM items; SELECT 1", ""),
        ("BEGIN; SELECT (SELECT counted()), id FROM items; COMMIT", ""),
    ] {
        let before = refused(reason);
        for _ in 0..2 {
            let through = client.query(sql).await;
            asks += 1;
            assert_eq!(stand.asks().await, asks, "{sql}");
            assert_eq!(through, stand.direct.query(sql).await, "{sql}");
            asks += 1;
        }
        if !reason.is_empty() {
            assert_eq!(refused(reason), before + 2.0, "{sql}");
        }
    }
    // Not within a transaction, whether it was kept before or not.
    for _ in 0..2 {
        for sql in ["BEGIN", all, all, "COMMIT"] {
            client.query(sql).await;
        }
        asks += 2;
        assert_eq!(stand.asks().await, asks);
    }
    client.query(all).await;
    asks += 1;
    assert_eq!(stand.asks().await, asks);
    for sql in ["BEGIN", all, "ROLLBACK"] {
        client.query(sql).await;
    }
    asks += 1;
    assert_eq!(stand.asks().await, asks, "it is kept, and not for a transaction");

    // Its time is over, counted from when the server was asked.
    let short = "SELECT counted(), 'short'::text AS short";
    let begun = Instant::now();
    client.query(short).await;
    asks += 1;
    loop {
        client.query(short).await;
        let age = begun.elapsed();
        if stand.asks().await > asks {
            assert!(age >= Duration::from_millis(300), "{age:?}");
            break;
        }
        assert!(age < PATIENCE);
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_who_ask_the_same_are_one_for_the_server() {
    let Some(mut stand) = Stand::start().await else { return };
    let ask_all = async |sql: &'static str, clients: usize| {
        let mut asking = Vec::new();
        for _ in 0..clients {
            let mut client = stand.client("").await;
            asking.push(tokio::spawn(async move { client.query(sql).await }));
        }
        let mut replies = Vec::new();
        for one in asking {
            replies.push(one.await.unwrap());
        }
        replies
    };
    let replies = ask_all("SELECT counted_slowly()", 8).await;
    assert!(replies.iter().all(|reply| *reply == replies[0] && values(reply) == [["1"]]));
    // Nobody asks twice, but who fails does so for itself, and nobody waits for one after the other.
    let begun = Instant::now();
    let failed = ask_all("SELECT counted_in_vain(0)", 6).await;
    assert!(failed.iter().all(|reply| bodies(reply, backend::ERROR).len() == 1));
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(stand.asks().await, 1 + 6);
    assert!(metric("qudag_sidecar_db_cache_lookups_total", &["result=\"joined\""]) >= 1.0);

    // The one who asks goes: the next one asks, and the others wait for that.
    assert!(stand.console("FLUSH").await.is_ok());
    let mut leader = stand.client("").await;
    leader.send(&query("SELECT counted_slowly()")).await;
    let deadline = Instant::now() + PATIENCE;
    while stand.asks().await < 8 {
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(5)).await;
    }
    let mut others = Vec::new();
    for _ in 0..4 {
        let mut client = stand.client("").await;
        client.send(&query("SELECT counted_slowly()")).await;
        others.push(client);
    }
    drop(leader);
    for mut client in others {
        assert_eq!(values(&client.answer().await), [["1"]]);
    }
    let asks = stand.asks().await;
    assert!((8..=9).contains(&asks), "{asks}: the one who went, and one of the others");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_flushed_or_written_is_asked_for_again() {
    let Some(mut stand) = Stand::start().await else { return };
    let (all, view, who) = (
        "SELECT (SELECT counted()), id FROM items",
        "SELECT (SELECT counted()), id FROM named",
        "SELECT counted(), current_user",
    );
    let mut client = stand.client("").await;
    let mut writer = stand.client("").await;
    let mut asks = 0;
    // How many of the three are asked for again, after they were all kept.
    let again = async |stand: &mut Stand, client: &mut Client, asks: &mut u64| {
        let mut asked = Vec::new();
        for sql in [all, view, who] {
            client.query(sql).await;
            let now = stand.asks().await;
            // The view has as many rows as the table.
            asked.push(u8::from(now > *asks));
            *asks = now;
        }
        asked
    };
    assert_eq!(again(&mut stand, &mut client, &mut asks).await, [1, 1, 1]);
    assert_eq!(again(&mut stand, &mut client, &mut asks).await, [0, 0, 0]);
    for (command, expected) in [
        ("FLUSH RULE who", [0, 0, 1]),
        ("flush table public.items", [1, 1, 0]),
        ("FLUSH TABLE named", [0, 1, 0]),
        ("FLUSH TABLE nothing", [0, 0, 0]),
        ("FLUSH", [1, 1, 1]),
    ] {
        stand.console(command).await.unwrap();
        assert_eq!(again(&mut stand, &mut client, &mut asks).await, expected, "{command}");
    }
    assert!(stand.console("FLUSH RULE nobody").await.unwrap_err().contains("no rule"));
    let shown = stand.console("SHOW CACHE").await.unwrap();
    let row = shown.lines().find(|line| line.trim_start().starts_with("all ")).unwrap();
    let cells: Vec<_> = row.split('|').map(str::trim).collect();
    assert_eq!((cells[1], cells[2], cells[5], cells[6]), ("300.000", "1", "3", "3"), "{shown}");

    let named = Form { name: "insert", describe: false, ..PLAIN };
    let insert = extended(named, "INSERT INTO items VALUES ($1, 'new', now())", "8");
    for (batches, expected) in [
        (vec![query("INSERT INTO items VALUES (7, 'new', now())")], [1, 1, 0]),
        (vec![insert], [1, 1, 0]),
        (vec![extended(Form { parse: false, ..named }, "", "9")], [1, 1, 0]),
        (
            vec![query("BEGIN"), query("DELETE FROM items WHERE id = 7"), query("SELECT 1"), query("COMMIT")],
            [1, 1, 0],
        ),
        (vec![query("WITH x AS (DELETE FROM items WHERE id = 8 RETURNING 1) SELECT * FROM x")], [1, 1, 0]),
        (vec![query("UPDATE others SET id = 1")], [0, 0, 0]),
        (vec![query("CREATE TABLE more ()")], [1, 1, 1]),
        (vec![query("LISTEN x"), query("UPDATE items SET name = 'other'")], [1, 1, 0]),
        // It keeps its server now.
        (vec![query("UPDATE items SET name = 'third'")], [1, 1, 0]),
        (vec![query("SELECT 1")], [0, 0, 0]),
    ] {
        for batch in &batches {
            let reply = writer.ask(batch).await;
            assert!(bodies(&reply, backend::ERROR).is_empty(), "{:?}", String::from_utf8_lossy(batch));
        }
        assert_eq!(
            again(&mut stand, &mut client, &mut asks).await,
            expected,
            "{:?}",
            String::from_utf8_lossy(&batches[0])
        );
    }
    // A session reads what it has written, also what the text does not say.
    let call = "CREATE FUNCTION add() RETURNS void LANGUAGE sql AS 'INSERT INTO items VALUES (50)'";
    client.query(call).await;
    let count = |reply: &[u8]| bodies(reply, backend::DATA_ROW).len();
    let before = count(&client.query(all).await);
    client.query("DO 'BEGIN PERFORM add(); END'").await;
    assert_eq!(count(&client.query(all).await), before + 1);
    // Who writes past the sidecar is not seen.
    let mut other = stand.client("").await;
    assert_eq!(count(&other.query(all).await), before + 1);
    stand.direct.query("INSERT INTO items VALUES (51)").await;
    assert_eq!(count(&other.query(all).await), before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_can_be_switched_at_any_time() {
    let Some(mut stand) = Stand::start().await else { return };
    let all = "SELECT (SELECT counted()), id FROM items";
    let mut client = stand.client("").await;
    let expected = client.query(all).await;
    assert_eq!(client.query(all).await, expected);
    assert_eq!(stand.asks().await, 1);
    // A transaction that begins before and ends after the switch.
    let mut writer = stand.client("").await;
    for round in 0..3u64 {
        stand.sidecar.reload(listener(&stand.postgres), filters(false));
        let asks = stand.asks().await;
        for _ in 0..2 {
            assert_eq!(client.query(all).await, expected);
        }
        assert_eq!(stand.asks().await, asks + 2, "{round}");
        writer.query("BEGIN; UPDATE items SET name = 'x' WHERE false").await;
        stand.sidecar.reload(listener(&stand.postgres), filters(true));
        // The first one shows the cache again, the second one is kept.
        for _ in 0..4 {
            assert_eq!(client.query(all).await, expected);
        }
        assert_eq!(stand.asks().await, asks + 4, "{round}: nothing from before");
        // What was written while nobody looked ends with everything that is kept.
        writer.query("UPDATE others SET id = 1").await;
        writer.query("INSERT INTO others VALUES (1); COMMIT").await;
        client.query(all).await;
        assert_eq!(stand.asks().await, asks + 5, "{round}");
    }
    assert!(metric("qudag_sidecar_db_transactions_total", &["outcome=\"cached\""]) > 0.0);
    assert!(metric("qudag_sidecar_db_cache_bytes", &[]) > 0.0);
    stand.console("FLUSH").await.unwrap();
    until("what was flushed is gone", || metric("qudag_sidecar_db_cache_bytes", &[]) == 0.0).await;
}
