//! Side-by-side benchmarks: the same traffic direct, through the sidecar, and through the programs that people use today,
//! interleaved in one run.
//!
//! `cargo run --release -p qudag-bench -- chain|dns|peer|front|db|all [--quick] [--json]`

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use qudag_bench::measure::Plan;
use qudag_bench::row::{Row, table};
use qudag_bench::suites::Suite;
use qudag_bench::{Failure, chain};

/// Measures what the sidecar adds to the traffic that it carries.
///
/// Each row has our figure, a peer's figure for the same traffic in the same run, and their ratio (ours ÷ peer).
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    what: What,
    /// Fewer and shorter rounds: to see that it works, not to note figures down.
    #[arg(long, global = true)]
    quick: bool,
    /// One JSON object a row.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Clone, Copy, Subcommand)]
enum What {
    /// The chain itself, in this process: time and instructions of a call.
    Chain,
    /// Names from the cache and past it, beside Unbound.
    Dns,
    /// Peer connections, beside HAProxy in TCP mode.
    Peer,
    /// HTTP and RPC in front of the node, beside HAProxy.
    Front,
    /// PostgreSQL sessions, beside HAProxy in TCP mode.
    Db,
    /// Everything.
    All,
    /// Calls a chain in this process and nothing else; run under callgrind by `chain`.
    #[command(hide = true)]
    ChainLoop {
        /// What stands before the terminal service.
        #[arg(long)]
        with: chain::With,
        /// How many calls.
        #[arg(long)]
        calls: u64,
    },
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("qudag-bench: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Failure> {
    let plan = if args.quick { Plan::QUICK } else { Plan::FULL };
    let suites: &[Suite] = match args.what {
        What::ChainLoop { with, calls } => {
            chain::install_recorder()?;
            return chain::run_loop(with, calls);
        }
        What::Chain => &[Suite::Chain],
        What::Dns => &[Suite::Dns],
        What::Peer => &[Suite::Peer],
        What::Front => &[Suite::Front],
        What::Db => &[Suite::Db],
        What::All => &[Suite::Chain, Suite::Dns, Suite::Peer, Suite::Front, Suite::Db],
    };
    for suite in suites {
        print(&suite.rows(plan)?, args.json)?;
    }
    Ok(())
}

fn print(rows: &[Row], json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        for row in rows {
            writeln!(out, "{}", row.json())?;
        }
    } else {
        writeln!(out, "{}", table(rows))?;
    }
    out.flush()
}
