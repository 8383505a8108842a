//! A connection to the server, and the few commands that are spoken on it.
//!
//! Commands and replies are redis-rs's; the byte stream is ours, so that names are resolved as everywhere in the sidecar, TLS is rustls with
//! aws-lc-rs, and a server cannot send more than was asked for. RESP2, which every version of Redis and Valkey speaks.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use qudag_filter_api::{Address, FilterError, Host, HostPort, Resolve, Secret};
use qudag_filter_common::{certificates, connect, system_certificates};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ErrorKind, RedisConnectionInfo, RedisError, RedisResult, Value};
use rustls::pki_types::{CertificateDer, IpAddr, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsConnector;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::entry::MAX_VALUE;
use super::log::{FlushId, REMEMBERED, Record, What};
use super::url::RedisUrl;

/// How long connecting may take, with TLS and authentication.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The most bytes that the server may send ahead of what was read.
const MAX_ALLOWANCE: usize = 8 << 20;
/// What a short reply takes at most.
const SHORT: usize = 1 << 10;
/// What a record of the stream takes at most; a name has at most 1004 characters.
const RECORD: usize = 2 << 10;
/// How many records are read at a time.
pub(super) const RECORDS: usize = 512;
/// How many commands may wait to be written to the socket.
const COMMANDS: usize = 256;

/// What went wrong between the server and us.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// It cannot be reached.
    #[error(transparent)]
    Connect(#[from] FilterError),
    /// The connection cannot be encrypted.
    #[error("TLS: {0}")]
    Tls(String),
    /// A secret cannot be read.
    #[error("{0}")]
    Secret(String),
    /// It answered with an error, or not at all.
    #[error("{0}")]
    Redis(#[from] RedisError),
    /// It answered something that makes no sense.
    #[error("an answer that makes no sense to {0}")]
    Nonsense(&'static str),
    /// It did not answer in time.
    #[error("no answer in time")]
    Timeout,
    /// The connection has ended.
    #[error("the connection has ended")]
    Closed,
}

impl Fault {
    /// The reason in metrics.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Connect(FilterError::Timeout { .. }) | Self::Timeout => "timeout",
            Self::Connect(_) => "connect",
            Self::Tls(_) => "tls",
            Self::Secret(_) => "secret",
            Self::Nonsense(_) => "protocol",
            Self::Closed => "closed",
            Self::Redis(why) => match (why.kind(), why.code()) {
                (_, Some("OOM")) => "full",
                (_, Some("NOAUTH" | "WRONGPASS" | "NOPERM")) | (ErrorKind::AuthenticationFailed, _) => "auth",
                (_, Some("READONLY")) => "read_only",
                (_, Some(_)) => "server",
                (ErrorKind::Io, _) => "closed",
                _ => "protocol",
            },
        }
    }

    /// Whether the server itself has answered, with an error.
    fn answered(&self) -> bool {
        matches!(self, Self::Redis(why) if why.code().is_some())
    }
}

/// A server as the settings name it.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) url: RedisUrl,
    pub(super) username: Option<String>,
    pub(super) password: Option<Secret>,
    pub(super) ca: Option<PathBuf>,
    /// The key of the stream of flushes.
    pub(super) flushes: String,
    pub(super) resolve: Arc<dyn Resolve>,
}

impl Server {
    /// Connects, within [`CONNECT_TIMEOUT`]. The secrets are read each time, so that they can be replaced.
    ///
    /// # Errors
    /// When it cannot be reached, or does not take our credentials.
    pub(super) async fn connect(&self) -> Result<Connection, Fault> {
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, self.connect_now()).await;
        connected.unwrap_or(Err(Fault::Timeout))
    }

    async fn connect_now(&self) -> Result<Connection, Fault> {
        let mut info = RedisConnectionInfo::default()
            .set_db(self.url.database.into())
            .set_lib_name("qudag-sidecar", env!("CARGO_PKG_VERSION"));
        if let Some(password) = &self.password {
            info = info.set_password(password.read().map_err(Fault::Secret)?);
        }
        if let Some(username) = &self.username {
            info = info.set_username(username);
        }
        let stream = connect(&self.url.address, self.resolve.as_ref(), CONNECT_TIMEOUT).await?;
        let stream: Box<dyn Io> = match self.url.tls {
            false => Box::new(stream),
            true => {
                let ca = self.ca.clone();
                let config = tokio::task::spawn_blocking(move || tls(ca)).await;
                let config = config.map_err(|why| Fault::Tls(why.to_string()))??;
                let connector = TlsConnector::from(Arc::new(config));
                let tls = connector.connect(server_name(&self.url.address)?, stream).await;
                Box::new(tls.map_err(|why| Fault::Tls(why.to_string()))?)
            }
        };
        let allowance = Arc::new(Allowance(AtomicUsize::new(8 * SHORT)));
        let stream = Bounded { stream, allowance: Arc::clone(&allowance) };
        let config = AsyncConnectionConfig::new()
            .set_response_timeout(None)
            .set_connection_timeout(None)
            .set_pipeline_buffer_size(COMMANDS);
        let (redis, driver) = Box::pin(MultiplexedConnection::new_with_config(&info, stream, config)).await?;
        let (ended, stop) = (CancellationToken::new(), CancellationToken::new());
        let end = ended.clone().drop_guard();
        let stopped = stop.clone();
        drop(tokio::spawn(async move {
            // Also dropped when the driver panics.
            let _end = end;
            tokio::select! { () = driver => {}, () = stopped.cancelled() => {} }
        }));
        let stop = Arc::new(stop.drop_guard());
        Ok(Connection { redis, allowance, ended, _stop: stop, flushes: self.flushes.as_str().into() })
    }
}

fn tls(ca: Option<PathBuf>) -> Result<rustls::ClientConfig, Fault> {
    let fault = |why: String| Fault::Tls(why);
    let mut roots = rustls::RootCertStore::empty();
    match ca {
        Some(path) => {
            for certificate in authorities(&path).map_err(fault)? {
                roots.add(certificate).map_err(|why| fault(why.to_string()))?;
            }
        }
        None => {
            let system = system_certificates().map_err(|why| fault(why.to_string()))?;
            roots.add_parsable_certificates(system);
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|why| fault(why.to_string()))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// The certificates in a PEM file, at least one.
///
/// # Errors
/// When it cannot be read or has none.
pub(super) fn authorities(path: &std::path::Path) -> Result<Vec<CertificateDer<'static>>, String> {
    certificates(path).map_err(|why| format!("{}: {why}", path.display()))
}

fn server_name(address: &Address) -> Result<ServerName<'static>, Fault> {
    let Address::Tcp(HostPort { host, .. }) = address else {
        return Err(Fault::Tls("not over a Unix socket".to_owned()));
    };
    match host {
        Host::Ip(ip) => Ok(ServerName::IpAddress(IpAddr::from(*ip))),
        Host::Name(name) => ServerName::try_from(name.trim_end_matches('.').to_owned())
            .map_err(|why| Fault::Tls(why.to_string())),
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// How many bytes the server may still send. Each command adds what its reply may take.
struct Allowance(AtomicUsize);

impl Allowance {
    fn grant(&self, bytes: usize) {
        let _ = self.0.fetch_update(Relaxed, Relaxed, |left| Some((left + bytes).min(MAX_ALLOWANCE)));
    }
}

/// A stream that fails when more comes than is allowed: a server, or who poses as one, must not fill our memory.
struct Bounded {
    stream: Box<dyn Io>,
    allowance: Arc<Allowance>,
}

impl AsyncRead for Bounded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        std::task::ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let came = buf.filled().len() - before;
        let spent = self.allowance.0.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(came));
        let too_much = |_| io::Error::new(io::ErrorKind::InvalidData, "more than was asked for");
        Poll::Ready(spent.map(drop).map_err(too_much))
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A connection. Clones share it; it is closed with the last one.
#[derive(Clone)]
pub(super) struct Connection {
    redis: MultiplexedConnection,
    allowance: Arc<Allowance>,
    ended: CancellationToken,
    _stop: Arc<DropGuard>,
    flushes: Arc<str>,
}

/// What lies under a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content {
    Nothing,
    Bytes(Bytes),
    /// Not a string.
    Other,
}

/// What is asked for a query, all at once.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) value: Content,
    /// What is left of its life; `None` without an end.
    pub(super) left: Option<Duration>,
    /// The last flush of the stream; `None` when there is no stream.
    pub(super) current: Option<FlushId>,
}

impl Connection {
    /// Resolves when the connection has ended.
    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    async fn ask(
        &self,
        pipeline: &mut redis::Pipeline,
        reply: usize,
    ) -> Result<Vec<RedisResult<Value>>, Fault> {
        self.allowance.grant(reply);
        let mut redis = self.redis.clone();
        let results: Vec<RedisResult<Value>> = pipeline.ignore_errors().query_async(&mut redis).await?;
        Ok(results)
    }

    /// What lies under a key, what is left of its life, and the last flush, in this order: whatever happens between the three makes the
    /// answer look older and never younger.
    pub(super) async fn read(&self, key: &str) -> Result<Found, Fault> {
        let mut pipeline = redis::Pipeline::with_capacity(3);
        pipeline.cmd("PTTL").arg(key);
        // Not all of it: somebody may have put something large there.
        pipeline.cmd("GETRANGE").arg(key).arg(0).arg(MAX_VALUE);
        pipeline.cmd("XREVRANGE").arg(&*self.flushes).arg("+").arg("-").arg("COUNT").arg(1);
        let results = self.ask(&mut pipeline, MAX_VALUE + RECORD + SHORT).await?;
        let [left, value, last] = three(results).ok_or(Fault::Nonsense("PTTL, GETRANGE, XREVRANGE"))?;
        let value = match value {
            Ok(Value::BulkString(bytes)) if bytes.is_empty() => Content::Nothing,
            Ok(Value::BulkString(bytes)) => Content::Bytes(bytes.into()),
            Err(why) if why.code() == Some("WRONGTYPE") => Content::Other,
            Err(why) => return Err(why.into()),
            Ok(_) => return Err(Fault::Nonsense("GETRANGE")),
        };
        let left = match left? {
            // The key came after the question for its life.
            Value::Int(-2) => return Ok(Found { value: Content::Nothing, left: None, current: None }),
            Value::Int(left) => u64::try_from(left).ok().map(Duration::from_millis),
            _ => return Err(Fault::Nonsense("PTTL")),
        };
        let last = records(last?).ok_or(Fault::Nonsense("XREVRANGE"))?;
        Ok(Found { value, left, current: last.first().map(|record| record.id) })
    }

    /// Stores values for so long, and removes keys. One result for each, in order.
    pub(super) async fn write(&self, batch: &[Write]) -> Result<Vec<Result<(), Fault>>, Fault> {
        let mut pipeline = redis::Pipeline::with_capacity(batch.len());
        for write in batch {
            match write {
                Write::Set { key, value, life } => {
                    let life = u64::try_from(life.as_millis()).unwrap_or(u64::MAX).max(1);
                    pipeline.cmd("SET").arg(key).arg(value.as_slice()).arg("PX").arg(life)
                }
                Write::Delete { key } => pipeline.cmd("DEL").arg(key),
            };
        }
        let results = self.ask(&mut pipeline, batch.len() * SHORT).await?;
        Ok(results.into_iter().map(|result| result.map(drop).map_err(Fault::from)).collect())
    }

    /// Appends a record to the stream. A flush that Redis has no memory for removes the stream: nobody trusts any entry then.
    pub(super) async fn append(&self, what: &What, origin: u64) -> Result<(), Fault> {
        let mut pipeline = redis::Pipeline::new();
        let command =
            pipeline.cmd("XADD").arg(&*self.flushes).arg("MAXLEN").arg("~").arg(REMEMBERED).arg("*");
        command.arg("f").arg(what.text()).arg("o").arg(format!("{origin:016x}"));
        match self.one(&mut pipeline, "XADD").await {
            Err(why) if why.answered() && *what != What::Start => {
                let mut pipeline = redis::Pipeline::new();
                pipeline.cmd("DEL").arg(&*self.flushes);
                self.one(&mut pipeline, "DEL").await.map(drop).map_err(|_| why)
            }
            result => result.map(drop),
        }
    }

    async fn one(&self, pipeline: &mut redis::Pipeline, command: &'static str) -> Result<Value, Fault> {
        let results = self.ask(pipeline, SHORT).await?;
        Ok(results.into_iter().next().ok_or(Fault::Nonsense(command))??)
    }

    /// The newest records in order, at most [`REMEMBERED`], and the server's time in milliseconds since 1970.
    pub(super) async fn newest(&self) -> Result<(Vec<Record>, u64), Fault> {
        let mut pipeline = redis::Pipeline::with_capacity(2);
        pipeline.cmd("XREVRANGE").arg(&*self.flushes).arg("+").arg("-").arg("COUNT").arg(REMEMBERED);
        pipeline.cmd("TIME");
        let mut results = self.ask(&mut pipeline, REMEMBERED * RECORD + SHORT).await?.into_iter();
        let mut next = || results.next().ok_or(Fault::Nonsense("XREVRANGE, TIME"))?.map_err(Fault::from);
        let mut found = records(next()?).ok_or(Fault::Nonsense("XREVRANGE"))?;
        found.reverse();
        let time = match next()? {
            Value::Array(parts) => {
                parts.first().and_then(text).and_then(|seconds| seconds.parse::<u64>().ok())
            }
            _ => None,
        };
        Ok((found, time.ok_or(Fault::Nonsense("TIME"))?.saturating_mul(1000)))
    }

    /// The records behind `known` in order, at most [`RECORDS`]; `None` when the stream does not have `known` itself.
    pub(super) async fn since(&self, known: FlushId) -> Result<Option<Vec<Record>>, Fault> {
        let mut pipeline = redis::Pipeline::with_capacity(2);
        let id = known.to_string();
        pipeline.cmd("XRANGE").arg(&*self.flushes).arg(&id).arg(&id);
        pipeline.cmd("XREAD").arg("COUNT").arg(RECORDS).arg("STREAMS").arg(&*self.flushes).arg(&id);
        let mut results = self.ask(&mut pipeline, (RECORDS + 1) * RECORD + SHORT).await?.into_iter();
        let mut next = || results.next().ok_or(Fault::Nonsense("XRANGE, XREAD"))?.map_err(Fault::from);
        let at = records(next()?).ok_or(Fault::Nonsense("XRANGE"))?;
        let newer = of_streams(next()?).ok_or(Fault::Nonsense("XREAD"))?;
        Ok((!at.is_empty()).then_some(newer))
    }

    /// Waits until there is a record behind `known`, or for so long.
    pub(super) async fn wait(&self, known: FlushId, longest: Duration) -> Result<(), Fault> {
        let mut pipeline = redis::Pipeline::new();
        let longest = u64::try_from(longest.as_millis()).unwrap_or(1);
        let command = pipeline.cmd("XREAD").arg("COUNT").arg(1).arg("BLOCK").arg(longest);
        command.arg("STREAMS").arg(&*self.flushes).arg(known.to_string());
        self.allowance.grant(RECORD);
        self.one(&mut pipeline, "XREAD").await.map(drop)
    }
}

/// One thing to write.
#[derive(Debug)]
pub(super) enum Write {
    Set { key: String, value: Vec<u8>, life: Duration },
    Delete { key: String },
}

fn three(results: Vec<RedisResult<Value>>) -> Option<[RedisResult<Value>; 3]> {
    results.try_into().ok()
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

/// The records in a reply to XRANGE: `[[id, [field, value, …]], …]`.
fn records(reply: Value) -> Option<Vec<Record>> {
    match reply {
        Value::Nil => Some(Vec::new()),
        Value::Array(records) => records.iter().map(record).collect(),
        _ => None,
    }
}

/// The records in a reply to XREAD of one stream: `[[stream, records]]`, or nothing.
fn of_streams(reply: Value) -> Option<Vec<Record>> {
    match reply {
        Value::Nil => Some(Vec::new()),
        Value::Array(streams) => match streams.into_iter().next()? {
            Value::Array(stream) => records(stream.into_iter().nth(1)?),
            _ => None,
        },
        _ => None,
    }
}

/// Fields that are not ours are a flush of everything by nobody.
fn record(value: &Value) -> Option<Record> {
    let Value::Array(parts) = value else { return None };
    let id = parts.first().and_then(text)?.parse().ok()?;
    let fields = match parts.get(1) {
        Some(Value::Array(fields)) => fields.as_slice(),
        _ => &[],
    };
    let field = |name: &str| {
        let pairs = fields.chunks_exact(2);
        pairs.filter_map(|pair| Some((text(pair.first()?)?, pair.get(1)?))).find(|(key, _)| *key == name)
    };
    let what = What::read(field("f").and_then(|(_, value)| text(value)).unwrap_or_default());
    let origin = field("o").and_then(|(_, value)| u64::from_str_radix(text(value)?, 16).ok());
    Some(Record { id, what, origin: origin.unwrap_or_default() })
}
