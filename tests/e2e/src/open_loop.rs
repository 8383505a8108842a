//! Look-ups at a steady rate, whether or not earlier ones have been answered: a server that is slow is not spared.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use qudag_kit::Pipe;
use qudag_kit::dns_wire::{Ask, View, rcode};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How many sockets the queries come from.
const SOCKETS: usize = 8;

/// How a client judges a reply: an error is a failure.
pub type Judge = dyn Fn(u64, &View) -> Result<(), String> + Send + Sync;

/// What is asked, and how fast.
pub struct OpenLoop {
    /// Whom to ask.
    pub server: SocketAddr,
    /// Queries a second.
    pub rate: u32,
    /// How many queries in all.
    pub count: u64,
    /// When a client gives up.
    pub patience: Duration,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Queries.
    pub asked: u64,
    /// How many failed for what reason: silence, a code, or what the judge said.
    pub failures: BTreeMap<String, u64>,
    /// The times from when a query was due to its reply, sorted; failures by silence are not in it.
    pub took: Vec<Duration>,
}

impl Report {
    /// How many failed.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// A percentile of the times, from 0 to 1; zero when nothing was answered.
    pub fn at(&self, share: f64) -> Duration {
        let last = self.took.len().saturating_sub(1);
        self.took.get((last as f64 * share).round() as usize).copied().unwrap_or_default()
    }

    /// Notes one look-up.
    pub fn note(&mut self, result: Result<(), String>, took: Option<Duration>) {
        self.asked += 1;
        self.took.extend(took);
        if let Err(why) = result {
            *self.failures.entry(why).or_default() += 1;
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p99, last] = [0.5, 0.99, 1.0].map(|share| self.at(share).as_secs_f64() * 1e3);
        write!(
            f,
            "{:6} asked, {:4} failed, p50 {p50:7.2} ms, p99 {p99:7.2} ms, slowest ",
            self.asked,
            self.failed()
        )?;
        write!(f, "{last:7.2} ms")?;
        if self.failures.is_empty() { Ok(()) } else { write!(f, "  {:?}", self.failures) }
    }
}

impl OpenLoop {
    /// Asks. `ask` gives query number *n*; `judge` looks at replies without an error code (NXDOMAIN is none).
    ///
    /// # Panics
    /// When a look-up panics.
    pub async fn run(&self, ask: impl Fn(u64) -> Ask, judge: Arc<Judge>) -> Report {
        let mut pipes = Vec::new();
        for _ in 0..SOCKETS {
            pipes.push(Arc::new(Pipe::to(self.server).await));
        }
        let mut running = JoinSet::new();
        let mut report = Report::default();
        let start = Instant::now();
        for number in 0..self.count {
            let due = start + Duration::from_secs(1) * u32::try_from(number).unwrap() / self.rate;
            tokio::time::sleep_until(due).await;
            let (pipe, patience, judge) =
                (Arc::clone(&pipes[number as usize % SOCKETS]), self.patience, Arc::clone(&judge));
            let ask = ask(number);
            running
                .spawn(async move { look_up(&pipe, &ask, due, patience, |view| judge(number, view)).await });
            while let Some(ended) = running.try_join_next() {
                let (result, took) = ended.unwrap();
                report.note(result, took);
            }
        }
        while let Some(ended) = running.join_next().await {
            let (result, took) = ended.unwrap();
            report.note(result, took);
        }
        report.took.sort_unstable();
        report
    }
}

/// One look-up: what came of it, and how long after `due`.
pub async fn look_up(
    pipe: &Pipe,
    ask: &Ask,
    due: Instant,
    patience: Duration,
    judge: impl FnOnce(&View) -> Result<(), String>,
) -> (Result<(), String>, Option<Duration>) {
    let reply = match pipe.ask(&ask.bytes(), patience).await {
        Ok(reply) => reply,
        Err(why) => return (Err(why), None),
    };
    let took = due.elapsed();
    let judged = View::read(&reply).and_then(|view| {
        if view.question != ask.question() {
            return Err("a reply to another question".to_owned());
        }
        match view.rcode() {
            rcode::NOERROR | rcode::NXDOMAIN => judge(&view),
            code => Err(format!("code {code} {:?}", view.explanations())),
        }
    });
    (judged, Some(took))
}
