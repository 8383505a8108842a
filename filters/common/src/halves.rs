//! The two directions of a [`Stream`], borrowed.

use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::io::{AsyncRead, Interest, ReadBuf};
use tokio::net::{tcp, unix};

use crate::Stream;

/// What a stream receives.
#[derive(Debug)]
pub(crate) enum ReadSide<'a> {
    Tcp(tcp::ReadHalf<'a>),
    Unix(unix::ReadHalf<'a>),
}

/// What a stream sends. Its methods take `&self`, so that one task can write, and another future of that task watch.
#[derive(Debug)]
pub(crate) enum WriteSide<'a> {
    Tcp(tcp::WriteHalf<'a>),
    Unix(unix::WriteHalf<'a>),
}

impl Stream {
    pub(crate) fn split(&mut self) -> (ReadSide<'_>, WriteSide<'_>) {
        match self {
            Self::Tcp(tcp) => {
                let (read, write) = tcp.split();
                (ReadSide::Tcp(read), WriteSide::Tcp(write))
            }
            Self::Unix(unix) => {
                let (read, write) = unix.split();
                (ReadSide::Unix(read), WriteSide::Unix(write))
            }
        }
    }
}

impl ReadSide<'_> {
    /// Ready when a read would not block.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(half) => half.as_ref().poll_read_ready(cx),
            Self::Unix(half) => half.as_ref().poll_read_ready(cx),
        }
    }

    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(half) => Pin::new(half).poll_read(cx, buffer),
            Self::Unix(half) => Pin::new(half).poll_read(cx, buffer),
        }
    }
}

impl WriteSide<'_> {
    /// Ready when a write would not block.
    pub(crate) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(half) => half.as_ref().poll_write_ready(cx),
            Self::Unix(half) => half.as_ref().poll_write_ready(cx),
        }
    }

    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(half) => half.try_write(bytes),
            Self::Unix(half) => half.try_write(bytes),
        }
    }

    /// Sends FIN.
    pub(crate) fn finish(&self) -> io::Result<()> {
        match self {
            Self::Tcp(half) => SockRef::from(half.as_ref()).shutdown(Shutdown::Write),
            Self::Unix(half) => SockRef::from(half.as_ref()).shutdown(Shutdown::Write),
        }
    }

    /// Resolves when the connection has failed, by a received RST for instance.
    pub(crate) async fn failed(&self) {
        let failed = match self {
            Self::Tcp(half) => half.ready(Interest::ERROR).await,
            Self::Unix(half) => half.ready(Interest::ERROR).await,
        };
        // An error here means that the runtime stops.
        drop(failed);
    }
}
