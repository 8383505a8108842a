//! Copies bytes between a client and an upstream until both have finished or one has failed.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use metrics::{Counter, counter};
use tokio::time::{Instant, sleep_until};

use crate::Drain;
use crate::buffers::{Buffer, Buffers, LARGE, SMALL};
use crate::halves::{Abort, Duplex, ReadSide, WriteSide};

/// How long a direction without traffic keeps its buffer.
const KEEP: Duration = Duration::from_secs(1);
/// How much one direction copies before the other one and other tasks have their turn.
const TURN: usize = 1 << 20;

/// Time limits of a splice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpliceOptions {
    /// How long a receiver may take no byte while there is something to send to it.
    pub stall: Duration,
    /// How long one side may send nothing after the other side has finished.
    pub half_close: Duration,
}

/// How a splice ended. All but [`SpliceEnd::Finished`] close both connections with RST.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpliceEnd {
    /// Both sides have finished, and every byte was passed on.
    Finished,
    /// Either side failed.
    Reset,
    /// A time limit of [`SpliceOptions`] has passed.
    Stalled,
    /// The drain's deadline has passed.
    Aborted,
}

impl SpliceEnd {
    /// The outcome for [`FlowLine::end`](crate::FlowLine::end) and for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Finished => "ok",
            Self::Reset => "reset",
            Self::Stalled => "stalled",
            Self::Aborted => "aborted",
        }
    }
}

/// What a splice has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spliced {
    /// Bytes from the client to the upstream.
    pub up: u64,
    /// Bytes from the upstream to the client.
    pub down: u64,
    /// How it ended.
    pub end: SpliceEnd,
}

/// The live byte counts of a target, `qudag_sidecar_bytes_total{kind,target,direction}`.
#[derive(Clone, Debug)]
pub struct ByteCounters {
    up: Counter,
    down: Counter,
}

impl ByteCounters {
    /// The counters of a kind and a target. The target becomes a label, so it is a name from the configuration.
    pub fn new(kind: &'static str, target: &str) -> Self {
        let of = |direction: &'static str| {
            counter!("qudag_sidecar_bytes_total",
                "kind" => kind, "target" => target.to_owned(), "direction" => direction)
        };
        Self { up: of("up"), down: of("down") }
    }

    /// Adds bytes that were copied before a splice or without one.
    pub fn add(&self, up: u64, down: u64) {
        self.up.increment(up);
        self.down.increment(down);
    }
}

/// Copies both ways. FIN is passed on for each direction on its own; a failure of one side is passed on as RST to both
/// (RFC 9293 section 3.10.4). A side that does not read holds back the other one and costs no more than one buffer.
pub async fn splice<C: Duplex, U: Duplex>(
    client: C,
    upstream: U,
    options: SpliceOptions,
    drain: &Drain,
    counters: &ByteCounters,
) -> Spliced {
    splice_after(Early::default(), client, upstream, options, &Buffers::default(), drain, counters).await
}

/// What was read of both sides before a splice, and is to be written first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Early {
    /// Of the client, for the upstream.
    pub up: Vec<u8>,
    /// Of the upstream, for the client.
    pub down: Vec<u8>,
}

/// Copies as [`splice`] does, after what was read earlier. That counts among the bytes of the splice. `buffers` are used, one for each direction
/// as long as there is traffic: [`SMALL`] bytes at first, and twice as many whenever a read has filled it, up to [`LARGE`].
pub async fn splice_after<C: Duplex, U: Duplex>(
    early: Early,
    mut client: C,
    mut upstream: U,
    options: SpliceOptions,
    buffers: &Buffers,
    drain: &Drain,
    counters: &ByteCounters,
) -> Spliced {
    let mut up = Direction::after(early.up, options, buffers);
    let mut down = Direction::after(early.down, options, buffers);
    let end = {
        let (mut client_read, mut client_write, client_failed) = client.split();
        let (mut upstream_read, mut upstream_write, upstream_failed) = upstream.split();
        // A direction that waits for one side does not see the other one fail.
        let mut failed = pin!(async {
            tokio::select! {
                () = client_failed => {}
                () = upstream_failed => {}
            }
        });
        let mut aborted = pin!(drain.aborted());
        let mut timer = pin!(sleep_until(Instant::now()));
        let mut armed = None;
        poll_fn(|cx| {
            let mut now = Instant::now();
            let up_done = up.poll(cx, now, &mut client_read, &mut upstream_write, &counters.up);
            let down_done = down.poll(cx, now, &mut upstream_read, &mut client_write, &counters.down);
            match (up_done, down_done) {
                (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_))) => return Poll::Ready(SpliceEnd::Reset),
                (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(SpliceEnd::Finished),
                (Poll::Ready(Ok(())), Poll::Pending) => down.other_finished(now),
                (Poll::Pending, Poll::Ready(Ok(()))) => up.other_finished(now),
                (Poll::Pending, Poll::Pending) => {}
            }
            if failed.as_mut().poll(cx).is_ready() {
                return Poll::Ready(SpliceEnd::Reset);
            }
            if aborted.as_mut().poll(cx).is_ready() {
                return Poll::Ready(SpliceEnd::Aborted);
            }
            // The timer is moved forward only, and looks at the true limits when it fires: progress resets nothing.
            loop {
                if up.is_late(now) || down.is_late(now) {
                    return Poll::Ready(SpliceEnd::Stalled);
                }
                let Some(due) = up.due().into_iter().chain(down.due()).min() else { return Poll::Pending };
                if armed.is_none_or(|armed| due < armed) {
                    timer.as_mut().reset(due);
                    armed = Some(due);
                }
                if timer.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                armed = None;
                now = Instant::now();
            }
        })
        .await
    };
    let abort = match end {
        SpliceEnd::Finished => None,
        SpliceEnd::Reset => Some(Abort::Reset),
        SpliceEnd::Stalled => Some(Abort::Stalled),
        SpliceEnd::Aborted => Some(Abort::Draining),
    };
    match abort {
        None => {
            tokio::join!(client.close(), upstream.close());
        }
        Some(why) => {
            client.reset(why);
            upstream.reset(why);
        }
    }
    Spliced { up: up.total, down: down.total, end }
}

/// One direction of a splice.
struct Direction<'a> {
    options: SpliceOptions,
    buffers: &'a Buffers,
    /// Without room when there has been no traffic for a while, or when the receiver has kept it.
    buffer: Buffer,
    /// How large a buffer is wanted.
    size: usize,
    total: u64,
    state: State,
    /// The other direction has finished.
    alone: bool,
    /// When bytes moved last.
    moved: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Reading,
    /// The sender has finished; what is in the buffer is still to be written.
    Ending,
    Done,
}

impl<'a> Direction<'a> {
    /// A direction of which some bytes were read earlier.
    fn after(early: Vec<u8>, options: SpliceOptions, buffers: &'a Buffers) -> Self {
        Self {
            options,
            buffers,
            buffer: Buffer::from(early),
            size: SMALL,
            total: 0,
            state: State::Reading,
            alone: false,
            moved: Instant::now(),
        }
    }

    /// Ready when the sender has finished and the receiver knows.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        from: &mut impl ReadSide,
        to: &mut impl WriteSide,
        count: &Counter,
    ) -> Poll<io::Result<()>> {
        let mut turn = 0;
        loop {
            match self.state {
                State::Done => return Poll::Ready(Ok(())),
                _ if !self.buffer.is_empty() => {
                    let written = std::task::ready!(to.poll_write_buffer(cx, &mut self.buffer))?;
                    if written == 0 {
                        return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                    }
                    self.moved = now;
                    self.total += written as u64;
                    count.increment(written as u64);
                    turn += written;
                }
                State::Ending => {
                    to.finish()?;
                    self.state = State::Done;
                    self.buffer = Buffer::default();
                }
                State::Reading if turn >= TURN => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                State::Reading => {
                    std::task::ready!(self.poll_read(cx, from))?;
                    self.moved = now;
                    if self.buffer.is_empty() {
                        self.state = State::Ending;
                    }
                }
            }
        }
    }

    /// Fills the empty buffer; nothing is filled at the end of the stream.
    fn poll_read(&mut self, cx: &mut Context<'_>, from: &mut impl ReadSide) -> Poll<io::Result<()>> {
        if self.buffer.size() != self.size {
            if self.buffer.size() < SMALL {
                // No buffer before there is something to put into it; what was read earlier may have had a smaller one.
                std::task::ready!(from.poll_readable(cx))?;
            }
            // The old one goes first, and there is nothing in it that were worth copying.
            self.buffer = Buffer::default();
            self.buffer = self.buffers.take(self.size);
        }
        if std::task::ready!(self.buffer.poll_fill(cx, from))? {
            self.size = (2 * self.size).min(LARGE);
        }
        Poll::Ready(Ok(()))
    }

    fn other_finished(&mut self, now: Instant) {
        if !self.alone {
            self.alone = true;
            self.moved = now;
        }
    }

    /// When the connection counts as stalled if nothing moves until then.
    fn limit(&self) -> Option<Instant> {
        match self.state {
            State::Done => None,
            _ if !self.buffer.is_empty() => self.moved.checked_add(self.options.stall),
            _ if self.alone => self.moved.checked_add(self.options.half_close),
            _ => None,
        }
    }

    /// When the idle buffer is given back.
    fn release(&self) -> Option<Instant> {
        let kept = self.buffer.size() > 0 || self.size > SMALL;
        (self.buffer.is_empty() && self.state != State::Done && kept).then(|| self.moved + KEEP)
    }

    fn due(&self) -> Option<Instant> {
        self.limit().into_iter().chain(self.release()).min()
    }

    /// Whether the time limit has passed. Gives back the buffer when its time has come.
    fn is_late(&mut self, now: Instant) -> bool {
        if self.release().is_some_and(|release| release <= now) {
            self.buffer = Buffer::default();
            self.size = SMALL;
        }
        self.limit().is_some_and(|limit| limit <= now)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::*;
    use crate::Stream;

    #[tokio::test]
    async fn a_buffer_is_there_for_traffic_only_and_grows_with_it() {
        let (mut sender, from) = UnixStream::pair().unwrap();
        let (to, mut receiver) = UnixStream::pair().unwrap();
        let (mut from, mut to) =
            (Stream::Unix(from.try_into().unwrap()), Stream::Unix(to.try_into().unwrap()));
        let ((mut from, ..), (_, mut to, _)) = (from.split(), to.split());
        let limit = Duration::from_secs(60);
        let options = SpliceOptions { stall: limit, half_close: limit };
        let buffers = Buffers::default();
        let mut direction = Direction::after(Vec::new(), options, &buffers);
        let start = Instant::now();

        let mut copied = 0;
        let kib = 1024;
        let steps = [(0, 0), (10, 4), (4 * kib, 8), (100, 8), (8 * kib, 16), (100_000, 64), (100_000, 64)];
        for (length, size) in steps {
            sender.write_all(&vec![1; length]).await.unwrap();
            copied += length as u64;
            loop {
                let all = direction.total == copied;
                let polled = poll_fn(|cx| {
                    Poll::Ready(direction.poll(cx, start, &mut from, &mut to, &Counter::noop()))
                });
                assert!(polled.await.is_pending());
                if all {
                    break;
                }
                tokio::task::yield_now().await;
            }
            assert_eq!(direction.buffer.size(), size * kib, "after {length} bytes");
            receiver.read_exact(&mut vec![0; length]).await.unwrap();
        }

        assert_eq!(direction.due(), Some(start + KEEP));
        assert!(!direction.is_late(start + KEEP));
        assert_eq!((direction.buffer.size(), direction.due()), (0, None));
    }
}
