//! Peer connections: a pair of sidecars with the tunnel and without it, beside a pair of HAProxy and nothing between.
//!
//! What stands side by side carries the same bytes between the same client and server, in turns or, over emulated
//! links, at the same time over links of its own. CPU time is that of both processes of a pair.

mod bulk;
mod connect;
mod fairness;
mod goodput;
mod gossip;
mod memory;
mod round_trip;
mod scaling;
mod stalled;
mod stand;

use clap::ValueEnum;

use crate::Failure;
use crate::contenders::Stage;
use crate::measure::Plan;
use crate::row::Row;

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// 64 bytes there and back: the time and CPU that is added.
    RoundTrip,
    /// A new connection and one byte there and back, near by and over a link of 40 ms.
    Connect,
    /// One long stream: throughput and CPU per GB.
    Bulk,
    /// What arrives over links with delay and loss.
    Goodput,
    /// Messages between two real nodes: what arrives, and when, near by and over a link with delay and loss.
    Gossip,
    /// What a TCP connection keeps beside a tunnel on a narrow link.
    Fairness,
    /// Resident memory with idle streams.
    Memory,
    /// One sidecar with 1 to 16 others.
    Scaling,
    /// New connections beside 100 streams that nobody reads.
    Stalled,
}

/// What is measured.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Options {
    /// Only these parts.
    #[arg(long, value_delimiter = ',', value_name = "PART")]
    only: Vec<Part>,
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
    let stage = Stage::set()?;
    let parts = if options.only.is_empty() { Part::value_variants() } else { &options.only };
    for part in parts {
        show(match part {
            Part::RoundTrip => round_trip::rows(&stage, plan)?,
            Part::Connect => connect::rows(&stage, plan)?,
            Part::Bulk => bulk::rows(&stage, plan)?,
            Part::Goodput => goodput::rows(&stage, plan)?,
            Part::Gossip => gossip::rows(&stage, plan)?,
            Part::Fairness => fairness::rows(&stage, plan)?,
            Part::Memory => memory::rows(&stage, plan)?,
            Part::Scaling => scaling::rows(&stage, plan)?,
            Part::Stalled => stalled::rows(&stage, plan)?,
        })?;
    }
    Ok(())
}
