//! A peer of another libp2p, the one of JavaScript, through a pair of sidecars.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::net::SocketAddr;
use std::time::Duration;

use qudag_kit::node::Host;
use qudag_kit::{HostedNode, JsPeer, Pki, TestSidecar, eventually, needs_js_libp2p, needs_node};

const PINGS: u32 = 200;
/// The time between two toggles.
const PACE: Duration = Duration::from_millis(100);

/// Two sidecars with a tunnel, and what their files need.
struct Pair {
    a: TestSidecar,
    _b: TestSidecar,
    _pki: Pki,
    /// Where A leads to the node behind B.
    door: SocketAddr,
}

impl Pair {
    async fn start(node: SocketAddr) -> Self {
        let pki = Pki::new().await;
        let (id_a, id_b) = (pki.issue("a").await, pki.issue("b").await);
        let b = TestSidecar::start(&format!(
            "node: {{ p2p: \"{node}\" }}\nlisteners:\n  peer: {{ identity: {}, quic: \"127.0.0.1:0\", allow: [\"{}\"], \
             inbound: [\"127.0.0.1:0\"] }}\n",
            id_b.yaml(),
            id_a.name
        ))
        .await;
        let (quic, inbound) =
            (b.listener_named("peer", "quic").await, b.listener_named("peer", "inbound-0").await);
        let a = TestSidecar::start(&format!(
            "listeners:\n  peer:\n    identity: {}\n    outbound: [{{ name: there, bind: \"127.0.0.1:0\", to: \"{inbound}\", \
             sidecar: {{ to: [\"{quic}\"], name: \"{}\" }} }}]\nfilters:\n  peer:\n    connection_pooling: {{ enabled: true }}\n",
            id_a.yaml(),
            id_b.name
        ))
        .await;
        let up = async || {
            let told = a.cli_json(&["peers"]).await;
            (told["pools"][0]["connections"][0]["state"] == "live").then_some(told)
        };
        let told = eventually(Duration::from_secs(20), "the tunnel is up", up).await;
        assert_eq!(told["routes"][0]["path"], "tunnel", "{told}");
        let door = a.listener_named("peer", "there").await;
        Self { a, _b: b, _pki: pki, door }
    }

    /// Streams that took the tunnel.
    async fn streams(&self) -> f64 {
        self.a.metric("qudag_sidecar_peer_streams_total", &[("side", "out"), ("outcome", "ok")]).await
    }

    /// Pings, and expects all answers.
    async fn ping(&self, from: &mut JsPeer, to: &str, fresh: bool) {
        let pings = from.ping(self.door, to, PINGS, fresh).await;
        assert_eq!(pings.answered, u64::from(PINGS), "{:?}", pings.failures);
        assert!(pings.failures.is_empty(), "{:?}", pings.failures);
    }

    /// The same while the tunnel is switched off and on all the time. At the end it is on.
    async fn ping_and_toggle(&self, from: &mut JsPeer, to: &str, fresh: bool) {
        let toggle = async {
            loop {
                for on in [false, true] {
                    self.a.toggle("peer.connection_pooling", on).await;
                    tokio::time::sleep(PACE).await;
                }
            }
        };
        tokio::select! {
            () = self.ping(from, to, fresh) => {}
            () = toggle => {}
        }
        self.a.toggle("peer.connection_pooling", true).await;
    }
}

#[tokio::test]
async fn js_libp2p_pings_through_the_tunnel() {
    needs_js_libp2p!();
    let (mut dialer, listener) = tokio::join!(JsPeer::start(), JsPeer::start());
    let pair = Pair::start(listener.p2p()).await;
    let id = listener.peer_id();
    pair.ping(&mut dialer, id, false).await;
    assert_eq!(pair.streams().await, 1.0, "one connection through the tunnel");
    // An open connection stays where it is.
    pair.ping_and_toggle(&mut dialer, id, false).await;
    assert_eq!(pair.streams().await, 1.0);
    // New ones take the way that is open.
    pair.ping_and_toggle(&mut dialer, id, true).await;
    let tunnel = pair.streams().await - 1.0;
    println!("{tunnel} of {PINGS} connections took the tunnel");
    assert!(tunnel > 0.0 && tunnel < f64::from(PINGS), "{tunnel} connections took the tunnel");
}

#[tokio::test]
async fn js_libp2p_pings_a_node_through_the_tunnel() {
    needs_js_libp2p!();
    needs_node!();
    let mut dialer = JsPeer::start().await;
    let node = HostedNode::start(&Host::default()).await;
    let pair = Pair::start(node.p2p()).await;
    pair.ping(&mut dialer, node.peer_id(), false).await;
    assert_eq!(pair.streams().await, 1.0, "one connection through the tunnel");
    pair.ping_and_toggle(&mut dialer, node.peer_id(), false).await;
}
