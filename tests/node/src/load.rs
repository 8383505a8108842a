//! Gossip as a load: messages at a fixed rate on one side, what became of them on the other one.
//!
//! The rate is kept whatever happens (an open loop), and each message says when it was due, so that a wait anywhere
//! counts for all messages behind it. Times are those of `CLOCK_MONOTONIC`, which all processes of a machine share, in
//! whatever network namespace they are.

use std::collections::{HashMap, HashSet};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use qudag_network::P2PHandle;
use rustix::time::{clock_gettime, ClockId};
use serde::Deserialize;
use serde_json::{json, Value};
use tokio::runtime::Handle;

use crate::Failure;

/// A message of a load: this, when it was due in nanoseconds, its number, both as big-endian u64, and zeros.
const MARK: &[u8; 8] = b"a load: ";
const HEAD: usize = 3 * 8;

/// Messages that take longer are counted as this, in nanoseconds.
const LONGEST: u64 = 600_000_000_000;

/// What is published.
#[derive(Deserialize)]
pub struct Load {
    /// One publisher a topic: messages are told apart by their numbers.
    topic: String,
    /// Of each message, at least [`HEAD`].
    bytes: usize,
    per_second: f64,
    for_seconds: f64,
}

/// Publishes a load and says what was taken and what was refused. `next` is the number of the next message.
pub async fn publish(peer: &P2PHandle, load: Load, next: u64) -> Result<Value, Failure> {
    if load.bytes < HEAD {
        return Err(format!("a message has {HEAD} bytes or more").into());
    }
    let count = (load.per_second * load.for_seconds) as u64;
    let (peer, runtime) = (peer.clone(), Handle::current());
    // tokio's timers have a grain of a millisecond; those of the system are finer.
    tokio::task::spawn_blocking(move || {
        let (mut refused, mut why) = (0_u64, None);
        let (start, began) = (Instant::now(), now());
        for number in 0..count {
            let due = Duration::from_secs_f64(number as f64 / load.per_second);
            thread::sleep(due.saturating_sub(start.elapsed()));
            let data = message(began + due, next + number, load.bytes);
            if let Err(error) = runtime.block_on(peer.publish(&load.topic, data)) {
                refused += 1;
                why.get_or_insert_with(|| error.to_string());
            }
        }
        Ok(json!({
            "published": count - refused,
            "refused": refused,
            "why": why,
            "seconds": start.elapsed().as_secs_f64(),
            "next": next + count,
        }))
    })
    .await?
}

/// What arrived of loads, by topic.
#[derive(Default)]
pub struct Tallies(HashMap<String, Tally>);

struct Tally {
    since: Instant,
    bytes: u64,
    received: u64,
    duplicates: u64,
    /// The numbers of all messages, also of those that were forgotten.
    seen: HashSet<u64>,
    nanoseconds: Histogram<u64>,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            since: Instant::now(),
            bytes: 0,
            received: 0,
            duplicates: 0,
            seen: HashSet::new(),
            nanoseconds: Histogram::new_with_bounds(1, LONGEST, 3).expect("these bounds are possible"),
        }
    }
}

impl Tallies {
    /// Counts a message if it is one of a load.
    pub fn take(&mut self, topic: &str, data: &[u8]) -> bool {
        let Some((due, number)) = read(data) else { return false };
        if !self.0.contains_key(topic) {
            self.0.insert(topic.to_owned(), Tally::default());
        }
        let tally = self.0.get_mut(topic).expect("it was put there");
        if tally.seen.insert(number) {
            tally.received += 1;
            tally.bytes += data.len() as u64;
            tally.nanoseconds.saturating_record(now().saturating_sub(due).as_nanos() as u64);
        } else {
            tally.duplicates += 1;
        }
        true
    }

    /// What came since the last time that it was to be forgotten, or since the first message.
    pub fn tell(&mut self, topic: &str, forget: bool) -> Value {
        let tally = self.0.entry(topic.to_owned()).or_default();
        let at = |quantile: f64| tally.nanoseconds.value_at_quantile(quantile) as f64 / 1e3;
        let told = json!({
            "seconds": tally.since.elapsed().as_secs_f64(),
            "received": tally.received,
            "bytes": tally.bytes,
            "duplicates": tally.duplicates,
            "microseconds": { "p50": at(0.5), "p99": at(0.99), "p99.9": at(0.999), "max": at(1.0) },
        });
        if forget {
            let seen = std::mem::take(&mut tally.seen);
            *tally = Tally { seen, ..Tally::default() };
        }
        told
    }
}

fn message(due: Duration, number: u64, bytes: usize) -> Vec<u8> {
    let mut data = Vec::with_capacity(bytes);
    data.extend_from_slice(MARK);
    data.extend_from_slice(&(due.as_nanos() as u64).to_be_bytes());
    data.extend_from_slice(&number.to_be_bytes());
    data.resize(bytes, 0);
    data
}

/// When it was due, and its number.
fn read(data: &[u8]) -> Option<(Duration, u64)> {
    let rest = data.strip_prefix(MARK)?;
    let (due, rest) = rest.split_first_chunk()?;
    let (number, _) = rest.split_first_chunk()?;
    Some((Duration::from_nanos(u64::from_be_bytes(*due)), u64::from_be_bytes(*number)))
}

fn now() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
