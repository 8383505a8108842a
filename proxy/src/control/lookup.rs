//! A look-up with the way that its query took through the filters.

use qudag_filter_api::{Arm, Kind, Percent};
use qudag_filter_dns::{Dns, Lookup, TraceStep, Way};
use serde::Serialize;

use super::FilterStatus;

/// What a look-up found and, if it was asked for, how.
#[derive(Clone, Debug, Serialize)]
pub struct LookedUp {
    /// What it found.
    #[serde(flatten)]
    pub lookup: Lookup,
    /// The filters in the order of the chain, those that are off too, and the servers at its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<Vec<TracedFilter>>,
}

/// A filter on a query's way.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TracedFilter {
    /// The filter's name.
    pub filter: &'static str,
    /// Its switch; none for what cannot be switched.
    #[serde(flatten)]
    pub switch: Option<Switch>,
    /// `with` where the query went through the filter, `without` where its rollout led past it; null where the query did not come
    /// so far, or the filter is off.
    pub reached: Option<&'static str>,
    /// What the filter did and why.
    pub steps: Vec<TraceStep>,
}

/// A filter's switch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Switch {
    /// Whether it is in the chain.
    pub enabled: bool,
    /// The percentage of flows that passes through it.
    pub rollout: Percent,
    /// The layer that decided.
    pub layer: &'static str,
}

impl LookedUp {
    /// Puts the way of a query and the switches of its generation together.
    pub fn new(lookup: Lookup, filters: impl Iterator<Item = FilterStatus>) -> Self {
        let trace = lookup.way.as_ref().map(|way| trace(way, filters));
        Self { lookup, trace }
    }
}

fn trace(way: &Way, filters: impl Iterator<Item = FilterStatus>) -> Vec<TracedFilter> {
    let of = |filter, switch, reached| TracedFilter {
        filter,
        switch,
        reached,
        steps: way.steps.iter().filter(|step| step.filter == filter).cloned().collect(),
    };
    let mut chain: Vec<_> = filters
        .filter(|filter| filter.kind == Dns::NAME)
        .map(|FilterStatus { name, enabled, rollout, layer, .. }| {
            let reached = way.reached.iter().find(|(reached, _)| *reached == name);
            of(name, Some(Switch { enabled, rollout, layer }), reached.map(|(_, arm)| arm.label()))
        })
        .collect();
    // What stands behind the filters has no switch, and shows that it was reached by what it says.
    for step in &way.steps {
        if chain.iter().all(|known| known.filter != step.filter) {
            chain.push(of(step.filter, None, Some(Arm::With.label())));
        }
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_is_shown_in_order_with_what_was_not_reached() {
        let status = |name, enabled, rollout| FilterStatus {
            kind: "dns",
            name,
            enabled,
            rollout: Percent::new(rollout).unwrap(),
            layer: "yaml",
            expires_in_seconds: None,
        };
        let step = |filter, what: &str| TraceStep { filter, at_ms: 0.5, what: what.to_owned() };
        let way = Way {
            reached: vec![("hosts", Arm::With), ("rate_limit", Arm::Without)],
            steps: vec![step("hosts", "no"), step("dns_upstream", "asked"), step("dns_upstream", "answered")],
        };
        let other = FilterStatus { kind: "rpc", ..status("retry", true, 100.0) };
        let filters = [
            status("hosts", true, 100.0),
            status("rate_limit", true, 10.0),
            status("dns_cache", false, 100.0),
            other,
        ];
        let shown = serde_json::to_value(trace(&way, filters.into_iter())).unwrap();
        assert_eq!(
            shown,
            serde_json::json!([
                {"filter": "hosts", "enabled": true, "rollout": 100, "layer": "yaml", "reached": "with",
                 "steps": [{"at_ms": 0.5, "what": "no"}]},
                {"filter": "rate_limit", "enabled": true, "rollout": 10, "layer": "yaml", "reached": "without",
                 "steps": []},
                {"filter": "dns_cache", "enabled": false, "rollout": 100, "layer": "yaml", "reached": null,
                 "steps": []},
                {"filter": "dns_upstream", "reached": "with",
                 "steps": [{"at_ms": 0.5, "what": "asked"}, {"at_ms": 0.5, "what": "answered"}]},
            ])
        );
    }
}
