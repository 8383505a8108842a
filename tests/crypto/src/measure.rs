//! Time of a processor, taken of several ways in turn.

use std::fs;
use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// What was measured of one way to do something, in microseconds.
#[derive(Debug, Serialize)]
pub struct Figure {
    /// What is done.
    pub what: String,
    /// Who does it.
    pub who: String,
    /// Processor time of one operation: the median over all rounds.
    pub cpu: f64,
    /// Operations of one call.
    pub operations: usize,
    /// Time of one call by the clock on the wall, for half and for 99 of 100 of them.
    pub p50: f64,
    pub p99: f64,
}

/// A way to do something. A call does `operations` of it.
pub struct Way<'a> {
    pub who: String,
    pub operations: usize,
    pub call: Box<dyn FnMut() + 'a>,
    /// A process that works for it, whose time counts as well.
    pub server: Option<u32>,
}

impl<'a> Way<'a> {
    pub fn new(who: impl ToString, operations: usize, call: impl FnMut() + 'a) -> Self {
        Self { who: who.to_string(), operations, call: Box::new(call), server: None }
    }

    /// Has the work done by a process.
    pub fn by(self, server: u32) -> Self {
        Self { server: Some(server), ..self }
    }
}

/// After so many operations it is looked how long a way is at it already: each look is a call of the system.
const LOOK: usize = 8;
/// How long a way is at it before it is the next one's turn, in seconds of processor time.
const TURN: f64 = 2e-3;

fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Processor time of a process, of all threads that it has now: the kernel counts nanoseconds (proc_pid_schedstat).
///
/// # Panics
/// When the process is gone.
fn cpu_seconds_of(process: u32) -> f64 {
    let threads = fs::read_dir(format!("/proc/{process}/task")).expect("a process that runs");
    let nanoseconds = threads.filter_map(|thread| {
        // A thread may end at any time.
        let text = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        text.split_ascii_whitespace().next()?.parse::<u64>().ok()
    });
    nanoseconds.sum::<u64>() as f64 / 1e9
}

fn at(sorted: &[f64], share: f64) -> f64 {
    let place = (sorted.len() as f64 * share) as usize;
    sorted.get(place.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

/// Lets all ways have so many turns, one after the other.
pub fn measure(what: &str, rounds: usize, mut ways: Vec<Way<'_>>) -> Vec<Figure> {
    let mut turns = vec![Vec::with_capacity(rounds); ways.len()];
    let mut calls = vec![Vec::new(); ways.len()];
    for round in 0..=rounds {
        for ((way, turns), calls) in ways.iter_mut().zip(&mut turns).zip(&mut calls) {
            let served = |server: &Option<u32>| server.map_or(0.0, cpu_seconds_of);
            let before = served(&way.server);
            let (begin, mut done) = (cpu_seconds(), 0);
            let mut took = 0.0;
            while took < TURN {
                for _ in 0..LOOK.div_ceil(way.operations) {
                    let call = Instant::now();
                    (way.call)();
                    if round > 0 {
                        calls.push(call.elapsed().as_secs_f64() * 1e6);
                    }
                    done += way.operations;
                }
                took = cpu_seconds() - begin;
            }
            took += served(&way.server) - before;
            // The first round fills the caches.
            if round > 0 {
                turns.push(took / done as f64 * 1e6);
            }
        }
    }
    let figures = ways.into_iter().zip(turns).zip(calls).map(|((way, mut turns), mut calls)| {
        turns.sort_by(f64::total_cmp);
        calls.sort_by(f64::total_cmp);
        Figure {
            what: what.to_owned(),
            who: way.who,
            cpu: at(&turns, 0.5),
            operations: way.operations,
            p50: at(&calls, 0.5),
            p99: at(&calls, 0.99),
        }
    });
    figures.collect()
}
