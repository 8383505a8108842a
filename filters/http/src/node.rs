//! The end of the chain: one request to the node, one response from it.
//!
//! The node's server is hand-written and needs a patient reader, so this is a small client of its own. It sends and receives at
//! the same time, and it has no task: dropping the response closes the connection.

use std::collections::VecDeque;
use std::fmt::Write;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::header::{CONTENT_LENGTH, HeaderName, UPGRADE};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use qudag_filter_api::{Address, FilterError};
use qudag_filter_common::{Stream, connect};
use tokio::io::AsyncWrite;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::io::poll_read_buf;

use crate::connection_pooling::Pooled;
use crate::headers::origin_form;
use crate::kind::is_safe;
use crate::response::{Event, Framing, Head, ResponseError, ResponseParser};
use crate::tunnel::Tunnel;
use crate::{Body, HttpCall, HttpSettings};

/// How much of a request is taken from the client before the node has taken it.
const AHEAD: usize = 64 * 1024;
/// The most buffers in one write.
const VECTORS: usize = 8;
/// How much is read at once.
const READ: usize = 16 * 1024;

/// Sends a call to the node.
///
/// # Errors
/// [`FilterError::Connect`], [`FilterError::Resolve`], [`FilterError::Timeout`]; [`FilterError::Upstream`] when there is no proper
/// response head; the error of the request's body when the client does not complete it.
pub(crate) async fn send(call: HttpCall, settings: Arc<HttpSettings>) -> Result<Response<Body>, FilterError> {
    let (mut parts, body) = call.request.into_parts();
    let upgrades = parts.headers.contains_key(UPGRADE);
    let pool = parts.extensions.remove::<Pooled>().filter(|_| !upgrades);
    let repeatable = is_safe(&parts.method) && body.is_end_stream() && !upgrades;
    let (head, framing) = head(&parts, &body, &settings.node, pool.is_some(), upgrades)?;
    let mut request = (framing != Framing::None).then_some(body);
    let waits =
        Waits { first_byte: settings.listener.first_byte_timeout.0, body: settings.listener.body_timeout.0 };
    let to_head = parts.method == Method::HEAD;
    let exchange = |stream, request| Exchange::new(stream, head.clone(), request, framing, to_head, waits);

    if let Some(pool) = &pool
        && let Some(stream) = pool.take(&settings.node, repeatable)
    {
        let mut exchange = exchange(stream, request.take());
        match exchange.head().await {
            Ok(head) => {
                pool.proven();
                return exchange.response(head, upgrades, Some((pool.clone(), settings.node.clone())));
            }
            // The server had closed the connection, or it was out of step; nothing is known to have been done.
            Err(FilterError::Upstream(_)) if repeatable => pool.disproved(),
            Err(error) => {
                pool.disproved();
                return Err(error);
            }
        }
    }
    let stream = connect(&settings.node, &*settings.resolve, settings.listener.connect_timeout.0).await?;
    if let Some(pool) = &pool {
        pool.opened();
    }
    let mut exchange = exchange(stream, request);
    let head = exchange.head().await?;
    exchange.response(head, upgrades, pool.map(|pool| (pool, settings.node.clone())))
}

/// The request head as the node gets it, and how the body is framed.
fn head(
    parts: &Parts,
    body: &Body,
    node: &Address,
    keep: bool,
    upgrades: bool,
) -> Result<(Bytes, Framing), FilterError> {
    let announces = matches!(parts.method, Method::POST | Method::PUT | Method::PATCH);
    let framing = match body.size_hint().exact() {
        Some(0) if announces => Framing::Length(0),
        Some(0) => Framing::None,
        Some(length) => Framing::Length(length),
        None if body.is_end_stream() => Framing::None,
        None => Framing::Chunked,
    };
    let mut head = Vec::with_capacity(512);
    let mut text =
        format!("{} {} HTTP/1.1\r\nHost: {node}\r\n", parts.method, origin_form(&parts.uri, &parts.method));
    // Writing to a string cannot fail.
    let _ = match framing {
        Framing::Length(length) => write!(text, "Content-Length: {length}\r\n"),
        Framing::Chunked => write!(text, "Transfer-Encoding: chunked\r\n"),
        Framing::None | Framing::UntilClose => Ok(()),
    };
    if !upgrades {
        text.push_str(if keep { "Connection: keep-alive\r\n" } else { "Connection: close\r\n" });
    }
    head.extend_from_slice(text.as_bytes());
    for (name, value) in &parts.headers {
        title_case(name, &mut head);
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    // The parts come from a parser that allows no line ends; a filter could still have put one into the target.
    let lines = head.iter().filter(|byte| **byte == b'\n').count();
    let expected = text.matches("\r\n").count() + parts.headers.len() + 1;
    if lines != expected || text.lines().next().is_some_and(|line| line.split(' ').count() != 3) {
        return Err(FilterError::Malformed("the request cannot be written as HTTP/1.1".into()));
    }
    Ok((head.into(), framing))
}

/// Field names as most clients write them; a hand-written server may know no other form.
fn title_case(name: &HeaderName, to: &mut Vec<u8>) {
    let mut start = true;
    for byte in name.as_str().bytes() {
        to.push(if start { byte.to_ascii_uppercase() } else { byte });
        start = byte == b'-';
    }
}

#[derive(Clone, Copy)]
struct Waits {
    first_byte: Duration,
    body: Duration,
}

/// A connection with one request and its response.
struct Exchange {
    stream: Stream,
    /// To be sent.
    out: VecDeque<Bytes>,
    /// The rest of the request's body.
    request: Option<Body>,
    chunked: bool,
    /// The node takes nothing more. It may have answered all the same.
    refused: bool,
    /// When something was sent last.
    moved: Instant,
    parser: ResponseParser,
    waits: Waits,
    timer: Pin<Box<Sleep>>,
}

impl Exchange {
    fn new(
        stream: Stream,
        head: Bytes,
        request: Option<Body>,
        framing: Framing,
        to_head: bool,
        waits: Waits,
    ) -> Self {
        let moved = Instant::now();
        Self {
            stream,
            out: VecDeque::from([head]),
            request,
            chunked: framing == Framing::Chunked,
            refused: false,
            moved,
            parser: ResponseParser::new(to_head),
            waits,
            timer: Box::pin(sleep_until(moved)),
        }
    }

    /// Sends what can be sent. Ready when everything is, or when the node takes nothing more.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), FilterError>> {
        loop {
            while let Some(body) = &mut self.request
                && self.out.iter().map(Bytes::len).sum::<usize>() < AHEAD
            {
                match Pin::new(body).poll_frame(cx) {
                    Poll::Pending => break,
                    Poll::Ready(Some(Ok(frame))) => self.queue(frame),
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                    Poll::Ready(None) => {
                        self.request = None;
                        if self.chunked {
                            self.out.push_back(Bytes::from_static(b"0\r\n\r\n"));
                        }
                    }
                }
            }
            if self.out.is_empty() {
                return if self.request.is_none() { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
            let mut slices = [IoSlice::new(&[]); VECTORS];
            for (slice, bytes) in slices.iter_mut().zip(&self.out) {
                *slice = IoSlice::new(bytes);
            }
            match ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, &slices)) {
                Ok(written) if written > 0 => {
                    self.moved = Instant::now();
                    self.sent(written);
                }
                _ => {
                    self.refused = true;
                    self.request = None;
                    self.out.clear();
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }

    fn queue(&mut self, frame: Frame<Bytes>) {
        // Trailers are not passed on (RFC 9110 section 6.5.1).
        let Ok(data) = frame.into_data() else { return };
        if data.is_empty() {
            return;
        }
        if self.chunked {
            self.out.push_back(format!("{:x}\r\n", data.len()).into());
            self.out.extend([data, Bytes::from_static(b"\r\n")]);
        } else {
            self.out.push_back(data);
        }
    }

    fn sent(&mut self, mut written: usize) {
        while let Some(bytes) = self.out.front_mut() {
            let now = written.min(bytes.len());
            bytes.advance(now);
            written -= now;
            if !bytes.is_empty() {
                return;
            }
            self.out.pop_front();
        }
    }

    /// The next part of the response; `None` when it is complete.
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Event>, FilterError>> {
        loop {
            if let Some(event) = self.parser.next_event().map_err(upstream)? {
                return Poll::Ready(Ok(Some(event)));
            }
            if self.parser.is_done() {
                return Poll::Ready(Ok(None));
            }
            let buffer = self.parser.buffer();
            buffer.reserve(READ);
            match ready!(poll_read_buf(Pin::new(&mut self.stream), cx, buffer)) {
                Ok(0) => return Poll::Ready(self.parser.closed().map_err(upstream)),
                Ok(_) => {}
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(why) if self.parser.has_started() => {
                    return Poll::Ready(Err(FilterError::Upstream(
                        format!("in the middle of the response: {why}").into(),
                    )));
                }
                Err(why) => {
                    return Poll::Ready(Err(FilterError::Upstream(
                        format!("before the response: {why}").into(),
                    )));
                }
            }
        }
    }

    /// Sends the request and waits for the head of the response.
    async fn head(&mut self) -> Result<Head, FilterError> {
        poll_fn(|cx| {
            let sent = self.poll_send(cx)?;
            match self.poll_event(cx)? {
                Poll::Ready(Some(Event::Head(head))) => return Poll::Ready(Ok(*head)),
                Poll::Ready(_) => return Poll::Ready(Err(upstream(ResponseError::Nothing))),
                Poll::Pending => {}
            }
            // While the client is the one that is waited for, its body has a limit of its own.
            if sent.is_pending() && self.out.is_empty() {
                return Poll::Pending;
            }
            ready!(self.poll_timer(cx, self.moved, self.waits.first_byte));
            Poll::Ready(Err(FilterError::Timeout { after: self.waits.first_byte }))
        })
        .await
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>, since: Instant, limit: Duration) -> Poll<()> {
        let Some(due) = since.checked_add(limit) else { return Poll::Pending };
        if self.timer.deadline() != due {
            self.timer.as_mut().reset(due);
        }
        self.timer.as_mut().poll(cx)
    }

    fn response(
        mut self,
        head: Head,
        upgrades: bool,
        pool: Option<(Pooled, Address)>,
    ) -> Result<Response<Body>, FilterError> {
        let mut response = Response::new(Body::default());
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers;
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            if !upgrades {
                return Err(FilterError::Upstream("101 although no upgrade was asked for".into()));
            }
            let early = self.parser.buffer().split().freeze();
            response.extensions_mut().insert(Tunnel::new(self.stream, early));
            return Ok(response);
        }
        match head.framing {
            Framing::Length(length) => {
                // One value, whatever form it had.
                response.headers_mut().insert(CONTENT_LENGTH, length.into());
            }
            Framing::Chunked | Framing::UntilClose => {
                response.headers_mut().remove(CONTENT_LENGTH);
            }
            Framing::None if head.status == StatusCode::NO_CONTENT => {
                response.headers_mut().remove(CONTENT_LENGTH);
            }
            Framing::None => {}
        }
        let mut body =
            NodeBody { waiting: None, exchange: Some(self), pool: pool.filter(|_| head.keep_alive) };
        body.release_if_done();
        if body.exchange.is_some() {
            *response.body_mut() = Body::new(body);
        }
        Ok(response)
    }
}

fn upstream(error: ResponseError) -> FilterError {
    FilterError::Upstream(error.to_string().into())
}

/// The body of a response, as it arrives.
struct NodeBody {
    /// `None` when the response is complete or has failed.
    exchange: Option<Exchange>,
    /// Where the connection goes when the response is complete.
    pool: Option<(Pooled, Address)>,
    /// Since when there is nothing to receive. Time in which nobody asked does not count.
    waiting: Option<Instant>,
}

impl NodeBody {
    /// Gives the connection back with the last byte, so that the client's next request finds it.
    fn release_if_done(&mut self) {
        let Some(mut exchange) = self.exchange.take_if(|exchange| exchange.parser.is_done()) else { return };
        let all_sent = exchange.request.is_none() && exchange.out.is_empty() && !exchange.refused;
        match self.pool.take() {
            Some((pool, to)) if all_sent && exchange.parser.buffer().is_empty() => {
                pool.give(exchange.stream, to)
            }
            // Bytes after the body: what follows on this connection cannot be understood.
            Some((pool, _)) => pool.disproved(),
            None => {}
        }
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, FilterError>>> {
        let Some(exchange) = &mut self.exchange else { return Poll::Ready(None) };
        if let Poll::Ready(Err(error)) = exchange.poll_send(cx) {
            return Poll::Ready(Some(Err(error)));
        }
        match exchange.poll_event(cx) {
            Poll::Ready(Ok(Some(Event::Data(data)))) => {
                self.waiting = None;
                Poll::Ready(Some(Ok(data)))
            }
            Poll::Ready(Ok(_)) => Poll::Ready(None),
            Poll::Ready(Err(error)) => Poll::Ready(Some(Err(error))),
            // Only where the length is known is silence a failure: an event stream may have nothing to say.
            Poll::Pending if exchange.parser.remaining().is_some() => {
                let limit = exchange.waits.body;
                let since = *self.waiting.get_or_insert_with(Instant::now);
                ready!(exchange.poll_timer(cx, since, limit));
                Poll::Ready(Some(Err(FilterError::Timeout { after: limit })))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl http_body::Body for NodeBody {
    type Data = Bytes;
    type Error = FilterError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, FilterError>>> {
        let polled = ready!(self.poll_data(cx));
        if matches!(polled, Some(Err(_))) {
            self.exchange = None;
        }
        self.release_if_done();
        Poll::Ready(polled.map(|data| data.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.exchange.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.exchange {
            None => SizeHint::with_exact(0),
            Some(exchange) => exchange.parser.remaining().map(SizeHint::with_exact).unwrap_or_default(),
        }
    }
}
