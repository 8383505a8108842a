//! Which way connections to peers go, and why: what `peers` shows.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::UNIX_EPOCH;

use qudag_filter_api::FilterSpec;
use serde::Serialize;

use crate::capture::CaptureStatus;
use crate::connection_pooling::ConnectionPooling;
use crate::discovery::DiscoveryStatus;
use crate::exchange::SidecarStatus;
use crate::kind::{PeerSettings, Route};
use crate::libp2p::PeerId;
use crate::pool::PoolStatus;
use crate::routes::{NameStatus, RouteTable};
use crate::tunnel::header::Destination;
use crate::tunnels::Tunnels;

/// The peers of a sidecar.
#[derive(Clone, Debug, Serialize)]
pub struct PeersStatus {
    /// Who this sidecar is; `null` without an identity.
    pub identity: Option<OwnStatus>,
    /// The local node, and what it is told of others.
    pub node: DiscoveryStatus,
    /// Whether connections go to the addresses of the table, of which `route_table` is the filter; otherwise names are resolved for each.
    pub table: bool,
    /// The names that are followed.
    pub names: Vec<NameStatus>,
    /// Where the local node's connections lead.
    pub routes: Vec<RouteStatus>,
    /// The connections to other sidecars.
    pub pools: Vec<PoolStatus>,
    /// Captured connections; `null` without `capture`.
    pub capture: Option<CaptureStatus>,
    /// What other sidecars have told.
    pub sidecars: Vec<SidecarStatus>,
}

/// Who this sidecar is for others.
#[derive(Clone, Debug, Serialize)]
pub struct OwnStatus {
    /// The URI in its certificate.
    pub name: String,
    /// When the certificate expires, in seconds since the Unix epoch.
    pub expires: u64,
}

/// A route.
#[derive(Clone, Debug, Serialize)]
pub struct RouteStatus {
    /// Its name.
    pub name: String,
    /// Where it listens, as configured.
    pub bind: String,
    /// Where it leads past the tunnel.
    pub to: String,
    /// The addresses of `to`, in the order in which they are tried; none while they are not known.
    pub addresses: Vec<SocketAddr>,
    /// The addresses of the peer's sidecar.
    pub sidecar_addresses: Vec<SocketAddr>,
    /// The name of the peer's sidecar; `null` without one.
    pub peer: Option<String>,
    /// What the local node may be given to reach the peer: a multiaddr with the peer's id; `null` while that is not known, or for a listener on
    /// `inbound`.
    pub multiaddr: Option<String>,
    /// The way of the next connection: `tunnel`, `direct` or `none`.
    pub path: &'static str,
    /// Why.
    pub why: String,
    /// How many captured connections took it, since the start.
    pub captured: u64,
}

impl PeersStatus {
    /// Of a generation's settings and its tunnels. `is_on` says whether a filter is on.
    pub fn new(settings: &PeerSettings, tunnels: &Tunnels, is_on: impl Fn(&str) -> bool) -> Self {
        let pooling = is_on(ConnectionPooling::NAME);
        let (pools, exchange) = (tunnels.statuses(), tunnels.exchange());
        let nodes = exchange.nodes();
        let own = tunnels.identity().map(|identity| OwnStatus {
            name: identity.name().to_string(),
            expires: identity.expires().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        });
        let routes = settings.routes.iter().map(|route| {
            let (path, why) = way(route, &pools, pooling);
            let table = settings.table.get();
            let known =
                table.and_then(|table| table.entry(route, |it| (it.to.to_vec(), it.sidecar.to_vec())));
            let (addresses, sidecar_addresses) = known.unwrap_or_default();
            RouteStatus {
                name: route.name.clone(),
                bind: route.bind.to_string(),
                to: route.to.to_string(),
                addresses,
                sidecar_addresses,
                peer: route.sidecar.as_ref().map(|sidecar| sidecar.name.to_string()),
                multiaddr: multiaddr(route, tunnels, &nodes),
                path,
                why,
                captured: tunnels.captured.of_route(&route.name),
            }
        });
        Self {
            identity: own,
            node: tunnels.discovery().status(),
            table: is_on(RouteTable::NAME),
            names: tunnels.names(),
            routes: routes.collect(),
            pools,
            sidecars: tunnels.sidecars(),
            capture: settings.capture_status(),
        }
    }
}

/// What reaches the node at the end of a route.
fn multiaddr(route: &Route, tunnels: &Tunnels, nodes: &HashMap<String, PeerId>) -> Option<String> {
    let sidecar = route.sidecar.as_ref().filter(|sidecar| sidecar.destination == Destination::node())?;
    let id = nodes.get(sidecar.name.as_str())?;
    let at = tunnels.discovery().bound_at(&route.name)?;
    let ip = match at.ip() {
        // Any address of this host will do; this one does when the node is on it.
        IpAddr::V4(ip) if ip.is_unspecified() => "ip4/127.0.0.1".to_owned(),
        IpAddr::V6(ip) if ip.is_unspecified() => "ip4/127.0.0.1".to_owned(),
        IpAddr::V4(ip) => format!("ip4/{ip}"),
        IpAddr::V6(ip) => format!("ip6/{ip}"),
    };
    Some(format!("/{ip}/tcp/{}/p2p/{id}", at.port()))
}

/// The way of a route's next connection, and why.
fn way(route: &Route, pools: &[PoolStatus], pooling: bool) -> (&'static str, String) {
    let Some(sidecar) = &route.sidecar else { return ("direct", "the route has no sidecar".to_owned()) };
    let past = if sidecar.require_tunnel { "none" } else { "direct" };
    if !pooling {
        return (past, "connection_pooling is off".to_owned());
    }
    let name = sidecar.name.to_string();
    let pool = pools.iter().find(|pool| pool.peer == name && pool.class == sidecar.class.label());
    let Some(pool) = pool else { return (past, "no connection was made yet".to_owned()) };
    let live = pool.connections.iter().filter(|connection| connection.state == "live").count();
    match (live, pool.last_failure) {
        (0, None) => ("tunnel", "a connection is being made".to_owned()),
        (0, Some(why)) => (past, format!("the sidecar cannot be reached: {why}")),
        (1, _) => ("tunnel", "1 connection".to_owned()),
        (live, _) => ("tunnel", format!("{live} connections")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::pool::ConnectionStatus;

    fn pool(live: usize, last_failure: Option<&'static str>) -> PoolStatus {
        let connection = ConnectionStatus {
            to: ([192, 0, 2, 1], 1).into(),
            state: "live",
            streams: 0,
            rtt_ms: 1.0,
            packets_sent: 0,
            packets_lost: 0,
            black_holes: 0,
            mtu: 1200,
            seconds: 0,
        };
        PoolStatus {
            peer: "spiffe://test/b".to_owned(),
            class: "interactive",
            breaker: "closed",
            last_failure,
            ejected: 0,
            connections: vec![connection; live],
        }
    }

    #[test]
    fn every_way_has_its_reason() {
        let route = |sidecar: serde_json::Value| {
            Arc::new(Route {
                name: "b".to_owned(),
                bind: "127.0.0.1:1".parse().unwrap(),
                to: "192.0.2.1:1".parse().unwrap(),
                sidecar: serde_json::from_value(sidecar).unwrap(),
            })
        };
        let plain = route(json!(null));
        let tunnel = route(json!({ "to": ["192.0.2.1:4433"], "name": "spiffe://test/b" }));
        let required =
            route(json!({ "to": ["192.0.2.1:4433"], "name": "spiffe://test/b", "require_tunnel": true }));
        assert_eq!(way(&plain, &[], true).0, "direct");
        assert_eq!((way(&tunnel, &[], false).0, way(&required, &[], false).0), ("direct", "none"));
        assert_eq!(way(&tunnel, &[pool(2, None)], true), ("tunnel", "2 connections".to_owned()));
        assert_eq!(way(&tunnel, &[pool(0, None)], true).0, "tunnel");
        let down = way(&tunnel, &[pool(0, Some("timeout"))], true);
        assert_eq!(down, ("direct", "the sidecar cannot be reached: timeout".to_owned()));
        assert_eq!(way(&required, &[pool(0, Some("timeout"))], true).0, "none");
    }
}
