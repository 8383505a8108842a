//! The whole listener on real sockets, between a client and a server that behaves as the node's does.

mod calls;
mod wrong;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use qudag_core::rpc::Codec;
use qudag_filter_api::{Address, Node};
use qudag_filter_common::testing::{self, Names, PATIENCE, nowhere, until};
use qudag_filter_common::{Drain, Socket, Stream, connect};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use crate::RpcListener;

/// A request as the node's own client writes it.
fn request(number: u32, method: &str, params: &Value) -> Vec<u8> {
    let id = format!("00000000-0000-4000-8000-{number:012x}");
    json!({"id": id, "method": method, "params": params}).to_string().into_bytes()
}

fn framed(body: &[u8]) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    Codec::default().encode(body, &mut bytes).unwrap();
    bytes.to_vec()
}

/// A listener with its chain.
struct Sidecar(testing::Sidecar<RpcListener>);

impl Sidecar {
    /// In front of `node`; the settings as in YAML.
    async fn start(node: Address, filters: Value, mut listener: Value) -> Self {
        listener.as_object_mut().unwrap().entry("bind").or_insert("127.0.0.1:0".into());
        let node = Node { rpc: node, ..nowhere() };
        Self(testing::Sidecar::start(node, listener, filters).await)
    }

    async fn plain(node: &NodeServer) -> Self {
        Self::start(node.address.clone(), json!({}), json!({})).await
    }

    async fn client(&self) -> Client {
        let stream = connect(&self.0.addresses[0], &Names::default(), PATIENCE).await.unwrap();
        Client { stream, received: BytesMut::new() }
    }

    /// One call on a connection of its own.
    async fn call(&self, method: &str) -> Value {
        let mut client = self.client().await;
        client.send(&request(1, method, &Value::Null)).await;
        client.reply().await.expect("a reply")
    }
}

struct Client {
    stream: Stream,
    received: BytesMut,
}

impl Client {
    async fn send(&mut self, body: &[u8]) {
        self.stream.write_all(&framed(body)).await.unwrap();
    }

    /// The next frame; `None` at the end of the connection.
    async fn frame(&mut self) -> Option<Bytes> {
        let read = async {
            loop {
                if let Some(body) = Codec::default().decode(&mut self.received).unwrap() {
                    return Some(body);
                }
                if self.stream.read_buf(&mut self.received).await.unwrap_or(0) == 0 {
                    assert!(self.received.is_empty(), "the connection ended within a frame");
                    return None;
                }
            }
        };
        timeout(PATIENCE, read).await.expect("a frame in time")
    }

    async fn reply(&mut self) -> Option<Value> {
        self.frame().await.map(|body| serde_json::from_slice(&body).unwrap())
    }
}

/// How the node answers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// As the real one: one frame in, one frame out, then close; nothing to what cannot be parsed.
    Node,
    /// Closes without a byte, as the real one over 60 connections a minute, so many times; then as the real one.
    Closes(usize),
    /// Reads, and never answers.
    Silent,
    /// Closes in the middle of its reply.
    Breaks,
}

/// A server that behaves as the node's does (`qudag_protocol::rpc_server`).
struct NodeServer {
    address: Address,
    connections: Arc<AtomicUsize>,
    under_way: Arc<AtomicUsize>,
    /// The most calls that were under way at once.
    peak: Arc<AtomicUsize>,
    /// Connections that the other side left before the reply.
    left: Arc<AtomicUsize>,
    /// The bodies, in the order of their arrival.
    seen: Arc<Mutex<Vec<Bytes>>>,
    release: tokio::sync::watch::Sender<bool>,
    drain: Drain,
}

impl NodeServer {
    async fn tcp(manner: Manner) -> Self {
        Self::start("127.0.0.1:0".parse().unwrap(), manner, true).await
    }

    /// Answers `wait` and changing calls only when it is released.
    async fn slow() -> Self {
        Self::start("127.0.0.1:0".parse().unwrap(), Manner::Node, false).await
    }

    async fn start(address: Address, manner: Manner, released: bool) -> Self {
        let socket = Socket::bind(&address, &Names::default()).await.unwrap();
        let server = Self {
            address: socket.address(),
            connections: Arc::default(),
            under_way: Arc::default(),
            peak: Arc::default(),
            left: Arc::default(),
            seen: Arc::default(),
            release: tokio::sync::watch::Sender::new(released),
            drain: Drain::new(),
        };
        let (connections, under_way, peak, left, seen, release) = (
            Arc::clone(&server.connections),
            Arc::clone(&server.under_way),
            Arc::clone(&server.peak),
            Arc::clone(&server.left),
            Arc::clone(&server.seen),
            server.release.clone(),
        );
        let serve = move |mut stream: Stream| {
            let number = connections.fetch_add(1, Ordering::SeqCst);
            let (under_way, peak, left, seen) =
                (Arc::clone(&under_way), Arc::clone(&peak), Arc::clone(&left), Arc::clone(&seen));
            let mut released = release.subscribe();
            async move {
                if matches!(manner, Manner::Closes(times) if number < times) {
                    return;
                }
                let mut received = BytesMut::new();
                let body = loop {
                    if let Some(body) = Codec::default().decode(&mut received).unwrap() {
                        break body;
                    }
                    if stream.read_buf(&mut received).await.unwrap_or(0) == 0 {
                        return;
                    }
                };
                assert!(received.is_empty(), "more than one request on a connection");
                seen.lock().unwrap().push(body.clone());
                let Some(reply) = answer(&body) else { return };
                let now = under_way.fetch_add(1, Ordering::SeqCst) + 1;
                peak.fetch_max(now, Ordering::SeqCst);
                let mut byte = [0];
                let gone = tokio::select! {
                    _ = released.wait_for(|released| *released && manner != Manner::Silent) => false,
                    _ = stream.read(&mut byte) => true,
                };
                if !gone {
                    tokio::task::yield_now().await;
                }
                under_way.fetch_sub(1, Ordering::SeqCst);
                if gone {
                    left.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                let frame = framed(&reply);
                let most = if manner == Manner::Breaks { frame.len() - 1 } else { frame.len() };
                let _ = stream.write_all(&frame[..most]).await;
            }
        };
        tokio::spawn(socket.serve(server.drain.clone(), serve));
        server
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    fn under_way(&self) -> usize {
        self.under_way.load(Ordering::SeqCst)
    }
}

impl Drop for NodeServer {
    fn drop(&mut self) {
        self.drain.stop();
    }
}

/// What the node says: an echo of what it was asked, with white space and an order of keys that nobody else would choose.
fn answer(body: &[u8]) -> Option<Vec<u8>> {
    let request: Value = serde_json::from_slice(body).ok()?;
    let (id, method) = (request.get("id")?, request.get("method")?);
    let method = method.as_str()?;
    Some(match method {
        "unknown" => {
            format!(r#"{{"id":{id},"result":null,"error":{{"code":-32601,"message":"Method 'unknown' not found","data":null}}}}"#)
        }
        _ => format!("{{ \"error\" : null,\t\"result\": [{:?}, {}], \"id\":{id} }}", method, request.get("params")?),
    }
    .into_bytes())
}

fn unix(folder: &Path, name: &str) -> Address {
    Address::Unix(folder.join(name))
}
