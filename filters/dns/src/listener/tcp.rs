//! Queries on connections (RFC 7766): any number, pipelined, answered as the answers come.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use qudag_filter_common::{Drain, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::answer::{Intake, Message, Received, Shared};
use crate::Transport;

/// How many queries of one connection are under way; further ones are not read before.
const PIPELINE: usize = 128;
/// The buffer for queries, which are small.
const BUFFER: usize = 2048;

/// How a connection goes on.
enum Step {
    Read(usize),
    Answered(Vec<u8>),
    /// The client sends no more, or must not.
    NoMore,
    /// The query's task ended without an answer.
    Lost,
    Idle,
}

/// Serves a connection until the client closes it, is idle or slow for too long, sends what is not DNS, or the drain has
/// started and all that was asked is answered.
pub(super) async fn connection(mut stream: Stream, shared: Arc<Shared>, drain: Drain) {
    let (Some(client), Some(_place)) = (stream.peer_addr(), shared.connect()) else {
        return stream.reset();
    };
    let mut buffer = BytesMut::with_capacity(BUFFER);
    let mut intake = Intake::new(Arc::clone(&shared));
    let mut queries: JoinSet<Vec<u8>> = JoinSet::new();
    let (mut reading, mut asked) = (true, false);
    let mut active = Instant::now();
    loop {
        while reading && queries.len() < PIPELINE {
            let Some(message) = frame(&mut buffer) else { break };
            active = Instant::now();
            asked = true;
            let mut reply = Vec::new();
            let message = Message { wire: &message, client, transport: Transport::Tcp };
            let received = intake.batch().receive(message, &mut reply);
            match received {
                // Whoever sends what is not a query is not understood any further.
                Received::Nothing => return stream.reset(),
                Received::Replied => {
                    if !write(&mut stream, &reply, idle_limit(&shared)).await {
                        return stream.reset();
                    }
                }
                Received::Query(asking) => drop(queries.spawn(asking.answer())),
            }
        }
        if !reading && queries.is_empty() {
            // What the client sends after that is not read; closing on it would be a reset.
            let _ = stream.shutdown().await;
            return;
        }
        // Read each time: a reload applies to connections that are there.
        let limit = idle_limit(&shared);
        let may_read = reading && queries.len() < PIPELINE;
        let on_its_way = !asked || !buffer.is_empty();
        let step = tokio::select! {
            biased;
            Some(answered) = queries.join_next() => answered.map_or(Step::Lost, Step::Answered),
            read = stream.read_buf(&mut buffer), if may_read => read.map_or(Step::Idle, Step::Read),
            () = drain.read_enough(on_its_way), if may_read => Step::NoMore,
            () = tokio::time::sleep_until(active + limit), if queries.is_empty() => Step::Idle,
        };
        match step {
            Step::Read(0) | Step::NoMore => reading = false,
            Step::Read(_) => {}
            Step::Answered(reply) => {
                active = Instant::now();
                if !write(&mut stream, &reply, limit).await {
                    return stream.reset();
                }
            }
            Step::Lost | Step::Idle => return,
        }
    }
}

fn idle_limit(shared: &Shared) -> Duration {
    // Without settings DNS is not served any more, and there is nothing to wait for.
    shared.settings().map_or(Duration::ZERO, |settings| settings.tcp_idle)
}

/// The next whole message in the buffer.
fn frame(buffer: &mut BytesMut) -> Option<Bytes> {
    let length = usize::from(u16::from_be_bytes(*buffer.first_chunk::<2>()?));
    if buffer.len() < 2 + length {
        return None;
    }
    buffer.advance(2);
    Some(buffer.split_to(length).freeze())
}

/// Writes a message behind its length, in one piece (RFC 7766 section 8). False when the client does not take it in time.
async fn write(stream: &mut Stream, reply: &[u8], limit: Duration) -> bool {
    // A reply is fitted to 65,535 bytes.
    let Ok(length) = u16::try_from(reply.len()) else { return false };
    let framed = [&length.to_be_bytes(), reply].concat();
    matches!(timeout(limit, stream.write_all(&framed)).await, Ok(Ok(())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_cut_out_of_the_stream() {
        let mut buffer = BytesMut::from(&b"\0\x03abc\0\0\0\x02x"[..]);
        assert_eq!(frame(&mut buffer).as_deref(), Some(&b"abc"[..]));
        assert_eq!(frame(&mut buffer).as_deref(), Some(&b""[..]));
        assert_eq!(frame(&mut buffer), None);
        buffer.extend_from_slice(b"y");
        assert_eq!(frame(&mut buffer).as_deref(), Some(&b"xy"[..]));
        assert!(frame(&mut buffer).is_none() && buffer.is_empty());
    }
}
