//! The whole listener on real sockets, between a client and an upstream of the test.

mod hostile;
mod pass;
mod pool;
mod stream;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use qudag_filter_api::{Address, Node};
use qudag_filter_common::testing::{self, PATIENCE, nowhere, until};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

use crate::HttpListener;

/// A listener with its chain.
struct Sidecar(testing::Sidecar<HttpListener>);

impl Sidecar {
    /// In front of `node`; the settings as in YAML.
    async fn start(node: SocketAddr, filters: Value, mut listener: Value) -> Self {
        listener.as_object_mut().unwrap().entry("bind").or_insert("127.0.0.1:0".into());
        let node = Node { http: node.into(), ..nowhere() };
        Self(testing::Sidecar::start(node, listener, filters).await)
    }

    async fn plain(node: SocketAddr) -> Self {
        Self::start(node, json!({}), json!({})).await
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.0.tcp()).await.unwrap()
    }

    async fn http1(&self) -> Client {
        let io = TokioIo::new(self.connect().await);
        let (send, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        Client::Http1(send)
    }

    async fn http2(&self) -> Client {
        let io = TokioIo::new(self.connect().await);
        let (send, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        Client::Http2(send, self.0.tcp())
    }

    /// Sends bytes and takes what comes until the end, or until nothing comes for a while.
    async fn raw(&self, request: &[u8]) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request).await.unwrap();
        read_out(&mut stream).await
    }
}

/// What comes until the end or a reset.
async fn read_out(stream: &mut TcpStream) -> String {
    let mut reply = Vec::new();
    // After a reset the bytes before it count.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut reply)).await.expect("the connection is closed");
    String::from_utf8_lossy(&reply).into_owned()
}

/// A strict client on one connection.
enum Client {
    Http1(hyper::client::conn::http1::SendRequest<Full<Bytes>>),
    Http2(hyper::client::conn::http2::SendRequest<Full<Bytes>>, SocketAddr),
}

impl Client {
    async fn send(&mut self, mut request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        let sent = async {
            match self {
                Self::Http1(send) => {
                    request.headers_mut().entry("host").or_insert("test".parse().unwrap());
                    send.ready().await?;
                    send.send_request(request).await
                }
                Self::Http2(send, address) => {
                    let uri = format!("http://{address}{}", request.uri());
                    *request.uri_mut() = uri.parse().unwrap();
                    send.ready().await?;
                    send.send_request(request).await
                }
            }
        };
        timeout(PATIENCE, sent).await.expect("a response in time")
    }

    async fn get(&mut self, path: &str) -> (u16, Bytes) {
        let request = Request::get(path).body(Full::default()).unwrap();
        whole(self.send(request).await.unwrap()).await
    }

    async fn post(&mut self, path: &str, body: impl Into<Bytes>) -> (u16, Bytes) {
        let request = Request::post(path).body(Full::new(body.into())).unwrap();
        whole(self.send(request).await.unwrap()).await
    }
}

async fn whole(response: Response<Incoming>) -> (u16, Bytes) {
    let status = response.status().as_u16();
    let body = timeout(PATIENCE, response.into_body().collect()).await.expect("a body in time").unwrap();
    (status, body.to_bytes())
}

/// A server that is written by hand, as the node's is: a function of the connection.
#[derive(Clone)]
struct Upstream {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    /// The requests that were read with [`read_request`] by [`Upstream::replying`].
    seen: Arc<Mutex<Vec<String>>>,
}

impl Upstream {
    /// Each connection is given to `serve`, with its number from 0.
    async fn start<F, Fut>(serve: F) -> Self
    where
        F: Fn(TcpStream, usize) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let upstream = Self { address, connections: Arc::default(), seen: Arc::default() };
        let connections = Arc::clone(&upstream.connections);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, connections.fetch_add(1, Ordering::SeqCst)));
            }
        });
        upstream
    }

    /// Reads one request, writes what `reply` makes of it, and closes.
    async fn replying<R>(reply: impl Fn(&str, usize) -> R + Clone + Send + Sync + 'static) -> Self
    where
        R: AsRef<[u8]> + Send,
    {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let upstream = Self::start(move |mut stream, number| {
            let (reply, log) = (reply.clone(), Arc::clone(&log));
            async move {
                let request = read_request(&mut stream).await;
                if !request.is_empty() {
                    let answer = reply(&request, number);
                    log.lock().unwrap().push(request);
                    let _ = stream.write_all(answer.as_ref()).await;
                }
            }
        })
        .await;
        Self { seen, ..upstream }
    }

    /// As the node of the public test network: the header line that was forgotten comes after the body, then the end.
    async fn malformed() -> Self {
        Self::replying(|request, number| {
            let body = format!("{{\"number\":{number},\"path\":{:?}}}", path(request));
            format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}Connection: keep-alive\r\n",
                body.len()
            )
        })
        .await
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

fn path(request: &str) -> &str {
    request.split(' ').nth(1).unwrap_or_default()
}

/// A request head, and the body that its Content-Length announces.
async fn read_request(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
            let length: usize = length.map_or(0, |length| length.parse().unwrap());
            if bytes.len() >= end + 4 + length {
                return String::from_utf8_lossy(&bytes).into_owned();
            }
        }
        match stream.read_buf(&mut bytes).await {
            Ok(read) if read > 0 => {}
            _ => return String::from_utf8_lossy(&bytes).into_owned(),
        }
    }
}
