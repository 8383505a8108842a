//! Streams over Unix domain sockets that are woken for what has come, and for nothing else.
//!
//! Such a socket tells whoever watches it for writing about each message that the peer takes, whether there was room all the time or not (unlike TCP). A thread
//! that waits for the next request would be woken by its last reply. So a socket is watched for reading, and for writing only while a
//! write has to wait.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as Socket;
use std::pin::Pin;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::unix::UCred;

/// The least and the most that is read at once. Room is overwritten with zeros before it is read into, so it is as much as was needed lately.
const ROOM: (usize, usize) = (8 << 10, 128 << 10);

/// A connected Unix domain socket.
#[derive(Debug)]
pub struct UnixStream {
    socket: AsyncFd<Socket>,
    /// How much is read at once.
    read: AtomicUsize,
    /// While a write waits: a duplicate of the socket that is watched for room.
    room: Option<AsyncFd<OwnedFd>>,
    peer: Option<UCred>,
}

/// What a [`UnixStream`] receives.
#[derive(Clone, Copy, Debug)]
pub struct UnixRead<'a> {
    socket: &'a AsyncFd<Socket>,
    size: &'a AtomicUsize,
}

/// What a [`UnixStream`] sends.
#[derive(Debug)]
pub struct UnixWrite<'a> {
    socket: &'a AsyncFd<Socket>,
    room: &'a mut Option<AsyncFd<OwnedFd>>,
}

impl UnixStream {
    /// Puts a socket on the current runtime.
    ///
    /// # Errors
    /// What the operating system says; the socket is closed.
    pub fn new(socket: Socket) -> io::Result<Self> {
        tokio::net::UnixStream::from_std(socket)?.try_into()
    }

    /// The process at the other end, as it was when it connected (`SO_PEERCRED`, unix(7)).
    pub fn peer(&self) -> Option<UCred> {
        self.peer
    }

    /// Takes the socket off the runtime.
    pub fn into_std(self) -> Socket {
        self.socket.into_inner()
    }

    /// Both directions.
    pub fn split(&mut self) -> (UnixRead<'_>, UnixWrite<'_>) {
        let Self { socket, read: size, room, .. } = self;
        (UnixRead { socket, size }, UnixWrite { socket, room })
    }

    fn writer(&mut self) -> UnixWrite<'_> {
        self.split().1
    }
}

impl UnixRead<'_> {
    /// Ready when a read would not block.
    pub fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_read_ready(cx).map_ok(drop)
    }

    /// Reads into the buffer; nothing at the end of the stream.
    pub fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (least, most) = ROOM;
        let size = self.size.load(Relaxed);
        loop {
            let mut ready = ready!(self.socket.poll_read_ready(cx))?;
            let room = buffer.initialize_unfilled_to(buffer.remaining().min(size));
            let length = room.len();
            match self.socket.get_ref().read(room) {
                Ok(read) => {
                    buffer.advance(read);
                    // What gives less than there is room for is empty (epoll(7), question 9).
                    if 0 < read && read < length {
                        ready.clear_ready();
                    }
                    if read == size {
                        self.size.store((4 * size).min(most), Relaxed);
                    } else if read < size / 4 {
                        self.size.store((size / 4).max(least), Relaxed);
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(why) => return Poll::Ready(Err(why)),
            }
        }
    }

    /// Resolves when the socket has failed.
    pub async fn failed(self) {
        // An error here means that the runtime stops.
        let _ = self.socket.ready(Interest::ERROR).await;
    }
}

impl UnixWrite<'_> {
    /// Writes some of the bytes, at least one.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_with(cx, |mut socket| socket.write(bytes))
    }

    /// Ends this direction.
    ///
    /// # Errors
    /// When the stream has failed.
    pub fn finish(&self) -> io::Result<()> {
        self.socket.get_ref().shutdown(Shutdown::Write)
    }

    fn poll_with(
        &mut self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&Socket) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = match &self.room {
                Some(room) => Some(ready!(room.poll_write_ready(cx))?),
                None => None,
            };
            match write(self.socket.get_ref()) {
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => match &mut ready {
                    Some(ready) => ready.clear_ready(),
                    None => {
                        let socket = self.socket.get_ref().as_fd().try_clone_to_owned()?;
                        *self.room = Some(watch(socket, Interest::WRITABLE)?);
                    }
                },
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                done => {
                    *self.room = None;
                    return Poll::Ready(done);
                }
            }
        }
    }
}

/// Watches a socket on the current runtime.
#[expect(deprecated, reason = "what replaces it is unsafe, for types that own no descriptor; those here do")]
fn watch<T: AsRawFd + AsFd>(socket: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(socket, interest)
}

impl TryFrom<tokio::net::UnixStream> for UnixStream {
    type Error = io::Error;

    fn try_from(stream: tokio::net::UnixStream) -> io::Result<Self> {
        let peer = stream.peer_cred().ok();
        let socket = watch(stream.into_std()?, Interest::READABLE)?;
        Ok(Self { socket, read: AtomicUsize::new(ROOM.0), room: None, peer })
    }
}

impl AsFd for UnixStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsyncRead for UnixStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.get_mut().split().0.poll_read(cx, buf)
    }
}

impl AsyncWrite for UnixStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().writer().poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().writer().poll_with(cx, |mut socket| socket.write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Sockets hold nothing back.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.get_mut().writer().finish())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;

    fn pair() -> (UnixStream, UnixStream) {
        let (one, other) = tokio::net::UnixStream::pair().unwrap();
        (one.try_into().unwrap(), other.try_into().unwrap())
    }

    /// Bytes that are told from each other wherever they go.
    fn noise(length: usize) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(1);
        (0..length).map(|_| random.u8(..)).collect()
    }

    #[tokio::test]
    async fn what_does_not_fit_waits_for_room() {
        let (mut one, mut other) = pair();
        let sent = noise(3_000_000);
        let mut received = Vec::new();
        let write = async {
            one.write_all(&sent).await.unwrap();
            assert!(one.room.is_none(), "nothing waits any more");
            one.shutdown().await.unwrap();
        };
        tokio::join!(write, async { other.read_to_end(&mut received).await.unwrap() });
        assert!(received == sent);
    }

    #[tokio::test]
    async fn a_write_that_waits_is_watched_and_sees_the_end() {
        let (mut one, other) = pair();
        let full = async {
            loop {
                one.write_all(&[0; 4096]).await.unwrap();
            }
        };
        assert!(timeout(Duration::from_millis(100), full).await.is_err());
        assert!(one.room.is_some());
        drop(other);
        assert_eq!(one.write(b"more").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn both_directions_at_once() {
        let (mut one, mut other) = pair();
        let bytes = noise(1_000_000);
        let exchange = async |stream: UnixStream| {
            let (mut read, mut write) = tokio::io::split(stream);
            let mut received = vec![0; bytes.len()];
            let (sent, read) = tokio::join!(write.write_all(&bytes), read.read_exact(&mut received));
            assert!(sent.is_ok() && read.is_ok());
            assert!(received == bytes);
        };
        one.write_all(b"first").await.unwrap();
        let mut first = [0; 5];
        other.read_exact(&mut first).await.unwrap();
        tokio::join!(exchange(one), exchange(other));
    }

    #[tokio::test]
    async fn the_peer_is_this_process() {
        let (one, _other) = pair();
        assert_eq!(one.peer().unwrap().pid(), i32::try_from(std::process::id()).ok());
        assert!(one.into_std().peer_addr().unwrap().is_unnamed());
    }

    /// A reply that is taken does not wake who waits for the next request.
    #[tokio::test]
    async fn what_the_peer_takes_wakes_nobody() {
        let (one, mut other) = Socket::pair().unwrap();
        one.set_nonblocking(true).unwrap();
        let mut one = UnixStream::new(one).unwrap();
        one.write_all(b"a reply").await.unwrap();
        #[expect(clippy::disallowed_methods, reason = "the peer has a thread of its own")]
        let pause = || std::thread::sleep(Duration::from_millis(50));
        let peer = std::thread::spawn(move || {
            pause();
            other.read_exact(&mut [0; 7]).unwrap();
            pause();
            other.write_all(b"!").unwrap();
        });
        let waits = || tokio::runtime::Handle::current().metrics().worker_park_count(0);
        let before = waits();
        assert_eq!(one.read_u8().await.unwrap(), b'!');
        assert_eq!(waits() - before, 1);
        peer.join().unwrap();
    }
}
