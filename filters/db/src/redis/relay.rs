//! Passing bytes on between a client and a connection of its own, either of which may be encrypted.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use qudag_filter_common::{
    Buffers, ByteCounters, Drain, Early, SpliceEnd, SpliceOptions, Spliced, splice_after,
};
use tokio::io::AsyncWrite;
use tokio::time::timeout;

use crate::auth::SecureStream;
use crate::pool::conn::{poll_read, poll_write};

/// How much one direction holds.
const MOST: usize = 64 << 10;
/// Where nothing has to happen.
const FOREVER: Duration = Duration::from_secs(365 * 86_400);

/// Passes bytes on until both sides have finished or one has failed.
pub(crate) async fn pass_on(
    early: Early,
    client: SecureStream,
    server: SecureStream,
    options: SpliceOptions,
    drain: &Drain,
    counters: &ByteCounters,
) -> Spliced {
    match (client, server) {
        (SecureStream::Plain(client), SecureStream::Plain(server)) => {
            splice_after(early, client, server, options, &Buffers::default(), drain, counters).await
        }
        (client, server) => encrypted(early, client, server, options, drain, counters).await,
    }
}

async fn encrypted(
    early: Early,
    mut client: SecureStream,
    mut server: SecureStream,
    options: SpliceOptions,
    drain: &Drain,
    counters: &ByteCounters,
) -> Spliced {
    let (mut up, mut down) = (Way::after(&early.up), Way::after(&early.down));
    let mut aborted = pin!(drain.aborted());
    let end = loop {
        let limit = match (up.waits() || down.waits(), up.is_over() != down.is_over()) {
            (true, _) => options.stall,
            (false, true) => options.half_close,
            (false, false) => FOREVER,
        };
        let progress = timeout(
            limit,
            poll_fn(|cx| {
                let before = (up.bytes, down.bytes);
                let moved = [up.poll(cx, &mut client, &mut server), down.poll(cx, &mut server, &mut client)];
                counters.add(up.bytes - before.0, down.bytes - before.1);
                match moved {
                    [Err(why), _] | [_, Err(why)] => Poll::Ready(Err(why)),
                    [Ok(false), Ok(false)] => Poll::Pending,
                    _ => Poll::Ready(Ok(())),
                }
            }),
        );
        tokio::select! {
            biased;
            () = &mut aborted => break SpliceEnd::Aborted,
            progress = progress => match progress {
                Err(_) => break SpliceEnd::Stalled,
                Ok(Err(_)) => break SpliceEnd::Reset,
                Ok(Ok(())) if up.is_over() && down.is_over() => break SpliceEnd::Finished,
                Ok(Ok(())) => {}
            },
        }
    };
    if end != SpliceEnd::Finished {
        client.reset();
        server.reset();
    }
    Spliced { up: up.bytes, down: down.bytes, end }
}

/// One direction.
struct Way {
    held: BytesMut,
    /// What was written has not all left.
    unflushed: bool,
    /// The sender has finished, and the receiver was told.
    ended: bool,
    told: bool,
    bytes: u64,
}

impl Way {
    fn after(early: &[u8]) -> Self {
        let held = BytesMut::from(early);
        Self { bytes: held.len() as u64, held, unflushed: false, ended: false, told: false }
    }

    fn is_over(&self) -> bool {
        self.told
    }

    /// Whether the receiver is to take something.
    fn waits(&self) -> bool {
        !self.held.is_empty() || self.unflushed || self.ended && !self.told
    }

    /// Whether anything has happened.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut SecureStream,
        to: &mut SecureStream,
    ) -> io::Result<bool> {
        let mut moved = false;
        if !self.ended && self.held.len() < MOST {
            match poll_read(from, cx, &mut self.held) {
                Poll::Ready(Ok(read)) => {
                    self.ended = read == 0;
                    self.bytes += read as u64;
                    moved = true;
                }
                // Peers end without the alert that RFC 8446 section 6.1 wants.
                Poll::Ready(Err(why)) if why.kind() == io::ErrorKind::UnexpectedEof => {
                    self.ended = true;
                    moved = true;
                }
                Poll::Ready(Err(why)) => return Err(why),
                Poll::Pending => {}
            }
        }
        if !self.held.is_empty() || self.unflushed {
            let before = self.held.len();
            let written = poll_write(to, cx, &mut self.held);
            let was = std::mem::replace(&mut self.unflushed, written.is_pending());
            moved |= self.held.len() < before || was && !self.unflushed;
            if let Poll::Ready(Err(why)) = written {
                return Err(why);
            }
        }
        if self.ended && !self.told && self.held.is_empty() && !self.unflushed {
            match Pin::new(to).poll_shutdown(cx) {
                Poll::Ready(Ok(())) => {
                    self.told = true;
                    moved = true;
                }
                Poll::Ready(Err(why)) => return Err(why),
                Poll::Pending => {}
            }
        }
        Ok(moved)
    }
}
