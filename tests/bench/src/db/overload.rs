//! More than the server can do: what of it is still answered within a second.
//!
//! The peak is what the server does for as many clients as a pool has connections, with nothing between. Then 0.8 to 10 times
//! as much is asked for, by clients that wait or give up, of a program that has a connection for everybody or a queue before a few.

use std::sync::Arc;
use std::time::Duration;

use super::load::{self, Load, Outcome, Patience, Program};
use super::schedule::{Arrivals, Step};
use super::stand::{Apart, Stand, Way, Who};
use super::tally::Tally;
use super::wire::Operation;
use super::{Scale, Table, beside, work};
use crate::Failure;
use crate::measure::median;
use crate::progress::Progress;
use crate::row::Row;

/// Times the peak.
const LOADS: [f64; 4] = [0.8, 2.0, 5.0, 10.0];

const GOODPUT: f64 = 95.0;
/// Of what is answered, at p99, ms.
const ADMITTED: f64 = 200.0;
/// Of refusals, at p99, ms.
const REFUSED: f64 = 20.0;
/// Of what is asked for at 0.8 times the peak, %.
const SHED: f64 = 0.1;

/// The clients of one program.
#[derive(Clone, Copy)]
struct Clients {
    patience: Patience,
    program: Program,
}

const ALL: [Clients; 4] = [
    Clients { patience: Patience::Patient, program: Program::NoQueue },
    Clients { patience: Patience::Abandoning, program: Program::NoQueue },
    Clients { patience: Patience::Patient, program: Program::Queue },
    Clients { patience: Patience::Abandoning, program: Program::Queue },
];

impl Clients {
    fn title(self) -> String {
        let program = match self.program {
            Program::NoQueue => "no queue",
            Program::Queue => "queue",
        };
        format!("{}, {program}", name(self.patience))
    }
}

/// As it stands in the rows.
pub(super) fn name(patience: Patience) -> &'static str {
    match patience {
        Patience::Patient => "patient clients",
        Patience::Abandoning => "clients that give up",
    }
}

/// What one way made of one load in one round.
#[derive(Clone, Copy)]
struct Cell {
    /// % of the peak.
    goodput: f64,
    /// p50 and p99 of what was admitted, ms.
    admitted: Option<[f64; 2]>,
    /// The same of refusals.
    refused: Option<[f64; 2]>,
    /// % of what was asked for.
    shed: f64,
}

impl Cell {
    fn of(tally: &Tally, measured: Duration, peak: f64) -> Self {
        let quantiles = |histogram: &hdrhistogram::Histogram<u64>| {
            let of = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e6;
            (!histogram.is_empty()).then(|| [of(0.5), of(0.99)])
        };
        Self {
            goodput: tally.good as f64 * 100.0 / measured.as_secs_f64() / peak,
            admitted: quantiles(&tally.admitted),
            refused: quantiles(&tally.refusals),
            shed: tally.refused as f64 * 100.0 / tally.due.max(1) as f64,
        }
    }
}

/// What one way made of the loads of some clients, over all rounds.
#[derive(Default)]
struct Cells {
    /// By load, then by round.
    loads: Vec<Vec<Cell>>,
    /// Of each round, in all loads.
    disconnects: Vec<f64>,
}

impl Cells {
    fn add(&mut self, outcome: &Outcome, measured: Duration, peak: f64) {
        self.loads.resize(outcome.steps.len(), Vec::new());
        for (cells, tally) in self.loads.iter_mut().zip(&outcome.steps) {
            cells.push(Cell::of(tally, measured, peak));
        }
        self.disconnects.push(outcome.disconnects as f64);
    }

    /// The median of a figure at a load; none where no round has it.
    fn median(&self, load: usize, of: impl Fn(&Cell) -> Option<f64>) -> Option<f64> {
        let rounds: Vec<f64> = self.loads.get(load)?.iter().filter_map(of).collect();
        (!rounds.is_empty()).then(|| median(rounds))
    }
}

/// How long, and how much of it.
struct Extent {
    scale: Scale,
    rounds: usize,
    loads: &'static [f64],
    settle: Duration,
    measure: Duration,
}

pub(super) fn rows(table: &Table<'_>) -> Result<Vec<Row>, Failure> {
    let scale = Scale::of(table.plan);
    let extent = if table.plan.is_quick() {
        let (settle, measure) = (Duration::from_millis(250), Duration::from_millis(250));
        Extent { scale, rounds: 1, loads: &[0.8, 5.0], settle, measure }
    } else {
        // Longer than the deadline: what is counted is what goes on, not how it began.
        let (settle, measure) = (Duration::from_millis(1200), Duration::from_millis(1300));
        Extent { scale, rounds: 3, loads: &LOADS, settle, measure }
    };
    let apart = Apart::new()?;
    let stand = Stand::start(table.stage, table.who.iter().copied(), apart.core)?;
    let operation = work::calibrated(&stand.cluster, extent.measure / 2)?;
    let progress = Progress::new("db, overload", (extent.rounds * ALL.len() * stand.ways.len()) as u64);
    let mut cells: Vec<Vec<Cells>> = Vec::new();
    cells.resize_with(ALL.len(), Vec::new);
    for round in 0..extent.rounds {
        for (number, (clients, cells)) in ALL.iter().zip(&mut cells).enumerate() {
            // Everybody gets the same operations at the same times, other ones in each round.
            let seed = (round * ALL.len() + number) as u64;
            cells.resize_with(stand.ways.len(), Cells::default);
            let peak = work::peak(&stand.cluster, &operation, extent.measure)?;
            for turn in 0..stand.ways.len() {
                // Another one begins each round.
                let turn = (round + turn) % stand.ways.len();
                let (Some(way), Some(cells)) = (stand.ways.get(turn), cells.get_mut(turn)) else { continue };
                progress.step(way.who.name());
                stand.calm()?;
                let outcome = measured(way, *clients, &operation, peak, &extent, seed)?;
                cells.add(&outcome, extent.measure, peak);
            }
        }
    }
    drop(progress);
    let who: Vec<Who> = stand.ways.iter().map(|way| way.who).collect();
    Ok(ALL
        .iter()
        .zip(&cells)
        .flat_map(|(clients, cells)| told(*clients, extent.loads, &who, cells))
        .collect())
}

fn measured(
    way: &Way,
    clients: Clients,
    operation: &Operation,
    peak: f64,
    extent: &Extent,
    seed: u64,
) -> Result<Outcome, Failure> {
    let step = |load: &f64| Step { rate: load * peak, settle: extent.settle, measure: extent.measure };
    let scale = extent.scale;
    let load = Load {
        to: way.at,
        operation: operation.clone(),
        connections: if clients.program == Program::Queue { scale.pooled } else { scale.clients },
        patience: clients.patience,
        program: clients.program,
        deadline: scale.deadline,
        arrivals: Arrivals::Poisson,
        steps: extent.loads.iter().map(step).collect(),
        end: Arc::default(),
        seed,
    };
    let outcome = load::run(load, |_| {});
    let outcome = outcome.map_err(|why| format!("{}: {why}\n{}", way.who.name(), way.log()))?;
    late(way.who.name(), &outcome);
    Ok(outcome)
}

/// Says it when the generator itself was what took long.
pub(super) fn late(what: &str, outcome: &Outcome) {
    let lag = outcome.lag.value_at_quantile(0.99) as f64 / 1e6;
    if lag > REFUSED {
        eprintln!("{what}: at p99 the generator was {lag:.0} ms late; its figures say less");
    }
}

/// The rows of some clients.
fn told(clients: Clients, loads: &[f64], who: &[Who], cells: &[Cells]) -> Vec<Row> {
    let mut rows = Vec::new();
    let figures = |load: usize, of: &dyn Fn(&Cell) -> Option<f64>| -> Vec<(Who, f64)> {
        who.iter().zip(cells).filter_map(|(who, cells)| Some((*who, cells.median(load, of)?))).collect()
    };
    let panel = format!("db, {}", clients.title());
    for (number, load) in loads.iter().enumerate() {
        let title = |what: &str| format!("{panel}, {load} × the peak: {what}");
        let over = *load > 1.0;
        for row in beside(&title("goodput"), "% of peak", &figures(number, &|cell| Some(cell.goodput))) {
            let row = row.on_line(format!("{panel}: goodput"), *load);
            rows.push(if over { row.at_least(GOODPUT) } else { row });
        }
        if !over {
            let shed = beside(&title("refused"), "%", &figures(number, &|cell| Some(cell.shed)));
            rows.extend(shed.into_iter().map(|row| row.at_most(SHED)));
        }
        let admitted = |which: usize| move |cell: &Cell| cell.admitted?.get(which).copied();
        rows.extend(beside(&title("latency p50 of what is admitted"), "ms", &figures(number, &admitted(0))));
        for row in beside(&title("latency p99 of what is admitted"), "ms", &figures(number, &admitted(1))) {
            rows.push(row.on_line(format!("{panel}: p99 of what is admitted"), *load).at_most(ADMITTED));
        }
        if over {
            let refused = |which: usize| move |cell: &Cell| cell.refused?.get(which).copied();
            rows.extend(beside(&title("latency p50 of refusals"), "ms", &figures(number, &refused(0))));
            let refusals = beside(&title("latency p99 of refusals"), "ms", &figures(number, &refused(1)));
            rows.extend(refusals.into_iter().map(|row| row.at_most(REFUSED)));
        }
    }
    let ended: Vec<_> =
        who.iter().zip(cells).map(|(who, cells)| (*who, median(cells.disconnects.clone()))).collect();
    let ended = beside(&format!("{panel}: connections ended"), "", &ended);
    rows.extend(ended.into_iter().map(|row| row.at_most(0.0)));
    rows
}
