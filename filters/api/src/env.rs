//! What the sidecar lends to its filters.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::Lanes;
use crate::units::{Address, HostPort};

/// The unmodified neighbour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name in logs and metrics.
    pub name: String,
    /// Its libp2p listener.
    pub p2p: HostPort,
    /// Its framed JSON RPC, TCP or Unix socket.
    pub rpc: Address,
    /// Its HTTP server.
    pub http: HostPort,
}

/// Resolves the names of upstreams. The implementation follows the host's own resolver configuration.
pub trait Resolve: Send + Sync + 'static {
    /// The addresses of a name, at least one, in order of preference.
    fn resolve(&self, name: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>>;
}

/// The names that a bypass moves, with where they lead in one generation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// The zone of those names that the DNS listener answers for itself; none where it answers for none.
    pub zone: Option<String>,
    /// The zone's serial number, which grows with every change of what follows (RFC 1982).
    pub serial: u32,
    /// Each name and its addresses: the sidecar's, or the node's own while everything is bypassed.
    pub names: Vec<(String, Vec<IpAddr>)>,
}

/// What a filter may use besides its settings.
#[derive(Clone)]
pub struct Env {
    /// The neighbour.
    pub node: Arc<Node>,
    /// Name resolution.
    pub resolve: Arc<dyn Resolve>,
    /// The names that a bypass moves.
    pub service: Arc<Service>,
    /// Threads for connections that live long.
    pub lanes: Lanes,
}
