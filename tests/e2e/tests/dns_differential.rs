//! 50,000 generated questions to the sidecar and to Unbound, both in front of the same authority: every difference has a name, and the
//! list of names is closed.
//!
//! `QUDAG_DIFFERENTIAL_SEED` makes the same questions again, `QUDAG_DIFFERENTIAL_QUERIES` another number of them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qudag_e2e::differences::{Reason, differences};
use qudag_e2e::odd_names::By;
use qudag_e2e::questions::{Dice, ORIGIN, other_zone, question, zone};
use qudag_kit::dns_wire::{Ask, View, flag};
use qudag_kit::knot::Zone;
use qudag_kit::{Knot, Pipe, TestSidecar, Unbound, needs_program};
use tokio::task::JoinSet;

/// How many questions are under way at a time.
const WORKERS: usize = 48;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// A resolver under comparison.
struct Side {
    addr: SocketAddr,
    pipe: Pipe,
}

impl Side {
    async fn of(addr: SocketAddr) -> Self {
        Self { addr, pipe: Pipe::to(addr).await }
    }

    /// The whole reply, and whether it was truncated by UDP. A datagram may get lost on a busy machine, so it is asked again.
    async fn ask(&self, ask: &Ask) -> (Option<View>, bool) {
        for patience in [1, 2, 4] {
            let Ok(reply) = self.pipe.ask(&ask.bytes(), Duration::from_secs(patience)).await else {
                continue;
            };
            let reply = View::read(&reply).unwrap_or_else(|why| panic!("{ask}: {why}"));
            if !reply.has(flag::TC) {
                return (Some(reply), false);
            }
            let limit = ask.edns.as_ref().map_or(512, |edns| edns.size).clamp(512, 1232);
            let whole = By::Tcp.exchange(self.addr, &ask.bytes()).await.unwrap();
            let whole = View::read(&whole).unwrap_or_else(|why| panic!("{ask} by TCP: {why}"));
            assert!(whole.length > limit.into(), "{ask}: truncated, though {} bytes fit", whole.length);
            return (Some(whole), true);
        }
        (None, false)
    }
}

#[derive(Default)]
struct Tally {
    same: u64,
    by_reason: BTreeMap<Reason, u64>,
    unexplained: Vec<String>,
    unexplained_count: u64,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.same += other.same;
        self.unexplained_count += other.unexplained_count;
        self.unexplained.extend(other.unexplained);
        self.unexplained.truncate(20);
        for (reason, count) in other.by_reason {
            *self.by_reason.entry(reason).or_default() += count;
        }
    }

    fn compare(&mut self, ask: &Ask, ours: Option<&View>, theirs: Option<&View>) {
        let found = differences(ask, ours, theirs);
        if found.is_empty() {
            self.same += 1;
        }
        for (difference, reason) in found {
            match reason {
                Some(reason) => *self.by_reason.entry(reason).or_default() += 1,
                None => {
                    self.unexplained_count += 1;
                    self.unexplained
                        .push(format!("{ask}: {difference}\n   ours {ours:?}\n theirs {theirs:?}"));
                }
            }
        }
    }
}

/// Asks both sides all questions.
async fn round(ours: &Arc<Side>, theirs: &Arc<Side>, asks: &Arc<Vec<Ask>>) -> Tally {
    let mut workers = JoinSet::new();
    for worker in 0..WORKERS {
        let (ours, theirs, asks) = (Arc::clone(ours), Arc::clone(theirs), Arc::clone(asks));
        workers.spawn(async move {
            let mut tally = Tally::default();
            for ask in asks.iter().skip(worker).step_by(WORKERS) {
                let ((our, our_tc), (their, their_tc)) = tokio::join!(ours.ask(ask), theirs.ask(ask));
                tally.compare(ask, our.as_ref(), their.as_ref());
                if our_tc != their_tc {
                    // Both had to be truncated or fit, which `Side::ask` checked; their lengths differ.
                    *tally.by_reason.entry(Reason::OtherLength).or_default() += 1;
                }
            }
            tally
        });
    }
    let mut tally = Tally::default();
    while let Some(worker) = workers.join_next().await {
        tally.add(worker.unwrap());
    }
    tally
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_difference_to_unbound_has_a_name() {
    needs_program!("knotd", "unbound");
    let seed = number("QUDAG_DIFFERENTIAL_SEED").unwrap_or_else(|| {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64
            % 1_000_000_007
    });
    let count = number("QUDAG_DIFFERENTIAL_QUERIES").unwrap_or(50_000);
    println!("QUDAG_DIFFERENTIAL_SEED={seed} QUDAG_DIFFERENTIAL_QUERIES={count}");
    let (zone, other) = (zone(), other_zone());
    let test = "$ORIGIN test.\n@ 300 SOA ns admin 1 3600 600 86400 300\n@ 300 NS ns\nns 300 A 192.0.2.53\n\
                diff 300 NS ns.diff\nns.diff 300 A 192.0.2.53\nother 300 NS ns.other\nns.other 300 A 192.0.2.53\n";
    let zones =
        [Zone::new("test.", test), Zone::new(ORIGIN, &zone).signed(), Zone::new("other.test.", &other)];
    let knot = Knot::start(&zones).await;
    let unbound = Unbound::in_front_of(knot.addr()).await;
    let yaml = format!(
        "listeners: {{ dns: {{ bind: \"127.0.0.1:0\" }} }}\nfilters:\n  dns:\n    dns_cache: {{ enabled: true, max_size: \
         64MiB }}\n    dns_upstream: {{ servers: [\"{}\"] }}\n",
        knot.addr()
    );
    let sidecar = TestSidecar::start(&yaml).await;
    let ours = Arc::new(Side::of(sidecar.listener("dns").await).await);
    let theirs = Arc::new(Side::of(unbound.addr()).await);
    let mut dice = Dice::new(seed);
    let asks: Arc<Vec<Ask>> = Arc::new((0..count).map(|_| question(&mut dice)).collect());
    let mut unexplained = 0;
    for state in ["cold", "warm"] {
        let start = Instant::now();
        let tally = round(&ours, &theirs, &asks).await;
        println!("{state}: {count} questions in {:?}: {} without a difference", start.elapsed(), tally.same);
        for (reason, count) in &tally.by_reason {
            println!("  {count:6}  {}: {}", reason.label(), reason.why());
        }
        for text in tally.unexplained.iter().take(20) {
            println!("unexplained: {text}");
        }
        unexplained += tally.unexplained_count;
        if unexplained > 0 {
            break;
        }
    }
    assert_eq!(
        unexplained, 0,
        "differences without a reason; QUDAG_DIFFERENTIAL_SEED={seed} makes them again"
    );
}
