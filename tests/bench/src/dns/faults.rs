//! One bad server of two, the bad one first, names that are in no cache, at a fixed rate.

use std::time::Duration;

use qudag_kit::{Behaviour, FaultyDns};

use super::load::{self, Load, Order, Outcome, Pace};
use super::question::Questions;
use super::resolvers::{Setting, Who};
use super::{Table, beside};
use crate::Failure;
use crate::progress::Progress;
use crate::row::Row;

const NAMES: u32 = 10_000;
const RATE: f64 = 1_000.0;
/// What the resolver of glibc waits for one server (resolv.conf(5), `timeout`).
const PATIENCE: Duration = Duration::from_secs(5);

/// What is wrong with the first server, how it is called, and the p99 that is aimed at, ms.
const FAULTS: [(&str, Behaviour, f64); 5] = [
    ("SERVFAIL", Behaviour::ServFail, 100.0),
    ("REFUSED", Behaviour::Refused, 100.0),
    ("black hole", Behaviour::BlackHole, 100.0),
    ("30 % loss", Behaviour::Loss(30), 200.0),
    ("silent every other second", Behaviour::Flap { period: Duration::from_secs(1) }, 100.0),
];

pub(super) fn rows(table: &Table<'_>) -> Result<Vec<Row>, Failure> {
    let names = if table.plan.is_quick() { NAMES / 4 } else { NAMES };
    let questions = Questions::new(0..names);
    let all: Vec<Who> = table.all().collect();
    let progress = Progress::new("dns, faults", (FAULTS.len() * all.len()) as u64);
    let mut rows = Vec::new();
    for (fault, behaviour, aim) in FAULTS {
        let mut cells: Vec<(Who, Outcome)> = Vec::new();
        for who in &all {
            progress.step(who.name());
            cells.push((*who, cell(table, *who, behaviour, &questions)?));
        }
        let of = |what: &str, unit, figure: &dyn Fn(&Outcome) -> f64| {
            let figures: Vec<_> = cells.iter().map(|(who, outcome)| (*who, figure(outcome))).collect();
            beside(&format!("dns, a bad server, {fault}: {what}"), unit, &figures)
        };
        rows.extend(of("failed", "%", &Outcome::failed_percent).into_iter().map(|row| row.at_most(0.1)));
        rows.extend(of("latency p50", "ms", &|outcome| outcome.micros(0.5) / 1e3));
        let p99 = of("latency p99", "ms", &|outcome| outcome.micros(0.99) / 1e3);
        rows.extend(p99.into_iter().map(|row| row.at_most(aim)));
    }
    Ok(rows)
}

/// Fresh servers and a fresh resolver, which learns while it is measured.
fn cell(
    table: &Table<'_>,
    who: Who,
    behaviour: Behaviour,
    questions: &Questions,
) -> Result<Outcome, Failure> {
    let (bad, good) = (FaultyDns::start(), FaultyDns::start());
    let resolver = table.start(who, &Setting::new([bad.addr(), good.addr()]))?;
    bad.behave(behaviour);
    load::run(Load {
        to: resolver.address,
        questions,
        order: Order::InTurn,
        pace: Pace::Open { rate: RATE, queries: questions.len() as u64 },
        patience: PATIENCE,
    })
}
