//! What an operator sees of a pool.

use qudag_core::breaker::Status;
use serde::Serialize;

use super::PeerPool;

/// A pool of connections to one peer for one class of streams.
#[derive(Clone, Debug, Serialize)]
pub struct PoolStatus {
    /// The peer's name.
    pub peer: String,
    /// What its streams are for.
    pub class: &'static str,
    /// Whether the peer can be dialled: `closed`, `open` or `half_open`, as of a circuit breaker.
    pub breaker: &'static str,
    /// Why the last dial failed; `null` after one that did not.
    pub last_failure: Option<&'static str>,
    /// Connections that were taken out as outliers or dead.
    pub ejected: u64,
    /// The connections.
    pub connections: Vec<ConnectionStatus>,
}

/// A connection of a pool.
#[derive(Clone, Debug, Serialize)]
pub struct ConnectionStatus {
    /// Where it leads.
    pub to: std::net::SocketAddr,
    /// `live`, or `draining` when it takes no more streams.
    pub state: &'static str,
    /// Streams on it.
    pub streams: u32,
    /// The round trip in milliseconds.
    pub rtt_ms: f64,
    /// Packets sent and lost.
    pub packets_sent: u64,
    /// Packets lost.
    pub packets_lost: u64,
    /// How often the path stopped to carry large packets.
    pub black_holes: u64,
    /// The largest payload of a UDP datagram that the path carries.
    pub mtu: u16,
    /// Its age in seconds.
    pub seconds: u64,
}

impl PeerPool {
    pub(super) fn status(&self) -> PoolStatus {
        let inner = self.lock();
        let mut connections: Vec<_> = inner
            .links
            .iter()
            .map(|(id, link)| {
                let path = link.connection.stats().path;
                let (streams, live) = inner.rules.streams(*id).unwrap_or_default();
                let status = ConnectionStatus {
                    to: link.connection.remote_address(),
                    state: if live { "live" } else { "draining" },
                    streams,
                    rtt_ms: path.rtt.as_secs_f64() * 1e3,
                    packets_sent: path.sent_packets,
                    packets_lost: path.lost_packets,
                    black_holes: path.black_holes_detected,
                    mtu: path.current_mtu,
                    seconds: link.since.elapsed().as_secs(),
                };
                (*id, status)
            })
            .collect();
        connections.sort_by_key(|(id, _)| *id);
        PoolStatus {
            peer: self.name.to_string(),
            class: self.class.label(),
            breaker: match inner.rules.breaker() {
                Status::Closed => "closed",
                Status::Open => "open",
                Status::HalfOpen => "half_open",
            },
            last_failure: inner.last,
            ejected: inner.rules.ejected(),
            connections: connections.into_iter().map(|(_, status)| status).collect(),
        }
    }
}
