//! The HTTP server of the public test network's node, in the ways that matter to a proxy.
//!
//! Its source is no part of the published crates. What is reproduced: a reply has `Content-Length: N`, N bytes, and
//! then 24 bytes more, `Connection: keep-alive\r\n`; event streams have neither length nor chunks and end with the
//! connection; one request per connection is read, whatever follows is ignored, and the connection is closed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// What the node writes after each body.
pub const TRAILING: &[u8] = b"Connection: keep-alive\r\n";

/// The server; it stops on drop.
pub struct HttpNode {
    addr: SocketAddr,
    requests: Arc<AtomicU64>,
    _stop: tokio_util::sync::DropGuard,
    _task: AbortOnDropHandle<()>,
}

impl HttpNode {
    /// Listens on a free port of 127.0.0.1.
    pub async fn start() -> Self {
        Self::start_on("127.0.0.1:0".parse().unwrap()).await
    }

    /// Listens on an address.
    ///
    /// # Panics
    /// When it is taken.
    pub async fn start_on(addr: SocketAddr) -> Self {
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicU64::new(0));
        let stop = CancellationToken::new();
        let task = tokio::spawn(accept(listener, Arc::clone(&requests), stop.clone()));
        Self { addr, requests, _stop: stop.drop_guard(), _task: AbortOnDropHandle::new(task) }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How many requests came.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

async fn accept(listener: TcpListener, requests: Arc<AtomicU64>, stop: CancellationToken) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let (requests, stop) = (Arc::clone(&requests), stop.clone());
        tokio::spawn(async move {
            let _ = stop.run_until_cancelled(answer(stream, &requests)).await;
        });
    }
}

async fn answer(mut stream: TcpStream, requests: &AtomicU64) -> std::io::Result<()> {
    let (head, body) = read_request(&mut stream).await?;
    requests.fetch_add(1, Ordering::Relaxed);
    let mut words = head.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = path.split('?').next().unwrap_or_default();
    let (status, kind, body) = match (method, path) {
        ("GET", "/health") => {
            ("200 OK", "application/json", r#"{"status":"healthy","synced":true}"#.to_owned())
        }
        ("GET", "/api/v1/status") => ("200 OK", "application/json", status()),
        ("GET", "/metrics") => ("200 OK", "text/plain", "qudag_peers 2\nqudag_block_height 7\n".to_owned()),
        ("GET", "/mcp/tools") => {
            ("200 OK", "application/json", json!({ "tools": ["crypto", "dag"] }).to_string())
        }
        ("GET", "/large") => ("200 OK", "application/octet-stream", "0123456789abcdef".repeat(64 * 1024)),
        ("POST", "/mcp/rpc" | "/mcp/tools/call") => ("200 OK", "application/json", body),
        ("GET", "/mcp/events") => return events(stream).await,
        ("GET", "/ws") if head.to_ascii_lowercase().contains("upgrade: websocket") => {
            return echo(stream, &body).await;
        }
        ("GET" | "POST", _) => ("404 Not Found", "application/json", r#"{"error":"Not found"}"#.to_owned()),
        _ => ("405 Method Not Allowed", "application/json", r#"{"error":"Method not allowed"}"#.to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nAccess-Control-Allow-Origin: *\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body.as_bytes(), TRAILING].concat()).await?;
    stream.shutdown().await?;
    // Until the client is done; closing with unread bytes would reset the connection and lose the reply.
    let mut rest = [0; 1024];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

async fn read_request(stream: &mut TcpStream) -> std::io::Result<(String, String)> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut bytes).await? == 0 || bytes.len() > 64 * 1024 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let length = head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    while bytes.len() < end + length.unwrap_or(0) {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok((head, String::from_utf8_lossy(&bytes[end..]).into_owned()))
}

fn status() -> String {
    json!({ "node": "qudag-testnet-node1", "network": "qudag-testnet", "height": 7, "peers": ["node2", "node3"] })
        .to_string()
}

/// Accepts the upgrade and sends back what comes. The node has no such path; services beside it have.
async fn echo(mut stream: TcpStream, first: &str) -> std::io::Result<()> {
    let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    stream.write_all(&[head, first].concat().into_bytes()).await?;
    let (mut read, mut write) = stream.split();
    tokio::io::copy(&mut read, &mut write).await?;
    write.shutdown().await
}

/// Three events, a short while apart, then the end of the connection.
async fn events(mut stream: TcpStream) -> std::io::Result<()> {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    for number in 1..=3 {
        stream.write_all(format!("event: tick\ndata: {number}\n\n").as_bytes()).await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn replies_carry_the_trailing_bytes() {
        let node = HttpNode::start().await;
        let mut stream = TcpStream::connect(node.addr()).await.unwrap();
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        assert!(reply.contains("Content-Length: 34\r\n"), "{reply}");
        assert!(reply.ends_with("\"synced\":true}Connection: keep-alive\r\n"), "{reply}");
        assert_eq!(node.requests(), 1);
    }
}
