//! What is known of a request while it is under way: its completion line, its byte counts, and how its body failed.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::StatusCode;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use qudag_filter_api::FilterError;
use qudag_filter_common::{Drain, FlowLine};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::Body;
use crate::guard::Busy;

/// What is known of a request by the one who refuses it, besides the error.
#[derive(Debug, Default)]
pub(crate) struct Intake {
    received: AtomicU64,
    /// The status of the refusal, where the error's own does not say enough; 0 for none.
    status: AtomicU16,
}

impl Intake {
    /// Says which status the refusal has.
    pub(crate) fn refuse(&self, status: StatusCode) {
        self.status.store(status.as_u16(), Ordering::Release);
    }

    /// The status that was said.
    pub(crate) fn refused(&self) -> Option<StatusCode> {
        StatusCode::from_u16(self.status.load(Ordering::Acquire)).ok()
    }
}

/// The body of a request as it comes from the client, with limits on its size and on its silences.
pub(crate) struct RequestBody {
    incoming: Incoming,
    /// Read ahead, so that a broken body is noticed before anything is forwarded.
    first: Option<Bytes>,
    left: u64,
    limit: u64,
    silence: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    intake: Arc<Intake>,
}

impl RequestBody {
    pub(crate) fn new(incoming: Incoming, limit: u64, silence: Duration, intake: Arc<Intake>) -> Self {
        Self { incoming, first: None, left: limit, limit, silence, timer: None, intake }
    }

    /// Waits for the first bytes or the end.
    ///
    /// # Errors
    /// When the body is broken, too large or too slow right at its start.
    pub(crate) async fn read_ahead(&mut self) -> Result<(), FilterError> {
        self.first = std::future::poll_fn(|cx| self.poll_data(cx)).await.transpose()?;
        Ok(())
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, FilterError>>> {
        loop {
            let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(cx) else {
                ready!(self.poll_silence(cx));
                self.intake.refuse(StatusCode::REQUEST_TIMEOUT);
                let why = format!("no more of the body for {:?}", self.silence);
                return Poll::Ready(Some(Err(FilterError::Malformed(why.into()))));
            };
            self.timer = None;
            match frame {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(broken(&error)))),
                Some(Ok(frame)) => {
                    // Trailers are not passed on (RFC 9110 section 6.5.1).
                    let Ok(data) = frame.into_data() else { continue };
                    let length = data.len() as u64;
                    let Some(left) = self.left.checked_sub(length) else {
                        self.intake.refuse(StatusCode::PAYLOAD_TOO_LARGE);
                        let why = format!("the body is larger than {} bytes", self.limit);
                        return Poll::Ready(Some(Err(FilterError::Malformed(why.into()))));
                    };
                    self.left = left;
                    self.intake.received.fetch_add(length, Ordering::AcqRel);
                    if !data.is_empty() {
                        return Poll::Ready(Some(Ok(data)));
                    }
                }
            }
        }
    }

    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let silence = self.silence;
        let timer = match &mut self.timer {
            Some(timer) => timer,
            none => {
                let Some(due) = Instant::now().checked_add(silence) else { return Poll::Pending };
                none.insert(Box::pin(sleep_until(due)))
            }
        };
        timer.as_mut().poll(cx)
    }
}

/// A body that breaks the coding is the client's mistake; everything else means that the client is gone.
fn broken(error: &hyper::Error) -> FilterError {
    let io = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    match io.map(std::io::Error::kind) {
        Some(std::io::ErrorKind::InvalidData | std::io::ErrorKind::InvalidInput) => {
            FilterError::Malformed("the body is not in the chunked coding".into())
        }
        _ => FilterError::ClientGone,
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = FilterError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, FilterError>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        self.poll_data(cx).map(|data| data.map(|data| data.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let ahead = self.first.as_ref().map_or(0, Bytes::len) as u64;
        let rest = self.incoming.size_hint();
        let mut hint = SizeHint::new();
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(ahead));
        }
        hint.set_lower(rest.lower().saturating_add(ahead));
        hint
    }
}

/// A request under way. Dropped before its end, it ends as `client_gone`, or as `aborted` after the drain's deadline.
pub(crate) struct Record {
    flow: Option<FlowLine>,
    intake: Arc<Intake>,
    down: u64,
    drain: Drain,
    _busy: Busy,
}

impl Record {
    pub(crate) fn new(flow: FlowLine, intake: Arc<Intake>, drain: Drain, busy: Busy) -> Self {
        Self { flow: Some(flow), intake, down: 0, drain, _busy: busy }
    }

    pub(crate) fn detail(&mut self, key: &'static str, value: impl std::fmt::Display) {
        if let Some(flow) = &mut self.flow {
            flow.detail(key, value);
        }
    }

    /// The completion line, for somebody else to end.
    pub(crate) fn hand_over(&mut self) -> Option<FlowLine> {
        self.flow.take()
    }

    fn end(&mut self, outcome: &'static str) {
        if let Some(flow) = self.flow.take() {
            flow.end(outcome, self.intake.received.load(Ordering::Acquire), self.down);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let aborted = self.drain.aborted().now_or_never().is_some();
        self.end(if aborted { "aborted" } else { "client_gone" });
    }
}

/// The body of a response as it goes to the client.
pub(crate) struct ResponseBody {
    body: Body,
    record: Record,
    /// What the completion line says when the body is complete.
    outcome: &'static str,
}

impl ResponseBody {
    pub(crate) fn new(body: Body, record: Record, outcome: &'static str) -> Self {
        Self { body, record, outcome }
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = FilterError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, FilterError>>> {
        let this = &mut *self;
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => this.record.down += frame.data_ref().map_or(0, Bytes::len) as u64,
            Some(Err(error)) => this.record.end(error.label()),
            None => this.record.end(this.outcome),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        // hyper does not ask for more when it knows that there is nothing more.
        if self.body.is_end_stream() {
            self.record.end(self.outcome);
        }
    }
}
