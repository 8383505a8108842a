//! Visits a node as a peer: long enough for the node to ask who visits.
//!
//! Above Noise the node expects yamux (<https://github.com/hashicorp/yamux/blob/master/spec.md>), opens a stream for *identify*
//! (<https://github.com/libp2p/specs/blob/master/identify/README.md>), and is told a key, an address and that is all. It is told of no
//! protocol that it asks for on other streams.

use std::collections::HashMap;
use std::net::SocketAddrV4;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout_at};

use super::PeerId;
use super::identity::Identity;
use super::lines::{Line, Lines, header, hello, no, yes};
use super::noise::{Half, NodeFailure, Secret};
use super::protobuf::{write_bytes, write_varint};

const YAMUX: &str = "/yamux/1.0.0";
const IDENTIFY: &str = "/ipfs/id/1.0.0";
/// How long the node may take to ask.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the visit lasts after the answer, so that the node works on it while the visitor is there.
const STAY: Duration = Duration::from_millis(500);
/// Streams that a node may open.
const STREAMS: usize = 64;
/// The most of one frame: the streams carry questions of a few bytes.
const FRAME: u32 = 64 << 10;

const DATA: u8 = 0;
const WINDOW: u8 = 1;
const PING: u8 = 2;
const GO_AWAY: u8 = 3;
const SYN: u16 = 1;
const ACK: u16 = 2;
const FIN: u16 = 4;
const RST: u16 = 8;

/// Visits the node at the other end of `stream` as `visitor`, who says that it is reached at `at`. The node has to be `node`.
///
/// # Errors
/// When the node does not ask who visits.
pub async fn visit<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    node: &PeerId,
    visitor: &Identity,
    at: SocketAddrV4,
) -> Result<(), NodeFailure> {
    let until = Instant::now() + PATIENCE;
    let arrived = timeout_at(until, arrive(stream, node, visitor)).await;
    let (mut secret, come) = arrived.map_err(|_| NodeFailure::Timeout)??;
    let mut visit = Visit { come, streams: HashMap::new(), answer: identify(visitor, at) };
    let (mut until, mut answered) = (until, false);
    loop {
        let out = visit.work()?;
        if !out.is_empty() {
            secret.send(&out).await?;
        }
        if !answered && visit.answer.is_empty() {
            (answered, until) = (true, Instant::now() + STAY);
        }
        match timeout_at(until, secret.receive()).await {
            Ok(bytes) => visit.come.extend(bytes?),
            Err(_) if answered => break,
            Err(_) => return Err(NodeFailure::Timeout),
        }
    }
    secret.send(&frame(GO_AWAY, 0, 0, 0)).await
}

/// Agrees on everything up to yamux. Returns what has come of it already.
async fn arrive<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    node: &PeerId,
    visitor: &Identity,
) -> Result<(Secret<S>, Vec<u8>), NodeFailure> {
    let half = Half::begin(stream).await?;
    if half.node != *node {
        return Err(NodeFailure::Protocol);
    }
    let mut secret = half.finish(visitor).await?;
    secret.send(&hello(YAMUX)).await?;
    let mut lines = Lines::default();
    for expected in [Line::Hello, Line::Protocol(YAMUX.to_owned())] {
        let line = loop {
            if let Some(line) = lines.next().map_err(|_| NodeFailure::Protocol)? {
                break line;
            }
            lines.push(&secret.receive().await?);
        };
        if line != expected {
            return Err(NodeFailure::Protocol);
        }
    }
    Ok((secret, lines.rest()))
}

/// What is said of the visitor.
fn identify(visitor: &Identity, at: SocketAddrV4) -> Vec<u8> {
    // /ip4/ADDRESS/tcp/PORT with their codes of the multiaddr table.
    let mut address = vec![4];
    address.extend(at.ip().octets());
    address.push(6);
    address.extend(at.port().to_be_bytes());
    let mut message = Vec::new();
    write_bytes(&mut message, 1, &visitor.key());
    write_bytes(&mut message, 2, &address);
    write_bytes(&mut message, 3, IDENTIFY.as_bytes());
    write_bytes(&mut message, 5, b"/qudag/1.0.0");
    write_bytes(&mut message, 6, concat!("qudag-sidecar/", env!("CARGO_PKG_VERSION")).as_bytes());
    let mut prefixed = Vec::new();
    write_varint(&mut prefixed, message.len());
    prefixed.extend(message);
    prefixed
}

fn frame(kind: u8, flags: u16, stream: u32, length: u32) -> Vec<u8> {
    let mut bytes = vec![0, kind];
    bytes.extend(flags.to_be_bytes());
    bytes.extend(stream.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

fn data(stream: u32, flags: u16, bytes: &[u8]) -> Vec<u8> {
    // A few hundred bytes.
    [frame(DATA, flags, stream, bytes.len() as u32), bytes.to_vec()].concat()
}

/// The visitor's side of yamux.
struct Visit {
    come: Vec<u8>,
    streams: HashMap<u32, Lines>,
    /// What is said of the visitor; empty when it was said.
    answer: Vec<u8>,
}

impl Visit {
    /// Takes all frames that have come whole. Returns what is to be sent.
    fn work(&mut self) -> Result<Vec<u8>, NodeFailure> {
        let mut out = Vec::new();
        while let Some((fixed, rest)) = self.come.split_first_chunk::<12>() {
            let [version, kind, f0, f1, s0, s1, s2, s3, l0, l1, l2, l3] = *fixed;
            let (flags, stream) = (u16::from_be_bytes([f0, f1]), u32::from_be_bytes([s0, s1, s2, s3]));
            let length = u32::from_be_bytes([l0, l1, l2, l3]);
            if version != 0 || (kind == DATA && length > FRAME) {
                return Err(NodeFailure::Protocol);
            }
            let body = if kind == DATA { length as usize } else { 0 };
            let Some(bytes) = rest.get(..body).map(<[u8]>::to_vec) else { break };
            self.come.drain(..12 + body);
            match kind {
                DATA | WINDOW => self.stream(stream, flags, &bytes, &mut out)?,
                PING if flags & SYN != 0 => out.extend(frame(PING, ACK, 0, length)),
                PING => {}
                GO_AWAY => return Err(std::io::Error::from(std::io::ErrorKind::ConnectionAborted).into()),
                _ => return Err(NodeFailure::Protocol),
            }
        }
        Ok(out)
    }

    fn stream(&mut self, id: u32, flags: u16, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), NodeFailure> {
        if flags & SYN != 0 {
            if self.streams.len() >= STREAMS {
                out.extend(frame(WINDOW, RST, id, 0));
                return Ok(());
            }
            self.streams.insert(id, Lines::default());
            out.extend(frame(WINDOW, ACK, id, 0));
            out.extend(data(id, 0, &header()));
        }
        if flags & RST != 0 {
            self.streams.remove(&id);
        }
        let Some(lines) = self.streams.get_mut(&id) else { return Ok(()) };
        lines.push(bytes);
        while let Some(line) = lines.next().map_err(|_| NodeFailure::Protocol)? {
            match line {
                Line::Hello | Line::No => {}
                Line::Protocol(protocol) if protocol == IDENTIFY => {
                    out.extend(data(id, FIN, &[yes(IDENTIFY), std::mem::take(&mut self.answer)].concat()));
                    self.streams.remove(&id);
                    return Ok(());
                }
                Line::Protocol(_) => out.extend(data(id, 0, &no())),
            }
        }
        if flags & FIN != 0 {
            self.streams.remove(&id);
            out.extend(frame(WINDOW, FIN, id, 0));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn visitor() -> Visit {
        let answer = identify(&Identity::new().unwrap(), "127.0.0.1:9".parse().unwrap());
        Visit { come: Vec::new(), streams: HashMap::new(), answer }
    }

    #[test]
    fn a_question_for_the_visitor_is_answered_and_others_are_not() {
        let mut visit = visitor();
        let answer = visit.answer.clone();
        visit.come.extend(frame(WINDOW, SYN, 2, 0));
        visit.come.extend(data(2, 0, &hello("/meshsub/1.1.0")));
        visit.come.extend(frame(PING, SYN, 0, 77));
        visit.come.extend(data(4, SYN, &hello(IDENTIFY)));
        let expected = [
            frame(WINDOW, ACK, 2, 0),
            data(2, 0, &header()),
            data(2, 0, &no()),
            frame(PING, ACK, 0, 77),
            frame(WINDOW, ACK, 4, 0),
            data(4, 0, &header()),
            data(4, FIN, &[yes(IDENTIFY), answer].concat()),
        ]
        .concat();
        assert_eq!(visit.work().unwrap(), expected);
        assert!(visit.answer.is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_frames_or_a_failure(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut visit = visitor();
            visit.come = bytes;
            // Every frame of the node's has a dozen bytes and is answered with less than a kilobyte.
            if let Ok(out) = visit.work() {
                prop_assert!(out.len() < 30 * 1024 && visit.streams.len() <= STREAMS);
            }
        }
    }
}
