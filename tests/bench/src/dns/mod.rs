//! DNS: the sidecar beside the resolvers that people use today.
//!
//! Everybody forwards to the same server in this process (its CPU time is nobody's), is asked by the same generator, and
//! is measured in turns. Speed is told as answers per CPU-second of the resolver's process: on a machine that
//! shares its cores with the generator, answers per second of the clock say little.

mod batch;
mod cached;
mod cold;
mod faults;
pub mod floor;
mod freshness;
pub mod load;
mod memory;
pub mod question;
pub mod resolvers;
mod rollback;
mod scaling;

use std::time::Duration;

use clap::ValueEnum;
use qudag_kit::FaultyDns;

use crate::Failure;
use crate::contenders::Stage;
use crate::measure::{Plan, median};
use crate::row::{self, Row};
use load::{Load, Order, Outcome, Pace};
use question::Questions;
use resolvers::{Resolver, Setting, Who};

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// 10,000 names from the cache: answers per CPU-second, latency at a fixed rate, and the floor.
    Cached,
    /// 10,000 names that are in no cache, with a server near by and one 40 ms away.
    Cold,
    /// The cache switched off, beside the server itself.
    Off,
    /// One bad server of two.
    Faults,
    /// One thread and two.
    Scaling,
    /// What 100,000 entries take.
    Memory,
    /// Names with a short TTL, asked for steadily.
    HitRate,
    /// 10,000 queries for one new name.
    Flight,
    /// Old answers after a flush.
    Flush,
    /// The cache switched off and on under load.
    Toggles,
    /// The names of a service, moved by `bypass`.
    Rollback,
}

/// What is measured, beside whom.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Options {
    /// Only these parts.
    #[arg(long, value_delimiter = ',', value_name = "PART")]
    only: Vec<Part>,
    /// Only beside these resolvers.
    #[arg(long, value_delimiter = ',', value_name = "WHO")]
    beside: Vec<Who>,
}

/// Measures the parts one after the other and shows the rows of each.
///
/// # Errors
/// When something cannot be started, or fails where nothing may fail.
pub fn run(
    options: &Options,
    plan: Plan,
    show: &mut dyn FnMut(Vec<Row>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let stage = Stage::set()?;
    let parts = if options.only.is_empty() { Part::value_variants() } else { &options.only };
    let wanted = if options.beside.is_empty() { &Who::OTHERS[..] } else { &options.beside };
    let mut others = Vec::new();
    for who in wanted {
        match who.missing() {
            None => others.push(*who),
            Some(command) => eprintln!("{} is missing, its rows are left out; {command}", who.name()),
        }
    }
    let table = Table { stage: &stage, plan, others };
    for part in parts {
        show(match part {
            Part::Cached => cached::rows(&table)?,
            Part::Cold => cold::rows(&table)?,
            Part::Off => cold::rows_past(&table)?,
            Part::Faults => faults::rows(&table)?,
            Part::Scaling => scaling::rows(&table)?,
            Part::Memory => memory::rows(&table)?,
            Part::HitRate => freshness::rows_hit_rate(&table)?,
            Part::Flight => freshness::rows_flight(&table)?,
            Part::Flush => freshness::rows_flush(&table)?,
            Part::Toggles => freshness::rows_toggles(&table)?,
            Part::Rollback => rollback::rows(&table)?,
        })?;
    }
    Ok(())
}

/// What the parts have in common.
struct Table<'a> {
    stage: &'a Stage,
    plan: Plan,
    others: Vec<Who>,
}

impl Table<'_> {
    /// The sidecar, then the others.
    fn all(&self) -> impl Iterator<Item = Who> {
        std::iter::once(Who::Sidecar).chain(self.others.iter().copied())
    }

    fn start(&self, who: Who, setting: &Setting) -> Result<Resolver, Failure> {
        who.start(self.stage, setting)
    }
}

/// [`row::beside`] for resolvers.
fn beside(row: &str, unit: &'static str, figures: &[(Who, f64)]) -> Vec<Row> {
    let named: Vec<_> = figures.iter().map(|(who, figure)| (who.name(), *figure)).collect();
    row::beside(row, unit, &named)
}

/// The median over the rounds of one figure of each.
fn median_of<R>(running: &[(Resolver, R)], figure: fn(&R) -> &Vec<f64>) -> Vec<(Who, f64)> {
    running.iter().map(|(resolver, rounds)| (resolver.who, median(figure(rounds).clone()))).collect()
}

/// Asks for every name until a whole pass comes back right.
fn warm(resolver: &Resolver, questions: &Questions) -> Result<(), Failure> {
    let mut last = None;
    for _ in 0..5 {
        let outcome = load::run(Load {
            to: resolver.address,
            questions,
            order: Order::InTurn,
            pace: Pace::Open { rate: 4_000.0, queries: questions.len() as u64 },
            patience: Duration::from_secs(3),
        })?;
        if outcome.failed() == 0 && last.is_some() {
            return Ok(());
        }
        last = Some(outcome);
    }
    Err(format!("{} does not answer for every name: {}", resolver.who.name(), shown(last.as_ref())).into())
}

fn shown(outcome: Option<&Outcome>) -> String {
    outcome.map_or_else(String::new, |o| {
        format!("of {} right {}, refused {}, wrong {}, lost {}", o.sent, o.right, o.refused, o.wrong, o.lost)
    })
}

/// A server whose names live long enough for one run.
fn upstream() -> FaultyDns {
    let upstream = FaultyDns::start();
    upstream.set_ttl(3600);
    upstream
}
