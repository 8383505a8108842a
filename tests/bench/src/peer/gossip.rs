//! Gossip between two nodes of the unmodified crates: what arrives, and when.
//!
//! Each way has two nodes of its own. Messages are published at a fixed rate whatever becomes of them, and their latency is
//! counted from when they were due.

use std::time::{Duration, Instant};

use qudag_kit::gossip::{Latency, Load, Tally};
use qudag_kit::{HostedNode, node};
use tokio::runtime::Builder;

use super::goodput;
use super::stand::{MakeWay, Stand, WAYS, Way};
use crate::Failure;
use crate::contenders::Stage;
use crate::measure::{Plan, median};
use crate::progress::Progress;
use crate::row::{self, Row};

const TOPIC: &str = "bench";
/// Near by: a small part of what two nodes can do, and of what a core can.
const NEAR: Load<'static> =
    Load { topic: TOPIC, bytes: 1_024, per_second: 200.0, time: Duration::from_secs(2) };
/// Over the link: 2 Mbit/s, about two thirds of what TCP can carry at this loss.
const CALM: Load<'static> =
    Load { topic: TOPIC, bytes: 1_024, per_second: 200.0, time: Duration::from_secs(20) };
/// 21 Mbit/s, a fifth of what the link can carry, and more than TCP can at this loss.
const MUCH: Load<'static> =
    Load { topic: TOPIC, bytes: 16_384, per_second: 160.0, time: Duration::from_secs(24) };
const LINK: &str = "delay=20ms,loss=1%,rate=100mbit";
/// What TCP sends with, the default of Linux; the host may have another one.
const TCP: &str = "cubic";
/// Nothing between, and TCP with another one.
const BBR: (MakeWay, &str) =
    (|stand, server| Ok(Some(stand.direct(server).named(goodput::DIRECT_BBR))), "bbr");
/// What has not arrived so long after the last message was published is lost.
const LATE: Duration = Duration::from_secs(10);

/// Two nodes with a way between them.
struct Pair {
    way: Way,
    near: HostedNode,
    far: HostedNode,
}

/// What came of a load.
struct Outcome {
    published: u64,
    received: u64,
    latency: Latency,
}

pub(super) fn rows(stage: &Stage, plan: Plan) -> Result<Vec<Row>, Failure> {
    if let Err(why) = node::available() {
        eprintln!("{why}, the rows of gossip are left out");
        return Ok(Vec::new());
    }
    let mut rows = near(stage, plan)?;
    rows.extend(far(stage, plan)?);
    Ok(rows)
}

impl Pair {
    fn new(stand: &Stand<'_>, make: MakeWay) -> Result<Option<Self>, Failure> {
        let (mut near, mut far) = stand.nodes();
        let Some(way) = make(stand, far.p2p())? else { return Ok(None) };
        block_on(near.meet(&mut far, way.at, TOPIC))?;
        Ok(Some(Self { way, near, far }))
    }

    /// Publishes a load and waits for what arrives of it.
    async fn talk(&mut self, load: Load<'_>) -> Outcome {
        self.far.new_tally(load.topic).await;
        let published = self.near.load(load).await.taken;
        let end = Instant::now() + LATE;
        loop {
            let Tally { received, latency, .. } = self.far.tally(load.topic).await;
            if received >= published || Instant::now() > end {
                return Outcome { published, received, latency };
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Publishes a load and looks what arrives after the first half of its time: Mbit/s, in each of some windows.
    async fn flood(&mut self, load: Load<'_>, windows: u32) -> Vec<f64> {
        let Self { near, far, .. } = self;
        let look = async {
            tokio::time::sleep(load.time / 2).await;
            far.new_tally(load.topic).await;
            let mut rates = Vec::new();
            for _ in 0..windows {
                tokio::time::sleep(load.time / (2 * windows + 1)).await;
                let tally = far.new_tally(load.topic).await;
                rates.push(tally.bytes as f64 * 8e-6 / tally.time.as_secs_f64());
            }
            rates
        };
        tokio::join!(near.load(load), look).1
    }

    /// Makes sure that so many bytes did not go past the sidecar, as nodes that know more than one address could.
    fn checked(&self, bytes: u64) -> Result<(), Failure> {
        let Some(near) = self.way.near() else { return Ok(()) };
        let labels = [("kind", "peer"), ("direction", "up")];
        let carried = near.metric("qudag_sidecar_bytes_total", &labels)?;
        if carried < bytes as f64 {
            return Err(format!("{}: {bytes} bytes of gossip, {carried} through it", self.way.name).into());
        }
        Ok(())
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    Ok(Builder::new_current_thread().enable_all().build()?.block_on(work))
}

/// On the loopback, in turns.
fn near(stage: &Stage, plan: Plan) -> Result<Vec<Row>, Failure> {
    let stand = Stand::local(stage);
    let mut pairs = Vec::new();
    for make in WAYS {
        pairs.extend(Pair::new(&stand, make)?);
    }
    let progress = Progress::new("peer, gossip", (plan.rounds * pairs.len()) as u64);
    let mut outcomes: Vec<Vec<Outcome>> = pairs.iter().map(|_| Vec::new()).collect();
    for _ in 0..plan.rounds {
        for (pair, outcomes) in pairs.iter_mut().zip(&mut outcomes) {
            progress.step(pair.way.name);
            outcomes.push(block_on(pair.talk(NEAR))?);
        }
    }
    drop(progress);
    let mut figures = Vec::new();
    for (pair, outcomes) in pairs.iter().zip(&outcomes) {
        let received: u64 = outcomes.iter().map(|outcome| outcome.received).sum();
        pair.checked(received * NEAR.bytes as u64)?;
        figures.push((pair.way.name, outcomes.as_slice()));
    }
    let mut rows = delivered("peer, gossip", &figures);
    rows.extend(latency("peer, gossip: latency p50", "µs", 1.0, &figures, |latency| latency.p50));
    rows.extend(latency("peer, gossip: latency p99", "µs", 1.0, &figures, |latency| latency.p99));
    Ok(rows)
}

/// Over a link with delay and loss; each way has one of its own, so that all can be measured at the same time.
fn far(stage: &Stage, plan: Plan) -> Result<Vec<Row>, Failure> {
    let mut pairs = Vec::new();
    for (make, congestion) in WAYS.map(|make| (make, TCP)).into_iter().chain([BBR]) {
        let Some(stand) = Stand::linked(stage, LINK)? else { return Ok(Vec::new()) };
        match stand.congestion(congestion) {
            Err(why) if congestion != TCP => {
                eprintln!("no TCP with {congestion} here ({why}), its rows are left out");
                continue;
            }
            set => set?,
        }
        if let Some(pair) = Pair::new(&stand, make)? {
            pairs.push((stand, pair));
        }
    }
    let (rounds, short) = if plan.is_quick() { (1, 4) } else { (3, 1) };
    let calm = Load { time: CALM.time / short, ..CALM };
    let much = Load { time: MUCH.time / short, ..MUCH };
    let progress = Progress::new("peer, gossip over 40 ms", rounds + 1);
    let mut outcomes: Vec<Vec<Outcome>> = pairs.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        progress.step("all at once");
        for (outcomes, outcome) in
            outcomes.iter_mut().zip(at_once(&mut pairs, |pair| block_on(pair.talk(calm)))?)
        {
            outcomes.push(outcome);
        }
    }
    progress.step("more than TCP can carry");
    // Last, because what did not get through in time is still in the nodes' queues.
    let floods = at_once(&mut pairs, |pair| block_on(pair.flood(much, 3)))?;
    drop(progress);
    let mut figures = Vec::new();
    for ((_, pair), outcomes) in pairs.iter().zip(&outcomes) {
        let received: u64 = outcomes.iter().map(|outcome| outcome.received).sum();
        pair.checked(received * CALM.bytes as u64)?;
        figures.push((pair.way.name, outcomes.as_slice()));
    }
    let title = "peer, gossip at 40 ms and 1 %";
    let mut rows = delivered(title, &figures);
    for (name, of) in PERCENTILES {
        rows.extend(latency(&format!("{title}: latency {name}"), "ms", 1e-3, &figures, of));
    }
    let floods: Vec<_> =
        pairs.iter().zip(floods).map(|((_, pair), rates)| (pair.way.name, median(rates))).collect();
    let rate = MUCH.bytes as f64 * MUCH.per_second * 8e-6;
    rows.extend(row::beside(&format!("{title}: of {rate:.0} Mbit/s"), "Mbit/s", &floods));
    Ok(rows)
}

type Percentile = fn(&Latency) -> f64;
const PERCENTILES: [(&str, Percentile); 3] =
    [("p50", |latency| latency.p50), ("p99", |latency| latency.p99), ("p99.9", |latency| latency.p999)];

/// The same with all pairs, each on a thread of its own.
fn at_once<T: Send>(
    pairs: &mut [(Stand<'_>, Pair)],
    work: impl Fn(&mut Pair) -> Result<T, Failure> + Sync,
) -> Result<Vec<T>, Failure> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = pairs.iter_mut().map(|(_, pair)| scope.spawn(move || work(pair))).collect();
        let panicked = |_| Err("a client panicked".into());
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
    })
}

/// The share of all messages that arrived.
fn delivered(title: &str, figures: &[(&'static str, &[Outcome])]) -> Vec<Row> {
    let share = |outcomes: &[Outcome]| {
        let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>() as f64;
        100.0 * sum(|outcome| outcome.received) / sum(|outcome| outcome.published).max(1.0)
    };
    let shares: Vec<_> = figures.iter().map(|(name, outcomes)| (*name, share(outcomes))).collect();
    let rows = row::beside(&format!("{title}: delivered"), "%", &shares);
    rows.into_iter().map(|row| row.at_least(100.0)).collect()
}

/// The median over the rounds of a percentile, in another unit than µs.
fn latency(
    row: &str,
    unit: &'static str,
    factor: f64,
    figures: &[(&'static str, &[Outcome])],
    of: Percentile,
) -> Vec<Row> {
    let median =
        |outcomes: &[Outcome]| factor * median(outcomes.iter().map(|outcome| of(&outcome.latency)).collect());
    let medians: Vec<_> = figures.iter().map(|(name, outcomes)| (*name, median(outcomes))).collect();
    row::beside(row, unit, &medians)
}
