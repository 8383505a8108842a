//! How many connections were captured, and what became of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use metrics::{counter, gauge};
use serde::Serialize;

use super::CaptureSettings;

/// What captured connections are, as `peers` and `status` show it.
#[derive(Clone, Debug, Serialize)]
pub struct CaptureStatus {
    /// `redirect` or `tproxy`.
    pub mode: &'static str,
    /// What happens to destinations without a route: `direct` or `refuse`.
    pub unmatched: &'static str,
    /// What the packets of own sockets are marked with.
    pub mark: String,
    /// Captured connections that are open.
    pub active: u64,
    /// Those that took a route, since the start.
    pub routed: u64,
    /// Those to destinations without a route that went there directly.
    pub direct: u64,
    /// Those to destinations without a route that were refused.
    pub refused: u64,
    /// Connections that were not captured but made to the listener itself; they are refused.
    pub itself: u64,
}

/// What became of a captured connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Routed,
    Direct,
    Refused,
    Itself,
}

impl Outcome {
    fn label(self) -> &'static str {
        match self {
            Self::Routed => "routed",
            Self::Direct => "direct",
            Self::Refused => "refused",
            Self::Itself => "itself",
        }
    }
}

/// Counts of captured connections; outlives generations.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    active: AtomicU64,
    routed: AtomicU64,
    direct: AtomicU64,
    refused: AtomicU64,
    itself: AtomicU64,
    by_route: Mutex<BTreeMap<String, u64>>,
}

impl Counts {
    /// Counts a connection. `route` is the one that it took.
    pub(crate) fn count(&self, outcome: Outcome, route: Option<&str>) {
        counter!("qudag_sidecar_peer_captured_total", "outcome" => outcome.label()).increment(1);
        let count = match outcome {
            Outcome::Routed => &self.routed,
            Outcome::Direct => &self.direct,
            Outcome::Refused => &self.refused,
            Outcome::Itself => &self.itself,
        };
        count.fetch_add(1, Ordering::Relaxed);
        if let Some(route) = route {
            let mut by_route = self.by_route.lock().unwrap_or_else(PoisonError::into_inner);
            // Names come from the configuration.
            *by_route.entry(route.to_owned()).or_default() += 1;
        }
    }

    /// Counts a connection as open until the answer is dropped.
    pub(crate) fn taken(self: &Arc<Self>) -> Taken {
        self.active.fetch_add(1, Ordering::Relaxed);
        gauge!("qudag_sidecar_peer_captured_active").increment(1.0);
        Taken(Arc::clone(self))
    }

    /// How many captured connections are open.
    pub(crate) fn open(&self) -> u64 {
        self.active.load(Ordering::Relaxed)
    }

    /// How many captured connections took a route.
    pub(crate) fn of_route(&self, name: &str) -> u64 {
        self.by_route.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied().unwrap_or_default()
    }

    /// All of them under a generation's settings.
    pub(crate) fn status(&self, settings: &CaptureSettings) -> CaptureStatus {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        CaptureStatus {
            mode: settings.mode.label(),
            unmatched: settings.unmatched.label(),
            mark: settings.mark.to_string(),
            active: read(&self.active),
            routed: read(&self.routed),
            direct: read(&self.direct),
            refused: read(&self.refused),
            itself: read(&self.itself),
        }
    }
}

/// An open captured connection.
#[derive(Debug)]
pub(crate) struct Taken(Arc<Counts>);

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
        gauge!("qudag_sidecar_peer_captured_active").decrement(1.0);
    }
}
