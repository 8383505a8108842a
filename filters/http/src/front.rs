//! Client connections: HTTP/1.1 and HTTP/2 with prior knowledge on one socket.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::OptionFuture;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use qudag_filter_api::{Chains, FilterError, Lease};
use qudag_filter_common::{Drain, FlowLine, Seats, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use crate::Http;
use crate::guard::{Guard, Limits, Shared};
use crate::record::ResponseBody;
use crate::request::Requests;

/// What an HTTP/2 client with prior knowledge sends first (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The most requests at once on one HTTP/2 connection.
const MAX_STREAMS: u32 = 128;
/// How long an HTTP/2 client may be silent before it is asked whether it is there, and then for its answer.
const PING: Duration = Duration::from_secs(20);
/// What a client gets that is one too many. It has not said yet whether it speaks HTTP/2.
const TOO_MANY: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\nRetry-After: 1\r\n\r\n";
/// How long such a client may take to read it.
const FAREWELL: Duration = Duration::from_millis(250);

/// A listening socket's connections.
pub(crate) struct Server {
    chains: Chains<Http>,
    connections: Seats,
}

impl Server {
    pub(crate) fn new(chains: Chains<Http>) -> Self {
        Self { chains, connections: Seats::default() }
    }

    /// Serves one connection to its end.
    pub(crate) async fn connection(self: Arc<Self>, mut stream: Stream, drain: Drain) {
        let settings = (self.chains)().map(|Lease { settings, .. }| settings);
        let listener = settings.as_ref().map(|settings| &settings.listener);
        let seat = listener.and_then(|listener| {
            self.connections.take(usize::try_from(listener.max_connections).unwrap_or(usize::MAX))
        });
        let (Some(listener), Some(seat)) = (listener, seat) else {
            let flow = FlowLine::start("http", stream.peer_addr());
            refuse(stream).await;
            let error = if listener.is_some() {
                FilterError::Overloaded("connections".into())
            } else {
                FilterError::Draining
            };
            flow.end(error.label(), 0, 0);
            return;
        };
        let client = stream.peer_addr();
        let start = tokio::select! {
            biased;
            start = timeout(listener.header_timeout.0, read_start(&mut stream)) => start.ok().flatten(),
            () = drain.read_enough(true) => None,
        };
        let Some((start, is_http2)) = start else { return };
        let shared = Arc::new(Shared::default());
        let chains = Arc::clone(&self.chains);
        let requests = Arc::new(Requests::new(chains, client, Arc::clone(&shared), drain.clone(), seat));
        let service = service_fn(move |request| Arc::clone(&requests).answer(request));
        let limits = Limits { header: listener.header_timeout.0, idle: listener.idle_timeout.0 };
        let max_head = listener.max_header_bytes.bytes();
        drop(settings);
        let guard = Guard::new(stream, start, Arc::clone(&shared), limits);
        if is_http2 {
            // HTTP/2 has a framing of its own, which hyper checks.
            shared.change_protocol();
            run(http2_connection(guard, max_head, service), Some((shared, limits.idle)), &drain).await;
        } else {
            run(http1_connection(guard, max_head, service), None, &drain).await;
        }
    }
}

/// Runs a connection until it ends by itself or the drain's deadline passes. `idle` is the limit for HTTP/2; for HTTP/1 the guard keeps it.
async fn run(mut connection: impl Connection, idle: Option<(Arc<Shared>, Duration)>, drain: &Drain) {
    let mut closing = false;
    loop {
        let quiet: OptionFuture<_> =
            idle.as_ref().filter(|_| !closing).map(|(shared, limit)| unused(shared, *limit)).into();
        tokio::select! {
            biased;
            () = &mut connection => return,
            () = drain.aborted() => return,
            () = drain.stopping(), if !closing => {}
            Some(()) = quiet => {}
        }
        closing = true;
        connection.close();
    }
}

/// Resolves when there was no request for `limit`.
async fn unused(shared: &Shared, limit: Duration) {
    loop {
        let seen = shared.served();
        sleep(limit).await;
        if !shared.is_busy() && shared.served() == seen {
            return;
        }
    }
}

/// What comes first, and whether it is the HTTP/2 preface; `None` when the client has gone.
async fn read_start(stream: &mut Stream) -> Option<(Bytes, bool)> {
    let mut start = BytesMut::with_capacity(4096);
    loop {
        if stream.read_buf(&mut start).await.ok()? == 0 {
            return None;
        }
        if start.starts_with(PREFACE) {
            return Some((start.freeze(), true));
        }
        if !PREFACE.starts_with(&start) {
            return Some((start.freeze(), false));
        }
    }
}

async fn refuse(mut stream: Stream) {
    let farewell = async {
        stream.write_all(TOO_MANY).await?;
        stream.shutdown().await?;
        // Closing with unread bytes would reset the connection and take the reply with it.
        let mut rest = [0; 1024];
        while stream.read(&mut rest).await? > 0 {}
        std::io::Result::Ok(())
    };
    // The client is refused in any case.
    let _ = timeout(FAREWELL, farewell).await;
}

/// A connection of either version.
trait Connection: Future<Output = ()> + Unpin {
    /// Finishes what is under way and takes nothing new.
    fn close(&mut self);
}

struct Serving<C> {
    connection: Pin<Box<C>>,
    close: fn(Pin<&mut C>),
}

impl<C: Future> Future for Serving<C> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // Errors are the client's going away, or what was answered already.
        self.connection.as_mut().poll(cx).map(drop)
    }
}

impl<C: Future> Connection for Serving<C> {
    fn close(&mut self) {
        (self.close)(self.connection.as_mut());
    }
}

fn http1_connection<S>(guard: Guard<Stream>, max_head: usize, service: S) -> impl Connection
where
    S: HttpService<Incoming, ResBody = ResponseBody, Error = Infallible>,
{
    let mut http1 = http1::Builder::new();
    // The guard keeps the time limits.
    http1.timer(TokioTimer::new()).header_read_timeout(None).max_header_size(max_head).max_buf_size(max_head);
    let connection = http1.serve_connection(TokioIo::new(guard), service).with_upgrades();
    Serving { connection: Box::pin(connection), close: http1::UpgradeableConnection::graceful_shutdown }
}

fn http2_connection<S>(guard: Guard<Stream>, max_head: usize, service: S) -> impl Connection
where
    S: HttpService<Incoming, ResBody = ResponseBody, Error = Infallible>,
    S::Future: Send + 'static,
{
    let mut http2 = http2::Builder::new(TokioExecutor::new());
    http2
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(max_head).unwrap_or(u32::MAX))
        .max_concurrent_streams(MAX_STREAMS)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    let connection = http2.serve_connection(TokioIo::new(guard), service);
    Serving { connection: Box::pin(connection), close: http2::Connection::graceful_shutdown }
}
