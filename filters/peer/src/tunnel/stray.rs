//! Counts the datagrams that come to the listener and are of no connection: QUIC drops them without a word.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use metrics::{Counter, counter};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use quinn_proto::{ConnectionId, ConnectionIdGenerator, HashedConnectionIdGenerator};

use super::pulse::KNOCK;

/// The version of QUIC that sidecars speak (RFC 9000 section 15).
const VERSION: [u8; 4] = [0, 0, 0, 1];

/// A listener's socket.
pub(super) struct Listening {
    socket: Arc<dyn AsyncUdpSocket>,
    /// Knows the connection IDs that the listener gives out.
    ids: HashedConnectionIdGenerator,
    strays: Strays,
}

struct Strays {
    short: Counter,
    version: Counter,
    connection: Counter,
}

/// Why a datagram belongs to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stray {
    /// It is shorter than any packet of QUIC.
    Short,
    /// It is of another version, if it is QUIC at all.
    Version,
    /// It is for a connection that is not this sidecar's.
    Connection,
}

impl Listening {
    pub(super) fn new(socket: Arc<dyn AsyncUdpSocket>, ids: HashedConnectionIdGenerator) -> Self {
        let of = |reason: &'static str| counter!("qudag_sidecar_peer_strays_total", "reason" => reason);
        let strays = Strays { short: of("short"), version: of("version"), connection: of("connection") };
        Self { socket, ids, strays }
    }

    fn count(&self, datagram: &[u8]) {
        match stray(datagram, &self.ids) {
            None => {}
            Some(Stray::Short) => self.strays.short.increment(1),
            Some(Stray::Version) => self.strays.version.increment(1),
            Some(Stray::Connection) => self.strays.connection.increment(1),
        }
    }
}

/// Looks at what RFC 8999 says of every version, and at the connection ID.
fn stray(datagram: &[u8], ids: &HashedConnectionIdGenerator) -> Option<Stray> {
    let (first, rest) = datagram.split_first()?;
    if datagram == KNOCK {
        return None;
    }
    if first & 0x80 != 0 {
        return match rest.first_chunk() {
            None => Some(Stray::Short),
            Some(&VERSION) => None,
            Some(_) => Some(Stray::Version),
        };
    }
    match rest.get(..ids.cid_len()) {
        None => Some(Stray::Short),
        Some(id) => ids.validate(&ConnectionId::new(id)).is_err().then_some(Stray::Connection),
    }
}

impl fmt::Debug for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Listening").field(&self.socket).finish()
    }
}

impl AsyncUdpSocket for Listening {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.socket).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.socket.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let received = ready!(self.socket.poll_recv(cx, buffers, metas))?;
        for (buffer, meta) in buffers.iter().zip(metas.iter()).take(received) {
            let bytes = buffer.get(..meta.len).unwrap_or_default();
            bytes.chunks(meta.stride.max(1)).for_each(|datagram| self.count(datagram));
        }
        Poll::Ready(Ok(received))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_of_no_connection_are_told_apart() {
        let mut ids = HashedConnectionIdGenerator::from_key(7);
        let ours = [&[0x40][..], &ids.generate_cid(), &[0; 20]].concat();
        let theirs =
            [&[0x40][..], &HashedConnectionIdGenerator::from_key(8).generate_cid(), &[0; 20]].concat();
        let long = |version: u32| [&[0xc0][..], &version.to_be_bytes(), &[0; 1195]].concat();
        for (datagram, expected) in [
            (ours, None),
            (theirs, Some(Stray::Connection)),
            (long(1), None),
            (long(0x6b33_43cf), Some(Stray::Version)),
            (KNOCK.to_vec(), None),
            (vec![], None),
            (vec![0x40, 1, 2], Some(Stray::Short)),
            (vec![0xc0, 0, 0], Some(Stray::Short)),
        ] {
            assert_eq!(stray(&datagram, &ids), expected, "{datagram:?}");
        }
    }
}
