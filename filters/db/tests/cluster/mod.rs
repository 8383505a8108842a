//! A client that sends its own messages, and the sidecar before the servers of a cluster.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use qudag_filter_common::testing::{self, PATIENCE, nowhere};
use qudag_filter_db::PostgresListener;
use qudag_filter_db::wire::{backend, build};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::postgres::Postgres;
use crate::postgres::wire::{Wire, sqlstate};

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
    pub(crate) wire: Wire,
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
        let mut client = Self { wire: Wire::login(address, user, options).await };
        client.answer().await;
        client
    }

    /// The SQLSTATE with which the connection ends.
    pub(crate) async fn end(&mut self) -> String {
        let said = self.wire.rest().await;
        let last = said.iter().rfind(|(kind, _)| *kind == backend::ERROR);
        last.map_or_else(String::new, |(_, error)| sqlstate(error).to_owned())
    }

    /// What comes through the next ReadyForQuery: the values of rows with one column, and the SQLSTATEs of errors.
    pub(crate) async fn answer(&mut self) -> Vec<String> {
        let mut seen = Vec::new();
        loop {
            match self.wire.message().await {
                (backend::DATA_ROW, row) => seen.push(row.chars().skip(6).collect()),
                (backend::ERROR, error) => seen.push(sqlstate(&error).to_owned()),
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
        self.wire.send(&out).await;
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
