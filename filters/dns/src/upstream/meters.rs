//! The metrics of one server, by its name in the configuration.

use std::time::Duration;

use metrics::{Counter, Histogram, counter, gauge, histogram};
use qudag_filter_common::LiveGauge;

use super::rules::BreakerState;

const QUERIES: &str = "qudag_sidecar_dns_upstream_queries_total";
const PROBES: &str = "qudag_sidecar_dns_upstream_probes_total";

/// Handles to the metrics of one server. Its gauges end with it.
pub(super) struct Meters {
    server: String,
    ok: Counter,
    seconds: Histogram,
    healthy: LiveGauge,
    breaker: LiveGauge,
    hedges: Counter,
    repeats: Counter,
    in_flight: LiveGauge,
}

impl Meters {
    pub(super) fn new(server: String) -> Self {
        let label = || server.clone();
        Self {
            ok: counter!(QUERIES, "server" => label(), "outcome" => "ok"),
            seconds: histogram!("qudag_sidecar_dns_upstream_seconds", "server" => label()),
            healthy: LiveGauge::new(gauge!("qudag_sidecar_dns_upstream_healthy", "server" => label()), 1.0),
            breaker: LiveGauge::new(
                gauge!("qudag_sidecar_dns_upstream_breaker_state", "server" => label()),
                BreakerState::Closed.gauge(),
            ),
            hedges: counter!("qudag_sidecar_dns_upstream_hedges_total", "server" => label()),
            repeats: counter!("qudag_sidecar_dns_upstream_repeats_total", "server" => label()),
            in_flight: LiveGauge::new(
                gauge!("qudag_sidecar_dns_upstream_in_flight", "server" => label()),
                0.0,
            ),
            server,
        }
    }

    /// A good answer, after so long where that is known.
    pub(super) fn answered(&self, took: Option<Duration>) {
        self.ok.increment(1);
        took.iter().for_each(|took| self.seconds.record(took.as_secs_f64()));
    }

    /// A query that ended otherwise.
    pub(super) fn ended(&self, outcome: &'static str) {
        counter!(QUERIES, "server" => self.server.clone(), "outcome" => outcome).increment(1);
    }

    /// A probe ended.
    pub(super) fn probed(&self, outcome: &'static str) {
        counter!(PROBES, "server" => self.server.clone(), "outcome" => outcome).increment(1);
    }

    /// The server is asked because another one is silent.
    pub(super) fn hedged(&self) {
        self.hedges.increment(1);
    }

    /// The server is asked again because it is silent or cannot be reached.
    pub(super) fn repeated(&self) {
        self.repeats.increment(1);
    }

    /// What is thought of the server.
    pub(super) fn state(&self, healthy: bool, breaker: BreakerState) {
        self.healthy.set(if healthy { 1.0 } else { 0.0 });
        self.breaker.set(breaker.gauge());
    }

    /// A query begins (+1) or ends (−1).
    pub(super) fn in_flight(&self, by: f64) {
        self.in_flight.add(by);
    }
}
