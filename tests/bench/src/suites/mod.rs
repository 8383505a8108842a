//! What is measured of each kind of traffic.

mod front;

use std::io;

use crate::contenders::Stage;
use crate::measure::{Client, Contender, Figures, Plan, interleaved, steps};
use crate::progress::Progress;
use crate::row::{self, Row};
use crate::{Failure, chain};

/// A set of rows.
#[derive(Clone, Copy, Debug)]
pub enum Suite {
    /// The chain itself.
    Chain,
    /// HTTP and RPC.
    Front,
}

impl Suite {
    /// Measures.
    ///
    /// # Errors
    /// When something cannot be started or gives a wrong answer.
    pub fn rows(self, plan: Plan) -> Result<Vec<Row>, Failure> {
        match self {
            Self::Chain => chain::rows(plan),
            Self::Front => front::rows(&Stage::set()?, plan),
        }
    }
}

/// A contender that is the upstream itself.
pub(crate) const DIRECT: &str = "direct";

/// The contender that is ours.
pub(crate) const OURS: &str = "sidecar";

pub(crate) fn contender<'a>(
    name: &'static str,
    pids: &[u32],
    connect: impl Fn() -> io::Result<Box<dyn Client>> + Sync + 'a,
) -> Contender<'a> {
    Contender { name, pids: pids.to_vec(), connect: Box::new(connect) }
}

/// Measures a group, of which the first is ours, and puts each figure of ours beside each of the others'.
pub(crate) fn group(
    title: &'static str,
    contenders: &[Contender<'_>],
    plan: Plan,
) -> Result<Vec<Row>, Failure> {
    let progress = Progress::new(title, steps(contenders.len(), plan));
    let figures = interleaved(contenders, plan, &progress)?;
    let named: Vec<_> = contenders.iter().map(|contender| contender.name).zip(figures).collect();
    Ok(compare(title, &named))
}

pub(crate) fn compare(title: &str, named: &[(&'static str, Figures)]) -> Vec<Row> {
    let Some(((_, ours), others)) = named.split_first() else { return Vec::new() };
    let mut rows = Vec::new();
    let mut figure = |what: &str, unit, of: fn(&Figures) -> Option<f64>| {
        let Some(ours) = of(ours) else { return };
        let theirs = others.iter().filter_map(|(peer, theirs)| Some((*peer, of(theirs)?)));
        let figures: Vec<_> = std::iter::once((OURS, ours)).chain(theirs).collect();
        rows.extend(row::beside(&format!("{title}: {what}"), unit, &figures));
    };
    figure("latency p50", "µs", |f| Some(f.p50));
    figure("latency p99", "µs", |f| Some(f.p99));
    figure("CPU per operation", "µs", |f| f.cpu);
    figure("operations per CPU-second", "/s", |f| f.cpu.filter(|cpu| *cpu > 0.0).map(|cpu| 1e6 / cpu));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_figure_stands_beside_each_of_the_others() {
        let figures = |p50, cpu| Figures { p50, p99: 2.0 * p50, cpu, rate: 1.0 };
        let named = [
            (OURS, figures(30.0, Some(10.0))),
            (DIRECT, figures(15.0, None)),
            ("haproxy", figures(25.0, Some(5.0))),
        ];
        let rows = compare("x", &named);
        let shown: Vec<_> = rows.iter().map(|row| (row.row.as_str(), row.peer, row.ratio)).collect();
        assert_eq!(
            shown,
            [
                ("x: latency p50", Some(DIRECT), Some(2.0)),
                ("x: latency p50", Some("haproxy"), Some(1.2)),
                ("x: latency p99", Some(DIRECT), Some(2.0)),
                ("x: latency p99", Some("haproxy"), Some(1.2)),
                ("x: CPU per operation", Some("haproxy"), Some(2.0)),
                ("x: operations per CPU-second", Some("haproxy"), Some(0.5)),
            ]
        );
    }
}
