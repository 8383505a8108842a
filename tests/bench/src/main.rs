//! Side-by-side benchmarks: the same traffic direct, through the sidecar, and through the programs that people use today,
//! interleaved in one run.
//!
//! `cargo run --release -p qudag-bench -- chain|dns|peer|front|db|crypto|all [--quick] [--json] [--chart FILE] [--markdown FILE]`

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use qudag_bench::measure::Plan;
use qudag_bench::row::{Row, table};
use qudag_bench::suites::Suite;
use qudag_bench::{Failure, chain, chart, crypto, db, dns, peer, pivot};

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
    /// Draw the rows as SVG into this file.
    #[arg(long, global = true, value_name = "FILE")]
    chart: Option<PathBuf>,
    /// Write the rows as a table in Markdown into this file, a column for each program.
    #[arg(long, global = true, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

#[derive(Clone, Subcommand)]
enum What {
    /// The chain itself, in this process: time and instructions of a call.
    Chain,
    /// Names from the cache and past it, with good servers and bad ones, beside other resolvers.
    Dns(dns::Options),
    /// Peer connections through a pair of sidecars, beside a pair of HAProxy and nothing between.
    Peer(peer::Options),
    /// HTTP and RPC in front of the node, beside HAProxy.
    Front,
    /// PostgreSQL with many clients, with too many, and when things happen, beside PgBouncer and nothing between.
    Db(db::Options),
    /// Signatures, each by itself and in batches, beside the node's own library and others.
    Crypto(crypto::Options),
    /// Everything.
    All,
    /// Calls a chain in this process and nothing else, traced; run by `chain`.
    #[command(hide = true)]
    CountedCall {
        /// What stands before the terminal service.
        #[arg(long)]
        with: chain::With,
    },
    /// Verifies signatures in this process and nothing else, traced; run by `crypto`.
    #[command(hide = true)]
    CountedSignatures {
        /// By which backend.
        #[arg(long)]
        backend: String,
        /// Which ones, and how.
        #[arg(long)]
        how: crypto::How,
    },
    /// Answers DNS queries of this benchmark without looking anything up; run by `dns`.
    #[command(hide = true)]
    UdpFloor {
        /// Where it listens.
        #[arg(long)]
        at: SocketAddr,
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
    let mut all = Vec::new();
    // Rows are shown as they come: a whole run takes long.
    let mut show = |rows: Vec<Row>| -> Result<(), Failure> {
        print(&rows, args.json)?;
        all.extend(rows);
        Ok(())
    };
    match &args.what {
        What::CountedCall { with } => return chain::counted(*with),
        What::CountedSignatures { backend, how } => return crypto::counted(backend.parse()?, *how),
        What::UdpFloor { at } => return dns::floor::serve(*at),
        What::Chain => show(Suite::Chain.rows(plan)?)?,
        What::Dns(options) => dns::run(options, plan, &mut show)?,
        What::Peer(options) => peer::run(options, plan, &mut show)?,
        What::Front => show(Suite::Front.rows(plan)?)?,
        What::Db(options) => db::run(options, plan, &mut show)?,
        What::Crypto(options) => crypto::run(options, plan, &mut show)?,
        What::All => {
            show(Suite::Chain.rows(plan)?)?;
            dns::run(&dns::Options::default(), plan, &mut show)?;
            peer::run(&peer::Options::default(), plan, &mut show)?;
            show(Suite::Front.rows(plan)?)?;
            db::run(&db::Options::default(), plan, &mut show)?;
            crypto::run(&crypto::Options::default(), plan, &mut show)?;
        }
    }
    let files = [(&args.chart, chart::svg as fn(&[Row]) -> String), (&args.markdown, pivot::markdown)];
    for (file, draw) in files {
        if let Some(file) = file {
            std::fs::write(file, draw(&all)).map_err(|why| format!("{}: {why}", file.display()))?;
        }
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
