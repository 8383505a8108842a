//! The kind of traffic, its route, and its chain.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use qudag_filter_api::{Address, Flow, FlowKey, HostPort, Kind, chain};
use qudag_filter_common::{Buffered, Buffers, CircuitBreaker, MemoryPooling, Retry, SpliceOptions, Stream};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::capture::{CaptureSettings, CaptureStatus};
use crate::connection_pooling::ConnectionPooling;
use crate::discovery::{Order, PeerDiscovery};
use crate::identity::PeerName;
use crate::opening::Opening;
use crate::routes::{Known, RouteTable, Routes};
use crate::tunnel::TunnelStream;
use crate::tunnel::header::{Class, Destination};
use crate::tunnels::Way;

/// Peer traffic: a connection to be opened, answered with the open one.
pub struct Peer;

impl Kind for Peer {
    const NAME: &'static str = "peer";
    type Req = PeerConnect;
    type Rsp = Link;
    type Glance<'a> = std::convert::Infallible;
    type Settings = PeerSettings;

    /// What is read of the client before the connection is up is kept ([`Opening`]), so that another attempt is always safe.
    fn replay(request: &PeerConnect) -> Option<PeerConnect> {
        Some(request.clone())
    }
}

/// An open connection.
#[derive(Debug)]
pub enum Link {
    /// Over TCP.
    Direct(Stream),
    /// Through the tunnel, to the peer's sidecar.
    Tunnel(TunnelStream),
}

impl Link {
    /// `direct` or `tunnel`.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Direct(_) => "direct",
            Self::Tunnel(_) => "tunnel",
        }
    }
}

/// A connection that a client asks for.
#[derive(Clone, Debug)]
pub struct PeerConnect {
    /// The client, if it has not gone already.
    pub client: Option<SocketAddr>,
    /// Where the connection leads.
    pub route: Arc<Route>,
    /// Where the client itself meant to go, of a captured connection. Past the tunnel it goes there.
    pub destination: Option<SocketAddr>,
    /// What the client has sent already.
    pub opening: Opening,
    /// The way into the tunnel, where there is one.
    pub way: Option<Arc<Way>>,
    /// The routes of the generation with their addresses.
    pub(crate) routes: Option<Arc<Routes>>,
    /// Whether the connection goes to the addresses of these routes; otherwise names are resolved for it.
    pub(crate) follows: bool,
}

impl PeerConnect {
    /// The addresses of the peer's sidecar, where the connection goes to known ones.
    pub(crate) fn sidecar(&self) -> Option<Known> {
        self.routes.as_ref().filter(|_| self.follows).and_then(|routes| Known::of(routes, &self.route))
    }
}

impl Flow for PeerConnect {
    /// Equal for all connections of one host over one route: a dialling node takes a new port each time.
    fn key(&self) -> FlowKey {
        let client = Flow::client(self).map(|ip| ip.to_string()).unwrap_or_default();
        FlowKey::of(format!("{}\0{client}", self.route.name).as_bytes())
    }

    fn client(&self) -> Option<IpAddr> {
        self.client.map(|addr| addr.ip().to_canonical())
    }

    fn target(&self) -> &str {
        &self.route.name
    }

    fn target_address(&self) -> Option<&Address> {
        Some(&self.route.to)
    }
}

impl Buffered for PeerConnect {
    fn take_buffers_from(&self, buffers: &Buffers) {
        self.opening.buffer_with(buffers);
    }
}

/// One listener and the one place where its connections lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its name in logs and metrics, unique in the kind.
    pub name: String,
    /// Where it listens, as configured.
    pub bind: HostPort,
    /// Where its connections go. A name is resolved at each connection, unless the filter `route_table` follows it.
    pub to: Address,
    /// The peer's sidecar.
    pub sidecar: Option<Sidecar>,
}

impl Route {
    /// Where it leads past the tunnel, if not to a Unix socket.
    pub(crate) fn place(&self) -> Option<&HostPort> {
        match &self.to {
            Address::Tcp(place) => Some(place),
            Address::Unix(_) => None,
        }
    }

    /// Whether nothing may go past the tunnel.
    pub fn requires_tunnel(&self) -> bool {
        self.sidecar.as_ref().is_some_and(|sidecar| sidecar.require_tunnel)
    }
}

/// The sidecar of a peer, to which the tunnel leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sidecar {
    /// Where its tunnel listens (`listeners.peer.quic` there), one address or several that are tried in turn. Names are resolved
    /// whenever a connection is made, and followed meanwhile by the filter `route_table`.
    #[schemars(length(min = 1))]
    pub to: Vec<qudag_filter_api::HostPort>,
    /// The URI in its certificate, a SPIFFE ID for instance.
    pub name: PeerName,
    /// What the connection is for over there: `node`, or a name of `listeners.peer.destinations` there.
    #[serde(default)]
    pub destination: Destination,
    /// Connections of another class have a pool of their own.
    #[serde(default)]
    pub class: Class,
    /// Whether connections fail rather than go to `to` directly, without the tunnel and its encryption.
    #[serde(default)]
    pub require_tunnel: bool,
}

/// What the listeners and the terminal service read.
#[derive(Clone, Debug)]
pub struct PeerSettings {
    /// All routes.
    pub routes: Vec<Arc<Route>>,
    /// The time for one attempt to connect, with resolving the name.
    pub connect_timeout: Duration,
    /// The time limits of an open connection.
    pub splice: SpliceOptions,
    /// How many connections one listener carries at a time.
    pub max_connections: usize,
    /// How many streams one peer may have here.
    pub max_connections_per_peer: usize,
    /// And how many QUIC connections.
    pub max_tunnels_per_peer: usize,
    /// What the packets of sockets to peers are marked with.
    pub mark: Option<u32>,
    /// The peers whose sidecars may open connections through the tunnel.
    pub allow: Arc<HashSet<PeerName>>,
    /// Where streams of the tunnel may lead.
    pub destinations: HashMap<Destination, Arc<Route>>,
    /// The way into the tunnel; empty without an identity. Set when the chain's end is built.
    pub way: OnceLock<Arc<Way>>,
    /// Captured connections; empty where there are none. Set when the chain's end is built.
    pub capture: OnceLock<Arc<CaptureSettings>>,
    /// All routes with the addresses that are known. Set when the chain's end is built.
    pub(crate) table: OnceLock<Arc<Routes>>,
    /// How peers are made known to the local node. Set when the chain's end is built.
    pub(crate) order: OnceLock<Arc<Order>>,
}

impl PeerSettings {
    /// How many connections were captured; `None` without `capture`.
    pub fn capture_status(&self) -> Option<CaptureStatus> {
        self.capture.get().map(|capture| capture.counts.status(capture))
    }

    /// The route of a listener: by its name, and after a reload that renamed it by its address.
    pub(crate) fn route(&self, name: &str, bind: &HostPort) -> Option<&Arc<Route>> {
        let here = |route: &&Arc<Route>| route.bind == *bind;
        let mut routes = self.routes.iter();
        routes
            .find(|route| route.name == name && here(route))
            .or_else(|| self.routes.iter().find(here).filter(|_| bind.port != 0))
    }
}

chain! {
    /// The filters of peer traffic, in order.
    pub struct PeerFilters for Peer, states PeerStates {
        /// Makes the nodes of other sidecars known to the local one. Connections pass it by.
        peer_discovery: PeerDiscovery,
        /// Leads connections to addresses that are known beforehand.
        route_table: RouteTable,
        /// Answers at once while a peer is known to be down. One breaker a route.
        circuit_breaker: CircuitBreaker<Peer>,
        /// Uses buffers again. Here, where a connection passes once, however often it is tried, and none that is refused at once.
        memory_pooling: MemoryPooling<Peer>,
        /// Tries a failed connection again.
        retry: Retry<Peer>,
        /// Leads to sidecars through pooled QUIC connections.
        connection_pooling: ConnectionPooling,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(routes: &[(&str, &str)]) -> PeerSettings {
        let route = |(name, bind): &(&str, &str)| {
            Arc::new(Route {
                name: (*name).to_owned(),
                bind: bind.parse().unwrap(),
                to: "127.0.0.1:1".parse().unwrap(),
                sidecar: None,
            })
        };
        PeerSettings {
            routes: routes.iter().map(route).collect(),
            connect_timeout: Duration::from_secs(1),
            splice: SpliceOptions { stall: Duration::from_secs(1), half_close: Duration::from_secs(1) },
            max_connections: 1,
            max_connections_per_peer: 1,
            max_tunnels_per_peer: 1,
            mark: None,
            allow: Arc::default(),
            destinations: HashMap::new(),
            way: OnceLock::new(),
            capture: OnceLock::new(),
            table: OnceLock::new(),
            order: OnceLock::new(),
        }
    }

    #[test]
    fn a_listener_keeps_its_route_when_the_route_is_renamed() {
        let found = |settings: &PeerSettings, name: &str, bind: &str| {
            settings.route(name, &bind.parse().unwrap()).map(|route| route.name.clone())
        };
        let now = settings(&[("a", "127.0.0.1:1"), ("b", "127.0.0.1:2"), ("c", "127.0.0.1:0")]);
        assert_eq!(found(&now, "a", "127.0.0.1:1").as_deref(), Some("a"));
        assert_eq!(found(&now, "old", "127.0.0.1:2").as_deref(), Some("b"));
        assert_eq!(found(&now, "b", "127.0.0.1:1").as_deref(), Some("a"));
        assert_eq!(found(&now, "c", "127.0.0.1:0").as_deref(), Some("c"));
        assert_eq!(found(&now, "old", "127.0.0.1:0"), None);
        assert_eq!(found(&now, "a", "127.0.0.1:9"), None);
    }

    #[test]
    fn the_flow_of_a_host_over_a_route_is_one() {
        let settings = settings(&[("a", "127.0.0.1:1"), ("b", "127.0.0.1:2")]);
        let key = |route: usize, client: &str| {
            let route = Arc::clone(&settings.routes[route]);
            let client = client.parse().ok();
            let opening = Opening::default();
            let (routes, follows) = (None, false);
            PeerConnect { client, route, destination: None, opening, way: None, routes, follows }.key()
        };
        assert_eq!(key(0, "10.0.0.1:1"), key(0, "10.0.0.1:2"));
        assert_eq!(key(0, "[::ffff:10.0.0.1]:1"), key(0, "10.0.0.1:2"));
        assert_ne!(key(0, "10.0.0.1:1"), key(0, "10.0.0.2:1"));
        assert_ne!(key(0, "10.0.0.1:1"), key(1, "10.0.0.1:1"));
    }
}
