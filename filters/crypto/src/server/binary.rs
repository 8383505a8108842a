//! Connections that speak `QDC1`: requests as they come, several at once, replies as they are ready.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use bytes::BytesMut;
use futures_util::StreamExt;
use futures_util::future::OptionFuture;
use futures_util::stream::FuturesUnordered;
use qudag_core::FrameError;
use qudag_core::offload::{Code, Decoder, Frame, HEADER, Header, Limits, Malformed, Refusal, Reply, Request};
use qudag_filter_api::FilterError;
use qudag_filter_common::{Drain, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::calls::{Asks, Caller, Started};
use super::memory::{Asked, Grant};
use super::{FAREWELL, close, convert, refusal};
use crate::{CryptoListener, CryptoReply, CryptoSettings};

/// The room for reading: several requests of one signature are read at once.
const READ: usize = 32 << 10;
/// While so many bytes of replies are not taken, no further request is begun.
const UNTAKEN: usize = 1 << 20;
/// In place of a time that the clock cannot express.
const DAY: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

type Call = Pin<Box<dyn Future<Output = (u64, Result<CryptoReply, FilterError>)> + Send>>;

/// A request whose reply was not ready at once.
struct Waiting {
    id: u32,
    started: Started,
    _memory: Grant,
}

/// One connection.
pub(super) struct Session {
    caller: Caller,
    drain: Drain,
    read: ReadHalf<Stream>,
    write: WriteHalf<Stream>,
    received: BytesMut,
    /// As of the last request.
    settings: Arc<CryptoSettings>,
    /// More may come from the client.
    reading: bool,
    /// A request has come.
    asked: bool,
    /// What comes from the client is not looked at any more.
    refused: bool,
    /// Memory for the frame that is being received, and the wish for it.
    granted: Option<Grant>,
    wish: Option<oneshot::Receiver<Grant>>,
    calls: FuturesUnordered<Call>,
    waiting: HashMap<u64, Waiting>,
    /// The number of the next call.
    next: u64,
    /// Replies that are being written.
    out: BytesMut,
    /// When a request was complete or a reply moved last.
    active: Instant,
}

enum Event {
    Aborted,
    Stopping,
    /// The drain has begun, and all is read that had been sent.
    Enough,
    /// It may be that nothing has moved for long.
    Timer,
    Granted(Option<Grant>),
    Reply(u64, Result<CryptoReply, FilterError>),
    Read(io::Result<usize>),
    Written(io::Result<usize>),
}

impl Session {
    pub(super) fn new(
        caller: Caller,
        drain: Drain,
        stream: Stream,
        received: BytesMut,
        settings: Arc<CryptoSettings>,
    ) -> Self {
        let (read, write) = split(stream);
        let mut out = BytesMut::new();
        Reply::Welcome(limits(&settings.listener)).encode(0, &mut out);
        Self {
            caller,
            drain,
            read,
            write,
            received,
            settings,
            reading: true,
            asked: false,
            refused: false,
            granted: None,
            wish: None,
            calls: FuturesUnordered::new(),
            waiting: HashMap::new(),
            next: 0,
            out,
            active: Instant::now(),
        }
    }

    /// Until everything is answered that came, or until the client has gone.
    pub(super) async fn run(mut self) {
        let outcome = if self.serve().await {
            self.last_words();
            // The client has had its replies in any case.
            let _ = timeout(FAREWELL, self.farewell()).await;
            "ok"
        } else if self.drain.is_stopping() {
            "aborted"
        } else {
            FilterError::ClientGone.label()
        };
        for waiting in self.waiting.values() {
            self.caller.end(&waiting.started, outcome, 0);
        }
    }

    /// Serves until all is answered; `false` when the connection cannot be used any more.
    async fn serve(&mut self) -> bool {
        let drain = self.drain.clone();
        let (mut aborted, mut stopping) = (pin!(drain.aborted()), pin!(drain.stopping()));
        let mut timer = pin!(sleep_until(self.idle_at()));
        let mut stopped = false;
        loop {
            self.take_requests().await;
            if !self.reading && self.is_idle() && self.out.is_empty() {
                return true;
            }
            let wants_more = self.reading && self.has_room() && self.wish.is_none();
            if wants_more {
                self.make_room();
            }
            let on_its_way = !self.asked || !self.received.is_empty();
            let event = tokio::select! {
                biased;
                () = &mut aborted => Event::Aborted,
                Some((call, result)) = self.calls.next(), if !self.calls.is_empty() => Event::Reply(call, result),
                written = self.write.write_buf(&mut self.out), if !self.out.is_empty() => Event::Written(written),
                Some(granted) = OptionFuture::from(self.wish.as_mut()) => Event::Granted(granted.ok()),
                read = self.read.read_buf(&mut self.received), if wants_more => Event::Read(read),
                () = &mut stopping, if !stopped => Event::Stopping,
                () = drain.read_enough(on_its_way), if stopped && wants_more => Event::Enough,
                () = &mut timer => Event::Timer,
            };
            match event {
                Event::Aborted | Event::Read(Err(_)) | Event::Written(Err(_) | Ok(0)) => return false,
                Event::Stopping => stopped = true,
                // A client that finishes sending still gets its replies.
                Event::Enough | Event::Read(Ok(0)) => self.reading = false,
                Event::Read(Ok(_)) => {}
                Event::Written(Ok(_)) => self.active = Instant::now(),
                Event::Granted(granted) => (self.granted, self.wish) = (granted, None),
                Event::Reply(call, result) => self.ready(call, result),
                Event::Timer if self.is_late() => return false,
                Event::Timer => self.set(timer.as_mut()),
            }
        }
    }

    /// What is left of a request when no more will come of it.
    fn last_words(&mut self) {
        if self.received.is_empty() || self.refused {
            return;
        }
        let why = if self.drain.is_stopping() {
            refusal::binary(&FilterError::Draining)
        } else {
            let error = FrameError::Truncated { received: self.received.len() };
            Refusal { code: Code::Malformed, retry_after: None, message: error.to_string() }
        };
        let started = self.caller.start(Asks::UNREADABLE, self.received.len());
        self.answer(0, &started, why.code.name(), &Reply::Error(why));
    }

    async fn farewell(&mut self) -> io::Result<()> {
        self.write.write_all_buf(&mut self.out).await?;
        let mut stream = tokio::io::join(&mut self.read, &mut self.write);
        if self.refused { close(&mut stream).await } else { stream.shutdown().await }
    }

    /// Room for the rest of the request that is being received, or for several small ones.
    fn make_room(&mut self) {
        let missing = if self.granted.is_some() { self.decoder().missing(&self.received) } else { 0 };
        if self.received.capacity() - self.received.len() < missing.max(READ / 4) {
            self.received.reserve(missing.max(READ));
        }
    }

    fn decoder(&self) -> Decoder {
        Decoder::new(self.settings.listener.max_request.bytes())
    }

    /// Whether nothing is under way.
    fn is_idle(&self) -> bool {
        self.calls.is_empty() && self.wish.is_none()
    }

    /// When nothing has moved for too long.
    fn idle_at(&self) -> Instant {
        let limit = self.settings.listener.idle_timeout.0;
        self.active.checked_add(limit).unwrap_or_else(|| self.active + DAY)
    }

    fn is_late(&self) -> bool {
        (self.is_idle() || !self.out.is_empty()) && self.idle_at() <= Instant::now()
    }

    /// Sets the timer. It goes off once a period and not for each request that is set back.
    fn set(&self, timer: Pin<&mut Sleep>) {
        let soon = Instant::now() + (self.idle_at() - self.active).min(DAY);
        timer.reset(if self.is_idle() { self.idle_at() } else { soon });
    }

    /// Whether another call may start.
    fn has_room(&self) -> bool {
        let most = usize::try_from(self.settings.listener.max_in_flight).unwrap_or(usize::MAX);
        self.calls.len() < most && self.out.len() < UNTAKEN
    }

    /// Starts what has come and may start.
    async fn take_requests(&mut self) {
        while !self.refused && self.has_room() && self.wish.is_none() {
            let header = match self.decoder().header(&self.received) {
                Ok(Some(header)) => header,
                Ok(None) => return,
                Err(error) => return self.refuse(&error),
            };
            let memory = match self.granted.take() {
                Some(memory) => memory,
                None => match self.caller.ask_memory(HEADER + header.body(), &self.settings.listener) {
                    Asked::Granted(memory) => memory,
                    Asked::Waits(wish) => {
                        self.wish = Some(wish);
                        return;
                    }
                },
            };
            match self.decoder().decode(&mut self.received) {
                Ok(Some(frame)) => self.request(frame, memory).await,
                Ok(None) | Err(_) => {
                    self.granted = Some(memory);
                    return;
                }
            }
        }
    }

    async fn request(&mut self, frame: Frame, memory: Grant) {
        self.active = Instant::now();
        self.asked = true;
        let (Header { id, count, .. }, bytes) = (frame.header, frame.body.len());
        let routed = frame.header.is_routed();
        let unreadable = self.caller.start(Asks::UNREADABLE, bytes);
        let most = self.settings.listener.max_operations;
        if u32::from(count) > most {
            let message = format!("{count} operations, where at most {most} are allowed");
            let refusal = Refusal { code: Code::TooLarge, retry_after: None, message };
            return self.answer(id, &unreadable, refusal.code.name(), &Reply::Error(refusal));
        }
        let operations = match Request::read(frame).and_then(convert::operations) {
            Ok(operations) => operations,
            Err(error) => return self.answer(id, &unreadable, Code::Malformed.name(), &malformed(&error)),
        };
        let started = self.caller.start(Asks::of(&operations), bytes);
        let lease = match self.caller.lease() {
            Ok(lease) => lease,
            Err(error) => return self.finish(id, &started, Err(error)),
        };
        self.settings = Arc::clone(&lease.settings);
        let (number, call) = (self.next, self.caller.call(lease, operations, routed));
        self.next += 1;
        let mut call: Call = Box::pin(async move { (number, call.await) });
        // Most calls have their answer at once, or wait for another thread: neither needs a task of its own.
        match poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx))).await {
            Poll::Ready((_, result)) => self.finish(id, &started, result),
            Poll::Pending => {
                self.waiting.insert(number, Waiting { id, started, _memory: memory });
                self.calls.push(call);
            }
        }
        // Others want to use this thread too.
        tokio::task::coop::consume_budget().await;
    }

    fn ready(&mut self, call: u64, result: Result<CryptoReply, FilterError>) {
        if let Some(Waiting { id, started, _memory }) = self.waiting.remove(&call) {
            self.finish(id, &started, result);
        }
    }

    fn finish(&mut self, id: u32, started: &Started, result: Result<CryptoReply, FilterError>) {
        let outcome = result.as_ref().map_or_else(FilterError::label, |_| "ok");
        self.answer(id, started, outcome, &convert::reply(result));
    }

    fn answer(&mut self, id: u32, started: &Started, outcome: &'static str, reply: &Reply) {
        self.active = Instant::now();
        let before = self.out.len();
        reply.encode(id, &mut self.out);
        self.caller.end(started, outcome, self.out.len() - before);
    }

    /// Answers a frame behind which nothing can be read, and takes nothing more.
    fn refuse(&mut self, error: &FrameError) {
        let id = self.received.first_chunk().map_or(0, |header| Header::read(header).id);
        let started = self.caller.start(Asks::UNREADABLE, 0);
        let refusal = Refusal { code: Code::TooLarge, retry_after: None, message: error.to_string() };
        self.answer(id, &started, refusal.code.name(), &Reply::Error(refusal));
        self.reading = false;
        self.refused = true;
        self.received.clear();
    }
}

fn malformed(error: &Malformed) -> Reply {
    Reply::Error(Refusal { code: Code::Malformed, retry_after: None, message: error.to_string() })
}

/// What a client is told at first.
fn limits(listener: &CryptoListener) -> Limits {
    Limits {
        body: u32::try_from(listener.max_request.bytes()).unwrap_or(u32::MAX),
        operations: u16::try_from(listener.max_operations).unwrap_or(u16::MAX),
        in_flight: listener.max_in_flight,
    }
}
