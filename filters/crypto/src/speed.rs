//! How fast the implementations are on this machine.

use std::time::{Duration, Instant};

use qudag_mldsa::{
    Backend, Content, Edition, ExpandedKey, Job, KNOWN_ANSWERS, Key, KnownAnswer, Scratch, verify_batch,
};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// How many signatures at a time, and whether their keys are ready.
const WAYS: [(usize, bool); 5] = [(1, true), (1, false), (8, true), (8, false), (64, true)];
/// How long one is at it before it is the next one's turn.
const TURN: Duration = Duration::from_millis(2);
/// The least turns, however little time there is: the median of fewer says nothing.
const ROUNDS: usize = 5;

/// What verifying takes with an implementation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Speed {
    /// The implementation.
    pub backend: &'static str,
    /// How many signatures are verified together, each of another key.
    pub signatures: usize,
    /// Whether the keys were made ready before, as registered ones are.
    pub keys_ready: bool,
    /// Processor time of one signature in microseconds: the median over all turns.
    pub cpu_us: f64,
    /// Time of all of them together in microseconds, for 99 of 100 times.
    pub p99_us: f64,
}

/// Verifies a signature of QuDAG's with each implementation, for about so long all together, on the thread that calls. Implementations take
/// turns, so that what else the machine does is no one's disadvantage.
///
/// They are to have passed their test before: see [`test_in_process`](crate::test_in_process).
pub fn speeds(backends: &[Backend], time: Duration) -> Vec<Speed> {
    let Some(known) = KNOWN_ANSWERS.iter().find(|known| known.edition == Edition::Draft) else {
        return Vec::new();
    };
    let most = WAYS.iter().map(|(signatures, _)| *signatures).max().unwrap_or_default();
    // A key of its own for each signature, so that a batch does not find in the caches what it would not find at work.
    let keys: Vec<_> = (0..most).map(|_| known.key.expand(Backend::Portable)).collect();
    let mut contenders: Vec<_> = WAYS
        .iter()
        .flat_map(|way| backends.iter().map(|backend| Contender::new(*backend, *way, known, &keys)))
        .collect();
    let (start, mut round) = (Instant::now(), 0);
    // What the first round takes is not counted: it fills the caches.
    while round <= ROUNDS || start.elapsed() < time {
        for contender in &mut contenders {
            contender.turn(round > 0);
        }
        round += 1;
    }
    contenders.into_iter().map(Contender::speed).collect()
}

/// An implementation and what it does.
struct Contender<'a> {
    backend: Backend,
    keys_ready: bool,
    jobs: Vec<Job<'a>>,
    results: Vec<Result<(), qudag_mldsa::Rejected>>,
    scratch: Scratch,
    /// Processor time of one signature in each turn, and time of each call, in microseconds.
    turns: Vec<f64>,
    calls: Vec<f64>,
}

impl<'a> Contender<'a> {
    fn new(
        backend: Backend,
        (signatures, keys_ready): (usize, bool),
        known: &'a KnownAnswer,
        keys: &'a [Box<ExpandedKey>],
    ) -> Self {
        let job = |key| Job {
            key: if keys_ready { Key::Expanded(key) } else { Key::Fresh(&known.key) },
            edition: known.edition,
            content: Content::Message { context: known.context, message: known.message },
            signature: known.signature,
        };
        let jobs: Vec<_> = keys.iter().take(signatures).map(|key| job(key)).collect();
        let results = vec![Ok(()); jobs.len()];
        Self { backend, keys_ready, jobs, results, scratch: Scratch::new(), turns: vec![], calls: vec![] }
    }

    fn turn(&mut self, counts: bool) {
        let (start, mut took, mut done) = (processor_time(), Duration::ZERO, 0);
        while took < TURN {
            let call = Instant::now();
            verify_batch(self.backend, &mut self.scratch, &self.jobs, &mut self.results);
            if counts {
                self.calls.push(microseconds(call.elapsed()));
            }
            done += self.jobs.len();
            took = processor_time().saturating_sub(start);
        }
        if counts {
            self.turns.push(microseconds(took) / done as f64);
        }
    }

    fn speed(self) -> Speed {
        Speed {
            backend: self.backend.name(),
            signatures: self.jobs.len(),
            keys_ready: self.keys_ready,
            cpu_us: at(self.turns, 0.5),
            p99_us: at(self.calls, 0.99),
        }
    }
}

/// What this thread has used.
fn processor_time() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap_or_default()
}

fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// The value below which that share of all is.
fn at(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let place = (values.len() as f64 * share) as usize;
    values.get(place.min(values.len().saturating_sub(1))).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_is_measured_with_every_implementation() {
        let backends: Vec<_> = Backend::available().collect();
        let speeds = speeds(&backends, Duration::ZERO);
        let seen: Vec<_> =
            speeds.iter().map(|speed| (speed.signatures, speed.keys_ready, speed.backend)).collect();
        let all = WAYS.iter().flat_map(|way| backends.iter().map(|backend| (way.0, way.1, backend.name())));
        assert_eq!(seen, all.collect::<Vec<_>>());
        for speed in &speeds {
            assert!(speed.cpu_us > 0.0 && speed.p99_us > 0.0, "{speed:?}");
        }
    }

    #[test]
    fn values_are_found_by_their_share() {
        let values = || (0..100).rev().map(f64::from).collect::<Vec<_>>();
        assert_eq!((at(values(), 0.5), at(values(), 0.99), at(values(), 1.0)), (50.0, 99.0, 99.0));
        assert_eq!(at(Vec::new(), 0.5), 0.0);
    }
}
