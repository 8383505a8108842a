//! One long stream in one direction.

use std::time::Instant;

use super::stand::Stand;
use crate::contenders::Stage;
use crate::measure::{Plan, median};
use crate::progress::Progress;
use crate::row::Row;
use crate::{Failure, clients, cpu, servers};

/// CPU-seconds for a GB that a pair may take.
const MOST: f64 = 5.5;

#[derive(Default)]
struct Rounds {
    speed: Vec<f64>,
    cost: Vec<f64>,
}

pub(super) fn rows(stage: &Stage, plan: Plan) -> Result<Vec<Row>, Failure> {
    let stand = Stand::local(stage);
    let (sink, _) = stand.server(servers::sink)?;
    let ways = stand.ways(sink)?;
    let bytes: u64 = if plan.is_quick() { 64 << 20 } else { 512 << 20 };
    let gigabytes = bytes as f64 / 1e9;
    let progress = Progress::new("peer, bulk", (plan.rounds * ways.len()) as u64);
    let mut rounds: Vec<Rounds> = ways.iter().map(|_| Rounds::default()).collect();
    for _ in 0..plan.rounds {
        for (way, rounds) in ways.iter().zip(&mut rounds) {
            progress.step(way.name);
            let pids = way.pids();
            let before = cpu::of_all(&pids)?;
            let start = Instant::now();
            clients::send_bulk(way.at, bytes)?;
            rounds.speed.push(gigabytes / start.elapsed().as_secs_f64());
            if let (Some(before), Some(after)) = (before, cpu::of_all(&pids)?) {
                rounds.cost.push(after.saturating_sub(before).as_secs_f64() / gigabytes);
            }
        }
    }
    drop(progress);
    let figures: Vec<_> = ways
        .iter()
        .zip(rounds)
        .map(|(way, rounds)| {
            let cost = (!rounds.cost.is_empty()).then(|| median(rounds.cost));
            (way.name, median(rounds.speed), cost)
        })
        .collect();
    let Some(((_, speed, cost), others)) = figures.split_first() else { return Ok(Vec::new()) };
    let mut rows: Vec<Row> = others
        .iter()
        .map(|(name, theirs, _)| Row::beside("peer, bulk: throughput", *speed, "GB/s", name, *theirs))
        .collect();
    for (name, _, theirs) in others {
        if let (Some(cost), Some(theirs)) = (cost, theirs) {
            rows.push(Row::beside("peer, bulk: CPU per GB", *cost, "s", name, *theirs).at_most(MOST));
        }
    }
    Ok(rows)
}
