//! One long stream in one direction.

use std::time::Instant;

use super::stand::{Stand, WITHOUT};
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
    faults: Vec<f64>,
}

pub(super) fn rows(stage: &Stage, plan: Plan) -> Result<Vec<Row>, Failure> {
    let stand = Stand::local(stage);
    let (sink, _) = stand.server(servers::sink)?;
    let mut ways = stand.ways(sink)?;
    ways.push(stand.pooled(sink)?);
    let bytes: u64 = if plan.is_quick() { 64 << 20 } else { 512 << 20 };
    let gigabytes = bytes as f64 / 1e9;
    let progress = Progress::new("peer, bulk", (plan.rounds * ways.len()) as u64);
    let mut rounds: Vec<Rounds> = ways.iter().map(|_| Rounds::default()).collect();
    for _ in 0..plan.rounds {
        for (way, rounds) in ways.iter().zip(&mut rounds) {
            progress.step(way.name);
            let pids = way.pids();
            let (before, faults) = (cpu::of_all(&pids)?, cpu::faults_of_all(&pids)?);
            let start = Instant::now();
            clients::send_bulk(way.at, bytes)?;
            rounds.speed.push(gigabytes / start.elapsed().as_secs_f64());
            if let (Some(before), Some(after)) = (before, cpu::of_all(&pids)?) {
                rounds.cost.push(after.saturating_sub(before).as_secs_f64() / gigabytes);
            }
            if let (Some(before), Some(after)) = (faults, cpu::faults_of_all(&pids)?) {
                rounds.faults.push(after.saturating_sub(before) as f64 / gigabytes);
            }
        }
    }
    drop(progress);
    let pooled = rounds.pop();
    let beside =
        pooled.iter().zip(rounds.first()).flat_map(|(with, without)| with_pool(with, without)).collect();
    let figures: Vec<_> = ways
        .iter()
        .zip(rounds)
        .map(|(way, rounds)| {
            let cost = (!rounds.cost.is_empty()).then(|| median(rounds.cost));
            (way.name, median(rounds.speed), cost)
        })
        .collect();
    let Some(((_, speed, cost), others)) = figures.split_first() else { return Ok(beside) };
    let mut rows: Vec<Row> = others
        .iter()
        .map(|(name, theirs, _)| Row::beside("peer, bulk: throughput", *speed, "GB/s", name, *theirs))
        .collect();
    for (name, _, theirs) in others {
        if let (Some(cost), Some(theirs)) = (cost, theirs) {
            rows.push(Row::beside("peer, bulk: CPU per GB", *cost, "s", name, *theirs).at_most(MOST));
        }
    }
    rows.extend(beside);
    Ok(rows)
}

/// What the filter `memory_pooling` changes.
fn with_pool(with: &Rounds, without: &Rounds) -> [Row; 3] {
    let beside = |row: &str, unit, figure: fn(&Rounds) -> &Vec<f64>| {
        let (with, without) = (median(figure(with).clone()), median(figure(without).clone()));
        Row::beside(format!("peer, bulk with memory_pooling: {row}"), with, unit, WITHOUT, without)
    };
    [
        beside("throughput", "GB/s", |rounds| &rounds.speed),
        beside("CPU per GB", "s", |rounds| &rounds.cost),
        beside("page faults per GB", "", |rounds| &rounds.faults),
    ]
}
