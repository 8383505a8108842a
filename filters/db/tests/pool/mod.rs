//! A sidecar whose sessions are pooled, and clients that send their own messages.

use std::net::SocketAddr;

use bytes::BytesMut;
use qudag_filter_common::testing::{self, PATIENCE, metric, nowhere};
use qudag_filter_db::PostgresListener;
use qudag_filter_db::wire::{backend, build};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::postgres::Postgres;
use crate::postgres::wire::{self, Wire};

pub(crate) type Sidecar = testing::Sidecar<PostgresListener>;

pub(crate) const HOST: &str = "127.0.0.1";

pub(crate) fn listener(postgres: &Postgres) -> Value {
    json!({
        "bind": "127.0.0.1:0",
        "server": format!("{HOST}:{}", postgres.port),
        "auth": { "method": "trust", "admins": ["ann"] },
        // Tests count connections.
        "probe": { "load": { "enabled": false } },
    })
}

pub(crate) fn filters(pool: Value) -> Value {
    let mut pool = pool;
    pool["enabled"] = true.into();
    json!({ "db_pool": pool })
}

/// A sidecar with a pool of so many connections; its port.
pub(crate) async fn pooled(postgres: &Postgres, size: usize) -> (Sidecar, u16) {
    let sidecar = Sidecar::start(nowhere(), listener(postgres), filters(json!({ "size": size }))).await;
    let port = sidecar.tcp().port();
    (sidecar, port)
}

pub(crate) fn connects() -> f64 {
    metric("qudag_sidecar_db_connects_total", &[])
}

pub(crate) fn closed(reason: &str) -> f64 {
    metric("qudag_sidecar_db_servers_closed_total", &[&format!("reason=\"{reason}\"")])
}

/// A client that sends its own messages.
pub(crate) struct Raw {
    wire: Wire,
    process: u32,
    pub(crate) secret: Vec<u8>,
    pub(crate) parameters: Vec<(String, String)>,
}

/// A message: its type, and its body as text.
pub(crate) type Message = (u8, String);

impl Raw {
    pub(crate) async fn connect(port: u16, user: &str, database: &str) -> Self {
        let body = format!("\0\x03\0\0user\0{user}\0database\0{database}\0\0");
        Self::with(port, body.as_bytes()).await.unwrap()
    }

    /// With a StartupMessage; the ErrorResponse when there is one.
    pub(crate) async fn with(port: u16, startup: &[u8]) -> Result<Self, String> {
        let wire = Wire::start(SocketAddr::from(([127, 0, 0, 1], port)), startup).await;
        let mut raw = Self { wire, process: 0, secret: Vec::new(), parameters: Vec::new() };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        loop {
            let message = raw.wire.next().await.expect("the connection ended");
            let body = &message[5..];
            match message[0] {
                // A message of the login only.
                b'R' => assert_eq!(body, [0; 4]),
                backend::PARAMETER => {
                    let (name, value) = backend::parameter(body).unwrap();
                    raw.parameters.push((text(name), text(value)));
                }
                backend::KEY_DATA => {
                    let (process, secret) = backend::key_data(body).unwrap();
                    (raw.process, raw.secret) = (process, secret.to_vec());
                }
                backend::READY => return Ok(raw),
                backend::ERROR => return Err(text(body)),
                backend::NEGOTIATE => raw.parameters.push(("negotiated".to_owned(), format!("{body:?}"))),
                other => panic!("{other}"),
            }
        }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.wire.send(bytes).await;
    }

    pub(crate) async fn message(&mut self) -> Message {
        self.wire.message().await
    }

    /// Everything through the next ReadyForQuery.
    pub(crate) async fn answer(&mut self) -> Vec<Message> {
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

    pub(crate) async fn begin(&mut self, sql: &str) {
        let mut out = BytesMut::new();
        build::query(&mut out, sql.as_bytes());
        self.send(&out).await;
    }

    pub(crate) async fn query(&mut self, sql: &str) -> Vec<Message> {
        self.begin(sql).await;
        self.answer().await
    }

    /// The only value of the only row.
    pub(crate) async fn value(&mut self, sql: &str) -> String {
        let answer = self.query(sql).await;
        let row = answer.iter().find(|(kind, _)| *kind == backend::DATA_ROW);
        let (_, row) = row.unwrap_or_else(|| panic!("{sql}: {answer:?}"));
        row.chars().skip(6).collect()
    }

    /// What comes until the connection is closed, as text.
    pub(crate) async fn until_closed(&mut self) -> String {
        self.wire.rest().await.into_iter().map(|(_, text)| text).collect()
    }

    /// Sends a CancelRequest with this session's key, of which `wrong` changes the secret.
    pub(crate) async fn cancel(&self, port: u16, wrong: bool) {
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

/// The SQLSTATE of an answer with an ErrorResponse.
pub(crate) fn sqlstate(answer: &[Message]) -> Option<&str> {
    let (_, error) = answer.iter().find(|(kind, _)| *kind == backend::ERROR)?;
    Some(wire::sqlstate(error))
}

/// An ErrorResponse of the sidecar: its SQLSTATE, and exactly one ReadyForQuery behind it.
pub(crate) fn refused(answer: &[Message]) -> String {
    let kinds: Vec<_> = answer.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [backend::ERROR, backend::READY], "{answer:?}");
    assert!(
        answer[0].1.split('\0').any(|field| field.starts_with('H') && field.contains("qudag-sidecar")),
        "{answer:?}"
    );
    sqlstate(answer).unwrap().to_owned()
}
