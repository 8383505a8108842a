//! Connections that speak HTTP/1.1 with JSON.

pub(crate) mod body;
mod problem;
mod stream;

use std::convert::Infallible;
use std::fmt::Write;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use qudag_core::offload::Code;
use qudag_filter_api::FilterError;
use qudag_filter_common::{Drain, Stream};
use tokio::time::timeout;

use super::calls::{Asks, Caller, Started};
use super::memory::{Asked, Grant};
use crate::{CryptoListener, CryptoSettings, Operations};
use body::Batch;
use problem::Problem;
use stream::ClientStream;

/// The longest head of a request, in bytes.
const MAX_HEAD: usize = 16 << 10;
/// Bodies from so many bytes on are read on a thread of their own: it takes a millisecond or more.
const LARGE: usize = 256 << 10;

/// What there is to ask for.
#[derive(Clone, Copy)]
enum Route {
    Batch(Batch),
    Status,
}

const ROUTES: [(&str, &str, Route); 5] = [
    ("POST", "/v1/keys", Route::Batch(Batch::Keys)),
    ("POST", "/v1/verify:batch", Route::Batch(Batch::Signatures)),
    ("POST", "/v1/fingerprint/verify:batch", Route::Batch(Batch::Fingerprints)),
    ("POST", "/v1/hash:batch", Route::Batch(Batch::Hashes)),
    ("GET", "/v1/crypto/status", Route::Status),
];

/// Serves a connection to its end. `start` is what it has sent already.
pub(super) async fn serve(
    caller: Caller,
    drain: Drain,
    stream: Stream,
    start: BytesMut,
    settings: Arc<CryptoSettings>,
) {
    let patience = settings.listener.idle_timeout.0;
    drop(settings);
    let requests = Arc::new(Requests { caller: Mutex::new(caller), asked: AtomicBool::new(false) });
    let service = service_fn({
        let requests = Arc::clone(&requests);
        move |request| Arc::clone(&requests).answer(request)
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(patience);
    http.max_header_size(MAX_HEAD).half_close(true);
    let stream = TokioIo::new(ClientStream::new(stream, start.freeze(), patience));
    let mut serving = pin!(http.serve_connection(stream, service));
    // An error is the client's: it broke off, was too slow or spoke no HTTP.
    tokio::select! {
        biased;
        _ = serving.as_mut() => return,
        () = drain.aborted() => return,
        () = drain.stopping() => {}
    }
    if !requests.asked.load(Ordering::Relaxed) {
        // The first request is on its way.
        tokio::select! {
            _ = serving.as_mut() => return,
            () = drain.read_enough(true) => {}
        }
    }
    serving.as_mut().graceful_shutdown();
    tokio::select! {
        _ = serving => {}
        () = drain.aborted() => {}
    }
}

/// Appends the whole response to a connection that is not served.
pub(super) fn refusal(error: &FilterError, to: &mut BytesMut) {
    let problem = Problem::of(error);
    let body = problem.body();
    // Writing into a buffer cannot fail.
    let _ = write!(
        to,
        "HTTP/1.1 {}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\nRetry-After: {}\r\n\r\n",
        problem.status,
        body.len(),
        problem.retry_after_seconds().unwrap_or(1)
    );
    to.extend_from_slice(&body);
}

/// The requests of a connection, one after the other.
struct Requests {
    caller: Mutex<Caller>,
    /// A request has come.
    asked: AtomicBool,
}

impl Requests {
    fn caller(&self) -> MutexGuard<'_, Caller> {
        self.caller.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        self.asked.store(true, Ordering::Relaxed);
        let mut under_way =
            UnderWay { requests: &self, started: Some(self.caller().start(Asks::UNREADABLE, 0)) };
        let (outcome, mut response) = match self.perform(request, &mut under_way).await {
            Ok(body) => ("ok", Response::new(body)),
            Err(problem) => (problem.code, problem.response()),
        };
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        under_way.end(outcome, response.body().len());
        Ok(response.map(Full::new))
    }

    async fn perform(
        &self,
        request: Request<Incoming>,
        under_way: &mut UnderWay<'_>,
    ) -> Result<Bytes, Problem> {
        let route = route(&request)?;
        let lease = self.caller().lease().map_err(|error| Problem::of(&error))?;
        // Held until the reply is there.
        let (operations, _memory) = match route {
            Route::Status => (Operations::Status, None),
            Route::Batch(batch) => {
                let (body, memory) = self.body(request, &lease.settings.listener).await?;
                under_way.tell(|started| started.bytes_up = body.len());
                (read(batch, body, lease.settings.listener.max_operations).await?, Some(memory))
            }
        };
        under_way.tell(|started| started.asks = Asks::of(&operations));
        let call = self.caller().call(lease, operations, false);
        let reply = call.await.map_err(|error| Problem::of(&error))?;
        body::write(reply).map_err(|why| Problem::of(&FilterError::Internal(why.to_string().into())))
    }

    /// The body of a request, and the memory that it takes.
    async fn body(
        &self,
        request: Request<Incoming>,
        listener: &CryptoListener,
    ) -> Result<(Bytes, Grant), Problem> {
        check_headers(request.headers())?;
        let limit = listener.max_request.bytes();
        let too_long = || {
            let why = format!("a request has at most {limit} bytes");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, Code::TooLarge.name(), why).closing()
        };
        let body = request.into_body();
        // A body without a length may be as long as any.
        let length =
            body.size_hint().exact().map_or(limit, |length| usize::try_from(length).unwrap_or(usize::MAX));
        if length > limit {
            return Err(too_long());
        }
        let asked = self.caller().ask_memory(length, listener);
        let mut memory = match asked {
            Asked::Granted(memory) => memory,
            Asked::Waits(wish) => wish.await.map_err(|_| Problem::of(&FilterError::Draining))?,
        };
        let collected = timeout(listener.idle_timeout.0, Limited::new(body, limit).collect());
        let late = |_| {
            let why = "the body did not arrive in time";
            Problem::new(StatusCode::REQUEST_TIMEOUT, Code::Timeout.name(), why).closing()
        };
        let body = match collected.await.map_err(late)? {
            Ok(collected) => collected.to_bytes(),
            Err(why) if why.is::<LengthLimitError>() => return Err(too_long()),
            Err(_) => return Err(Problem::malformed("the body is not complete").closing()),
        };
        memory.shrink(body.len());
        Ok((body, memory))
    }
}

/// A request under way. When it is dropped before its end, the client has gone.
struct UnderWay<'a> {
    requests: &'a Requests,
    started: Option<Started>,
}

impl UnderWay<'_> {
    fn tell(&mut self, tell: impl FnOnce(&mut Started)) {
        if let Some(started) = &mut self.started {
            tell(started);
        }
    }

    fn end(&mut self, outcome: &'static str, bytes_down: usize) {
        if let Some(started) = self.started.take() {
            self.requests.caller().end(&started, outcome, bytes_down);
        }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.end(FilterError::ClientGone.label(), 0);
    }
}

/// What is asked for.
fn route<B>(request: &Request<B>) -> Result<Route, Problem> {
    if request.version() != Version::HTTP_11 {
        let why = "HTTP/1.1 is spoken here";
        return Err(Problem::new(StatusCode::HTTP_VERSION_NOT_SUPPORTED, "version", why).closing());
    }
    let path = request.uri().path();
    let Some((method, _, route)) = ROUTES.into_iter().find(|(_, known, _)| *known == path) else {
        let known = ROUTES.map(|(method, path, _)| format!("{method} {path}")).join(", ");
        return Err(Problem::new(StatusCode::NOT_FOUND, "not_found", format!("there are {known}")));
    };
    if request.method().as_str() != method {
        let why = format!("{path} takes {method}");
        return Err(Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", why).allowing(method));
    }
    if request.uri().query().is_some() {
        return Err(Problem::malformed("no parameters are known"));
    }
    Ok(route)
}

/// Only JSON, as it is: what a browser may send anywhere without asking is none.
fn check_headers(headers: &HeaderMap) -> Result<(), Problem> {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut parts = content_type.split(';').map(str::trim);
    let is_json = parts.next().is_some_and(|media| media.eq_ignore_ascii_case("application/json"));
    let is_utf8 = parts.all(|parameter| {
        ["charset=utf-8", "charset=\"utf-8\""].iter().any(|utf8| parameter.eq_ignore_ascii_case(utf8))
    });
    if !is_json || !is_utf8 || headers.contains_key(CONTENT_ENCODING) {
        let why = "a body is application/json in UTF-8, without an encoding";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", why));
    }
    Ok(())
}

/// The operations of a body.
async fn read(batch: Batch, body: Bytes, most: u32) -> Result<Operations, Problem> {
    if body.len() < LARGE {
        return body::read(batch, &body, most);
    }
    let reading = tokio::task::spawn_blocking(move || body::read(batch, &body, most));
    reading.await.unwrap_or_else(|why| Err(Problem::of(&FilterError::Internal(why.to_string().into()))))
}
