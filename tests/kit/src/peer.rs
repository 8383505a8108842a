//! Plain TCP peers: an echo server that honours half-close, and a client that checks every byte.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::netns::Namespace;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

/// Sends back what comes, and FIN after FIN. Stops on drop.
pub struct EchoPeer {
    addr: SocketAddr,
    accepted: Arc<AtomicU64>,
    _task: AbortOnDropHandle<()>,
}

impl EchoPeer {
    /// Listens on a free port of 127.0.0.1.
    pub async fn start() -> Self {
        Self::start_on("127.0.0.1:0".parse().unwrap()).await
    }

    /// Listens on an address.
    ///
    /// # Panics
    /// When it is taken.
    pub async fn start_on(addr: SocketAddr) -> Self {
        Self::serve(TcpListener::bind(addr).await.unwrap())
    }

    /// Listens on an address inside a namespace.
    ///
    /// # Panics
    /// When it is taken, or the namespace cannot be entered.
    pub fn start_in(namespace: &Namespace, addr: SocketAddr) -> Self {
        let listener = namespace.inside(|| std::net::TcpListener::bind(addr)).unwrap().unwrap();
        listener.set_nonblocking(true).unwrap();
        Self::serve(TcpListener::from_std(listener).unwrap())
    }

    fn serve(listener: TcpListener) -> Self {
        let addr = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&accepted);
        let task = tokio::spawn(async move {
            loop {
                let Ok((mut stream, _)) = listener.accept().await else { continue };
                count.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    if tokio::io::copy(&mut read, &mut write).await.is_ok() {
                        let _ = write.shutdown().await;
                    }
                });
            }
        });
        Self { addr, accepted, _task: AbortOnDropHandle::new(task) }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How many connections came.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }
}

/// Connects, sends `length` bytes, half-closes, and expects the same bytes back and then the end of the stream.
///
/// # Errors
/// When the connection is refused or reset, or other bytes come.
pub async fn echo(server: SocketAddr, length: usize) -> Result<(), String> {
    let sent: Vec<u8> = (0..length).map(|at| (at.wrapping_mul(31) >> 3) as u8).collect();
    let mut stream = TcpStream::connect(server).await.map_err(|error| format!("connect: {error}"))?;
    let (mut read, mut write) = stream.split();
    let mut received = Vec::with_capacity(length);
    let writing = async {
        write.write_all(&sent).await?;
        write.shutdown().await
    };
    let (written, read) = tokio::join!(writing, read.read_to_end(&mut received));
    written.map_err(|error| format!("write: {error}"))?;
    read.map_err(|error| format!("read: {error}"))?;
    if received == sent { Ok(()) } else { Err(format!("{} of {length} bytes came back", received.len())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_byte_comes_back() {
        let peer = EchoPeer::start().await;
        echo(peer.addr(), 300_000).await.unwrap();
        assert_eq!(peer.accepted(), 1);
    }
}
