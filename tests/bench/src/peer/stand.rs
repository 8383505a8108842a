//! The two places between which peers talk, and the ways from one to the other.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use qudag_kit::{HaProxy, HostedNode, IdentityFiles, Namespace, Pki};
use qudag_wan::{Settings, Wan};
use serde_json::Value;

use crate::Failure;
use crate::contenders::{Sidecar, Stage};
use crate::measure::{Client, Contender, pause};
use crate::suites::{DIRECT, OURS, contender};

/// A pair of sidecars whose tunnel is off.
pub(super) const OFF: &str = "tunnel off";
/// The pair with the tunnel, where it stands beside one with another filter.
pub(super) const WITHOUT: &str = "without";
/// A pair of HAProxy.
pub(super) const HAPROXY: &str = "haproxy ×2";

/// Makes a way to a server; `None` where its programs are not installed.
pub(super) type MakeWay = fn(&Stand<'_>, SocketAddr) -> Result<Option<Way>, Failure>;

/// A pair of sidecars with the tunnel, nothing, two HAProxy, two sidecars without the tunnel.
pub(super) const WAYS: [MakeWay; 4] = [
    |stand, server| stand.tunnel(server, "").map(Some),
    |stand, server| Ok(Some(stand.direct(server))),
    |stand, server| stand.haproxy(server),
    |stand, server| stand.without_tunnel(server).map(Some),
];

/// How long tunnels may take to be up.
const UP: Duration = Duration::from_secs(15);

/// One place: a namespace with an address, or this host's loopback.
struct Place {
    namespace: Option<Namespace>,
    ip: IpAddr,
}

impl Place {
    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        match &self.namespace {
            Some(namespace) => namespace.inside(work),
            None => Ok(work()),
        }
    }
}

/// Two places and what lies between them.
pub(super) struct Stand<'a> {
    stage: &'a Stage,
    pki: Pki,
    /// Of every sidecar in the near place.
    identity: IdentityFiles,
    // The link before the places that it joins.
    _wan: Option<Wan>,
    near: Place,
    far: Place,
}

/// What carries bytes.
enum Process {
    Sidecar(Sidecar),
    HaProxy(HaProxy),
}

/// A way from the near place to a server in the far one.
pub(super) struct Way {
    pub(super) name: &'static str,
    /// Where clients connect.
    pub(super) at: SocketAddr,
    /// Near and far.
    processes: Vec<Process>,
}

impl Way {
    /// The processes between.
    pub(super) fn pids(&self) -> Vec<u32> {
        let pid = |process: &Process| match process {
            Process::Sidecar(sidecar) => sidecar.pid(),
            Process::HaProxy(haproxy) => haproxy.pid(),
        };
        self.processes.iter().map(pid).collect()
    }

    /// A failure, with what the sidecars between have logged.
    pub(super) fn failed(&self, why: &Failure) -> Failure {
        let logs = self.processes.iter().filter_map(|process| match process {
            Process::Sidecar(sidecar) => Some(sidecar.log()),
            Process::HaProxy(_) => None,
        });
        format!("{}: {why}\n{}", self.name, logs.collect::<String>()).into()
    }

    /// The same under another name.
    pub(super) fn named(self, name: &'static str) -> Self {
        Self { name, ..self }
    }

    /// The near sidecar.
    pub(super) fn near(&self) -> Option<&Sidecar> {
        match self.processes.first() {
            Some(Process::Sidecar(sidecar)) => Some(sidecar),
            _ => None,
        }
    }

    /// It as a contender.
    pub(super) fn contender(&self, connect: fn(SocketAddr) -> io::Result<Box<dyn Client>>) -> Contender<'_> {
        let at = self.at;
        contender(self.name, &self.pids(), move || connect(at))
    }
}

impl<'a> Stand<'a> {
    /// Both places on the loopback of this host.
    pub(super) fn local(stage: &'a Stage) -> Self {
        let place = || Place { namespace: None, ip: Ipv4Addr::LOCALHOST.into() };
        let (pki, identity) = stage.pki("near");
        Self { stage, pki, identity, _wan: None, near: place(), far: place() }
    }

    /// Two namespaces with a link of their own; `None`, and why is said, where there are none.
    ///
    /// # Errors
    /// When the link cannot be laid.
    pub(super) fn linked(stage: &'a Stage, link: &str) -> Result<Option<Self>, Failure> {
        if let Err(why) = Wan::available() {
            eprintln!("{why}, the rows over links are left out");
            return Ok(None);
        }
        let place = |ip| Place { namespace: Some(Namespace::new()), ip: IpAddr::V4(ip) };
        let (near, far) = (place(Ipv4Addr::new(10, 90, 0, 1)), place(Ipv4Addr::new(10, 90, 0, 2)));
        let (Some(left), Some(right)) = (&near.namespace, &far.namespace) else { return Ok(None) };
        let wan = Wan::connect(left, "10.90.0.1/24", right, "10.90.0.2/24", Settings::both(link.parse()?))?;
        let (pki, identity) = stage.pki("near");
        Ok(Some(Self { stage, pki, identity, _wan: Some(wan), near, far }))
    }

    /// Sets the congestion control of the TCP connections between the two places that begin from now on, one of the kernel's.
    /// Others have the host's.
    ///
    /// # Errors
    /// When the kernel does not have it.
    pub(super) fn congestion(&self, name: &str) -> Result<(), Failure> {
        for namespace in [&self.near, &self.far].into_iter().filter_map(|place| place.namespace.as_ref()) {
            // A namespace may choose few of them for itself, a route may have any.
            for route in self.stage.ip(namespace, &["route", "show"])?.lines() {
                let words = ["route", "replace"].into_iter().chain(route.split_whitespace());
                let words: Vec<_> = words.chain(["congctl", name]).collect();
                self.stage.ip(namespace, &words)?;
            }
        }
        Ok(())
    }

    /// Does something where the clients are.
    ///
    /// # Errors
    /// When the place cannot be entered.
    pub(super) fn near<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        self.near.inside(work)
    }

    /// Starts a server in the far place.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) fn server<T: Send>(
        &self,
        start: impl FnOnce(IpAddr) -> io::Result<T> + Send,
    ) -> io::Result<T> {
        let ip = self.far.ip;
        self.far.inside(move || start(ip))?
    }

    /// All ways to a server: ours first.
    ///
    /// # Errors
    /// When one does not start.
    pub(super) fn ways(&self, server: SocketAddr) -> Result<Vec<Way>, Failure> {
        WAYS.iter().filter_map(|make| make(self, server).transpose()).collect()
    }

    /// A node in the near place and one in the far one, which do not know each other.
    pub(super) fn nodes(&self) -> (HostedNode, HostedNode) {
        let node = |place: &Place| self.stage.node(place.ip, place.namespace.as_ref());
        (node(&self.near), node(&self.far))
    }

    /// Nothing between.
    pub(super) fn direct(&self, server: SocketAddr) -> Way {
        Way { name: DIRECT, at: server, processes: Vec::new() }
    }

    /// Two HAProxy; `None` where it is not installed.
    ///
    /// # Errors
    /// When one does not start.
    pub(super) fn haproxy(&self, server: SocketAddr) -> Result<Option<Way>, Failure> {
        let start = |place: &Place, to| {
            // A namespace of this benchmark has all ports free that this host has.
            let at = SocketAddr::new(place.ip, qudag_kit::ports::free().port());
            self.stage.haproxy_at("tcp", at, to, place.namespace.as_ref())
        };
        let Some(far) = start(&self.far, server) else { return Ok(None) };
        let Some(near) = start(&self.near, far.addr()) else { return Ok(None) };
        let at = near.addr();
        let processes = vec![Process::HaProxy(near), Process::HaProxy(far)];
        Ok(Some(Way { name: HAPROXY, at, processes }))
    }

    /// A sidecar in the far place that leads to a server, with the tunnel.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) fn far_end(&self, name: &str, server: SocketAddr) -> Result<FarEnd, Failure> {
        self.far_end_with(name, server, "")
    }

    /// The same with filters.
    fn far_end_with(&self, name: &str, server: SocketAddr, filters: &str) -> Result<FarEnd, Failure> {
        let identity = self.stage.identity(&self.pki, name);
        let ip = self.far.ip;
        let sidecar = self.stage.sidecar_in(
            &format!(
                "node: {{ name: far, p2p: \"{server}\" }}\nlisteners:\n  peer:\n    identity: {}\n    quic: \"{ip}:0\"\n    \
                 allow: [\"spiffe://kit.test/near\"]\n    inbound: [\"{ip}:0\"]\n    max_connections: 16384\n    \
                 max_connections_per_peer: 16384\nfilters: {{ peer: {{ {filters} }} }}\n",
                identity.yaml()
            ),
            self.far.namespace.as_ref(),
        )?;
        Ok(FarEnd {
            quic: sidecar.at_named("quic")?,
            inbound: sidecar.at_named("inbound-0")?,
            name: identity.name,
            sidecar,
        })
    }

    /// A sidecar in the near place with a route for each of the far ones. `pooling` is added to the settings of the pool.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) fn near_end(&self, routes: &[Route<'_>], pooling: &str) -> Result<Sidecar, Failure> {
        self.near_end_with(routes, pooling, "")
    }

    /// The same with other filters, after a comma.
    fn near_end_with(&self, routes: &[Route<'_>], pooling: &str, others: &str) -> Result<Sidecar, Failure> {
        let ip = self.near.ip;
        let routes: Vec<_> = routes
            .iter()
            .enumerate()
            .map(|(number, Route { to: FarEnd { quic, inbound, name, .. }, class })| {
                format!(
                    "      - {{ name: far-{number}, bind: \"{ip}:0\", to: \"{inbound}\", sidecar: {{ to: [\"{quic}\"], \
                     name: \"{name}\", class: {class}, require_tunnel: true }} }}\n"
                )
            })
            .collect();
        let identity = self.identity.yaml();
        let sidecar = self.stage.sidecar_in(
            &format!(
                "node: {{ name: near }}\nlisteners:\n  peer:\n    identity: {identity}\n    max_connections: 16384\n    \
                 outbound:\n{}filters: {{ peer: {{ connection_pooling: {{ enabled: true{pooling} }}{others} }} }}\n",
                routes.concat()
            ),
            self.near.namespace.as_ref(),
        )?;
        until_up(&sidecar)?;
        Ok(sidecar)
    }

    /// A sidecar in the near place with a route of this name, whose connections go to a server past the far sidecar when that cannot be
    /// reached.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) fn near_with_fallback(
        &self,
        route: &str,
        far: &FarEnd,
        server: SocketAddr,
    ) -> Result<Sidecar, Failure> {
        let (ip, identity, FarEnd { quic, name, .. }) = (self.near.ip, self.identity.yaml(), far);
        self.stage.sidecar_in(
            &format!(
                "node: {{ name: near }}\nlisteners:\n  peer:\n    identity: {identity}\n    outbound:\n      - {{ name: {route}, \
                 bind: \"{ip}:0\", to: \"{server}\", sidecar: {{ to: [\"{quic}\"], name: \"{name}\" }} }}\nfilters: {{ peer: {{ \
                 connection_pooling: {{ enabled: true }} }} }}\n"
            ),
            self.near.namespace.as_ref(),
        )
    }

    /// The files of every sidecar in the near place, as `listeners.peer.identity` has them.
    pub(super) fn identity(&self) -> serde_json::Value {
        let IdentityFiles { certificate, key, authorities, .. } = &self.identity;
        serde_json::json!({ "certificate": certificate, "key": key, "authorities": authorities })
    }

    /// A pair with the tunnel.
    ///
    /// # Errors
    /// When a sidecar does not start.
    pub(super) fn tunnel(&self, server: SocketAddr, pooling: &str) -> Result<Way, Failure> {
        let far = self.far_end("far", server)?;
        let near = self.near_end(&[Route { to: &far, class: "interactive" }], pooling)?;
        let at = near.at_named("far-0")?;
        Ok(Way { name: OURS, at, processes: vec![Process::Sidecar(near), Process::Sidecar(far.sidecar)] })
    }

    /// A pair with the tunnel that uses its buffers again.
    ///
    /// # Errors
    /// When a sidecar does not start.
    pub(super) fn pooled(&self, server: SocketAddr) -> Result<Way, Failure> {
        let filter = "memory_pooling: { enabled: true }";
        let far = self.far_end_with("far-pooled", server, filter)?;
        let route = Route { to: &far, class: "interactive" };
        let near = self.near_end_with(&[route], "", &format!(", {filter}"))?;
        let at = near.at_named("far-0")?;
        let processes = vec![Process::Sidecar(near), Process::Sidecar(far.sidecar)];
        Ok(Way { name: "memory_pooling", at, processes })
    }

    fn without_tunnel(&self, server: SocketAddr) -> Result<Way, Failure> {
        let (near, far) = (self.near.ip, self.far.ip);
        let far = self.stage.sidecar_in(
            &format!("node: {{ name: far, p2p: \"{server}\" }}\nlisteners: {{ peer: {{ inbound: [\"{far}:0\"] }} }}\n"),
            self.far.namespace.as_ref(),
        )?;
        let to = far.at_named("inbound-0")?;
        let near = self.stage.sidecar_in(
            &format!("listeners: {{ peer: {{ outbound: [{{ bind: \"{near}:0\", to: \"{to}\" }}] }} }}\n"),
            self.near.namespace.as_ref(),
        )?;
        let at = near.at_named("outbound-0")?;
        Ok(Way { name: OFF, at, processes: vec![Process::Sidecar(near), Process::Sidecar(far)] })
    }
}

/// Waits until there is a connection to each of the other sidecars: on a lossy link the first handshake may take longer than anybody
/// waits for it.
fn until_up(sidecar: &Sidecar) -> Result<(), Failure> {
    let deadline = Instant::now() + UP;
    loop {
        let told = sidecar.get("/peers")?;
        let pools = told.get("pools").and_then(Value::as_array).cloned().unwrap_or_default();
        let is_up = |pool: &Value| {
            pool.get("connections").and_then(Value::as_array).is_some_and(|links| !links.is_empty())
        };
        if !pools.is_empty() && pools.iter().all(is_up) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(format!("no tunnel after {UP:?}: {told}").into());
        }
        pause(Duration::from_millis(20));
    }
}

/// A route of the near sidecar: where it leads, and the class of its streams.
pub(super) struct Route<'a> {
    pub(super) to: &'a FarEnd,
    pub(super) class: &'static str,
}

/// A sidecar in the far place.
pub(super) struct FarEnd {
    pub(super) quic: SocketAddr,
    inbound: SocketAddr,
    pub(super) name: String,
    sidecar: Sidecar,
}
