//! A connection to another sidecar: kept, and made anew when it breaks off. Many batches are on their way at once; every few seconds it is asked
//! what is in force over there.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use qudag_core::backoff::Backoff;
use qudag_core::offload::{Code, Decoder, Frame, Limits, PREAMBLE, Refusal, Reply, encode_status};
use qudag_filter_api::{FilterError, Resolve};
use qudag_filter_common::{Stream, connect};
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};

use super::MOST_TIMEOUT;
use super::link::Link;
use super::wire::{self, Capability};
use crate::{Operations, Verdict};

/// How often the other sidecar is asked for its status, when the last answer has come.
const ASK: Duration = Duration::from_secs(2);
/// How long it may take to connect, to be welcomed, and to tell the status. Whoever is slower is no help.
const PATIENCE: Duration = Duration::from_secs(2);
/// The pauses between attempts.
const BACKOFF: Backoff = Backoff { min: Duration::from_millis(100), max: Duration::from_secs(5) };
/// The longest reply that is read: as many verdicts as a request can have operations, a status, or a text.
const LONGEST: usize = 128 << 10;
/// The most batches on their way at once on one connection, even if the other side takes more.
const MOST_IN_FLIGHT: usize = 64;
/// A connection on which a batch was not answered for so long is given up, whoever still waits for it.
const LOST: Duration = MOST_TIMEOUT.0.saturating_mul(2);
/// What is read at once.
const READ: usize = 4 << 10;

/// Why a connection ended, or was not made.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("cannot connect: {0}")]
    NotConnected(FilterError),
    #[error("the connection broke off: {0}")]
    Broken(#[from] io::Error),
    #[error("it closed the connection")]
    Closed,
    #[error("it did not answer in time")]
    Silent,
    #[error("it refuses: {0}")]
    Refused(Refusal),
    #[error("what it says is no answer: {0}")]
    Garbage(&'static str),
}

/// Why a batch has no verdicts from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// As many as may be are on their way.
    Busy,
    /// The batch is larger than the other sidecar takes.
    TooLarge,
    /// The verdicts took too long.
    Timeout,
    /// The other sidecar says no.
    Refused(Code),
    /// The connection ended.
    Disconnected,
    /// What came are no verdicts for the batch.
    Garbage,
}

impl Failure {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::TooLarge => "too_large",
            Self::Timeout => "timeout",
            Self::Refused(_) => "refused",
            Self::Disconnected => "disconnected",
            Self::Garbage => "garbage",
        }
    }

    /// Whether it says something of the other sidecar's health.
    pub(super) fn is_theirs(self) -> bool {
        !matches!(self, Self::Busy | Self::TooLarge)
    }
}

/// The way into a connection, for those who have a batch.
#[derive(Clone)]
pub(super) struct Line {
    asks: mpsc::UnboundedSender<Ask>,
    /// For as many batches as may be on their way, which bounds the channel too.
    room: Arc<Semaphore>,
    limits: Limits,
    /// The id of the next request. It is never 0, which is the id of what belongs to none.
    next: Arc<AtomicU32>,
}

/// A batch on its way.
struct Ask {
    id: u32,
    frame: Bytes,
    waiting: Waiting,
}

/// Who waits for the verdicts.
struct Waiting {
    operations: usize,
    since: Instant,
    answer: oneshot::Sender<Result<Vec<Verdict>, Failure>>,
    _permit: OwnedSemaphorePermit,
}

impl Line {
    /// How many more batches may be on their way.
    pub(super) fn room(&self) -> usize {
        self.room.available_permits()
    }

    /// Sends a batch and waits for the verdicts.
    pub(super) async fn ask(
        &self,
        operations: &Operations,
        limit: Duration,
    ) -> Result<Vec<Verdict>, Failure> {
        let permit = Arc::clone(&self.room).try_acquire_owned().map_err(|_| Failure::Busy)?;
        let id = self.id();
        let frame = self.encode(id, operations).ok_or(Failure::TooLarge)?;
        let (answer, verdicts) = oneshot::channel();
        let waiting =
            Waiting { operations: operations.len(), since: Instant::now(), answer, _permit: permit };
        self.asks.send(Ask { id, frame, waiting }).map_err(|_| Failure::Disconnected)?;
        match timeout(limit, verdicts).await {
            Ok(Ok(verdicts)) => verdicts,
            Ok(Err(_)) => Err(Failure::Disconnected),
            Err(_) => Err(Failure::Timeout),
        }
    }

    fn encode(&self, id: u32, operations: &Operations) -> Option<Bytes> {
        let (most, longest) = (self.limits.operations, usize::try_from(self.limits.body).ok()?);
        if operations.len() > usize::from(most) {
            return None;
        }
        let mut frame = BytesMut::with_capacity(operations.bytes());
        wire::encode(id, operations, &mut frame)?;
        (frame.len() <= longest).then(|| frame.freeze())
    }

    fn id(&self) -> u32 {
        match self.next.fetch_add(1, Relaxed) {
            0 => self.next.fetch_add(1, Relaxed),
            id => id,
        }
    }
}

/// Keeps a connection, in this place of the link, for ever.
pub(super) async fn keep(link: Arc<Link>, place: usize, resolve: Arc<dyn Resolve>) {
    let mut failures = 0;
    loop {
        let why = match Connection::open(&link, &*resolve).await {
            Ok(connection) => connection.serve(&link, place).await,
            Err(why) => why,
        };
        if link.down(place, &why) {
            failures = 0;
        }
        sleep(BACKOFF.wait(failures, fastrand::u64(..))).await;
        failures = failures.saturating_add(1);
    }
}

/// A connection on which the other sidecar has said welcome.
struct Connection {
    stream: Stream,
    received: BytesMut,
    limits: Limits,
}

/// What is under way on a connection.
struct Session<'a> {
    link: &'a Link,
    place: usize,
    /// For callers; they have it as soon as the other sidecar has told what it can.
    line: Line,
    waiting: HashMap<u32, Waiting>,
    /// The request for the status that has no answer yet, and when it was sent.
    status: Option<(u32, Instant)>,
    /// What is to be written.
    queue: VecDeque<Bytes>,
}

impl Connection {
    async fn open(link: &Link, resolve: &dyn Resolve) -> Result<Self, Ended> {
        let mut stream = connect(&link.address, resolve, PATIENCE).await.map_err(Ended::NotConnected)?;
        let mut received = BytesMut::new();
        let welcome = async {
            stream.write_all(&PREAMBLE).await?;
            loop {
                if let Some(frame) = next(&mut received)? {
                    return match read(&frame)? {
                        Reply::Welcome(limits) => Ok(limits),
                        Reply::Error(refusal) => Err(Ended::Refused(refusal)),
                        _ => Err(Ended::Garbage("the first frame is no welcome")),
                    };
                }
                if stream.read_buf(&mut received).await? == 0 {
                    return Err(Ended::Closed);
                }
            }
        };
        let limits = timeout(PATIENCE, welcome).await.map_err(|_| Ended::Silent)??;
        Ok(Self { stream, received, limits })
    }

    /// Serves callers until the connection ends. Those who wait then are told by that alone.
    async fn serve(self, link: &Link, place: usize) -> Ended {
        let Self { stream, mut received, limits } = self;
        let (mut read, mut write) = split(stream);
        let (asks, mut asked) = mpsc::unbounded_channel();
        let room = usize::try_from(limits.in_flight).unwrap_or(MOST_IN_FLIGHT).min(MOST_IN_FLIGHT);
        let line = Line { asks, room: Arc::new(Semaphore::new(room)), limits, next: Arc::new(1.into()) };
        let mut session =
            Session { link, place, line, waiting: HashMap::new(), status: None, queue: VecDeque::new() };
        session.ask_status();
        let mut timer = std::pin::pin!(sleep(PATIENCE));
        let mut writing = Bytes::new();
        loop {
            if writing.is_empty() {
                writing = session.queue.pop_front().unwrap_or_default();
            }
            received.reserve(READ);
            tokio::select! {
                // The session has a sender itself.
                Some(ask) = asked.recv() => session.send(ask),
                written = write.write_buf(&mut writing), if !writing.is_empty() => match written {
                    Ok(0) => return Ended::Closed,
                    Ok(_) => {}
                    Err(why) => return why.into(),
                },
                received_now = read.read_buf(&mut received) => match received_now {
                    Ok(0) => return Ended::Closed,
                    Ok(_) => match session.received(&mut received) {
                        Ok(true) => timer.as_mut().reset(Instant::now() + ASK),
                        Ok(false) => {}
                        Err(why) => return why,
                    },
                    Err(why) => return why.into(),
                },
                () = &mut timer => {
                    if session.is_stuck() {
                        return Ended::Silent;
                    }
                    session.ask_status();
                    timer.as_mut().reset(Instant::now() + PATIENCE);
                }
            }
        }
    }
}

impl Session<'_> {
    fn send(&mut self, ask: Ask) {
        // Whoever has given up meanwhile needs no answer.
        if !ask.waiting.answer.is_closed() {
            self.waiting.insert(ask.id, ask.waiting);
            self.queue.push_back(ask.frame);
        }
    }

    fn ask_status(&mut self) {
        let (id, mut frame) = (self.line.id(), BytesMut::new());
        encode_status(id, &mut frame);
        // Not behind the batches that wait: it is the way that is measured.
        self.queue.push_front(frame.freeze());
        self.status = Some((id, Instant::now()));
    }

    /// Whether something should have been answered long ago.
    fn is_stuck(&self) -> bool {
        self.status.is_some() || self.waiting.values().any(|waiting| waiting.since.elapsed() > LOST)
    }

    /// Deals with all replies that are there as a whole; whether a status was among them.
    fn received(&mut self, received: &mut BytesMut) -> Result<bool, Ended> {
        let mut told = false;
        while let Some(frame) = next(received)? {
            told |= self.reply(&frame)?;
        }
        Ok(told)
    }

    fn reply(&mut self, frame: &Frame) -> Result<bool, Ended> {
        let reply = read(frame)?;
        if let Some((id, sent)) = self.status
            && frame.header.id == id
        {
            let status = match reply {
                Reply::Status(status) => status,
                Reply::Error(refusal) => return Err(Ended::Refused(refusal)),
                _ => return Err(Ended::Garbage("another reply than a status")),
            };
            let capability = Capability::read(&status).ok_or(Ended::Garbage("a status without a backend"))?;
            self.status = None;
            self.link.told(self.place, &self.line, capability, sent.elapsed());
            return Ok(true);
        }
        let Some(waiting) = self.waiting.remove(&frame.header.id) else {
            return Err(match reply {
                Reply::Error(refusal) => Ended::Refused(refusal),
                _ => Ended::Garbage("the reply to another request"),
            });
        };
        let (answer, fault) = match reply {
            Reply::Verdicts(verdicts) => match wire::verdicts(&verdicts, waiting.operations) {
                Some(verdicts) => (Ok(verdicts), None),
                None => (Err(Failure::Garbage), Some(Ended::Garbage("not a verdict for each operation"))),
            },
            Reply::Error(refusal) => (Err(Failure::Refused(refusal.code)), None),
            _ => (Err(Failure::Garbage), Some(Ended::Garbage("another reply than verdicts"))),
        };
        // Whoever waited may have given up.
        let _ = waiting.answer.send(answer);
        fault.map_or(Ok(false), Err)
    }
}

fn next(received: &mut BytesMut) -> Result<Option<Frame>, Ended> {
    Decoder::new(LONGEST).decode(received).map_err(|_| Ended::Garbage("a reply that is too long"))
}

fn read(frame: &Frame) -> Result<Reply, Ended> {
    Reply::read(&frame.header, &frame.body).map_err(|_| Ended::Garbage("a frame that is no reply"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_request_has_the_id_of_what_belongs_to_none() {
        let (asks, _asked) = mpsc::unbounded_channel();
        let limits = Limits { body: 1, operations: 1, in_flight: 1 };
        let line = Line {
            asks,
            room: Arc::new(Semaphore::new(1)),
            limits,
            next: Arc::new(AtomicU32::new(u32::MAX)),
        };
        assert_eq!([line.id(), line.id(), line.id()], [u32::MAX, 1, 2]);
    }
}
