//! Verification of signatures beside the node's own library and others, all in one process: a program of a workspace of its own, since
//! the node's library brings crates that have no place here.

mod counted;
mod handshake;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use qudag_mldsa::Backend;
use serde::Deserialize;
use serde_json::Value;

use crate::Failure;
use crate::contenders::{Sidecar, Stage};
use crate::measure::Plan;
use crate::pinned::Pinned;
use crate::row::Row;

pub use counted::{How, counted, instructions};

/// The node's library.
const NODE: &str = "qudag-crypto";

/// Everybody who is measured.
const EVERYBODY: [&str; 9] =
    ["socket", "socket floor", "avx512", "avx2", "portable", NODE, "aws-lc-rs", "libcrux", "blake3"];

/// How many times as fast as the node's library we are to be, by what is done.
const TIMES: [(&str, f64); 7] = [
    ("cached key, 32 B", 3.2),
    ("batch of 8, fresh keys, 32 B", 2.3),
    ("batch of 8, cached keys, 32 B", 6.0),
    ("over the socket, one signature, registered keys", 2.0),
    ("over the socket, batch of 16, registered keys", 5.0),
    ("over the socket, batch of 32, registered keys", 5.0),
    ("over the socket, batch of 64, registered keys", 5.0),
];
/// What is done in another process, where programs wait for more than work.
const OVER_THE_SOCKET: &str = "over the socket";
/// And the portable backend, with a cached key.
const PORTABLE_TIMES: f64 = 0.9;
/// The longest time that a call may take for 99 of 100, in microseconds.
const LONGEST: f64 = 1500.0;

/// What is measured of one way to do something, in microseconds.
#[derive(Deserialize)]
struct Figure {
    what: String,
    who: String,
    /// Processor time of one operation.
    cpu: f64,
    /// Operations of one call.
    operations: usize,
    /// Time of one call, for half and for 99 of 100 of them.
    p50: f64,
    p99: f64,
}

/// A sidecar with nothing but the crypto service, which it logs nothing about.
fn sidecar(stage: &Stage, socket: &Path) -> Result<Sidecar, Failure> {
    let socket = socket.display();
    let sidecar = stage.sidecar(&format!(
        "listeners: {{ crypto: {{ bind: \"unix:{socket}\" }} }}\n\
         filters: {{ crypto: {{ simd_crypto: {{ enabled: true }}, crypto_offload: {{ enabled: true }} }} }}\n"
    ))?;
    // Before its self-test has passed, the portable backend does the work.
    let (best, deadline) = (Backend::best().name(), Instant::now() + Duration::from_secs(30));
    loop {
        let status = sidecar.get("/crypto")?;
        if status.pointer("/backend").and_then(Value::as_str) == Some(best) {
            return Ok(sidecar);
        }
        if Instant::now() > deadline {
            return Err(format!("the sidecar does not use {best}: {status}").into());
        }
        park_timeout(Duration::from_millis(20));
    }
}

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Signatures, each by itself and in batches, beside the node's library and others, in one process.
    Engine,
    /// The same over the socket of a sidecar.
    Socket,
    /// A connection of the tunnel.
    Handshake,
    /// Instructions of a verification.
    Instructions,
}

/// What is measured.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Options {
    /// Only these parts.
    #[arg(long, value_delimiter = ',', value_name = "PART")]
    only: Vec<Part>,
}

impl Options {
    fn has(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}

/// Measures the parts one after the other and shows the rows of each.
///
/// # Errors
/// When something cannot be started or gives a wrong answer.
pub fn run(
    options: &Options,
    plan: Plan,
    show: &mut impl FnMut(Vec<Row>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    if options.has(Part::Engine) {
        verifying(&["--only", "engine"], plan, show)?;
    }
    if options.has(Part::Socket) {
        let (stage, folder) = (Stage::set()?, tempfile::tempdir()?);
        let socket = folder.path().join("crypto.sock");
        // Its clients follow it there.
        let pinned = Pinned::here()?;
        let sidecar = sidecar(&stage, &socket)?;
        drop(pinned);
        let (socket, process) = (socket.display().to_string(), sidecar.pid().to_string());
        verifying(&["--only", "socket", "--socket", &socket, "--server", &process], plan, show)?;
    }
    if options.has(Part::Handshake) {
        show(handshake::rows(plan)?)?;
    }
    if options.has(Part::Instructions) {
        show(counted::rows()?)?;
    }
    Ok(())
}

/// Builds the program, runs it, and shows what it measures.
fn verifying(
    arguments: &[&str],
    plan: Plan,
    show: &mut impl FnMut(Vec<Row>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crypto");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut program = Command::new(cargo);
    program
        .args(["run", "--quiet", "--release", "--locked", "--manifest-path"])
        .arg(folder.join("Cargo.toml"));
    program.arg("--target-dir").arg(folder.join("../../target/crypto-peers"));
    program.arg("--").args(arguments);
    if plan.is_quick() {
        program.arg("--quick");
    }
    eprintln!("building tests/crypto (the first time, about 3 minutes on 2 cores) …");
    let mut program = program.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut figures: Vec<Figure> = Vec::new();
    if let Some(lines) = program.stdout.take() {
        for line in BufReader::new(lines).lines() {
            let figure: Figure = serde_json::from_str(&line?)?;
            if figures.first().is_some_and(|first| first.what != figure.what) {
                show(rows(&std::mem::take(&mut figures))?)?;
            }
            figures.push(figure);
        }
    }
    show(rows(&figures)?)?;
    if program.wait()?.success() { Ok(()) } else { Err("tests/crypto has failed".into()) }
}

/// The rows of what was measured together: the first one, the fastest of ours, beside each of the others.
fn rows(figures: &[Figure]) -> Result<Vec<Row>, Failure> {
    let Some((ours, others)) = figures.split_first() else { return Ok(Vec::new()) };
    let what = &ours.what;
    let title = format!("crypto, {what}: CPU per operation");
    let mut rows = Vec::new();
    for other in others {
        let who = name(&other.who)?;
        let row = Row::beside(&title, ours.cpu, "µs", who, other.cpu);
        let aim = TIMES.iter().find(|(name, _)| name == what).filter(|_| who == NODE);
        rows.push(match aim {
            Some((_, times)) => row.ratio_at_most(times.recip()),
            None => row,
        });
    }
    if rows.is_empty() {
        rows.push(Row::alone(title, ours.cpu, "µs"));
    }
    if what.starts_with(OVER_THE_SOCKET) {
        let title = format!("crypto, {what}: p50 of {}", together(ours.operations));
        for other in others {
            rows.push(Row::beside(&title, ours.p50, "µs", name(&other.who)?, other.p50));
        }
    }
    let of = |who: &str| figures.iter().find(|figure| figure.who == who);
    if let (Some(portable), Some(node)) =
        (of("portable"), of(NODE).filter(|_| what.starts_with("cached key")))
    {
        let title = format!("crypto, {what}, portable: CPU per operation");
        let row = Row::beside(title, portable.cpu, "µs", NODE, node.cpu);
        rows.push(row.ratio_at_most(PORTABLE_TIMES.recip()));
    }
    if of(NODE).is_some() {
        let title = format!("crypto, {what}: p99 of {}", together(ours.operations));
        rows.push(Row::alone(title, ours.p99, "µs").at_most(LONGEST));
    }
    Ok(rows)
}

/// What one call does.
fn together(operations: usize) -> String {
    match operations {
        1 => "one operation".to_owned(),
        more => format!("{more} operations together"),
    }
}

fn name(who: &str) -> Result<&'static str, Failure> {
    let known = EVERYBODY.into_iter().find(|known| *known == who);
    known.ok_or_else(|| format!("nobody knows {who}").into())
}
