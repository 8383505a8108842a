//! The servers of a cluster, as they are shown.

use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use super::state::Replicas;
use super::topology::{Ban, Report};
use crate::pool::Target;

/// A server of a cluster, as it is shown.
#[derive(Clone, Debug, Serialize)]
pub struct ReplicaStatus {
    /// The server, as configured.
    pub server: String,
    /// `primary`, `replica`, `old primary`, `other primary` (of another cluster) or `unknown`.
    pub role: &'static str,
    /// Its timeline; `null` when the last probe failed, as the next one.
    pub timeline: Option<u32>,
    /// Up to where in the write-ahead log it has inserted or replayed.
    pub position: Option<String>,
    /// How far it was behind, in seconds; `null` when that is not known.
    pub lag: Option<f64>,
    /// Whether it answers reads.
    pub usable: bool,
    /// Why it does not, as in `qudag_sidecar_db_reads_total`; `null` for the primary and for replicas that do.
    pub why: Option<&'static str>,
    /// How many transactions that only read it was given.
    pub reads: u64,
    /// Of all of those, from 0 to 1.
    pub share: f64,
}

impl Replicas {
    /// The servers as they are known.
    pub fn status(&self) -> Vec<ReplicaStatus> {
        let known = self.known();
        let (Some(topology), now) = (known.topology.as_ref(), Instant::now()) else { return Vec::new() };
        let primary = topology.primary();
        let total: u64 = known.reads.iter().sum();
        let status = |(server, target): (usize, &Arc<Target>)| {
            let report = topology.report(server);
            let judged = topology.judge(server, now, None, &self.settings.rules());
            let is_primary = primary == Some(server);
            let role = match report {
                _ if topology.is_old(server) => "old primary",
                None => "unknown",
                Some(report) if report.primary && is_primary => "primary",
                Some(report) if report.primary => "other primary",
                Some(_) => "replica",
            };
            let reads = known.reads.get(server).copied().unwrap_or_default();
            ReplicaStatus {
                server: target.name.to_string(),
                role,
                timeline: report.map(|report| report.timeline),
                position: report.map(|Report { lsn, .. }| format!("{:X}/{:X}", lsn >> 32, lsn & 0xffff_ffff)),
                lag: topology.lag(server).filter(|_| role == "replica").map(|lag| lag.as_secs_f64()),
                usable: judged.is_ok(),
                why: judged.err().filter(|_| !(is_primary && report.is_some())).map(Ban::label),
                reads,
                share: if total > 0 { reads as f64 / total as f64 } else { 0.0 },
            }
        };
        known.targets.iter().enumerate().map(status).collect()
    }
}
