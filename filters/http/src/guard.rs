//! The bytes of an HTTP/1 client on their way to hyper: scanned, and under time limits.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::scanner::{Scanner, Violation};

/// What hyper gets in place of a head that must be refused: it answers 400 and closes, in order behind earlier replies.
const REFUSE: &[u8] = b"\0\r\n\r\n";

/// What a connection's guard and its requests know of each other.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Requests whose response is not complete.
    busy: AtomicUsize,
    /// Requests so far.
    served: AtomicUsize,
    /// The protocol has changed: the bytes are not HTTP any more.
    tunnel: AtomicBool,
}

impl Shared {
    pub(crate) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Acquire) > 0
    }

    pub(crate) fn served(&self) -> usize {
        self.served.load(Ordering::Acquire)
    }

    /// From here on everything passes.
    pub(crate) fn change_protocol(&self) {
        self.tunnel.store(true, Ordering::Release);
    }
}

/// A request whose response is not complete.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Shared>);

impl Busy {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        shared.busy.fetch_add(1, Ordering::AcqRel);
        shared.served.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(shared))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::AcqRel);
    }
}

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// From the first byte of a head to its last.
    pub header: Duration,
    /// Between requests.
    pub idle: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    ForRequest,
    ForHead,
}

#[derive(Debug)]
enum State {
    Passing,
    /// Bytes to give in place of what the client sent, then the end.
    Refusing(&'static [u8]),
    /// The body is broken.
    Broken,
}

/// A stream whose input has passed the scanner.
#[derive(Debug)]
pub(crate) struct Guard<S> {
    stream: S,
    /// What was read before the guard was there.
    before: Bytes,
    scanner: Scanner,
    state: State,
    shared: Arc<Shared>,
    limits: Limits,
    waiting: Option<Waiting>,
    timer: Pin<Box<Sleep>>,
}

impl<S> Guard<S> {
    pub(crate) fn new(stream: S, before: Bytes, shared: Arc<Shared>, limits: Limits) -> Self {
        Self {
            stream,
            before,
            scanner: Scanner::new(),
            state: State::Passing,
            shared,
            limits,
            waiting: None,
            timer: Box::pin(sleep_until(Instant::now())),
        }
    }

    /// Ready when the client has taken too long.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<Waiting> {
        if self.shared.is_busy() {
            // hyper reads again when the response is complete, and the time starts then.
            self.waiting = None;
            return Poll::Pending;
        }
        let waiting = if self.scanner.is_idle() { Waiting::ForRequest } else { Waiting::ForHead };
        if self.waiting != Some(waiting) {
            let limit = if waiting == Waiting::ForRequest { self.limits.idle } else { self.limits.header };
            let Some(due) = Instant::now().checked_add(limit) else { return Poll::Pending };
            self.timer.as_mut().reset(due);
            self.waiting = Some(waiting);
        }
        self.timer.as_mut().poll(cx).map(|()| waiting)
    }

    /// Looks at what was just read, from `start` on.
    fn scan(&mut self, start: usize, buf: &mut ReadBuf<'_>) {
        let heads = self.scanner.heads();
        let scanned = self.scanner.scan(buf.filled().get(start..).unwrap_or_default());
        if self.scanner.heads() != heads {
            self.waiting = None;
        }
        match scanned {
            Ok(()) => {}
            Err(Violation::Head { at }) => {
                buf.set_filled(start + at);
                self.state = State::Refusing(REFUSE);
            }
            Err(Violation::Body { at }) => {
                buf.set_filled(start + at);
                self.state = State::Broken;
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let tunnel = this.shared.tunnel.load(Ordering::Acquire);
        let start = buf.filled().len();
        if matches!(this.state, State::Passing) {
            if this.before.has_remaining() {
                let now = this.before.len().min(buf.remaining());
                buf.put_slice(&this.before.split_to(now));
            } else if Pin::new(&mut this.stream).poll_read(cx, buf)?.is_pending() {
                if tunnel {
                    return Poll::Pending;
                }
                return match this.poll_late(cx) {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(Waiting::ForRequest) => Poll::Ready(Ok(())),
                    Poll::Ready(Waiting::ForHead) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
                };
            }
            if tunnel || buf.filled().len() == start {
                return Poll::Ready(Ok(()));
            }
            this.scan(start, buf);
            if buf.filled().len() > start {
                return Poll::Ready(Ok(()));
            }
        }
        match &mut this.state {
            State::Passing => {}
            State::Refusing(rest) => {
                let now = rest.len().min(buf.remaining());
                let (give, keep) = rest.split_at(now);
                buf.put_slice(give);
                *rest = keep;
            }
            State::Broken => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    fn guarded(before: &'static [u8]) -> (Guard<DuplexStream>, DuplexStream, Arc<Shared>) {
        let (ours, theirs) = duplex(1024);
        let shared = Arc::new(Shared::default());
        let limits = Limits { header: Duration::from_secs(10), idle: Duration::from_secs(60) };
        (Guard::new(ours, Bytes::from_static(before), Arc::clone(&shared), limits), theirs, shared)
    }

    #[tokio::test]
    async fn a_bad_head_is_replaced_and_ends_the_connection() {
        let good = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let (mut guard, mut client, _) = guarded(good);
        client.write_all(b"GET /x HTTP/1.1\r\nHost: a\nX: y\r\n\r\nmore").await.unwrap();
        let mut seen = Vec::new();
        guard.read_to_end(&mut seen).await.unwrap();
        assert_eq!(seen, [&good[..], b"GET /x HTTP/1.1\r\nHost: a", REFUSE].concat());
    }

    #[tokio::test]
    async fn a_bad_body_is_an_error_after_its_head() {
        let (mut guard, mut client, _) = guarded(b"");
        let head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        client.write_all(&[&head[..], b"+5\r\n"].concat()).await.unwrap();
        let mut seen = Vec::new();
        assert_eq!(guard.read_to_end(&mut seen).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(seen, head);
    }

    #[tokio::test(start_paused = true)]
    async fn idle_clients_and_slow_heads_are_closed_and_busy_ones_are_not() {
        let (mut guard, _client, _) = guarded(b"");
        let start = Instant::now();
        assert_eq!(guard.read(&mut [0; 9]).await.unwrap(), 0);
        assert_eq!(start.elapsed().as_secs(), 60);

        let (mut guard, mut client, _) = guarded(b"GET / H");
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(3)).await;
                let _ = client.write_all(b"T").await;
            }
        });
        let start = Instant::now();
        let mut seen = Vec::new();
        assert_eq!(guard.read_to_end(&mut seen).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(start.elapsed().as_secs(), 10);

        let (mut guard, _client, shared) = guarded(b"");
        let busy = Busy::new(&shared);
        let mut read = [0; 9];
        assert!(tokio::time::timeout(Duration::from_secs(3600), guard.read(&mut read)).await.is_err());
        drop(busy);
        assert_eq!(guard.read(&mut read).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn another_protocol_passes_untouched() {
        let (mut guard, mut client, shared) = guarded(b"");
        shared.change_protocol();
        client.write_all(b"\x81\0\n\r\r").await.unwrap();
        drop(client);
        let mut seen = Vec::new();
        guard.read_to_end(&mut seen).await.unwrap();
        assert_eq!(seen, b"\x81\0\n\r\r");
    }
}
