//! The command line's side of the admin API.

use std::fmt;
use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use qudag_filter_api::{Address, Resolve};
use qudag_filter_common::net;
use serde::Deserialize;
use serde_json::Value;
use tokio_util::task::AbortOnDropHandle;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long an answer may take; a reload that binds and resolves is the slowest one.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest answer that is read.
const ANSWER_LIMIT: usize = 64 * 1024 * 1024;
/// The longest line of an answer that comes line by line.
const LINE_LIMIT: usize = 1024 * 1024;

/// A sidecar's admin API.
#[derive(Clone, Debug)]
pub struct Client {
    address: Address,
    token: Option<String>,
}

/// Why a call gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("no sidecar at {address}: {why}")]
    Unreachable {
        /// Where.
        address: String,
        /// What connecting said.
        why: String,
    },
    /// It listens and does not answer as a sidecar does.
    #[error("{address} gave no usable answer: {why}")]
    Broken {
        /// Where.
        address: String,
        /// What is wrong.
        why: String,
    },
    /// It said no.
    #[error("{0}")]
    Refused(Refusal),
}

/// An answer that is not a success.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The HTTP status.
    pub status: StatusCode,
    /// Why.
    pub error: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Every problem of a refused configuration, one line each.
    pub problems: Vec<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error)?;
        for problem in &self.problems {
            write!(f, "\n  {problem}")?;
        }
        Ok(())
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RefusalBody {
    error: String,
    hint: Option<String>,
    problems: Vec<String>,
    reasons: Vec<String>,
}

impl Client {
    /// A client of the API at `address`, with the token to send over TCP.
    pub fn new(address: Address, token: Option<String>) -> Self {
        Self { address, token }
    }

    /// Where the API is.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The JSON of a route.
    ///
    /// # Errors
    /// When there is no answer, or it is not a success.
    pub async fn get(&self, path: &str, resolve: &dyn Resolve) -> Result<Value, ClientError> {
        let body = self.call(Method::GET, path, None, resolve).await?;
        self.json(&body)
    }

    /// The text of a route.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn get_text(&self, path: &str, resolve: &dyn Resolve) -> Result<String, ClientError> {
        let body = self.call(Method::GET, path, None, resolve).await?;
        String::from_utf8(body.into()).map_err(|_| self.broken("not UTF-8"))
    }

    /// Asks for a change.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn post(&self, path: &str, body: &Value, resolve: &dyn Resolve) -> Result<Value, ClientError> {
        let body = self.call(Method::POST, path, Some(body), resolve).await?;
        self.json(&body)
    }

    /// The lines of a route whose answer goes on for as long as it is read.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn lines(&self, path: &str, resolve: &dyn Resolve) -> Result<Lines, ClientError> {
        let stream = net::connect(&self.address, resolve, CONNECT_TIMEOUT).await;
        let stream = stream.map_err(|why| self.unreachable(reason(&why)))?;
        let open = async {
            let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
            let (mut sender, connection) = handshake.map_err(|why| self.broken(why))?;
            let connection = AbortOnDropHandle::new(tokio::spawn(async move { drop(connection.await) }));
            let request = self.request(Method::GET, path, None)?;
            let response = sender.send_request(request).await.map_err(|why| self.broken(why))?;
            Ok((response, sender, connection))
        };
        let opened = tokio::time::timeout(ANSWER_TIMEOUT, open).await;
        let (response, sender, connection) =
            opened.map_err(|_| self.broken(format!("nothing within {ANSWER_TIMEOUT:?}")))??;
        let status = response.status();
        if status.is_success() {
            let (body, address) = (response.into_body(), self.address.to_string());
            return Ok(Lines { body, received: BytesMut::new(), address, _connection: (sender, connection) });
        }
        let body = Limited::new(response.into_body(), ANSWER_LIMIT).collect();
        let body = tokio::time::timeout(ANSWER_TIMEOUT, body).await;
        let body = body.ok().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
        Err(ClientError::Refused(refusal(status, &body)))
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Request<Full<Bytes>>, ClientError> {
        let host = match &self.address {
            Address::Tcp(address) => address.to_string(),
            Address::Unix(_) => "localhost".to_owned(),
        };
        let mut request = Request::builder().method(method).uri(path).header(HOST, host);
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        request.body(Full::new(Bytes::from(body))).map_err(|why| self.broken(why))
    }

    fn json(&self, body: &[u8]) -> Result<Value, ClientError> {
        serde_json::from_slice(body).map_err(|why| self.broken(format!("not JSON: {why}")))
    }

    fn broken(&self, why: impl ToString) -> ClientError {
        ClientError::Broken { address: self.address.to_string(), why: why.to_string() }
    }

    fn unreachable(&self, why: impl ToString) -> ClientError {
        ClientError::Unreachable { address: self.address.to_string(), why: why.to_string() }
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        resolve: &dyn Resolve,
    ) -> Result<Bytes, ClientError> {
        let stream = net::connect(&self.address, resolve, CONNECT_TIMEOUT).await;
        let stream = stream.map_err(|why| self.unreachable(reason(&why)))?;
        let answer = self.exchange(stream, method, path, body);
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, answer).await;
        let (status, body) =
            answer.map_err(|_| self.broken(format!("nothing within {ANSWER_TIMEOUT:?}")))??;
        if status.is_success() { Ok(body) } else { Err(ClientError::Refused(refusal(status, &body))) }
    }

    async fn exchange(
        &self,
        stream: net::Stream,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|why| self.broken(why))?;
        let request = self.request(method, path, body)?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(|why| self.broken(why))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_LIMIT).collect().await;
            Ok((status, body.map_err(|why| self.broken(why))?.to_bytes()))
        };
        let mut answer = std::pin::pin!(answer);
        // The connection moves the bytes; when it ends first, the answer says how.
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            _ = connection => answer.await,
        }
    }
}

/// An answer that comes line by line. Dropping it closes the connection.
#[derive(Debug)]
pub struct Lines {
    body: Incoming,
    received: BytesMut,
    address: String,
    _connection: (SendRequest<Full<Bytes>>, AbortOnDropHandle<()>),
}

impl Lines {
    /// The next line without its end; `None` after the last.
    ///
    /// # Errors
    /// When the answer breaks off, or a line is too long or not UTF-8.
    pub async fn next(&mut self) -> Result<Option<String>, ClientError> {
        let broken = |address: &str, why: &dyn fmt::Display| ClientError::Broken {
            address: address.to_owned(),
            why: why.to_string(),
        };
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line = self.received.split_to(end);
                self.received.advance(1);
                let line = String::from_utf8(line.into());
                return line.map(Some).map_err(|_| broken(&self.address, &"not UTF-8"));
            }
            if self.received.len() > LINE_LIMIT {
                return Err(broken(&self.address, &"a line without an end"));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(why)) => return Err(broken(&self.address, &why)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.received.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

fn reason(why: &qudag_filter_api::FilterError) -> String {
    match why {
        qudag_filter_api::FilterError::Connect { source, .. } => match source.kind() {
            io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
            io::ErrorKind::NotFound => "no such socket".to_owned(),
            io::ErrorKind::PermissionDenied => {
                "permission denied; run as the sidecar's own user or as root".to_owned()
            }
            _ => source.to_string(),
        },
        why => why.to_string(),
    }
}

fn refusal(status: StatusCode, body: &[u8]) -> Refusal {
    let body: RefusalBody = serde_json::from_slice(body).unwrap_or_default();
    let error = if body.error.is_empty() { format!("the sidecar answered {status}") } else { body.error };
    let problems = if body.problems.is_empty() { body.reasons } else { body.problems };
    let hint = match (body.hint, status) {
        (Some(_), StatusCode::UNAUTHORIZED) => {
            Some("give the token with --token-file FILE or in QUDAG_SIDECAR_TOKEN".to_owned())
        }
        (hint, _) => hint,
    };
    Refusal { status, error, hint, problems }
}
