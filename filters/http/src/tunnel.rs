//! What follows a 101 response: bytes of another protocol, both ways.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use qudag_filter_common::{ByteCounters, Drain, FlowLine, Stream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split};

/// The size of the buffer of each direction.
const BUFFER: usize = 16 * 1024;

/// The node's side of a changed protocol, as an extension of the 101 response.
#[derive(Clone, Debug)]
pub(crate) struct Tunnel(Arc<Mutex<Option<(Stream, Bytes)>>>);

impl Tunnel {
    /// The connection, and the first bytes that came after the response head.
    pub(crate) fn new(stream: Stream, early: Bytes) -> Self {
        Self(Arc::new(Mutex::new(Some((stream, early)))))
    }

    /// Copies both ways until both sides have finished or one has failed. The end of one side is passed on to the other.
    pub(crate) async fn run<S>(self, client: S, mut flow: FlowLine, drain: &Drain)
    where
        S: AsyncRead + AsyncWrite + Send,
    {
        let taken = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((node, early)) = taken else { return };
        flow.detail("tunnel", "yes");
        let counters = ByteCounters::new("http", "");
        let (mut up, mut down) = (0, 0);
        let end = {
            let (client_read, mut client_write) = split(client);
            let (node_read, node_write) = split(node);
            let down = &mut down;
            let downwards = async {
                client_write.write_all(&early).await?;
                *down += early.len() as u64;
                counters.add(0, early.len() as u64);
                copy(node_read, client_write, down, |bytes| counters.add(0, bytes)).await
            };
            let upwards = copy(client_read, node_write, &mut up, |bytes| counters.add(bytes, 0));
            tokio::select! {
                biased;
                done = async { tokio::try_join!(upwards, downwards) } => if done.is_ok() { "ok" } else { "reset" },
                () = drain.aborted() => "aborted",
            }
        };
        flow.end(end, up, down);
    }
}

async fn copy<R: AsyncRead, W: AsyncWrite>(
    mut from: ReadHalf<R>,
    mut to: WriteHalf<W>,
    total: &mut u64,
    count: impl Fn(u64),
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
            return to.shutdown().await;
        };
        to.write_all(bytes).await?;
        // hyper's side holds bytes back until it is flushed.
        to.flush().await?;
        *total += read as u64;
        count(read as u64);
    }
}
