//! How QUIC is set up: windows, timers, congestion control, and the sockets below.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quinn::congestion::{BbrConfig, CubicConfig};
use quinn::{Endpoint, EndpointConfig, TokioRuntime, TransportConfig, VarInt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use super::congestion::LossTolerantConfig;

/// The most streams of one connection, beside the control stream.
pub const STREAMS: u32 = 128;
/// What a receiver allows. New ones in the place of those that have ended are allowed only from an eighth of all on, and must not be waited
/// for by whoever has less than [`STREAMS`].
const ALLOWED: u32 = STREAMS + STREAMS / 4;
/// So many streams can have all their windows of data under way at the same time; more than a few never need to, and what is sent
/// is kept until it is acknowledged.
const SENDING: u32 = 8;
/// Each side answers a PING, so that a connection without traffic lasts and a dead one is noticed.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// A connection over which nothing comes for so long is over.
const IDLE: Duration = Duration::from_secs(30);
/// The round trip that a handshake reckons with before it has measured one. A third of what RFC 9002 section 6.2.2 has: a lost packet of
/// the handshake is sent again after 300 ms.
const FIRST_RTT: Duration = Duration::from_millis(100);
/// The socket buffers that are asked for, and what is enough.
const BUFFER: usize = 4 << 20;
const ENOUGH: usize = 2 << 20;

/// The congestion control of a sender.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Congestion {
    /// CUBIC that takes a loss for congestion only when packets queue up too, or when more than one in twenty is lost.
    #[default]
    LossTolerant,
    /// CUBIC (RFC 9438).
    Cubic,
    /// BBR version 1. It starves TCP connections at the same bottleneck.
    Bbr,
}

/// What can be chosen of the transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choices {
    /// The congestion control for what this side sends.
    pub congestion: Congestion,
    /// How many bytes the other side may send on one stream before they are read here.
    pub stream_window: u32,
}

/// The transport of both sides.
pub fn config(choices: Choices) -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    // Streams that nobody reads fill their windows and no more: the window of the connection has room for all of them, so that they
    // hold no other stream up.
    let all = choices.stream_window.saturating_mul(ALLOWED);
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(ALLOWED))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(choices.stream_window))
        .receive_window(VarInt::from_u64(all.into()).unwrap_or(VarInt::MAX))
        .send_window(choices.stream_window.saturating_mul(SENDING).into())
        .datagram_receive_buffer_size(None)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(FIRST_RTT)
        .max_idle_timeout(Some(VarInt::from_u32(IDLE.as_millis() as u32).into()));
    match choices.congestion {
        Congestion::LossTolerant => transport.congestion_controller_factory(Arc::new(LossTolerantConfig)),
        Congestion::Cubic => transport.congestion_controller_factory(Arc::new(CubicConfig::default())),
        Congestion::Bbr => transport.congestion_controller_factory(Arc::new(BbrConfig::default())),
    };
    Arc::new(transport)
}

/// An endpoint for one connection to `to`. Each has a socket of its own, so that the kernel spreads them over its queues. `mark` is what
/// its packets are marked with.
///
/// # Errors
/// When the operating system gives no socket, or does not let its packets be marked.
pub(crate) fn client(to: SocketAddr, mark: Option<u32>) -> io::Result<Endpoint> {
    Endpoint::new(EndpointConfig::default(), None, socket(any(to), mark)?, Arc::new(TokioRuntime))
}

/// Any port of this host for packets to `to`.
pub(crate) fn any(to: SocketAddr) -> SocketAddr {
    match to {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    }
}

/// A socket with large buffers. `mark` is what its packets are marked with.
///
/// # Errors
/// When the address cannot be bound, or the operating system does not let packets be marked.
pub(crate) fn socket(at: SocketAddr, mark: Option<u32>) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM, Some(Protocol::UDP))?;
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    if at.is_ipv6() && at.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    // More than the system allows becomes what it allows.
    let _ = socket.set_recv_buffer_size(BUFFER);
    let _ = socket.set_send_buffer_size(BUFFER);
    // Linux counts its own overhead in and says twice what can be used (socket(7)).
    let read_back = socket.recv_buffer_size()?.min(socket.send_buffer_size()?) / 2;
    if read_back < ENOUGH {
        static SAID: AtomicBool = AtomicBool::new(false);
        if !SAID.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                bytes = read_back,
                "small UDP buffers: fast tunnels will lose packets; set net.core.rmem_max and net.core.wmem_max to {BUFFER}"
            );
        }
    }
    socket.set_nonblocking(true)?;
    socket.bind(&at.into())?;
    Ok(socket.into())
}
