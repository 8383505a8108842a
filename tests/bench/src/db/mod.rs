//! PostgreSQL: the sidecar with its pool and its queue beside PgBouncer, the sidecar without them, and nothing between. `redis` is Redis.
//!
//! All lead to the same private server and are measured in turns by the same clients. How fast a pool is counts less than what it is
//! worth when there is too much: see [`load`] for how that is measured.

pub mod closed;
mod cluster;
pub mod connection;
mod events;
pub mod load;
mod memory;
mod overload;
mod promotion;
mod redis;
pub mod schedule;
mod stand;
pub mod tally;
#[cfg(test)]
mod tests;
mod throughput;
pub mod wire;
mod work;

use std::time::Duration;

use clap::ValueEnum;

use crate::Failure;
use crate::contenders::Stage;
use crate::measure::{Plan, raise_file_limit};
use crate::row::{self, Row};
use crate::suites::OURS;
use stand::Who;

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Rows by their number with 64, 256 and 1,000 clients: queries a second and CPU time.
    Throughput,
    /// 0.8 to 10 times what the server can do: what is still answered within a second.
    Overload,
    /// The server stalls or restarts, the pool shrinks, filters are toggled.
    Events,
    /// The primary is killed and its replica promoted.
    Promotion,
    /// The server's memory with 500 clients, and the pool's own.
    Memory,
    /// Redis: commands a second and CPU time with 64 and 256 clients, 1 and 16 at a time; 1,000 clients that want too much.
    Redis,
}

/// What is measured, of whom.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Options {
    /// Only these parts.
    #[arg(long, visible_alias = "part", value_delimiter = ',', value_name = "PART")]
    only: Vec<Part>,
    /// Only these; the sidecar's rows need `sidecar`.
    #[arg(long, value_delimiter = ',', value_name = "WHO")]
    who: Vec<Who>,
}

/// How many clients there are where there are too many, and how long they have use for an answer: longer than the server takes for
/// as many as may wait.
#[derive(Clone, Copy)]
struct Scale {
    /// Of each operation, from when it was due.
    deadline: Duration,
    /// Of a program in which every client has a connection.
    clients: usize,
    /// Connections of a program with a queue before them.
    pooled: usize,
}

impl Scale {
    const FULL: Self = Self { deadline: Duration::from_secs(1), clients: 1000, pooled: 100 };
    const QUICK: Self = Self { deadline: Duration::from_millis(150), clients: 100, pooled: 80 };

    fn of(plan: Plan) -> Self {
        if plan.is_quick() { Self::QUICK } else { Self::FULL }
    }
}

/// What the parts have in common.
struct Table<'a> {
    stage: &'a Stage,
    plan: Plan,
    /// In the order of the rows.
    who: Vec<Who>,
}

/// Measures the parts one after the other and shows the rows of each.
///
/// # Errors
/// When something cannot be started or gives a wrong answer.
pub fn run(
    options: &Options,
    plan: Plan,
    show: &mut dyn FnMut(Vec<Row>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    raise_file_limit()?;
    let stage = Stage::set()?;
    let mut who: Vec<Who> = Who::value_variants().to_vec();
    who.retain(|who| options.who.is_empty() || options.who.contains(who));
    who.retain(|who| match who.missing() {
        Some(command) => {
            eprintln!("{} is missing, its rows are left out; {command}", who.name());
            false
        }
        None => true,
    });
    let redis: Vec<Who> = who.iter().copied().filter(|who| *who != Who::Pgbouncer).collect();
    who.retain(|who| *who != Who::Nutcracker);
    let table = Table { stage: &stage, plan, who };
    let parts = if options.only.is_empty() { Part::value_variants() } else { &options.only };
    let mut parts = parts.to_vec();
    if let Err(why) = qudag_kit::Postgres::available() {
        eprintln!("{why}, its rows are left out; apt-get install --no-install-recommends postgresql");
        parts.retain(|part| *part == Part::Redis);
    }
    for part in parts {
        show(match part {
            Part::Redis => redis::rows(&stage, plan, &redis)?,
            Part::Throughput => throughput::rows(&table)?,
            Part::Overload => overload::rows(&table)?,
            Part::Events => events::rows(&table)?,
            Part::Promotion => promotion::rows(&table)?,
            Part::Memory => memory::rows(&table)?,
        })?;
    }
    Ok(())
}

/// Puts the sidecar's figure beside each of the others'. Where the sidecar was not measured, each stands alone, with its name.
fn beside(row: &str, unit: &'static str, figures: &[(Who, f64)]) -> Vec<Row> {
    let named: Vec<_> = figures.iter().map(|(who, figure)| (who.name(), *figure)).collect();
    match named.first() {
        Some((OURS, _)) => row::beside(row, unit, &named),
        _ => named.iter().map(|(who, figure)| Row::alone(format!("{row}, {who}"), *figure, unit)).collect(),
    }
}
