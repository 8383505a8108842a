//! One connection to a server, with its machine.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Buf, BytesMut};
use metrics::counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::io::poll_read_buf;

use super::desk::Connection;
use super::registry::{ServerTrace, Trace};
use crate::auth::SecureStream;
use crate::session::Server;

/// How much is read at a time, and how much when that was not enough.
const READ: usize = 8 << 10;
const READ_MUCH: usize = 64 << 10;

/// Reads what is there into a buffer, whose room grows with what comes: whoever waits for a few bytes holds no more than those.
pub(crate) fn poll_read(
    stream: &mut (impl AsyncRead + Unpin),
    cx: &mut Context<'_>,
    buffer: &mut BytesMut,
) -> Poll<io::Result<usize>> {
    if buffer.capacity() - buffer.len() >= READ / 2 {
        return poll_read_buf(Pin::new(stream), cx, buffer);
    }
    let mut read = [MaybeUninit::uninit(); READ];
    let mut read = ReadBuf::uninit(&mut read);
    ready!(Pin::new(stream).poll_read(cx, &mut read))?;
    if read.remaining() == 0 {
        buffer.reserve(READ_MUCH);
    }
    buffer.extend_from_slice(read.filled());
    Poll::Ready(Ok(read.filled().len()))
}

/// Writes as much as is taken; ready when nothing is left.
pub(crate) fn poll_write(
    stream: &mut (impl AsyncWrite + Unpin),
    cx: &mut Context<'_>,
    buffer: &mut BytesMut,
) -> Poll<io::Result<()>> {
    while !buffer.is_empty() {
        match Pin::new(&mut *stream).poll_write(cx, buffer) {
            Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Poll::Ready(Ok(written)) => buffer.advance(written),
            Poll::Ready(Err(why)) => return Poll::Ready(Err(why)),
            Poll::Pending => return Poll::Pending,
        }
    }
    Pin::new(stream).poll_flush(cx)
}

/// The key that a server gave for cancelling what it does.
#[derive(Clone)]
pub(crate) struct CancelKey {
    pub(crate) process: u32,
    pub(crate) secret: Box<[u8]>,
}

/// Not the secret: whoever has it can cancel.
impl std::fmt::Debug for CancelKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CancelKey").field("process", &self.process).finish_non_exhaustive()
    }
}

/// A connection to a server after its login.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) machine: Server,
    pub(crate) stream: SecureStream,
    /// Towards the server.
    pub(crate) up: BytesMut,
    /// From the server.
    pub(crate) down: BytesMut,
    pub(crate) key: CancelKey,
    /// Since when it is there, and since when nobody uses it.
    pub(crate) created: Instant,
    pub(crate) idle_since: Instant,
    /// What others see of it.
    pub(crate) seen: Arc<ServerTrace>,
    /// CancelRequests that are on their way say here that they have arrived.
    cancels: (mpsc::UnboundedSender<()>, mpsc::UnboundedReceiver<()>),
    cancelling: u32,
}

impl Conn {
    pub(crate) fn new(machine: Server, stream: SecureStream, key: CancelKey, now: Instant) -> Self {
        let (process, encrypted) = (key.process, stream.is_encrypted());
        Self {
            machine,
            stream,
            up: BytesMut::new(),
            down: BytesMut::new(),
            key,
            created: now,
            idle_since: now,
            seen: Arc::new(ServerTrace { process, encrypted, trace: Trace::new(now) }),
            cancels: mpsc::unbounded_channel(),
            cancelling: 0,
        }
    }

    /// A CancelRequest is being sent: whoever sends it says here when the server has closed its connection.
    pub(crate) fn cancel_begun(&mut self) -> mpsc::UnboundedSender<()> {
        self.cancelling += 1;
        self.machine.cancel_begun();
        self.cancels.0.clone()
    }

    /// Resolves when a CancelRequest has arrived.
    pub(crate) fn poll_cancelled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.cancelling == 0 {
            return Poll::Pending;
        }
        match self.cancels.1.poll_recv(cx) {
            Poll::Ready(_) => {
                self.cancelling -= 1;
                self.machine.cancel_done();
                Poll::Ready(())
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Connection for Conn {
    fn since(&self) -> (Instant, Instant) {
        (self.created, self.idle_since)
    }

    /// Whether nothing came while nobody had it. What a server says then is why it closes the connection, or a parameter that was
    /// changed for everybody; in both cases a new connection knows better.
    fn is_quiet(&mut self) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        poll_read(&mut self.stream, &mut cx, &mut self.down).is_pending()
    }
}

/// Counts why a connection to a server was closed.
pub(crate) fn closed(reason: &'static str) {
    counter!("qudag_sidecar_db_servers_closed_total", "reason" => reason).increment(1);
}
