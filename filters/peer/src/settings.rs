//! `listeners.peer` in the configuration.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use qudag_filter_api::{
    Address, BuildError, Chains, ConfigError, ConfigPath, Env, FilterError, HostPort, Period, service_fn,
};
use qudag_filter_common::{Front, ListenerSpec, SpliceOptions, Terminal};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::capture::{self, CAPTURED, Capture, CaptureSettings};
use crate::discovery::Order;
use crate::identity::{IdentitySettings, PeerName};
use crate::listener::{self, CONNECT_LIMIT};
use crate::routes::{self, RouteTable, Routes};
use crate::tunnel::header::Destination;
use crate::{Link, Peer, PeerConnect, PeerFilters, PeerSettings, Route, Sidecar, Tunnels, tunnel};

/// The name of the tunnel's listener, and of its route to the node.
const QUIC: &str = "quic";

/// The listeners of peer traffic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PeerListener {
    /// What the local node dials: one listener for each remote peer.
    pub outbound: Vec<Outbound>,
    /// What remote peers dial: each leads to the local node's `node.p2p`.
    pub inbound: Vec<HostPort>,
    /// Where the sidecars of remote peers reach this one through the tunnel, over UDP.
    pub quic: Option<HostPort>,
    /// Who this sidecar is for others, and whom it believes; needed for the tunnel, in both directions.
    pub identity: Option<IdentitySettings>,
    /// The names of the sidecars that may come through the tunnel: the URIs in their certificates.
    pub allow: Vec<PeerName>,
    /// Where streams of the tunnel may lead besides `node`, which is `node.p2p`: names and addresses, also of Unix sockets.
    pub destinations: BTreeMap<Destination, Address>,
    /// Connections that the local node makes straight to its peers and that rules of the packet filter hand over.
    pub capture: Option<Capture>,
    /// The time for one attempt to connect, with resolving the name; at most 10s.
    pub connect_timeout: Period,
    /// How long an open connection may make no progress while bytes wait to be written.
    pub stall_timeout: Period,
    /// How long an open connection may be idle after one side has finished.
    pub half_close_timeout: Period,
    /// How many connections one listener carries at a time; what comes above is reset.
    #[schemars(range(min = 1))]
    pub max_connections: usize,
    /// How many connections the nodes behind one sidecar may have through the tunnel, of the ones that `quic` carries; what comes above is refused
    /// (status 4), and others are served.
    #[schemars(range(min = 1))]
    pub max_connections_per_peer: usize,
    /// How many connections of the tunnel itself, which carry up to 128 of those, one sidecar may have with `quic`. It needs as many as its
    /// `max_connections` of the filter `connection_pooling` for each class of its routes, and again as many while they are renewed.
    #[schemars(range(min = 1))]
    pub max_tunnels_per_peer: usize,
}

impl Default for PeerListener {
    fn default() -> Self {
        Self {
            outbound: Vec::new(),
            inbound: Vec::new(),
            quic: None,
            identity: None,
            allow: Vec::new(),
            destinations: BTreeMap::new(),
            capture: None,
            connect_timeout: Period::secs(1),
            stall_timeout: Period::secs(60),
            half_close_timeout: Period::secs(300),
            max_connections: 4096,
            max_connections_per_peer: 1024,
            max_tunnels_per_peer: 64,
        }
    }
}

/// A listener that leads to a remote peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Outbound {
    /// Its name in logs and metrics; `outbound-` and its place in the list, from 0, when it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[A-Za-z0-9._-]{1,64}$"))]
    pub name: Option<String>,
    /// Where the local node dials. With `capture` it may be left out: the node dials the peer itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bind: Option<HostPort>,
    /// The remote node or the inbound listener of its sidecar. A name is resolved at each connection, or followed by the filter `route_table`.
    pub to: HostPort,
    /// The remote node's sidecar. With the filter `connection_pooling` connections go through the tunnel to it, and to `to` only when
    /// that fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sidecar: Option<Sidecar>,
}

/// A listener in the list where it stands.
struct Listed<'a> {
    name: String,
    bind: &'a HostPort,
    /// `None` for the local node.
    to: Option<&'a HostPort>,
    sidecar: Option<&'a Sidecar>,
    /// Whether there is a listener of its own; otherwise its connections come to the one at `bind`.
    listens: bool,
    /// The keys of `bind` from here.
    keys: Vec<String>,
}

impl PeerListener {
    /// All listeners: outbound, inbound, the tunnel's, and those of captured connections.
    fn listed(&self) -> impl Iterator<Item = Listed<'_>> {
        let captured = self.capture.as_ref().and_then(|capture| capture.bind.first());
        let outbound = self.outbound.iter().enumerate().map(move |(index, outbound)| Listed {
            name: outbound.name.clone().unwrap_or_else(|| format!("outbound-{index}")),
            // The check refuses a route that has neither.
            bind: outbound.bind.as_ref().or(captured).unwrap_or(&outbound.to),
            listens: outbound.bind.is_some(),
            to: Some(&outbound.to),
            sidecar: outbound.sidecar.as_ref(),
            keys: vec!["outbound".to_owned(), index.to_string(), "bind".to_owned()],
        });
        let inbound = self.inbound.iter().enumerate().map(|(index, bind)| Listed {
            name: format!("inbound-{index}"),
            bind,
            listens: true,
            to: None,
            sidecar: None,
            keys: vec!["inbound".to_owned(), index.to_string()],
        });
        let quic = self.quic.iter().map(|bind| Listed {
            name: QUIC.to_owned(),
            bind,
            listens: true,
            to: None,
            sidecar: None,
            keys: vec!["quic".to_owned()],
        });
        let captured = self.capture.iter().flat_map(|capture| capture.bind.iter().enumerate());
        let captured = captured.map(|(index, bind)| Listed {
            name: format!("{CAPTURED}-{index}"),
            bind,
            listens: true,
            to: None,
            sidecar: None,
            keys: vec!["capture".to_owned(), "bind".to_owned(), index.to_string()],
        });
        outbound.chain(inbound).chain(quic).chain(captured)
    }

    /// The routes of streams that come through the tunnel.
    fn destinations(&self, env: &Env) -> HashMap<Destination, Arc<Route>> {
        let Some(quic) = &self.quic else { return HashMap::new() };
        let route =
            |name: String, to: Address| Arc::new(Route { name, bind: quic.clone(), to, sidecar: None });
        let others = self.destinations.iter();
        let others = others.map(|(name, to)| (name.clone(), route(format!("{QUIC}.{name}"), to.clone())));
        let node = (Destination::node(), route(QUIC.to_owned(), Address::Tcp(env.node.p2p.clone())));
        others.chain(std::iter::once(node)).collect()
    }

    /// All routes, those of captured connections first.
    fn table(
        &self,
        settings: &RouteTable,
        peers: &PeerSettings,
        tunnels: &Tunnels,
        env: &Env,
    ) -> Arc<Routes> {
        let routes = peers.routes.iter().chain(peers.destinations.values()).cloned().collect();
        let captured = if self.capture.is_some() { self.outbound.len() } else { 0 };
        Routes::new(routes, captured, settings.bounds(), &tunnels.names, &env.resolve)
    }

    /// What is wrong with the settings of the tunnel.
    fn check_tunnel(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        let identity =
            "add `identity: { certificate: PATH, key: PATH, authorities: PATH }` to listeners.peer";
        for (index, outbound) in self.outbound.iter().enumerate() {
            let at = at.key("outbound").index(index).key("sidecar");
            let Some(sidecar) = &outbound.sidecar else { continue };
            if self.identity.is_none() {
                errors.push(at.error("the tunnel needs an identity").hint(identity));
            }
            if sidecar.to.is_empty() {
                errors
                    .push(at.key("to").error("no address").hint("the other sidecar's `listeners.peer.quic`"));
            }
            for (place, to) in sidecar.to.iter().enumerate() {
                let at = at.key("to").index(place);
                if to.port == 0 {
                    let error = at.error("port 0 cannot be dialled");
                    errors.push(error.hint("the port of the other sidecar's `listeners.peer.quic`"));
                } else if self.quic.as_ref() == Some(to) {
                    let error = at.error("the tunnel would lead to this sidecar itself");
                    errors.push(error.hint("the remote sidecar's address"));
                }
            }
        }
        let sidecars = self
            .outbound
            .iter()
            .enumerate()
            .filter_map(|(index, outbound)| Some((index, outbound.sidecar.as_ref()?)));
        let mut known = HashMap::new();
        for (index, sidecar) in sidecars {
            let (first, to) = *known.entry((&sidecar.name, sidecar.class)).or_insert((index, &sidecar.to));
            if *to != sidecar.to {
                let error = at
                    .key("outbound")
                    .index(index)
                    .key("sidecar")
                    .key("to")
                    .error(format!("{} has other addresses on another route", sidecar.name));
                errors.push(error.hint(format!(
                    "routes to one sidecar share its connections: the same addresses in the same order as outbound {first}, or another `class`"
                )));
            }
        }
        let named_quic = |outbound: &Outbound| outbound.name.as_deref() == Some(QUIC);
        if let (None, Some(index)) = (&self.quic, self.outbound.iter().position(named_quic)) {
            let error = at.key("outbound").index(index).key("name").error("the name `quic` is taken");
            errors.push(error.hint("it is the name of the tunnel's own listener; choose another one"));
        }
        if self.quic.is_some() {
            if self.identity.is_none() {
                errors.push(at.key("quic").error("the tunnel needs an identity").hint(identity));
            }
            if self.allow.is_empty() {
                let error = at.key("quic").error("nobody may come through the tunnel");
                errors.push(error.hint("add `allow: [URI…]`, the names in the other sidecars' certificates"));
            }
        }
        for (name, to) in &self.destinations {
            let at = at.key("destinations").key(name.as_str());
            if name.as_str() == Destination::NODE {
                errors.push(at.error("`node` is node.p2p").hint("choose another name"));
            } else if matches!(to, Address::Tcp(to) if to.port == 0) {
                errors.push(at.error("port 0 cannot be dialled").hint("the port of the destination"));
            }
        }
        if let Some(identity) = &self.identity
            // A configuration may be looked at where its files are not; where it is used, they have to be there.
            && [&identity.certificate, &identity.key, &identity.authorities].iter().all(|file| file.exists())
        {
            errors.extend(identity.check(&at.key("identity")));
        }
        errors
    }
}

/// Whether captured connections or their listeners have this name.
fn is_captured(name: &str) -> bool {
    let rest = name.strip_prefix(CAPTURED);
    rest.is_some_and(|rest| {
        rest.is_empty() || rest.strip_prefix('-').is_some_and(|n| n.parse::<u8>().is_ok())
    })
}

fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=64).contains(&name.len()) && name.bytes().all(plain)
}

impl ListenerSpec for PeerListener {
    type Filters = PeerFilters;
    type Upstream = Tunnels;

    fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        for (index, outbound) in self.outbound.iter().enumerate() {
            let at = at.key("outbound").index(index);
            if outbound.name.as_ref().is_some_and(|name| !is_name(name)) {
                let hint = "1 to 64 letters, digits, dots, hyphens and underscores";
                errors.push(at.key("name").error("not a name").hint(hint));
            }
            if outbound.name.as_deref().is_some_and(is_captured) {
                let hint = "captured connections have it, also with a number behind it; choose another one";
                errors.push(at.key("name").error("the name `captured` is taken").hint(hint));
            }
            if outbound.to.port == 0 {
                errors.push(
                    at.key("to").error("port 0 cannot be dialled").hint("the peer's port, 4001 for instance"),
                );
            }
            if outbound.bind.is_none() && self.capture.is_none() {
                let error = at.error("no connection would come to this route");
                errors.push(
                    error.hint("add `bind: HOST:PORT`, where the node dials; or `capture` to listeners.peer"),
                );
            }
            if Some(&outbound.to) == outbound.bind.as_ref() {
                errors.push(
                    at.key("to").error("the listener would dial itself").hint("the remote peer's address"),
                );
            }
        }

        errors.extend(self.check_tunnel(at));
        if let Some(capture) = &self.capture {
            errors.extend(capture.check(&at.key("capture")));
        }

        let (mut names, mut binds) = (HashMap::new(), HashMap::new());
        for listed in self.listed() {
            let place = listed.keys.iter().fold(at.clone(), |at, key| at.key(key));
            if let Some(first) = names.insert(listed.name.clone(), place.clone()) {
                let hint = format!("{first} has it; give the outbound one another `name`");
                errors.push(place.error(format!("the route name {:?} is taken", listed.name)).hint(hint));
            }
            if listed.bind.port == 0 || !listed.listens {
                continue;
            }
            if let Some(first) = binds.insert(listed.bind, place.clone()) {
                let hint = format!("{first} has it; choose another port");
                errors.push(place.error(format!("{} is bound twice", listed.bind)).hint(hint));
            }
        }

        let periods = [
            ("connect_timeout", self.connect_timeout, CONNECT_LIMIT),
            ("stall_timeout", self.stall_timeout, Duration::MAX),
            ("half_close_timeout", self.half_close_timeout, Duration::MAX),
        ];
        for (key, period, most) in periods {
            if period.0.is_zero() || period.0 > most {
                let hint = match most {
                    Duration::MAX => "above 0s".to_owned(),
                    most => format!("above 0s, at most {}", Period(most)),
                };
                errors.push(at.key(key).error(format!("{period} is out of range")).hint(hint));
            }
        }
        let limits = [
            ("max_connections", self.max_connections),
            ("max_connections_per_peer", self.max_connections_per_peer),
            ("max_tunnels_per_peer", self.max_tunnels_per_peer),
        ];
        for (key, _) in limits.into_iter().filter(|(_, limit)| *limit == 0) {
            errors.push(at.key(key).error("0 would refuse every connection").hint("at least 1"));
        }
        errors
    }

    fn binds(&self) -> Vec<(String, Address)> {
        let listening = self.listed().filter(|listed| listed.listens);
        listening.map(|listed| (listed.name, Address::Tcp(listed.bind.clone()))).collect()
    }

    fn settings(&self, env: &Env) -> PeerSettings {
        let route = |listed: Listed<'_>| {
            let to = Address::Tcp(listed.to.unwrap_or(&env.node.p2p).clone());
            let sidecar = listed.sidecar.cloned();
            Arc::new(Route { name: listed.name, bind: listed.bind.clone(), to, sidecar })
        };
        PeerSettings {
            routes: self
                .listed()
                .filter(|listed| listed.name != QUIC && !is_captured(&listed.name))
                .map(route)
                .collect(),
            allow: Arc::new(self.allow.iter().cloned().collect::<HashSet<_>>()),
            destinations: self.destinations(env),
            way: OnceLock::new(),
            table: OnceLock::new(),
            order: OnceLock::new(),
            connect_timeout: self.connect_timeout.0,
            splice: SpliceOptions { stall: self.stall_timeout.0, half_close: self.half_close_timeout.0 },
            max_connections: self.max_connections,
            max_connections_per_peer: self.max_connections_per_peer,
            max_tunnels_per_peer: self.max_tunnels_per_peer,
            mark: self.capture.as_ref().map(|capture| capture.mark.0),
            capture: OnceLock::new(),
        }
    }

    fn terminal(
        &self,
        filters: &PeerFilters,
        settings: &Arc<PeerSettings>,
        env: &Env,
        previous: Option<&Arc<Tunnels>>,
    ) -> Result<Terminal<Self>, BuildError> {
        let tunnels = Tunnels::next(previous, self.identity.as_ref())?;
        if let Some(way) = tunnels.way(&filters.connection_pooling.settings, settings, env) {
            // Settings are new for each generation.
            let _ = settings.way.set(Arc::new(way));
        }
        let table = self.table(&filters.route_table.settings, settings, &tunnels, env);
        let _ = settings.table.set(Arc::clone(&table));
        if let Some(capture) = &self.capture {
            capture.may_mark()?;
            let _ = settings.capture.set(Arc::new(CaptureSettings {
                mode: capture.mode,
                unmatched: capture.unmatched,
                mark: capture.mark,
                ports: capture.bind.iter().map(|bind| bind.port).collect(),
                routes: table,
                counts: Arc::clone(&tunnels.captured),
            }));
        }
        let order = Order {
            settings: filters.peer_discovery.settings.clone(),
            node: env.node.p2p.clone(),
            resolve: Arc::clone(&env.resolve),
            exchange: Arc::clone(tunnels.exchange()),
            discovery: Arc::clone(tunnels.discovery()),
        };
        let _ = settings.order.set(Arc::new(order));
        let (timeout, resolve, mark) = (settings.connect_timeout, Arc::clone(&env.resolve), settings.mark);
        let direct = service_fn::<Peer, _, _>(move |request: PeerConnect| {
            let resolve = Arc::clone(&resolve);
            async move {
                if request.route.requires_tunnel() {
                    let why = "the route requires the tunnel, and `connection_pooling` is off";
                    return Err(FilterError::Refused(why.into()));
                }
                routes::direct(&request, &*resolve, timeout, mark).await.map(Link::Direct)
            }
        });
        Ok((direct, Arc::new(tunnels)))
    }

    fn bind(
        name: String,
        address: Address,
        chains: Chains<Peer>,
        env: Env,
    ) -> BoxFuture<'static, io::Result<Box<dyn Front>>> {
        Box::pin(async move {
            match address {
                Address::Tcp(bind) if name == QUIC => tunnel::bind(name, bind, chains, env).await,
                Address::Tcp(bind) if is_captured(&name) => capture::bind(name, bind, chains, env).await,
                address => listener::bind(name, address, chains, env).await,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use qudag_filter_common::testing::wrong_places;

    use super::*;

    fn wrong(settings: &str) -> Vec<String> {
        wrong_places(settings, PeerListener::check)
    }

    #[test]
    fn defaults_are_right_and_every_mistake_has_its_place() {
        assert!(wrong("{}").is_empty());
        let to = r#""to": "peer.example:4001""#;
        let twice =
            format!(r#"{{"outbound": [{{"bind": "127.0.0.1:7001", {to}}}], "inbound": ["127.0.0.1:7001"]}}"#);
        assert_eq!(wrong(&twice), ["inbound.0"]);
        let named = |first: &str, second: &str| {
            let one = format!(r#"{{"name": "{first}", "bind": "127.0.0.1:0", {to}}}"#);
            let two = format!(r#"{{"name": "{second}", "bind": "127.0.0.1:0", {to}}}"#);
            wrong(&format!(r#"{{"outbound": [{one}, {two}], "inbound": ["[::1]:0", "[::1]:0"]}}"#))
        };
        assert!(named("a", "b").is_empty());
        assert_eq!(named("a", "a"), ["outbound.1.bind"]);
        assert_eq!(named("inbound-1", "b"), ["inbound.1"]);
        assert_eq!(named("", "a b"), ["outbound.0.name", "outbound.1.name"]);
        let leads = |to: &str| wrong(&format!(r#"{{"outbound": [{{"bind": "[::1]:1", "to": "{to}"}}]}}"#));
        assert_eq!(leads("peer.example:0"), ["outbound.0.to"]);
        assert_eq!(leads("[::1]:1"), ["outbound.0.to"]);
        let unbound = |more: &str| wrong(&format!(r#"{{"outbound": [{{{to}}}]{more}}}"#));
        assert_eq!(unbound(""), ["outbound.0"]);
        assert!(unbound(r#", "capture": {"bind": ["127.0.0.1:4180"], "ports": [4001]}"#).is_empty());
        assert_eq!(named("captured", "captured-0"), ["outbound.0.name", "outbound.1.name"]);
        let shared = |second: &str, class: &str| {
            let sidecar = |to: &str, class: &str| {
                format!(r#"{{"to": ["{to}"], "name": "spiffe://t/b", "class": "{class}"}}"#)
            };
            let route = |sidecar: &str| format!(r#"{{"bind": "127.0.0.1:0", {to}, "sidecar": {sidecar}}}"#);
            let (one, two) = (route(&sidecar("b.example:1", "bulk")), route(&sidecar(second, class)));
            let identity = r#"{"certificate": "/no/a", "key": "/no/b", "authorities": "/no/c"}"#;
            wrong(&format!(r#"{{"outbound": [{one}, {two}], "identity": {identity}}}"#))
        };
        assert!(shared("b.example:1", "bulk").is_empty() && shared("c.example:1", "interactive").is_empty());
        assert_eq!(shared("c.example:1", "bulk"), ["outbound.1.sidecar.to"]);
        let destination = |to: &str| wrong(&format!(r#"{{"destinations": {{"crypto": "{to}"}}}}"#));
        assert!(destination("[::1]:1").is_empty() && destination("unix:/run/crypto.sock").is_empty());
        assert_eq!(destination("127.0.0.1:0"), ["destinations.crypto"]);
        for (key, value) in [
            ("connect_timeout", "0s"),
            ("connect_timeout", "10001ms"),
            ("stall_timeout", "0s"),
            ("half_close_timeout", "0s"),
        ] {
            assert_eq!(wrong(&format!(r#"{{"{key}": "{value}"}}"#)), [key]);
        }
        for key in ["max_connections", "max_connections_per_peer", "max_tunnels_per_peer"] {
            assert_eq!(wrong(&format!(r#"{{"{key}": 0}}"#)), [key]);
        }
        assert!(serde_json::from_str::<PeerListener>(r#"{"outbounds": []}"#).is_err());
    }

    #[test]
    fn routes_have_names_and_lead_to_the_peer_or_the_node() {
        let settings: PeerListener = serde_json::from_str(
            r#"{"outbound": [{"bind": "127.0.0.1:1", "to": "a.example:1"}, {"name": "b", "bind": "127.0.0.1:2", "to": "[::1]:2"}],
                "inbound": ["0.0.0.0:3"]}"#,
        )
        .unwrap();
        let listed: Vec<_> =
            settings.binds().into_iter().map(|(name, bind)| format!("{name} {bind}")).collect();
        assert_eq!(listed, ["outbound-0 127.0.0.1:1", "b 127.0.0.1:2", "inbound-0 0.0.0.0:3"]);
        let captured: PeerListener = serde_json::from_str(
            r#"{"outbound": [{"to": "a.example:1"}], "capture": {"bind": ["127.0.0.1:4180", "[::1]:4180"], "ports": [1]}}"#,
        )
        .unwrap();
        let listed: Vec<_> =
            captured.binds().into_iter().map(|(name, bind)| format!("{name} {bind}")).collect();
        assert_eq!(listed, ["captured-0 127.0.0.1:4180", "captured-1 [::1]:4180"]);
    }
}
