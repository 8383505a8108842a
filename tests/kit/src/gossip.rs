//! Gossip between two real nodes: a load on one side, what arrived of it on the other one.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;

use crate::eventually;
use crate::node::HostedNode;

/// Messages at a fixed rate, whatever becomes of them (an open loop).
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// The gossip topic. One node publishes on it.
    pub topic: &'a str,
    /// Of each message, 24 or more.
    pub bytes: usize,
    /// Messages each second.
    pub per_second: f64,
    /// For how long.
    pub time: Duration,
}

/// What the publisher's own node said to a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Messages that it took.
    pub taken: u64,
    /// Messages that it refused.
    pub refused: u64,
}

/// What arrived of a load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tally {
    /// Different messages.
    pub received: u64,
    /// Messages that had come before.
    pub duplicates: u64,
    /// Of the different messages.
    pub bytes: u64,
    /// For how long was counted.
    pub time: Duration,
    /// From when a message was due at its publisher to its arrival.
    pub latency: Latency,
}

/// Percentiles of a latency, in µs.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Latency {
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

impl HostedNode {
    /// Dials another node at an address that leads to it, and waits until gossip on a topic passes.
    ///
    /// # Panics
    /// When it does not.
    pub async fn meet(&mut self, other: &mut Self, at: SocketAddr, topic: &str) {
        self.subscribe(topic).await;
        other.subscribe(topic).await;
        let (family, ip) = (if at.is_ipv4() { "ip4" } else { "ip6" }, at.ip());
        self.dial(&format!("/{family}/{ip}/tcp/{}/p2p/{}", at.port(), other.peer_id())).await;
        // Refused until the other one's subscription has arrived.
        let published = async || self.publish(topic, "hello").await.ok();
        eventually(Duration::from_secs(20), "a message is taken", published).await;
        other.next_event("a message", |event| event["event"] == "message").await;
    }

    /// Publishes a load, to its end.
    ///
    /// # Panics
    /// When the node gives no answer.
    pub async fn load(&mut self, load: Load<'_>) -> Published {
        let Load { topic, bytes, per_second, time } = load;
        let command = json!({
            "do": "load",
            "topic": topic,
            "bytes": bytes,
            "per_second": per_second,
            "for_seconds": time.as_secs_f64(),
        });
        let told = self.command(&command).await.unwrap();
        let number = |key: &str| told[key].as_u64().unwrap();
        Published { taken: number("published"), refused: number("refused") }
    }

    /// What came of loads on a topic since [`new_tally`](Self::new_tally).
    ///
    /// # Panics
    /// When the node gives no answer.
    pub async fn tally(&mut self, topic: &str) -> Tally {
        self.told(topic, false).await
    }

    /// The same, and a new tally begins.
    ///
    /// # Panics
    /// When the node gives no answer.
    pub async fn new_tally(&mut self, topic: &str) -> Tally {
        self.told(topic, true).await
    }

    async fn told(&mut self, topic: &str, forget: bool) -> Tally {
        let command = json!({ "do": "tally", "topic": topic, "forget": forget });
        let told = self.command(&command).await.unwrap();
        let number = |key: &str| told[key].as_u64().unwrap();
        let at = |key: &str| told["microseconds"][key].as_f64().unwrap();
        Tally {
            received: number("received"),
            duplicates: number("duplicates"),
            bytes: number("bytes"),
            time: told["seconds"].as_f64().map(Duration::from_secs_f64).unwrap(),
            latency: Latency { p50: at("p50"), p99: at("p99"), p999: at("p99.9"), max: at("max") },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::Host;

    #[tokio::test]
    async fn a_load_is_counted_where_it_arrives() {
        crate::needs_node!();
        let mut a = HostedNode::start(&Host::default()).await;
        let mut b = HostedNode::start(&Host::default()).await;
        let at = b.p2p();
        a.meet(&mut b, at, "t").await;
        let load = Load { topic: "t", bytes: 500, per_second: 100.0, time: Duration::from_secs(1) };
        assert_eq!(a.load(load).await, Published { taken: 100, refused: 0 });
        let all = async || Some(b.tally("t").await).filter(|tally| tally.received == 100);
        let tally = eventually(Duration::from_secs(10), "all messages arrive", all).await;
        assert_eq!((tally.bytes, tally.duplicates), (100 * 500, 0));
        let Latency { p50, p99, p999, max } = tally.latency;
        assert!(0.0 < p50 && p50 <= p99 && p99 <= p999 && p999 <= max && max < 10e6, "{tally:?}");
        assert_eq!(b.new_tally("t").await.received, 100);
        // Too large for the node, and nobody listens to the other topic.
        let large = Load { bytes: 70_000, per_second: 10.0, ..load };
        assert_eq!(a.load(large).await, Published { taken: 0, refused: 10 });
        let lonely = Load { topic: "lonely", bytes: 24, ..large };
        assert_eq!(a.load(lonely).await, Published { taken: 0, refused: 10 });
        assert_eq!(b.tally("t").await.received, 0);
    }
}
