//! Rows by their number, as many as there can be: what is between must not be what holds them up.

use std::time::Duration;

use super::stand::{Stand, Way, Who};
use super::wire::Operation;
use super::{Table, beside, closed::Crew};
use crate::measure::median;
use crate::progress::Progress;
use crate::row::Row;
use crate::{Failure, cpu};

const CLIENTS: [usize; 3] = [64, 256, 1000];

/// What one way did in a slice.
#[derive(Clone, Copy)]
struct Slice {
    rate: f64,
    /// Of what is between, µs an operation; none where there is nothing.
    cpu: Option<f64>,
    /// µs.
    p50: f64,
    /// µs.
    p99: f64,
}

fn slice(way: &Way, operation: &Operation, clients: usize, time: Duration) -> Result<Slice, Failure> {
    let mut crew = Crew::gather(way.at, operation, clients)?;
    // The pool grows, caches are filled.
    crew.work(time / 4)?;
    let before = cpu::of_all(&way.pids())?;
    let done = crew.work(time)?;
    let cpu = match (before, cpu::of_all(&way.pids())?) {
        (Some(before), Some(after)) => {
            Some(after.saturating_sub(before).as_secs_f64() * 1e6 / done.count.max(1) as f64)
        }
        _ => None,
    };
    let micros = |quantile: f64| done.took.value_at_quantile(quantile) as f64 / 1e3;
    Ok(Slice { rate: done.rate(), cpu, p50: micros(0.5), p99: micros(0.99) })
}

pub(super) fn rows(table: &Table<'_>) -> Result<Vec<Row>, Failure> {
    let quick = table.plan.is_quick();
    let (rounds, time) =
        if quick { (1, Duration::from_millis(200)) } else { (5, Duration::from_millis(700)) };
    let clients = if quick { &CLIENTS[..2] } else { &CLIENTS[..] };
    let stand = Stand::start(table.stage, table.who.iter().copied(), None)?;
    let mut rows = Vec::new();
    for (protocol, operation) in [("simple", Operation::simple()), ("prepared", Operation::prepared())] {
        // PgBouncer 1.18 does not know a prepared statement in its next transaction.
        let able = |way: &&Way| protocol == "simple" || way.who != Who::Pgbouncer;
        let ways: Vec<&Way> = stand.ways.iter().filter(able).collect();
        for clients in clients {
            let progress = Progress::new("db, throughput", (rounds * ways.len()) as u64);
            let mut slices = vec![Vec::new(); ways.len()];
            for round in 0..rounds {
                for turn in 0..ways.len() {
                    // Another one begins each round.
                    let turn = (round + turn) % ways.len();
                    let (Some(way), Some(slices)) = (ways.get(turn), slices.get_mut(turn)) else { continue };
                    progress.step(way.who.name());
                    stand.calm()?;
                    let slice = slice(way, &operation, *clients, time);
                    slices.push(slice.map_err(|why| format!("{}, {protocol}: {why}", way.who.name()))?);
                }
            }
            drop(progress);
            let figure = |of: fn(&Slice) -> Option<f64>| -> Vec<(Who, f64)> {
                let median_of = |slices: &Vec<Slice>| {
                    let all: Vec<f64> = slices.iter().filter_map(of).collect();
                    (!all.is_empty()).then(|| median(all))
                };
                ways.iter().zip(&slices).filter_map(|(way, s)| Some((way.who, median_of(s)?))).collect()
            };
            let title = |what: &str| format!("db, {protocol}, {clients} clients: {what}");
            let than = Some(Who::Pgbouncer.name());
            let rate = beside(&title("queries per second"), "/s", &figure(|s| Some(s.rate)));
            rows.extend(
                rate.into_iter().map(|row| if row.peer == than { row.ratio_at_least(1.0) } else { row }),
            );
            let cpu = beside(&title("CPU per query"), "µs", &figure(|s| s.cpu));
            rows.extend(
                cpu.into_iter().map(|row| if row.peer == than { row.ratio_at_most(1.0) } else { row }),
            );
            rows.extend(beside(&title("latency p50"), "µs", &figure(|s| Some(s.p50))));
            rows.extend(beside(&title("latency p99"), "µs", &figure(|s| Some(s.p99))));
        }
    }
    Ok(rows)
}
