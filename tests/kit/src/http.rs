//! A strict HTTP client: HTTP/1.1 that keeps its connection, and HTTP/2 without TLS.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

pub use hyper::body::Incoming;
pub use hyper::{HeaderMap, StatusCode, header};

/// A whole reply.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The status code.
    pub status: StatusCode,
    /// The header fields.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Reply {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is not.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// One connection to a server.
pub struct Client {
    sender: Sender,
    authority: String,
}

impl Client {
    /// Connects for HTTP/1.1.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn http1(server: SocketAddr) -> Result<Self, String> {
        let stream = TcpStream::connect(server).await.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        tokio::spawn(async move {
            let _ = connection.with_upgrades().await;
        });
        Ok(Self { sender: Sender::Http1(sender), authority: server.to_string() })
    }

    /// Connects for HTTP/2 with prior knowledge.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn http2(server: SocketAddr) -> Result<Self, String> {
        let stream = TcpStream::connect(server).await.map_err(|error| error.to_string())?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Self { sender: Sender::Http2(sender), authority: server.to_string() })
    }

    /// Sends a request and returns its reply with the body still to be read. `Host`, or the authority for HTTP/2, is
    /// the server's address unless the request has one.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, String> {
        let (mut parts, body) = request.into_parts();
        match &mut self.sender {
            Sender::Http1(sender) => {
                if !parts.headers.contains_key(header::HOST) {
                    let host = self.authority.parse().map_err(|_| "bad authority")?;
                    parts.headers.insert(header::HOST, host);
                }
                sender.ready().await.map_err(|error| error.to_string())?;
                let reply = sender.send_request(Request::from_parts(parts, body)).await;
                reply.map_err(|error| describe(&error))
            }
            Sender::Http2(sender) => {
                let mut uri = parts.uri.into_parts();
                uri.scheme = Some(http::uri::Scheme::HTTP);
                uri.authority = Some(self.authority.parse().map_err(|_| "bad authority")?);
                parts.uri = http::Uri::from_parts(uri).map_err(|error| error.to_string())?;
                sender.ready().await.map_err(|error| error.to_string())?;
                let reply = sender.send_request(Request::from_parts(parts, body)).await;
                reply.map_err(|error| describe(&error))
            }
        }
    }

    /// Sends a request and reads the whole reply.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn request(&mut self, request: Request<Full<Bytes>>) -> Result<Reply, String> {
        let (parts, body) = self.send(request).await?.into_parts();
        let body = body.collect().await.map_err(|error| describe(&error))?.to_bytes();
        Ok(Reply { status: parts.status, headers: parts.headers, body })
    }

    /// GET.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn get(&mut self, path: &str) -> Result<Reply, String> {
        let request = Request::get(path).body(Full::default()).map_err(|error| error.to_string())?;
        self.request(request).await
    }

    /// POST with a JSON body.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn post(&mut self, path: &str, body: &str) -> Result<Reply, String> {
        let request = Request::post(path)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(body.to_owned()))
            .map_err(|error| error.to_string())?;
        self.request(request).await
    }

    /// Whether another request can be sent on this connection.
    pub fn is_reusable(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => !sender.is_closed(),
            Sender::Http2(sender) => !sender.is_closed(),
        }
    }
}

fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// One GET over a connection of its own.
///
/// # Errors
/// When the connection fails.
pub async fn get(server: SocketAddr, path: &str) -> Result<Reply, String> {
    Client::http1(server).await?.get(path).await
}

/// One POST of JSON over a connection of its own.
///
/// # Errors
/// When the connection fails.
pub async fn post(server: SocketAddr, path: &str, body: &str) -> Result<Reply, String> {
    Client::http1(server).await?.post(path, body).await
}
