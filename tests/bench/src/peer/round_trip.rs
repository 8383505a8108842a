//! 64 bytes there and back on an open connection.

use super::stand::{Stand, Way};
use crate::contenders::Stage;
use crate::measure::{Figures, Plan, interleaved, steps};
use crate::progress::Progress;
use crate::row::Row;
use crate::suites::{DIRECT, compare};
use crate::{Failure, clients, servers};

/// What a pair may add, in µs.
const ADDED_P50: f64 = 150.0;
const ADDED_P99: f64 = 500.0;

pub(super) fn rows(stage: &Stage, plan: Plan) -> Result<Vec<Row>, Failure> {
    let stand = Stand::local(stage);
    let ways = stand.ways(stand.server(servers::echo)?)?;
    let contenders: Vec<_> = ways.iter().map(|way| way.contender(clients::Echo::connect)).collect();
    let progress = Progress::new("peer, 64 B", steps(contenders.len(), plan));
    let figures = interleaved(&contenders, plan, &progress)?;
    drop(progress);
    let mut rows = added("p50", &ways, &figures, |f| f.p50, ADDED_P50);
    rows.extend(added("p99", &ways, &figures, |f| f.p99, ADDED_P99));
    let named: Vec<_> = ways.iter().map(|way| way.name).zip(figures).collect();
    rows.extend(compare("peer, 64 B there and back", &named));
    Ok(rows)
}

/// What each way adds to nothing between.
fn added(what: &str, ways: &[Way], figures: &[Figures], of: fn(&Figures) -> f64, most: f64) -> Vec<Row> {
    let named = || ways.iter().zip(figures);
    let direct = named().find(|(way, _)| way.name == DIRECT).map_or(0.0, |(_, figures)| of(figures));
    let mut added = named().filter(|(way, _)| way.name != DIRECT).map(|(way, f)| (way.name, of(f) - direct));
    let Some((_, ours)) = added.next() else { return Vec::new() };
    let row = format!("peer, 64 B there and back: added to {what}");
    added.map(|(name, theirs)| Row::beside(&row, ours, "µs", name, theirs).at_most(most)).collect()
}
