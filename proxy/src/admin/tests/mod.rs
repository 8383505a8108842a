//! The API over real sockets, with a double behind it.

mod abuse;
mod tap;
mod usage;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use qudag_filter_api::{Address, Percent};
use qudag_filter_common::Socket;
use qudag_filter_crypto::Backend;
use qudag_filter_dns::Question;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::{Auth, Flush, Operations, Role, serve};
use crate::control::{
    Applied, CacheRebuild, ConfigOrigin, ConfigStatus, ControlError, Explanation, FilterStatus, Flushed,
    ListenerStatus, Override, PoolKind, Readiness, SettingStatus, Status,
};
use crate::resolve::SystemResolver;
use crate::telemetry::Metrics;

/// Notes what it is asked to do.
#[derive(Clone, Default)]
struct Double {
    asked: Arc<Mutex<Vec<String>>>,
    bypass: Arc<Mutex<bool>>,
}

impl Double {
    fn note(&self, what: impl Into<String>) {
        self.asked.lock().unwrap().push(what.into());
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

fn applied() -> Applied {
    Applied {
        generation: 2,
        changed: true,
        took_ms: 0.5,
        filters: Vec::new(),
        settings: Vec::new(),
        notes: Vec::new(),
    }
}

impl Operations for Double {
    fn status(&self) -> Status {
        Status {
            version: "1.2.3",
            pid: 7,
            node: "n".into(),
            uptime_seconds: 1,
            generation: 1,
            draining_generations: 0,
            bypass: *self.bypass.lock().unwrap(),
            draining: false,
            config: ConfigStatus {
                source: "embedded".into(),
                origin: ConfigOrigin::Embedded,
                fingerprint: "ab".into(),
                since: SystemTime::UNIX_EPOCH,
                refused: None,
            },
            capture: None,
            settings: Vec::new(),
            listeners: vec![ListenerStatus {
                kind: "dns",
                name: "dns".into(),
                addr: "127.0.0.1:53".parse().unwrap(),
            }],
            filters: vec![FilterStatus {
                kind: "dns",
                name: "dns_cache",
                enabled: true,
                rollout: Percent::ALL,
                layer: "yaml",
                expires_in_seconds: None,
            }],
        }
    }
    fn ready(&self) -> Readiness {
        Readiness { ready: false, reasons: vec!["draining".into()] }
    }
    async fn reload(&self) -> Result<Applied, ControlError> {
        self.note("reload");
        Err(ControlError::Refused { generation: 1, problems: vec!["x.yaml:1:1: no".into()] })
    }
    async fn set_override(&self, filter: &str, wish: Override) -> Result<Applied, ControlError> {
        self.note(format!(
            "set {filter} {} {:?} {:?}",
            wish.enabled,
            wish.rollout.map(Percent::get),
            wish.ttl
        ));
        Ok(applied())
    }
    async fn clear_override(&self, filter: &str) -> Result<Applied, ControlError> {
        self.note(format!("clear {filter}"));
        Err(ControlError::Unavailable("draining".into()))
    }
    async fn bypass(&self, on: bool) -> Result<Applied, ControlError> {
        self.note(format!("bypass {on}"));
        *self.bypass.lock().unwrap() = on;
        Ok(applied())
    }
    fn bypass_state(&self) -> Value {
        json!({"bypass": *self.bypass.lock().unwrap()})
    }
    fn explain(&self, filter: &str) -> Result<Vec<Explanation>, ControlError> {
        Err(ControlError::NotFound(format!("no filter {filter}")))
    }
    fn cache_stats(&self) -> Result<Value, ControlError> {
        Ok(json!({"entries": 3}))
    }
    async fn cache_flush(&self, what: &Flush) -> Result<Flushed, ControlError> {
        self.note(format!("flush {what:?}"));
        Ok(Flushed { flushed: 3, fleet: None })
    }
    async fn cache_rebuild(&self) -> Result<CacheRebuild, ControlError> {
        self.note("rebuild");
        Ok(CacheRebuild { rebuilding: true, total: 3, done: 1, failed: 0 })
    }
    fn dns_servers(&self) -> Result<Value, ControlError> {
        Ok(json!([{"server": "192.0.2.1:53"}]))
    }
    fn peers(&self) -> Result<Value, ControlError> {
        Ok(json!({"routes": [{"name": "b"}]}))
    }
    fn db(&self) -> Result<Value, ControlError> {
        Ok(json!({"pools": [{"database": "a"}]}))
    }
    fn db_pause(
        &self,
        paused: bool,
        kind: Option<PoolKind>,
        database: Option<&str>,
    ) -> Result<Value, ControlError> {
        self.note(format!("db {paused} {kind:?} {database:?}"));
        Ok(json!({"paused": paused, "pools": 1}))
    }
    fn crypto(&self) -> Result<Value, ControlError> {
        Ok(json!({"backend": "portable"}))
    }
    async fn crypto_selftest(&self, backend: Option<Backend>) -> Result<Value, ControlError> {
        self.note(format!("crypto selftest {backend:?}"));
        Ok(json!({"backend": "avx2"}))
    }
    fn db_cache(&self) -> Result<Value, ControlError> {
        Ok(json!({"entries": 4}))
    }
    fn db_cache_flush(&self, rule: Option<&str>, table: Option<&str>) -> Result<Value, ControlError> {
        self.note(format!("db flush {rule:?} {table:?}"));
        Ok(json!({"flushed": 2, "of": [rule, table]}))
    }
    async fn dns_lookup(&self, question: &Question) -> Result<Value, ControlError> {
        let Question { name, rtype, dnssec, cd, trace } = question;
        Ok(json!({"asked": [name, rtype, dnssec, cd, trace]}))
    }
    fn config_shown(&self, with_origin: bool) -> Result<String, ControlError> {
        Ok(format!("origin: {with_origin}\n"))
    }
    fn settings(&self) -> Vec<SettingStatus> {
        let (key, value) = ("node.name".into(), "a".into());
        vec![SettingStatus { key, value, expires_in_seconds: Some(5), in_force: true }]
    }
    async fn set(&self, key: &str, value: &str, ttl: Option<Duration>) -> Result<Applied, ControlError> {
        self.note(format!("set {key} {value} {ttl:?}"));
        Ok(applied())
    }
    async fn unset(&self, key: Option<&str>) -> Result<Applied, ControlError> {
        self.note(format!("unset {key:?}"));
        Ok(applied())
    }
    fn drain(&self) {
        self.note("drain");
    }
}

struct Server {
    address: Address,
    double: Double,
    _stop: tokio_util::sync::DropGuard,
}

impl Server {
    async fn start(bind: &str) -> Self {
        let socket = Socket::bind(&bind.parse().unwrap(), &SystemResolver::new()).await.unwrap();
        let (address, double, stop) = (socket.address(), Double::default(), CancellationToken::new());
        let auth = Auth::default().token(Role::Read, "reader").token(Role::Write, "writer");
        tokio::spawn(serve(socket, double.clone(), auth, Metrics::detached(), stop.clone()));
        Self { address, double, _stop: stop.drop_guard() }
    }

    fn port(&self) -> u16 {
        let Address::Tcp(address) = &self.address else { panic!("not TCP") };
        address.port
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], self.port()))).await.unwrap()
    }

    /// Sends a request with exactly these headers.
    async fn raw(&self, line: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut stream = self.connect().await;
        let mut request = format!("{line} HTTP/1.1\r\n");
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        request += "\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        // The server may have answered and closed already.
        let _ = stream.write_all(body).await;
        Answer::read(stream).await
    }

    /// Sends a request that is right in every way but for what `change` does to its headers.
    async fn send(&self, line: &str, body: &str, change: impl FnOnce(&mut Headers)) -> Answer {
        let mut headers = Headers::from([
            ("host", format!("127.0.0.1:{}", self.port())),
            ("authorization", "Bearer writer".to_owned()),
            ("connection", "close".to_owned()),
        ]);
        if line.starts_with("POST") {
            headers.insert("content-type", "application/json".to_owned());
            headers.insert("content-length", body.len().to_string());
        }
        change(&mut headers);
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        self.raw(line, &headers, body.as_bytes()).await
    }
}

type Headers = BTreeMap<&'static str, String>;

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    async fn read(mut stream: impl tokio::io::AsyncRead + Unpin) -> Self {
        let mut bytes = Vec::new();
        // A reset after the answer is how a server ends that did not want the rest of a request.
        let read = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut bytes)).await;
        let _ = read.expect("no answer");
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.get(9..12).and_then(|status| status.parse().ok()).unwrap_or_default();
        Self { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|why| panic!("{why}: {self:?}"))
    }

    fn has(&self, header: &str) -> bool {
        self.head.lines().any(|line| line == header)
    }
}
