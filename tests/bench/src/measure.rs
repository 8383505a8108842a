//! Interleaved measurement: every contender gets a slice of every round, so that what the machine does besides hits all
//! of them alike; the median over the rounds is reported.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::process::{Resource, Rlimit};

use crate::progress::Progress;
use crate::{Failure, cpu};

/// One client that makes one call after the other.
pub trait Client: Send {
    /// One operation, checked for a right answer.
    ///
    /// # Errors
    /// When the answer is wrong or missing; the whole benchmark ends then.
    fn call(&mut self) -> io::Result<()>;
}

/// A way for the same traffic.
pub struct Contender<'a> {
    /// Its name in the rows.
    pub name: &'static str,
    /// The processes that stand between client and upstream, whose CPU time is taken.
    pub pids: Vec<u32>,
    /// Makes a client.
    pub connect: Box<dyn Fn() -> io::Result<Box<dyn Client>> + Sync + 'a>,
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Rounds; the median of them counts.
    pub rounds: usize,
    /// Time for each contender in each round and phase.
    pub slice: Duration,
    /// Clients at once in the loaded phase.
    pub clients: usize,
}

impl Plan {
    /// For figures to be noted down.
    pub const FULL: Self = Self { rounds: 9, slice: Duration::from_millis(700), clients: 8 };
    /// For a first look, and to see that the benchmark works.
    pub const QUICK: Self = Self { rounds: 3, slice: Duration::from_millis(150), clients: 4 };
}

impl Plan {
    /// Whether this is the quick one.
    pub fn is_quick(self) -> bool {
        self.rounds == Self::QUICK.rounds
    }
}

/// The medians of one contender.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Median latency of one client alone, µs.
    pub p50: f64,
    /// 99th percentile of the same, µs.
    pub p99: f64,
    /// CPU time of the process per operation with many clients, µs; none where there is no process.
    pub cpu: Option<f64>,
    /// Operations per second with many clients.
    pub rate: f64,
}

/// Measures all contenders, round by round.
///
/// # Errors
/// When a client gets a wrong answer or a process is gone.
pub fn interleaved(
    contenders: &[Contender<'_>],
    plan: Plan,
    progress: &Progress,
) -> Result<Vec<Figures>, Failure> {
    let mut rounds: Vec<Vec<Figures>> = vec![Vec::new(); contenders.len()];
    for round in 0..plan.rounds {
        for step in 0..contenders.len() {
            // Another one begins each round, so that nobody is always first.
            let turn = (round + step) % contenders.len();
            let (Some(contender), Some(figures)) = (contenders.get(turn), rounds.get_mut(turn)) else {
                continue;
            };
            progress.step(contender.name);
            let (p50, p99) = alone(contender, plan)?;
            let (cpu, rate) = loaded(contender, plan)?;
            figures.push(Figures { p50, p99, cpu, rate });
        }
    }
    Ok(rounds.iter().map(|figures| medians(figures)).collect())
}

/// How many steps [`interleaved`] reports.
pub fn steps(contenders: usize, plan: Plan) -> u64 {
    (contenders * plan.rounds) as u64
}

fn failed(contender: &Contender<'_>, why: &io::Error) -> Failure {
    format!("{}: {why}", contender.name).into()
}

/// Latency of one client, p50 and p99, in µs.
fn alone(contender: &Contender<'_>, plan: Plan) -> Result<(f64, f64), Failure> {
    let mut client = (contender.connect)().map_err(|why| failed(contender, &why))?;
    let mut histogram = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3)?;
    for _ in 0..16 {
        client.call().map_err(|why| failed(contender, &why))?;
    }
    let end = Instant::now() + plan.slice;
    let mut now = Instant::now();
    while now < end {
        client.call().map_err(|why| failed(contender, &why))?;
        let after = Instant::now();
        histogram.saturating_record(nanos(after - now));
        now = after;
    }
    let micros = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1e3;
    Ok((micros(0.5), micros(0.99)))
}

/// CPU per operation in µs and operations per second, with many clients.
fn loaded(contender: &Contender<'_>, plan: Plan) -> Result<(Option<f64>, f64), Failure> {
    let mut clients = Vec::new();
    for _ in 0..plan.clients {
        clients.push((contender.connect)().map_err(|why| failed(contender, &why))?);
    }
    let (calls, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let before = cpu::of_all(&contender.pids)?;
    let start = Instant::now();
    let results: Vec<io::Result<()>> = std::thread::scope(|scope| {
        let threads: Vec<_> = clients
            .into_iter()
            .map(|mut client| {
                let (calls, stop) = (&calls, &stop);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        client.call()?;
                        calls.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        pause(plan.slice);
        stop.store(true, Ordering::Relaxed);
        let panicked = |_| Err(io::Error::other("a client panicked"));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
    });
    let elapsed = start.elapsed();
    for result in results {
        result.map_err(|why| failed(contender, &why))?;
    }
    let calls = calls.load(Ordering::Relaxed).max(1) as f64;
    let cpu = match before {
        Some(before) => {
            let after = cpu::of_all(&contender.pids)?.unwrap_or_default();
            Some(after.saturating_sub(before).as_secs_f64() * 1e6 / calls)
        }
        None => None,
    };
    Ok((cpu, calls / elapsed.as_secs_f64()))
}

/// Waits for all of this time.
pub fn pause(time: Duration) {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        std::thread::park_timeout(left);
    }
}

fn medians(rounds: &[Figures]) -> Figures {
    let of = |figure: fn(&Figures) -> f64| median(rounds.iter().map(figure).collect());
    let cpu: Vec<f64> = rounds.iter().filter_map(|figures| figures.cpu).collect();
    Figures {
        p50: of(|f| f.p50),
        p99: of(|f| f.p99),
        cpu: (!cpu.is_empty()).then(|| median(cpu)),
        rate: of(|f| f.rate),
    }
}

/// Lets this process, and what it starts, open as many files as the system allows.
///
/// # Errors
/// When the system refuses.
pub fn raise_file_limit() -> Result<(), Failure> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
    Ok(())
}

/// The middle value; 0 of nothing.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let upper = values.get(values.len() / 2).copied().unwrap_or_default();
    if values.len() % 2 == 1 {
        return upper;
    }
    let lower = values.len().checked_sub(2).and_then(|n| values.get(n / 2)).copied().unwrap_or_default();
    f64::midpoint(lower, upper)
}

/// A duration in nanoseconds, as a histogram takes it.
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nap(Duration);
    impl Client for Nap {
        fn call(&mut self) -> io::Result<()> {
            let end = Instant::now() + self.0;
            while Instant::now() < end {
                std::hint::spin_loop();
            }
            Ok(())
        }
    }

    struct Broken;
    impl Client for Broken {
        fn call(&mut self) -> io::Result<()> {
            Err(io::Error::other("a wrong answer"))
        }
    }

    fn contender(name: &'static str, make: fn() -> Box<dyn Client>) -> Contender<'static> {
        Contender { name, pids: vec![std::process::id()], connect: Box::new(move || Ok(make())) }
    }

    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!(median(vec![]), 0.0);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0]), 2.5);
    }

    #[test]
    fn slow_is_slower_than_fast() {
        let plan = Plan { rounds: 3, slice: Duration::from_millis(20), clients: 1 };
        let contenders = [
            contender("fast", || Box::new(Nap(Duration::from_micros(20)))),
            contender("slow", || Box::new(Nap(Duration::from_micros(400)))),
        ];
        let figures = interleaved(&contenders, plan, &Progress::hidden()).unwrap();
        assert!(figures[0].p50 < figures[1].p50, "{figures:?}");
        assert!(figures.iter().all(|f| f.p50 <= f.p99 && f.rate > 0.0 && f.cpu.is_some()));
    }

    #[test]
    fn a_wrong_answer_ends_the_benchmark_and_names_the_contender() {
        let plan = Plan { rounds: 1, slice: Duration::from_millis(1), clients: 1 };
        let error =
            interleaved(&[contender("odd", || Box::new(Broken))], plan, &Progress::hidden()).unwrap_err();
        assert_eq!(error.to_string(), "odd: a wrong answer");
    }
}
