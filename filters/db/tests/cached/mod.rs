//! A server, a sidecar before it whose query cache is in use, and clients that send their own messages.

use std::net::SocketAddr;

use bytes::{BufMut, BytesMut};
use qudag_filter_common::testing::{self, nowhere};
use qudag_filter_db::PostgresListener;
use qudag_filter_db::wire::{backend, build};
use serde_json::{Value, json};

use crate::postgres::Postgres;
use crate::postgres::wire::Wire;

pub(crate) type Sidecar = testing::Sidecar<PostgresListener>;

pub(crate) const HOST: &str = "127.0.0.1";
/// Each call of these functions takes one more of the sequence, whatever becomes of its transaction.
pub(crate) const SCHEMA: &str = "
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

pub(crate) const ITEM: &str = "SELECT counted(), id, name, made FROM items WHERE id = $1";

pub(crate) fn rules() -> Value {
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

pub(crate) fn filters(on: bool) -> Value {
    let cache = json!({ "enabled": on, "rules": rules(), "max_reply": "64KiB" });
    json!({ "db_pool": { "enabled": true, "size": 10 }, "db_query_cache": cache })
}

pub(crate) fn listener(postgres: &Postgres) -> Value {
    let server = format!("{HOST}:{}", postgres.port);
    json!({ "bind": "127.0.0.1:0", "server": server, "auth": { "method": "trust", "admins": ["ann"] } })
}

/// A server, a sidecar before it whose cache is in use, and a session that goes past the sidecar.
pub(crate) struct Stand {
    pub(crate) sidecar: Sidecar,
    pub(crate) direct: Client,
    pub(crate) postgres: Postgres,
}

impl Stand {
    pub(crate) async fn start() -> Option<Self> {
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

    pub(crate) fn port(&self) -> u16 {
        self.sidecar.tcp().port()
    }

    pub(crate) async fn client(&self, options: &str) -> Client {
        Client::connect(self.port(), "ann", options).await
    }

    /// How often the server has carried out one of the functions.
    pub(crate) async fn asks(&mut self) -> u64 {
        let row = self.direct.query("SELECT last_value, is_called FROM asks").await;
        let values = values(&row);
        if values[0][1] == "t" { values[0][0].parse().unwrap() } else { 0 }
    }

    pub(crate) async fn console(&self, command: &str) -> Result<String, String> {
        let settings = [("PGDATABASE", "qudag_sidecar")];
        self.postgres.psql(HOST, self.port(), &settings, command).await
    }
}

/// A client that sends its own messages.
pub(crate) struct Client(Wire);

impl Client {
    pub(crate) async fn connect(port: u16, user: &str, options: &str) -> Self {
        let mut client = Self(Wire::login(SocketAddr::from(([127, 0, 0, 1], port)), user, options).await);
        client.answer().await;
        client
    }

    /// All bytes through the next ReadyForQuery.
    pub(crate) async fn answer(&mut self) -> BytesMut {
        let mut reply = BytesMut::new();
        loop {
            let message = self.0.next().await.expect("the connection ended");
            reply.extend_from_slice(&message);
            if message[0] == backend::READY {
                return reply;
            }
        }
    }

    pub(crate) async fn send(&mut self, batch: &[u8]) {
        self.0.send(batch).await;
    }

    pub(crate) async fn ask(&mut self, batch: &[u8]) -> BytesMut {
        self.send(batch).await;
        self.answer().await
    }

    pub(crate) async fn query(&mut self, sql: &str) -> BytesMut {
        self.ask(&query(sql)).await
    }
}

pub(crate) fn query(sql: &str) -> BytesMut {
    let mut out = BytesMut::new();
    build::query(&mut out, sql.as_bytes());
    out
}

pub(crate) fn message(out: &mut BytesMut, kind: u8, body: impl FnOnce(&mut BytesMut)) {
    let mut written = BytesMut::new();
    body(&mut written);
    build::header(out, kind, written.len());
    out.extend_from_slice(&written);
}

/// The bodies of messages of a type.
pub(crate) fn bodies(mut reply: &[u8], kind: u8) -> Vec<&[u8]> {
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
pub(crate) fn values(reply: &[u8]) -> Vec<Vec<String>> {
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
pub(crate) struct Form {
    /// With a Parse under this name, or without, of one that was prepared before.
    pub(crate) parse: bool,
    pub(crate) name: &'static str,
    pub(crate) describe: bool,
    pub(crate) close: bool,
    /// Formats of the results.
    pub(crate) formats: &'static [u8],
}

pub(crate) const PLAIN: Form = Form { parse: true, name: "", describe: true, close: false, formats: &[] };

pub(crate) fn extended(form: Form, sql: &str, value: &str) -> BytesMut {
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
