//! The two directions of a byte stream, borrowed, as a splice needs them.

use std::future::Future;
use std::io;
use std::net::Shutdown;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::{Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::Stream;
use crate::buffers::Buffer;
use crate::unix_stream::{UnixRead, UnixWrite};

/// A byte stream with two directions that end apart, one end of a [`splice`](crate::splice()).
pub trait Duplex: Send {
    /// What it receives.
    type Read<'a>: ReadSide
    where
        Self: 'a;
    /// What it sends.
    type Write<'a>: WriteSide
    where
        Self: 'a;

    /// Both directions, and a future that resolves when the stream has failed, by a received RST for instance. A direction that
    /// waits for the other end of the splice does not see that by itself.
    fn split(&mut self) -> (Self::Read<'_>, Self::Write<'_>, impl Future<Output = ()> + Send);

    /// Lets go of the stream after both directions have ended; resolves when the peer has what was sent to it.
    fn close(self) -> impl Future<Output = ()> + Send;

    /// Ends both directions so that the peer sees a failure and not an end.
    fn reset(self, why: Abort);
}

/// Why a stream is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    /// The other end of the splice failed.
    Reset,
    /// A time limit has passed.
    Stalled,
    /// The sidecar ends.
    Draining,
}

/// What a stream receives.
pub trait ReadSide: Send {
    /// Ready when a read would not block. Called before there is a buffer, so that idle streams need none.
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Reads into the buffer; nothing at the end of the stream.
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>>;
}

/// What a stream sends.
pub trait WriteSide: Send {
    /// Writes some of the bytes, at least one.
    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>>;

    /// Writes some of what a buffer holds, at least one byte, and takes it out of the buffer. Who has to keep bytes until they have arrived
    /// may keep the buffer with them and spare a copy ([`Buffer::share`]).
    fn poll_write_buffer(&mut self, cx: &mut Context<'_>, buffer: &mut Buffer) -> Poll<io::Result<usize>> {
        let written = ready!(self.poll_write(cx, buffer.filled()))?;
        buffer.consume(written);
        Poll::Ready(Ok(written))
    }

    /// Ends this direction: FIN.
    ///
    /// # Errors
    /// When the stream has failed.
    fn finish(&mut self) -> io::Result<()>;
}

/// What a [`Stream`] receives.
#[derive(Clone, Copy, Debug)]
pub enum StreamRead<'a> {
    /// TCP.
    Tcp(&'a TcpStream),
    /// A Unix domain socket.
    Unix(UnixRead<'a>),
}

/// What a [`Stream`] sends.
#[derive(Debug)]
pub enum StreamWrite<'a> {
    /// TCP.
    Tcp(&'a TcpStream),
    /// A Unix domain socket.
    Unix(UnixWrite<'a>),
}

impl Duplex for Stream {
    type Read<'a> = StreamRead<'a>;
    type Write<'a> = StreamWrite<'a>;

    fn split(&mut self) -> (StreamRead<'_>, StreamWrite<'_>, impl Future<Output = ()> + Send) {
        let (read, write) = match self {
            Self::Tcp(tcp) => (StreamRead::Tcp(tcp), StreamWrite::Tcp(tcp)),
            Self::Unix(unix) => {
                let (read, write) = unix.split();
                (StreamRead::Unix(read), StreamWrite::Unix(write))
            }
        };
        let failed = read.failed();
        (read, write, failed)
    }

    /// The kernel sends what is left.
    async fn close(self) {}

    fn reset(self, _: Abort) {
        Self::reset(self);
    }
}

impl<'a> StreamRead<'a> {
    /// Resolves when the stream has failed.
    fn failed(&self) -> impl Future<Output = ()> + Send + use<'a> {
        let stream = *self;
        async move {
            match stream {
                // An error here means that the runtime stops.
                Self::Tcp(tcp) => drop(tcp.ready(Interest::ERROR).await),
                Self::Unix(unix) => unix.failed().await,
            }
        }
    }
}

impl ReadSide for StreamRead<'_> {
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(tcp) => tcp.poll_read_ready(cx),
            Self::Unix(unix) => unix.poll_ready(cx),
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let tcp = match self {
            Self::Tcp(tcp) => tcp,
            Self::Unix(unix) => return unix.poll_read(cx, buffer),
        };
        loop {
            match tcp.try_read(buffer.initialize_unfilled()) {
                Ok(read) => {
                    buffer.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => ready!(tcp.poll_read_ready(cx))?,
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(why) => return Poll::Ready(Err(why)),
            }
        }
    }
}

impl WriteSide for StreamWrite<'_> {
    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let tcp = match self {
            Self::Tcp(tcp) => tcp,
            Self::Unix(unix) => return unix.poll_write(cx, bytes),
        };
        loop {
            match tcp.try_write(bytes) {
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => ready!(tcp.poll_write_ready(cx))?,
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(tcp) => SockRef::from(*tcp).shutdown(Shutdown::Write),
            Self::Unix(unix) => unix.finish(),
        }
    }
}
