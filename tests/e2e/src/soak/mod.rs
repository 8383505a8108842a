//! Hours of load with trouble all the time: what a process takes is sampled, and at the end nothing may have grown.
//!
//! A kind of traffic takes part with a load that notes each of its operations in a [`Meter`]; what disturbs it is one future that goes on
//! until the soak is over. Any number of kinds can share one soak:
//!
//! ```ignore
//! let mut soak = Soak::of(sidecar.pid());
//! let names = soak.meter("dns");           // one meter a load; the load runs as tasks of its own
//! let outcome = soak.run(duration, async { tokio::join!(faults, reloads, toggles); }).await;
//! outcome.write(folder, "dns");
//! outcome.judge(Strictness::Full);
//! ```

mod chart;
mod trend;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

pub use trend::{Tolerance, Trend};

/// How many samples there are at most.
const SAMPLES: u32 = 720;

#[derive(Default)]
struct Window {
    done: u64,
    took: Vec<Duration>,
    failures: BTreeMap<String, u64>,
}

/// Where a load notes what it does.
pub struct Meter {
    name: &'static str,
    window: Mutex<Window>,
}

impl Meter {
    /// Notes one operation: what came of it, and how long it took.
    pub fn note(&self, result: Result<(), String>, took: Duration) {
        let mut window = self.window.lock().unwrap();
        window.done += 1;
        window.took.push(took);
        if let Err(why) = result {
            *window.failures.entry(why).or_default() += 1;
        }
    }
}

/// A soak that has not begun.
pub struct Soak {
    pid: u32,
    meters: Vec<Arc<Meter>>,
}

/// What was seen in one period.
#[derive(Clone, Debug, Default)]
struct Sample {
    /// Seconds since the beginning.
    at: f64,
    values: Vec<f64>,
}

/// How hard slopes are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strictness {
    /// After hours: memory, descriptors, threads and latency.
    Full,
    /// After a minute, in which caches fill and neighbours come and go: memory and descriptors, with more room.
    Short,
}

/// What came of a soak.
pub struct Outcome {
    series: Vec<String>,
    samples: Vec<Sample>,
    /// Operations of all loads.
    pub done: u64,
    /// Those that failed.
    pub failed: u64,
    /// Why.
    pub failures: BTreeMap<String, u64>,
}

impl Soak {
    /// A soak of a process.
    pub fn of(pid: u32) -> Self {
        Self { pid, meters: Vec::new() }
    }

    /// A meter for one more load.
    pub fn meter(&mut self, name: &'static str) -> Arc<Meter> {
        let meter = Arc::new(Meter { name, window: Mutex::default() });
        self.meters.push(Arc::clone(&meter));
        meter
    }

    /// Samples for so long, while `trouble` goes on.
    ///
    /// # Panics
    /// When the process ends, or the trouble does.
    pub async fn run(self, duration: Duration, trouble: impl Future<Output = ()>) -> Outcome {
        let mut outcome = Outcome {
            series: self.series(),
            samples: Vec::new(),
            done: 0,
            failed: 0,
            failures: BTreeMap::new(),
        };
        tokio::select! {
            () = self.sample(duration, &mut outcome) => outcome,
            () = trouble => panic!("the trouble ended before the soak"),
        }
    }

    fn series(&self) -> Vec<String> {
        let mut series = vec!["memory MB".to_owned(), "descriptors".to_owned(), "threads".to_owned()];
        for meter in &self.meters {
            series.extend(
                ["p50 ms", "p99 ms", "a second", "failed"].map(|what| format!("{} {what}", meter.name)),
            );
        }
        series
    }

    async fn sample(&self, duration: Duration, outcome: &mut Outcome) {
        let period = (duration / SAMPLES).max(Duration::from_secs(1));
        let start = Instant::now();
        let mut pace = tokio::time::interval_at(start + period, period);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut since = start;
        while start.elapsed() < duration {
            let now = pace.tick().await;
            let mut values = process(self.pid);
            for meter in &self.meters {
                let mut window = std::mem::take(&mut *meter.window.lock().unwrap());
                window.took.sort_unstable();
                let failed: u64 = window.failures.values().sum();
                let at = |share: f64| {
                    let last = window.took.len().saturating_sub(1) as f64;
                    window
                        .took
                        .get((last * share).round() as usize)
                        .map_or(0.0, |took| took.as_secs_f64() * 1e3)
                };
                let rate = window.done as f64 / (now - since).as_secs_f64();
                values.extend([at(0.5), at(0.99), rate, failed as f64]);
                outcome.done += window.done;
                outcome.failed += failed;
                for (why, count) in window.failures {
                    *outcome.failures.entry(why).or_default() += count;
                }
            }
            since = now;
            outcome.samples.push(Sample { at: start.elapsed().as_secs_f64(), values });
        }
    }
}

/// Resident memory in MB, open descriptors and threads of a process.
fn process(pid: u32) -> Vec<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .unwrap_or_else(|why| panic!("the process under test is gone: {why}"));
    let number = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        line.split_whitespace().next().and_then(|number| number.parse::<f64>().ok()).unwrap_or(0.0)
    };
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    vec![number("VmRSS:") / 1024.0, descriptors as f64, number("Threads:")]
}

impl Outcome {
    /// The points of a series, seconds and value.
    fn points(&self, series: usize) -> Vec<(f64, f64)> {
        self.samples.iter().map(|sample| (sample.at, sample.values[series])).collect()
    }

    /// The trend of a series over the second half: in the first one caches fill.
    fn trend(&self, series: usize) -> Trend {
        let points = self.points(series);
        Trend::of(&points[points.len() / 2..])
    }

    /// Writes `NAME.csv` and the chart `NAME.svg`.
    ///
    /// # Panics
    /// When they cannot be written.
    pub fn write(&self, folder: &Path, name: &str) {
        fs::create_dir_all(folder).unwrap();
        let mut csv = format!("seconds,{}\n", self.series.join(","));
        for sample in &self.samples {
            let values: Vec<_> = sample.values.iter().map(|value| format!("{value:.3}")).collect();
            csv.push_str(&format!("{:.1},{}\n", sample.at, values.join(",")));
        }
        fs::write(folder.join(format!("{name}.csv")), csv).unwrap();
        let panels: Vec<_> = self
            .series
            .iter()
            .enumerate()
            .map(|(number, title)| chart::Panel {
                title,
                points: self.points(number),
                trend: self.trend(number),
            })
            .collect();
        fs::write(folder.join(format!("{name}.svg")), chart::svg(&panels)).unwrap();
        println!("soak: {0}/{name}.csv, {0}/{name}.svg", folder.display());
    }

    /// Prints what came of it, and expects that fewer than one operation of a thousand failed and that nothing grew.
    ///
    /// # Panics
    /// When something did.
    pub fn judge(&self, strictness: Strictness) {
        println!("soak: {} operations, {} failed {:?}", self.done, self.failed, self.failures);
        let mut grown = Vec::new();
        for (number, series) in self.series.iter().enumerate() {
            let trend = self.trend(number);
            let tolerance = tolerance(series, strictness);
            let verdict = match &tolerance {
                None => "not judged",
                Some(tolerance) if trend.exceeds(tolerance) => "GROWS",
                Some(_) => "ok",
            };
            println!("soak: {series:<20} {trend}  {verdict}");
            if verdict == "GROWS" {
                grown.push(format!("{series}: {trend}"));
            }
        }
        assert!(self.done > 0, "the soak did nothing");
        assert!(
            self.failed * 1000 < self.done,
            "{} of {} failed: {:?}",
            self.failed,
            self.done,
            self.failures
        );
        assert!(grown.is_empty(), "over the second half: {grown:#?}");
    }
}

fn tolerance(series: &str, strictness: Strictness) -> Option<Tolerance> {
    let full = strictness == Strictness::Full;
    let (share, plus) = match series {
        "memory MB" if full => (0.02, 1.0),
        "memory MB" => (0.10, 6.0),
        "descriptors" => (0.05, 3.0),
        "threads" => (0.0, 1.0),
        _ if series.ends_with("p50 ms") && full => (0.10, 0.1),
        _ if series.ends_with("p99 ms") && full => (0.20, 2.0),
        _ => return None,
    };
    Some(Tolerance { share, plus })
}
