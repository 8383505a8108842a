//! One query in one datagram.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use tokio::net::UdpSocket;

use super::super::message::{Checked, Failure, Randomness, check, query};
use crate::wire::{Parsed, Stripped};

/// The receive buffer: larger than what we say that we take.
const BUFFER: usize = 4096;
/// After so many datagrams that are no reply the port is known to somebody else, and nothing that comes there is believed.
const MOST_STRANGE: u32 = 32;

/// A query that was sent. Its socket is its own, so it has a port that the kernel drew, and is open to this server only.
#[derive(Debug)]
pub(in super::super) struct Sent {
    line: Arc<Line>,
    server: SocketAddr,
    id: u16,
    /// The name as it was sent.
    name: Vec<u8>,
    /// Whether its case must come back.
    exact: bool,
    strange: u32,
}

/// A socket that a query was sent from, and the datagram.
#[derive(Debug)]
pub(in super::super) struct Line {
    socket: UdpSocket,
    datagram: Vec<u8>,
    repeated: AtomicBool,
}

impl Line {
    /// Sends the datagram once more: the same question with the same id, so that there is one reply more to wait for, and none more to
    /// guess. What cannot be sent is lost, as on the way.
    pub(in super::super) fn again(&self) {
        self.repeated.store(true, Relaxed);
        drop(self.socket.try_send(&self.datagram));
    }
}

/// What came.
pub(in super::super) enum Heard {
    Good(Stripped),
    Truncated,
    /// The reply, but not in the case of the query.
    OtherCase,
    Failed(Failure),
    /// Something that is no reply to the query, for the first time. The reply may still come.
    Strange,
}

impl Sent {
    /// Sends a query.
    pub(in super::super) async fn new(
        server: SocketAddr,
        asked: &Parsed,
        random: &Randomness,
        exact: bool,
    ) -> io::Result<Self> {
        let any = match server {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(server).await?;
        let id = random.id();
        let name = if exact { random.case(asked.name.wire()) } else { asked.name.wire().to_vec() };
        let datagram = query(asked, &name, id, false);
        socket.send(&datagram).await?;
        let line = Arc::new(Line { socket, datagram, repeated: AtomicBool::new(false) });
        Ok(Self { line, server, id, name, exact, strange: 0 })
    }

    /// Where it can be sent again.
    pub(in super::super) fn line(&self) -> &Arc<Line> {
        &self.line
    }

    /// Whether it was sent again: then nobody knows how long a reply took (Karn's algorithm, RFC 6298 section 3).
    pub(in super::super) fn is_repeated(&self) -> bool {
        self.line.repeated.load(Relaxed)
    }

    /// Waits for the reply.
    pub(in super::super) async fn heard(&mut self, asked: &Parsed) -> Heard {
        loop {
            let mut reply = vec![0; BUFFER];
            let (length, from) = match self.line.socket.recv_from(&mut reply).await {
                Ok(received) => received,
                Err(why) => return Heard::Failed(Failure::Network(why)),
            };
            reply.truncate(length);
            // What came between the binding and the connecting of the socket may be from anybody.
            let checked = match from == self.server {
                true => check(reply, self.id, asked, &self.name, self.exact),
                false => Checked::Strange,
            };
            match checked {
                Checked::Good(reply) => return Heard::Good(reply),
                Checked::Truncated => return Heard::Truncated,
                Checked::OtherCase => return Heard::OtherCase,
                Checked::Bad(failure) => return Heard::Failed(failure),
                Checked::Strange => {}
            }
            self.strange += 1;
            match self.strange {
                1 => return Heard::Strange,
                MOST_STRANGE => return Heard::Failed(Failure::Mismatch),
                _ => {}
            }
        }
    }
}
