//! The metrics of a pool.

use metrics::{Counter, counter, gauge};
use qudag_filter_common::LiveGauge;

use super::Inner;
use super::rules::Sample;
use crate::identity::PeerName;
use crate::tunnel::header::Class;

pub(super) struct Meters {
    peer: String,
    live: LiveGauge,
    draining: LiveGauge,
    streams: LiveGauge,
    rtt: LiveGauge,
    sent: Counter,
    lost: Counter,
    black_holes: Counter,
}

impl Meters {
    pub(super) fn new(name: &PeerName, class: Class) -> Self {
        let (peer, class) = (name.to_string(), class.label());
        let connections = |state: &'static str| {
            LiveGauge::new(
                gauge!("qudag_sidecar_peer_pool_connections",
                    "peer" => peer.clone(), "class" => class, "state" => state),
                0.0,
            )
        };
        Self {
            live: connections("live"),
            draining: connections("draining"),
            streams: LiveGauge::new(
                gauge!("qudag_sidecar_peer_pool_streams", "peer" => peer.clone(), "class" => class),
                0.0,
            ),
            rtt: LiveGauge::new(
                gauge!("qudag_sidecar_peer_pool_rtt_seconds", "peer" => peer.clone(), "class" => class),
                f64::NAN,
            ),
            sent: counter!("qudag_sidecar_peer_packets_sent_total", "peer" => peer.clone(), "class" => class),
            lost: counter!("qudag_sidecar_peer_packets_lost_total", "peer" => peer.clone(), "class" => class),
            black_holes: counter!("qudag_sidecar_peer_black_holes_total",
                "peer" => peer.clone(), "class" => class),
            peer,
        }
    }

    /// A dial has ended.
    pub(super) fn dialled(&self, outcome: &'static str) {
        counter!("qudag_sidecar_peer_dials_total", "peer" => self.peer.clone(), "outcome" => outcome)
            .increment(1);
    }

    /// What happened on a connection between two looks at it.
    pub(super) fn count(&self, before: &Sample, now: &Sample) {
        self.sent.increment(now.sent.saturating_sub(before.sent));
        self.lost.increment(now.lost.saturating_sub(before.lost));
        self.black_holes.increment(now.black_holes.saturating_sub(before.black_holes));
    }

    /// Shows the state of the pool.
    pub(super) fn show(&self, inner: &Inner) {
        let rules = &inner.rules;
        self.live.set(rules.live_count() as f64);
        self.draining.set(rules.draining_count() as f64);
        let streams: u32 =
            inner.links.keys().filter_map(|id| rules.streams(*id)).map(|(count, _)| count).sum();
        self.streams.set(streams.into());
        let best = inner.links.values().map(|link| link.told.rtt).min();
        self.rtt.set(best.map_or(f64::NAN, |rtt| rtt.as_secs_f64()));
    }
}
