//! A client that sends its own messages, and the sidecar before the servers of a cluster.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use qudag_filter_common::testing::{self, PATIENCE, nowhere};
use qudag_filter_db::PostgresListener;
use qudag_filter_db::wire::{backend, build};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::postgres::Postgres;

pub(crate) type Sidecar = testing::Sidecar<PostgresListener>;

pub(crate) const HOST: &str = "127.0.0.1";
pub(crate) const WHERE: &str = "SELECT pg_is_in_recovery()";

pub(crate) async fn sidecar(primary: &Postgres, replicas: &[&Postgres], settings: Value) -> Sidecar {
    let listener = json!({
        "bind": "127.0.0.1:0",
        "read_only_bind": "127.0.0.1:0",
        "server": format!("{HOST}:{}", primary.port),
        "auth": { "method": "trust", "admins": ["ann"] },
    });
    let mut reads = settings;
    reads["enabled"] = true.into();
    reads["servers"] = replicas.iter().map(|replica| format!("{HOST}:{}", replica.port)).collect();
    if reads.get("probe").is_none() {
        reads["probe"] = "100ms".into();
    }
    let filters = json!({ "db_pool": { "enabled": true, "size": 5 }, "read_replicas": reads });
    Sidecar::start(nowhere(), listener, filters).await
}

/// A client that sends its own messages.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    inbox: BytesMut,
}

impl Client {
    /// Of a server itself.
    pub(crate) async fn direct(server: &Postgres) -> Self {
        Self::connect(SocketAddr::from(([127, 0, 0, 1], server.port)), "").await
    }

    pub(crate) async fn connect(address: SocketAddr, options: &str) -> Self {
        Self::login(address, "ann", options).await
    }

    pub(crate) async fn login(address: SocketAddr, user: &str, options: &str) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let body = format!("\0\x03\0\0user\0{user}\0database\0postgres\0options\0{options}\0\0");
        let length = u32::try_from(body.len() + 4).unwrap();
        stream.write_all(&[&length.to_be_bytes()[..], body.as_bytes()].concat()).await.unwrap();
        let mut client = Self { stream, inbox: BytesMut::new() };
        client.answer().await;
        client
    }

    pub(crate) async fn message(&mut self) -> (u8, String) {
        loop {
            if self.inbox.len() >= 5 {
                let length = u32::from_be_bytes(self.inbox[1..5].try_into().unwrap()) as usize;
                if self.inbox.len() > length {
                    let message = self.inbox.split_to(length + 1);
                    return (message[0], String::from_utf8_lossy(&message[5..]).into_owned());
                }
            }
            let read = timeout(PATIENCE, self.stream.read_buf(&mut self.inbox)).await.unwrap().unwrap();
            assert!(read > 0, "the connection ended");
        }
    }

    /// The SQLSTATE with which the connection ends.
    pub(crate) async fn end(&mut self) -> String {
        let mut last = String::new();
        loop {
            if self.inbox.len() >= 5 {
                let length = u32::from_be_bytes(self.inbox[1..5].try_into().unwrap()) as usize;
                if self.inbox.len() > length {
                    let message = self.inbox.split_to(length + 1);
                    if message[0] == backend::ERROR {
                        let text = String::from_utf8_lossy(&message[5..]).into_owned();
                        last = text.split('\0').find_map(|field| field.strip_prefix('C')).unwrap().to_owned();
                    }
                    continue;
                }
            }
            match timeout(PATIENCE, self.stream.read_buf(&mut self.inbox)).await.unwrap() {
                Ok(0) | Err(_) => return last,
                Ok(_) => {}
            }
        }
    }

    /// What comes through the next ReadyForQuery: the values of rows with one column, and the SQLSTATEs of errors.
    pub(crate) async fn answer(&mut self) -> Vec<String> {
        let mut seen = Vec::new();
        loop {
            match self.message().await {
                (backend::DATA_ROW, row) => seen.push(row.chars().skip(6).collect()),
                (backend::ERROR, text) => {
                    let code = text.split('\0').find_map(|field| field.strip_prefix('C')).unwrap();
                    seen.push(code.to_owned());
                }
                (backend::READY, _) => return seen,
                _ => {}
            }
        }
    }

    pub(crate) async fn send(&mut self, queries: &[&str]) {
        let mut out = BytesMut::new();
        for sql in queries {
            build::query(&mut out, sql.as_bytes());
        }
        self.stream.write_all(&out).await.unwrap();
    }

    pub(crate) async fn query(&mut self, sql: &str) -> Vec<String> {
        self.send(&[sql]).await;
        self.answer().await
    }

    /// Asks again until this is the answer.
    pub(crate) async fn until(&mut self, sql: &str, expected: &[&str]) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.query(sql).await;
            if answer == expected {
                return;
            }
            assert!(Instant::now() < deadline, "{sql}: {answer:?}");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A Parse of a named statement, or a Bind, Execute and Sync of it.
pub(crate) fn prepared(name: &str, sql: Option<&str>) -> BytesMut {
    let mut out = BytesMut::new();
    if let Some(sql) = sql {
        build::parse(&mut out, name.as_bytes(), &[sql.as_bytes(), &[0, 0, 0]].concat());
    }
    let bind = [b"\0", name.as_bytes(), b"\0\0\0\0\0\0\0"].concat();
    build::header(&mut out, b'B', bind.len());
    out.extend_from_slice(&bind);
    build::header(&mut out, b'E', 5);
    out.extend_from_slice(&[0; 5]);
    out.extend_from_slice(build::SYNC);
    out
}
