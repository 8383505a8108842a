//! A stream of the tunnel as one end of a splice.

use std::fmt;
use std::future::{Future, pending};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use qudag_filter_common::{Abort, Buffer, Duplex, ReadSide, WriteSide};
use quinn::{ReadError, RecvStream, SendStream, VarInt};
use tokio::io::ReadBuf;
use tokio::time::timeout;

/// The most bytes that are taken from QUIC at once.
const CHUNK: usize = 64 << 10;
/// How long the other side may take to acknowledge the end of a stream.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Why a stream was reset, on the wire.
fn code(why: Abort) -> VarInt {
    match why {
        Abort::Reset => VarInt::from_u32(1),
        Abort::Stalled => VarInt::from_u32(2),
        Abort::Draining => VarInt::from_u32(3),
    }
}

/// A stream whose beginning is over: what comes and goes is payload. Dropped before both directions have ended, it is reset: an end that
/// was not one would be taken for the end of the data.
pub struct TunnelStream {
    send: SendStream,
    receive: RecvStream,
    ahead: Ahead,
    /// How much of what the client had sent before is on its way already.
    sent: usize,
    /// Neither drop nor reset changes anything any more.
    over: bool,
    /// Keeps the connection for as long as the stream lasts.
    _hold: Box<dyn Send + Sync>,
}

/// What was taken from QUIC and is not read yet.
#[derive(Debug, Default)]
struct Ahead {
    bytes: Bytes,
    ended: bool,
}

impl TunnelStream {
    /// Of both halves. `hold` is kept as long as the stream.
    pub(crate) fn new(
        send: SendStream,
        receive: RecvStream,
        sent: usize,
        hold: impl Send + Sync + 'static,
    ) -> Self {
        Self { send, receive, ahead: Ahead::default(), sent, over: false, _hold: Box::new(hold) }
    }

    /// How many bytes that the client had sent before the stream was open are on their way.
    pub fn sent(&self) -> usize {
        self.sent
    }

    fn abort(&mut self, why: Abort) {
        if !self.over {
            self.over = true;
            // Both fail when the other side was faster.
            let _ = self.send.reset(code(why));
            let _ = self.receive.stop(code(why));
        }
    }
}

impl fmt::Debug for TunnelStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelStream").field("id", &self.send.id()).finish_non_exhaustive()
    }
}

impl Drop for TunnelStream {
    fn drop(&mut self) {
        self.abort(Abort::Reset);
    }
}

impl Duplex for TunnelStream {
    type Read<'a> = TunnelRead<'a>;
    type Write<'a> = TunnelWrite<'a>;

    fn split(&mut self) -> (TunnelRead<'_>, TunnelWrite<'_>, impl Future<Output = ()> + Send) {
        let stopped = self.send.stopped();
        let failed = async move {
            // Acknowledged to the end, which is no failure.
            if let Ok(None) = stopped.await {
                pending::<()>().await;
            }
        };
        (
            TunnelRead { receive: &mut self.receive, ahead: &mut self.ahead },
            TunnelWrite(&mut self.send),
            failed,
        )
    }

    async fn close(mut self) {
        if timeout(LAST_WORDS, self.send.stopped()).await.is_ok() {
            self.over = true;
        }
    }

    fn reset(mut self, why: Abort) {
        self.abort(why);
    }
}

/// What a [`TunnelStream`] receives.
#[derive(Debug)]
pub struct TunnelRead<'a> {
    receive: &'a mut RecvStream,
    ahead: &'a mut Ahead,
}

impl ReadSide for TunnelRead<'_> {
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ahead.bytes.is_empty() && !self.ahead.ended {
            match ready!(pin!(self.receive.read_chunk(CHUNK, true)).poll(cx)).map_err(failed)? {
                Some(chunk) => self.ahead.bytes = chunk.bytes,
                None => self.ahead.ended = true,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_readable(cx))?;
        while buffer.remaining() > 0 && !self.ahead.bytes.is_empty() {
            let length = self.ahead.bytes.len().min(buffer.remaining());
            if let Some(bytes) = self.ahead.bytes.get(..length) {
                buffer.put_slice(bytes);
            }
            self.ahead.bytes.advance(length);
            // What else has come already. A failure is told again at the next read.
            if buffer.remaining() > 0 && !matches!(self.poll_readable(cx), Poll::Ready(Ok(()))) {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// What a [`TunnelStream`] sends.
#[derive(Debug)]
pub struct TunnelWrite<'a>(&'a mut SendStream);

impl WriteSide for TunnelWrite<'_> {
    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write(cx, bytes).map_err(Into::into)
    }

    /// QUIC keeps what it sends until it is acknowledged: where it can have the whole buffer, nothing is copied.
    fn poll_write_buffer(&mut self, cx: &mut Context<'_>, buffer: &mut Buffer) -> Poll<io::Result<usize>> {
        let Some(rest) = buffer.share() else {
            let written = ready!(self.poll_write(cx, buffer.filled()))?;
            buffer.consume(written);
            return Poll::Ready(Ok(written));
        };
        // Takes what it writes out of the rest.
        let written = ready!(pin!(self.0.write_chunks(std::slice::from_mut(rest))).poll(cx));
        Poll::Ready(Ok(written.map_err(io::Error::from)?.bytes))
    }

    fn finish(&mut self) -> io::Result<()> {
        self.0.finish().map_err(|_| io::ErrorKind::ConnectionReset.into())
    }
}

fn failed(why: ReadError) -> io::Error {
    why.into()
}
