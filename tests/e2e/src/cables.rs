//! Two nodes, two sidecars, four namespaces in a row: node A — sidecar A — sidecar B — node B. Nothing routes, so each node
//! reaches only its own sidecar.

use qudag_kit::{IdentityFiles, Namespace, Setup, TestSidecar};

/// The namespaces, cabled.
pub struct Cables {
    /// Where node A runs, 10.91.1.2.
    pub node_a: Namespace,
    /// Where sidecar A runs, 10.91.1.1 and 10.91.2.1.
    pub side_a: Namespace,
    /// Where sidecar B runs, 10.91.2.2 and 10.91.3.1.
    pub side_b: Namespace,
    /// Where node B runs, 10.91.3.2.
    pub node_b: Namespace,
}

/// The address of node A's libp2p listener as a multiaddr.
pub const NODE_A: &str = "/ip4/10.91.1.2/tcp/8000";
/// The address of node B's libp2p listener as a multiaddr.
pub const NODE_B: &str = "/ip4/10.91.3.2/tcp/8000";
/// Where node A reaches node B: its own sidecar.
pub const B_SEEN_FROM_A: &str = "/ip4/10.91.1.1/tcp/4001";

impl Cables {
    /// Makes and cables the namespaces.
    #[expect(clippy::new_without_default, reason = "it makes something outside the process")]
    pub fn new() -> Self {
        let cables = Self {
            node_a: Namespace::new(),
            side_a: Namespace::new(),
            side_b: Namespace::new(),
            node_b: Namespace::new(),
        };
        cables.node_a.connect("10.91.1.2/24", &cables.side_a, "10.91.1.1/24");
        cables.side_a.connect("10.91.2.1/24", &cables.side_b, "10.91.2.2/24");
        cables.side_b.connect("10.91.3.1/24", &cables.node_b, "10.91.3.2/24");
        cables
    }

    /// Checks that neither node has a way to the other one past the sidecars.
    ///
    /// # Panics
    /// When one has.
    pub async fn assert_apart(&self) {
        for (from, to) in
            [(&self.node_a, "10.91.3.2"), (&self.node_a, "10.91.2.2"), (&self.node_b, "10.91.1.2")]
        {
            let route = from.run("ip", &["route", "get", to]).await;
            assert_ne!(route.code, 0, "a route to {to}: {}", route.stdout);
        }
        for side in [&self.side_a, &self.side_b] {
            let forwarding = side.run("cat", &["/proc/sys/net/ipv4/ip_forward"]).await.ok();
            assert_eq!(forwarding.trim(), "0");
        }
    }

    /// The sidecar of node A: port 4001 towards the node leads to node B.
    pub async fn sidecar_a(&self) -> TestSidecar {
        let yaml = side("10.91.1.2:8000", "10.91.1.1:4001", "10.91.2.2:4001", "10.91.2.1:4001");
        TestSidecar::with(Setup { yaml: &yaml, namespace: Some(&self.side_a), env: &[] }).await
    }

    /// The sidecar of node B: port 4001 towards the node leads to node A.
    pub async fn sidecar_b(&self) -> TestSidecar {
        let yaml = side("10.91.3.2:8000", "10.91.3.1:4001", "10.91.2.1:4001", "10.91.2.2:4001");
        TestSidecar::with(Setup { yaml: &yaml, namespace: Some(&self.side_b), env: &[] }).await
    }
}

/// One end of a tunnel between the sidecars of [`Cables`].
pub struct TunnelEnd<'a> {
    /// Who it is.
    pub own: &'a IdentityFiles,
    /// Who the other one is.
    pub other: &'a IdentityFiles,
}

impl Cables {
    /// The sidecar of node A: port 4001 towards the node leads to node B through the tunnel, and no other way.
    pub async fn tunnel_a(&self, end: TunnelEnd<'_>) -> TestSidecar {
        let yaml = tunnel("10.91.1.2:8000", "10.91.1.1:4001", "10.91.2.2", "10.91.2.1", &end);
        TestSidecar::with(Setup { yaml: &yaml, namespace: Some(&self.side_a), env: &[] }).await
    }

    /// The sidecar of node B: port 4001 towards the node leads to node A through the tunnel, and no other way.
    pub async fn tunnel_b(&self, end: TunnelEnd<'_>) -> TestSidecar {
        let yaml = tunnel("10.91.3.2:8000", "10.91.3.1:4001", "10.91.2.1", "10.91.2.2", &end);
        TestSidecar::with(Setup { yaml: &yaml, namespace: Some(&self.side_b), env: &[] }).await
    }
}

fn tunnel(node: &str, bind: &str, other: &str, own: &str, end: &TunnelEnd<'_>) -> String {
    let (identity, name) = (end.own.yaml(), &end.other.name);
    format!(
        "node: {{ name: here, p2p: \"{node}\" }}\nlisteners:\n  peer:\n    identity: {identity}\n    quic: \
         \"{own}:4433\"\n    allow: [\"{name}\"]\n    outbound: [{{ name: there, bind: \"{bind}\", to: \"{other}:4001\", \
         sidecar: {{ to: [\"{other}:4433\"], name: \"{name}\", require_tunnel: true }} }}]\nfilters:\n  peer:\n    \
         circuit_breaker: {{ enabled: true }}\n    retry: {{ enabled: true }}\n    connection_pooling: {{ enabled: true }}\n"
    )
}

fn side(node: &str, bind: &str, to: &str, inbound: &str) -> String {
    format!(
        "node: {{ name: here, p2p: \"{node}\" }}\nlisteners:\n  peer:\n    outbound: [{{ name: there, bind: \
         \"{bind}\", to: \"{to}\" }}]\n    inbound: [\"{inbound}\"]\nfilters:\n  peer:\n    circuit_breaker: {{ \
         enabled: true }}\n    retry: {{ enabled: true }}\n"
    )
}

/// The bytes that a sidecar passed on for peers, up and down.
pub async fn peer_bytes(sidecar: &TestSidecar) -> (f64, f64) {
    let name = "qudag_sidecar_bytes_total";
    let up = sidecar.metric(name, &[("kind", "peer"), ("direction", "up")]).await;
    (up, sidecar.metric(name, &[("kind", "peer"), ("direction", "down")]).await)
}
