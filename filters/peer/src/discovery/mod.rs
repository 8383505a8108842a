//! `peer_discovery`: makes the nodes behind other sidecars known to the local node.

mod board;
mod invite;
mod learn;
pub mod mdns;
mod place;
mod run;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use qudag_filter_api::{
    BuildError, ConfigError, ConfigPath, Env, FilterSpec, Host, HostPort, Lease, Period, Resolve, Svc,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::exchange::Exchange;
use crate::identity::PeerName;
use crate::kind::{Peer, Route, Sidecar};
use crate::libp2p::PeerId;
use crate::tunnel::header::Destination;
use learn::Known;

/// A route that nobody wanted for so long is not announced any more: the listeners say every second that they do, and when they do not
/// any more.
const UNWANTED: Duration = Duration::from_secs(5);

/// `peer_discovery`: learns the peer id of the local node, tells it to the sidecars at the other ends of the tunnel, and announces
/// their nodes to the local one as libp2p does on local networks, with the addresses of this sidecar's outbound listeners.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PeerDiscovery {
    /// How often the local node is asked who it is. It is somebody else after each start.
    pub interval: Period,
    /// For how long the local node believes an announcement, in whole seconds; it is repeated three times in it. Nodes forget a peer that has
    /// gone only when this is over.
    pub ttl: Period,
    /// Whether the local node is made to dial peers that it has just been told of. The stock node notes who is announced and dials
    /// nobody by itself.
    pub invite: bool,
}

impl Default for PeerDiscovery {
    fn default() -> Self {
        Self { interval: Period::secs(10), ttl: Period::secs(20), invite: true }
    }
}

impl FilterSpec for PeerDiscovery {
    type Kind = Peer;
    /// What is announced belongs to the end of the chain: it is of listeners, not of connections.
    type State = ();
    const NAME: &'static str = "peer_discovery";

    fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        let limits = [("interval", self.interval, 1, 3600), ("ttl", self.ttl, 3, 360)];
        for (key, period, least, most) in limits {
            if period.0 < Duration::from_secs(least) || period.0 > Duration::from_secs(most) {
                let error = at.key(key).error(format!("{period} is out of range"));
                errors.push(error.hint(format!("{} to {}", Period::secs(least), Period::secs(most))));
            }
        }
        if self.ttl.0.subsec_nanos() != 0 {
            let error = at.key("ttl").error(format!("{} is not a whole number of seconds", self.ttl));
            errors.push(error.hint("20s for instance"));
        }
        errors
    }

    fn state(&self, _: &Env, _: Option<(&Self, Arc<()>)>) -> Result<Arc<()>, BuildError> {
        Ok(Arc::new(()))
    }

    fn wrap(&self, _: Arc<()>, inner: Svc<Peer>) -> Svc<Peer> {
        inner
    }
}

/// What is known of the local node, and told to it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DiscoveryStatus {
    /// The local node's peer id; `null` while it is not known, or the filter is off.
    pub peer_id: Option<PeerId>,
    /// Why the local node could not be asked the last time; `null` after an answer.
    pub failure: Option<String>,
    /// The multiaddrs that the local node is told, by the names of their routes.
    pub announced: BTreeMap<String, String>,
    /// Why the node is not told of a route, by the names of the routes.
    pub problems: BTreeMap<String, String>,
}

/// What outlives a reload: who the local node is, and what it was told.
#[derive(Default)]
pub(crate) struct Discovery {
    inner: Mutex<Inner>,
    /// Something was wanted or is not wanted any more.
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    wanted: BTreeMap<String, Wanted>,
    order: Option<Arc<Order>>,
    running: bool,
    status: DiscoveryStatus,
    /// Where the listeners are, by the names of their routes.
    bound: BTreeMap<String, SocketAddr>,
}

/// A route that may be announced.
#[derive(Clone)]
struct Wanted {
    /// Where the local node reaches it; `None` for the tunnel's own listener, for which the node is only asked who it is.
    listen: Option<SocketAddr>,
    sidecar: Option<(PeerName, Destination)>,
    seen: Instant,
}

/// How a generation wants it.
pub(crate) struct Order {
    pub(crate) settings: PeerDiscovery,
    pub(crate) node: HostPort,
    pub(crate) resolve: Arc<dyn Resolve>,
    pub(crate) exchange: Arc<Exchange>,
    pub(crate) discovery: Arc<Discovery>,
}

impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Order")
            .field("settings", &self.settings)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl Order {
    /// The address of the node, where it is configured with one.
    fn node_ip(&self) -> Option<IpAddr> {
        match self.node.host {
            Host::Ip(ip) if ip.is_unspecified() => Some(Ipv4Addr::LOCALHOST.into()),
            Host::Ip(ip) => Some(ip),
            Host::Name(_) => None,
        }
    }

    /// Says that the filter is on and a listener is there, which holds for a few seconds.
    fn want(self: &Arc<Self>, name: &str, route: Option<&Route>, listen: Option<SocketAddr>) {
        let sidecar = route.and_then(|route| route.sidecar.as_ref());
        let sidecar = sidecar.map(|Sidecar { name, destination, .. }| (name.clone(), destination.clone()));
        let wanted = Wanted { listen, sidecar, seen: Instant::now() };
        let mut inner = self.discovery.lock();
        let new = inner.wanted.insert(name.to_owned(), wanted).is_none();
        inner.order = Some(Arc::clone(self));
        if !std::mem::replace(&mut inner.running, true) {
            tokio::spawn(run::run(Arc::clone(&self.discovery)));
        }
        drop(inner);
        if new {
            self.discovery.changed.notify_one();
        }
    }
}

/// A listener, as long as it is there.
pub(crate) struct Announced<'a> {
    name: &'a str,
    at: Option<SocketAddr>,
    order: Option<Arc<Order>>,
}

impl<'a> Announced<'a> {
    /// A listener at `at`, where the local node reaches a route; without an address the tunnel's own.
    pub(crate) fn new(name: &'a str, at: Option<SocketAddr>) -> Self {
        Self { name, at, order: None }
    }

    /// To be called every second, with the generation's chain and the listener's route.
    pub(crate) fn want(&mut self, lease: &Lease<Peer>, route: Option<&Route>) {
        let Some(order) = lease.settings.order.get() else { return };
        if let Some(at) = self.at {
            order.discovery.bound(self.name, at);
        }
        if lease.chain.has(PeerDiscovery::NAME) {
            order.want(self.name, route, self.at);
        } else if let Some(before) = &self.order {
            before.discovery.unwanted(self.name);
        }
        self.order = Some(Arc::clone(order));
    }
}

impl Drop for Announced<'_> {
    fn drop(&mut self) {
        if let Some(order) = &self.order {
            order.discovery.gone(self.name);
        }
    }
}

impl Discovery {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A listener is there.
    fn bound(&self, name: &str, at: SocketAddr) {
        let mut inner = self.lock();
        if inner.bound.get(name) != Some(&at) {
            inner.bound.insert(name.to_owned(), at);
        }
    }

    /// A listener is gone.
    fn gone(&self, name: &str) {
        self.lock().bound.remove(name);
        self.unwanted(name);
    }

    /// A route is not to be announced any more.
    fn unwanted(&self, name: &str) {
        let mut inner = self.lock();
        if inner.wanted.remove(name).is_some() {
            drop(inner);
            self.changed.notify_one();
        }
    }

    /// What is known of the local node, and told to it.
    pub(crate) fn status(&self) -> DiscoveryStatus {
        self.lock().status.clone()
    }

    /// Where the listener of a route is.
    pub(crate) fn bound_at(&self, name: &str) -> Option<SocketAddr> {
        self.lock().bound.get(name).copied()
    }

    /// What is wanted now, and how; `None` when nothing is, and nobody has to look any more.
    fn wanted(&self) -> Option<(BTreeMap<String, Wanted>, Arc<Order>)> {
        let now = Instant::now();
        let mut inner = self.lock();
        inner.wanted.retain(|_, wanted| now.saturating_duration_since(wanted.seen) < UNWANTED);
        match inner.order.clone().filter(|_| !inner.wanted.is_empty()) {
            Some(order) => Some((inner.wanted.clone(), order)),
            None => {
                (inner.running, inner.status) = (false, DiscoveryStatus::default());
                None
            }
        }
    }

    fn show(&self, known: &Known, announced: BTreeMap<String, String>, problems: BTreeMap<String, String>) {
        self.lock().status = DiscoveryStatus {
            peer_id: known.node.as_ref().map(|(id, _)| id.clone()),
            failure: known.failure.clone(),
            announced,
            problems,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_has_its_place() {
        let wrong = |settings: &str| {
            let settings: PeerDiscovery = serde_json::from_str(settings).unwrap();
            let errors = settings.check(&ConfigPath::root());
            errors.into_iter().map(|error| error.at.to_string()).collect::<Vec<_>>()
        };
        assert!(wrong("{}").is_empty());
        for (key, value) in
            [("interval", "999ms"), ("interval", "2h"), ("ttl", "2s"), ("ttl", "361s"), ("ttl", "3500ms")]
        {
            assert_eq!(wrong(&format!("{{\"{key}\": \"{value}\"}}")), [key], "{value}");
        }
    }
}
