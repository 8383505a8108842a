//! Which server is the primary, and which replica may answer, sans-io: reports of probes go in, servers come out. The clock is an
//! argument.
//!
//! A server is the primary when it says that it is not in recovery and no server of the cluster was ever seen on a later timeline: each
//! promotion begins one (PostgreSQL documentation, "Timelines"), so an old primary that comes back is known by its earlier one, and not
//! used. How far a replica is behind is measured against samples of the primary's position, by the clock of this host: the clocks of
//! servers do not matter, nor whether the primary has anything to write.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A position in the write-ahead log, in bytes (`pg_lsn`).
pub(crate) type Lsn = u64;

/// How many samples of the primary's position are kept.
const SAMPLES: usize = 4096;

/// What a server says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// Not in recovery (`pg_is_in_recovery`).
    pub(crate) primary: bool,
    /// Up to where a primary has inserted, and a replica replayed.
    pub(crate) lsn: Lsn,
    /// The timeline that it is on or follows.
    pub(crate) timeline: u32,
    /// Which cluster it is of (`pg_control_system().system_identifier`).
    pub(crate) system: u64,
}

/// What a replica must be to be used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// How far behind it may be in time.
    pub(crate) max_lag: Duration,
    /// And in bytes of the log.
    pub(crate) max_lag_bytes: Option<u64>,
    /// How old its last report may be.
    pub(crate) stale: Duration,
}

/// Why a server answers no reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ban {
    /// It did not answer the last probe, or not for long.
    Silent,
    /// It belongs to another cluster.
    Foreign,
    /// It is not in recovery.
    NoReplica,
    /// It follows an earlier timeline than the primary's.
    Timeline,
    /// It is too far behind, or it is not known yet how far.
    Lag,
    /// It has not replayed what the session has written.
    Behind,
}

impl Ban {
    /// The metric label.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Foreign => "foreign",
            Self::NoReplica => "no_replica",
            Self::Timeline => "timeline",
            Self::Lag => "lag",
            Self::Behind => "behind",
        }
    }
}

/// What is known of a server.
#[derive(Clone, Copy, Debug, Default)]
struct Member {
    /// The last report, and when its probe was begun.
    report: Option<(Report, Instant)>,
    /// Whether the last probe failed.
    failing: bool,
    /// Whether there was a probe.
    probed: bool,
}

/// The servers of one cluster, by their places in the configuration; the listener's own server is the first.
#[derive(Clone, Debug)]
pub(crate) struct Topology {
    members: Vec<Member>,
    /// The latest timeline that was seen.
    timeline: u32,
    system: Option<u64>,
    /// The primary as far as it was known last.
    primary: usize,
    /// Positions of the primary, and when they were asked for, in this order.
    samples: VecDeque<(Instant, Lsn)>,
}

impl Topology {
    pub(crate) fn new(servers: usize) -> Self {
        Self {
            members: vec![Member::default(); servers.max(1)],
            timeline: 0,
            system: None,
            primary: 0,
            samples: VecDeque::new(),
        }
    }

    /// Probes begin anew after a pause: what was reported longer ago than `fresh` says nothing of now, but timelines do not go back.
    pub(crate) fn forget(&mut self, now: Instant, fresh: Duration) {
        let old = |begun: Instant| now.saturating_duration_since(begun) > fresh;
        if self.members.iter().all(|member| member.report.is_some_and(|(_, begun)| !old(begun))) {
            return;
        }
        self.members.fill(Member::default());
        self.samples.clear();
    }

    /// Takes over what cannot become untrue of the same cluster with other servers: how far its timelines have come.
    pub(crate) fn inherit(&mut self, previous: &Self) {
        self.timeline = previous.timeline;
        self.system = previous.system;
    }

    /// A connection could not be made, which says the same as a probe that failed.
    pub(crate) fn suspect(&mut self, server: usize) {
        if let Some(member) = self.members.get_mut(server) {
            member.failing = true;
        }
    }

    /// Whether it was a primary when it was heard of last, and another one has taken its place since.
    pub(crate) fn is_old(&self, server: usize) -> bool {
        let report = self.members.get(server).and_then(|member| member.report);
        report.is_some_and(|(report, _)| report.primary && Some(report.system) == self.system)
            && (!self.is_primary(server) || (server != self.primary && self.is_primary(self.primary)))
    }

    /// The last report of a server, unless the last probe has failed.
    pub(crate) fn report(&self, server: usize) -> Option<Report> {
        let member = self.members.get(server).filter(|member| !member.failing)?;
        member.report.map(|(report, _)| report)
    }

    /// Every server has been asked once.
    pub(crate) fn is_settled(&self) -> bool {
        self.members.iter().all(|member| member.probed)
    }

    /// The end of a probe that was begun at `begun`.
    pub(crate) fn probed(&mut self, server: usize, begun: Instant, report: Option<Report>) {
        let Some(member) = self.members.get_mut(server) else { return };
        member.probed = true;
        member.failing = report.is_none();
        let Some(report) = report else { return };
        member.report = Some((report, begun));
        // The first server says which cluster it is; until it does, whoever answers first.
        let ours = self.system == Some(report.system);
        if !ours && (server == 0 || self.system.is_none()) {
            self.system = Some(report.system);
            self.timeline = 0;
            self.samples.clear();
            for member in &self.members {
                if let Some((known, _)) = member.report.filter(|(known, _)| known.system == report.system) {
                    self.timeline = self.timeline.max(known.timeline);
                }
            }
        } else if !ours {
            return;
        }
        if report.timeline > self.timeline {
            self.timeline = report.timeline;
            self.samples.clear();
        }
        self.elect();
        if server == self.primary && self.is_primary(server) {
            // A crash may take back what was not flushed.
            if self.samples.back().is_some_and(|(_, last)| *last > report.lsn) {
                self.samples.clear();
            }
            if self.samples.len() >= SAMPLES {
                self.samples.pop_front();
            }
            self.samples.push_back((begun, report.lsn));
        }
    }

    fn is_primary(&self, server: usize) -> bool {
        let report = self.members.get(server).and_then(|member| member.report);
        report.is_some_and(|(report, _)| {
            report.primary && report.timeline == self.timeline && Some(report.system) == self.system
        })
    }

    /// The primary stays the primary as long as it may be one.
    fn elect(&mut self) {
        if self.is_primary(self.primary) {
            return;
        }
        if let Some(server) = (0..self.members.len()).find(|server| self.is_primary(*server)) {
            self.primary = server;
            self.samples.clear();
        }
    }

    /// Where writes go; `None` while it is known of the last primary that it is none any more, and of no other that it is.
    pub(crate) fn primary(&self) -> Option<usize> {
        let unknown = self.members.get(self.primary).is_none_or(|member| member.report.is_none());
        (unknown || self.is_primary(self.primary)).then_some(self.primary)
    }

    /// Up to where a replica must have replayed so that it has what was acknowledged before `wrote`: where the primary was when it was
    /// asked after that. `None` as long as it was not.
    pub(crate) fn floor(&self, wrote: Instant) -> Option<Lsn> {
        let place = self.samples.partition_point(|(begun, _)| *begun < wrote);
        self.samples.get(place).map(|(_, lsn)| *lsn)
    }

    /// How far a server was behind at its last report: since when the primary has been ahead of it at most. `None` when it is not known.
    pub(crate) fn lag(&self, server: usize) -> Option<Duration> {
        let (report, begun) = self.members.get(server)?.report?;
        let ahead = self.samples.partition_point(|(_, lsn)| *lsn <= report.lsn);
        let (reached, _) = self.samples.get(ahead.checked_sub(1)?)?;
        match ahead == self.samples.len() {
            true => Some(Duration::ZERO),
            false => Some(begun.saturating_duration_since(*reached)),
        }
    }

    /// Whether a server may answer reads, of a session that has written up to `floor`.
    pub(crate) fn judge(
        &self,
        server: usize,
        now: Instant,
        floor: Option<Lsn>,
        rules: &Rules,
    ) -> Result<(), Ban> {
        let member = self.members.get(server).copied().unwrap_or_default();
        let Some((report, begun)) = member.report.filter(|_| !member.failing) else {
            return Err(Ban::Silent);
        };
        if now.saturating_duration_since(begun) > rules.stale {
            return Err(Ban::Silent);
        }
        if Some(report.system) != self.system {
            return Err(Ban::Foreign);
        }
        if report.primary {
            return Err(Ban::NoReplica);
        }
        if report.timeline != self.timeline {
            return Err(Ban::Timeline);
        }
        if self.lag(server).is_none_or(|lag| lag > rules.max_lag) {
            return Err(Ban::Lag);
        }
        let ahead = self.samples.back().map_or(0, |(_, lsn)| lsn.saturating_sub(report.lsn));
        if rules.max_lag_bytes.is_some_and(|most| ahead > most) {
            return Err(Ban::Lag);
        }
        if floor.is_some_and(|floor| report.lsn < floor) {
            return Err(Ban::Behind);
        }
        Ok(())
    }

    /// The replica for a session, by its `seed`: the same one as long as it may be used, and all alike over many sessions. The reason
    /// where there is none: the last server's.
    pub(crate) fn replica(
        &self,
        seed: u64,
        wrote: Option<Instant>,
        now: Instant,
        rules: &Rules,
    ) -> Result<usize, Ban> {
        let floor = match wrote.map(|wrote| self.floor(wrote)) {
            None => None,
            Some(Some(floor)) => Some(floor),
            // It will be known after the next probe of the primary.
            Some(None) => return Err(Ban::Behind),
        };
        let mut best = Err(Ban::NoReplica);
        for server in 0..self.members.len() {
            match self.judge(server, now, floor, rules) {
                Ok(()) => {
                    let weight = xxh3_64_with_seed(&server.to_be_bytes(), seed);
                    if best.is_ok_and(|(known, _)| known >= weight) {
                        continue;
                    }
                    best = Ok((weight, server));
                }
                // That of a replica says more than that the primary is none.
                Err(why) if best.is_err() && why != Ban::NoReplica => best = Err(why),
                Err(_) => {}
            }
        }
        best.map(|(_, server)| server)
    }
}

#[cfg(test)]
#[path = "topology_tests.rs"]
mod tests;
