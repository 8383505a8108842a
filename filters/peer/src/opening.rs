//! What a client sends while its connection is being opened.

use std::future::{Future, pending, poll_fn};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, ready};

use qudag_filter_common::{Buffers, Duplex, ReadSide, Stream};
use tokio::io::ReadBuf;
use tokio::sync::Notify;

/// The most bytes of a client that are read before its connection is open.
pub(crate) const MOST: usize = 16 << 10;
/// How much is read at once.
const PIECE: usize = 4 << 10;

/// The opening of a client's connection: what it has sent already, which is kept until somebody has answered for it, and why the
/// connection takes the way that it takes, and where the buffers of the open one come from. Clones are the same opening.
///
/// Nothing is read before a filter asks, so that the bytes stay in the kernel where they are not needed.
#[derive(Clone, Debug, Default)]
pub struct Opening(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    asked: Notify,
    come: Notify,
}

#[derive(Debug, Default)]
struct State {
    kept: Vec<u8>,
    asked: bool,
    fallback: Option<&'static str>,
    buffers: Buffers,
}

impl Opening {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what the client sends as soon as a filter asks, up to [`MOST`] bytes. Resolves only when the client fails.
    pub(crate) async fn feed(&self, client: &mut Stream) -> io::Error {
        while !self.state().asked {
            self.0.asked.notified().await;
        }
        let (mut read, _, failed) = client.split();
        let reading = async {
            loop {
                let room = MOST.saturating_sub(self.state().kept.len()).min(PIECE);
                if room == 0 {
                    return pending().await;
                }
                let piece = poll_fn(|cx| {
                    ready!(read.poll_readable(cx))?;
                    // On the stack of this poll: connections that wait for something to read have no buffer.
                    let mut piece = [0; PIECE];
                    let mut buffer = ReadBuf::new(piece.get_mut(..room).unwrap_or_default());
                    ready!(read.poll_read(cx, &mut buffer))?;
                    self.state().kept.extend_from_slice(buffer.filled());
                    Poll::Ready(Ok(buffer.filled().len()))
                });
                match piece.await {
                    Err(why) => return why,
                    // The end: who copies afterwards reads it again.
                    Ok(0) => return pending().await,
                    Ok(_) => {}
                }
                self.0.come.notify_waiters();
            }
        };
        tokio::select! {
            why = reading => why,
            () = failed => io::ErrorKind::ConnectionReset.into(),
        }
    }

    /// What the client has sent from `from` on, as soon as there is something.
    pub(crate) fn more(&self, from: usize) -> impl Future<Output = Vec<u8>> + Send + use<> {
        let opening = self.clone();
        async move {
            loop {
                let come = opening.0.come.notified();
                tokio::pin!(come);
                come.as_mut().enable();
                {
                    let mut state = opening.state();
                    state.asked = true;
                    if let Some(more) = state.kept.get(from..).filter(|more| !more.is_empty()) {
                        return more.to_vec();
                    }
                }
                opening.0.asked.notify_one();
                come.await;
            }
        }
    }

    /// Takes what was kept, from `from` on.
    pub(crate) fn take(&self, from: usize) -> Vec<u8> {
        let mut kept = std::mem::take(&mut self.state().kept);
        kept.drain(..from.min(kept.len()));
        kept
    }

    /// The connection goes past the tunnel, or fails, for this reason.
    pub(crate) fn falls_back(&self, reason: &'static str) {
        self.state().fallback = Some(reason);
    }

    /// Why the connection goes past the tunnel.
    pub(crate) fn fallback(&self) -> Option<&'static str> {
        self.state().fallback
    }

    /// Bytes of the open connection are copied in buffers from here.
    pub(crate) fn buffer_with(&self, buffers: &Buffers) {
        self.state().buffers = buffers.clone();
    }

    /// Where the buffers of the open connection come from.
    pub(crate) fn buffers(&self) -> Buffers {
        self.state().buffers.clone()
    }
}
