//! Redis of one test, and raw clients.

#![allow(dead_code, reason = "each test program needs some of it")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use qudag_filter_common::testing::{self, PATIENCE, nowhere};
use qudag_filter_db::redis::RedisListener;
use qudag_filter_db::redis::resp::ReplyScan;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

pub(crate) type Sidecar = testing::Sidecar<RedisListener>;

/// A server of one test on a Unix socket. It ends with this value.
pub(crate) struct Server {
    pub(crate) folder: TempDir,
    options: Vec<String>,
    child: Child,
}

impl Server {
    /// `None`, with the reason on standard output, where there can be none.
    pub(crate) async fn start(options: &[&str]) -> Option<Self> {
        if std::process::Command::new("redis-server").arg("--version").stdout(Stdio::null()).status().is_err()
        {
            assert!(std::env::var_os("CI").is_none(), "there is no redis-server");
            println!("skipped: there is no redis-server");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let options: Vec<_> = options.iter().map(|option| (*option).to_owned()).collect();
        let child = spawn(&folder, &options);
        let server = Self { folder, options, child };
        server.answers().await;
        Some(server)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("redis.sock")
    }

    pub(crate) async fn answers(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(stream) = UnixStream::connect(self.socket()).await {
                let mut raw = Raw::over(stream);
                if raw.try_ask("PING").await.is_some_and(|said| !said.starts_with("-LOADING")) {
                    return;
                }
            }
            assert!(Instant::now() < deadline, "redis-server does not come up");
            sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn direct(&self) -> Raw {
        Raw::over(UnixStream::connect(self.socket()).await.unwrap())
    }

    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    pub(crate) async fn start_again(&mut self) {
        self.child = spawn(&self.folder, &self.options);
        self.answers().await;
    }
}

pub(crate) fn spawn(folder: &TempDir, options: &[String]) -> Child {
    let mut server = Command::new("redis-server");
    server.args(["--port", "0", "--save", "", "--appendonly", "no", "--enable-debug-command", "yes"]);
    server.arg("--dir").arg(folder.path()).arg("--unixsocket").arg(folder.path().join("redis.sock"));
    server.args(options).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true).spawn().unwrap()
}

pub(crate) fn listener(server: &Server) -> Value {
    json!({ "bind": "127.0.0.1:0", "server": format!("unix:{}", server.socket().display()) })
}

pub(crate) async fn passed(server: &Server) -> (Sidecar, SocketAddr) {
    let sidecar = Sidecar::start(nowhere(), listener(server), json!({})).await;
    let at = sidecar.tcp();
    (sidecar, at)
}

pub(crate) async fn pooled(server: &Server, pool: Value, more: Value) -> (Sidecar, SocketAddr) {
    let mut filters = json!({ "redis_pool": pool });
    filters["redis_pool"]["enabled"] = true.into();
    filters.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let sidecar = Sidecar::start(nowhere(), listener(server), filters).await;
    let at = sidecar.tcp();
    (sidecar, at)
}

pub(crate) trait Both: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send {}
impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send> Both for S {}

/// A client that sends its own bytes.
pub(crate) struct Raw {
    stream: Box<dyn Both>,
    scan: ReplyScan,
    read: Vec<u8>,
}

pub(crate) fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend(format!("${}\r\n", word.len()).bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

pub(crate) fn line(words: &str) -> Vec<u8> {
    command(&words.split(' ').map(str::as_bytes).collect::<Vec<_>>())
}

impl Raw {
    pub(crate) fn over(stream: impl Both + 'static) -> Self {
        Self { stream: Box::new(stream), scan: ReplyScan::default(), read: Vec::new() }
    }

    pub(crate) async fn to(at: SocketAddr) -> Self {
        Self::over(TcpStream::connect(at).await.unwrap())
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// The next reply as it came; `None` when the connection was closed.
    pub(crate) async fn try_next(&mut self) -> Option<Vec<u8>> {
        let (mut reply, mut looked) = (Vec::new(), 0);
        loop {
            if looked < self.read.len() {
                let (taken, ended) = self.scan.feed(&self.read[looked..]).unwrap();
                looked += taken;
                if ended.is_some() {
                    reply.extend(self.read.drain(..looked));
                    return Some(reply);
                }
            }
            let mut buffer = vec![0; 64 << 10];
            match timeout(PATIENCE, self.stream.read(&mut buffer)).await.expect("a reply in time") {
                Ok(0) | Err(_) => return None,
                Ok(read) => self.read.extend_from_slice(&buffer[..read]),
            }
        }
    }

    pub(crate) async fn next(&mut self) -> String {
        String::from_utf8_lossy(&self.try_next().await.expect("a reply")).trim_end().to_owned()
    }

    /// Everything until the connection is closed, whatever it is.
    pub(crate) async fn read_to_end(&mut self) -> String {
        let mut all = Vec::new();
        let read =
            timeout(PATIENCE, self.stream.read_to_end(&mut all)).await.expect("the connection is closed");
        drop(read);
        String::from_utf8_lossy(&all).into_owned()
    }

    pub(crate) async fn try_ask(&mut self, words: &str) -> Option<String> {
        self.stream.write_all(&line(words)).await.ok()?;
        let reply = self.try_next().await?;
        Some(String::from_utf8_lossy(&reply).trim_end().to_owned())
    }

    pub(crate) async fn ask(&mut self, words: &str) -> String {
        self.try_ask(words).await.unwrap_or_else(|| panic!("no reply to {words}"))
    }
}

/// How many connections the server has besides the one that asks, and besides subscribers.
pub(crate) async fn connections(server: &Server) -> usize {
    let list = server.direct().await.ask("CLIENT LIST").await;
    list.lines().filter(|line| line.contains("id=") && !line.contains("cmd=client|list")).count()
}
