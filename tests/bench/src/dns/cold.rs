//! Names that nobody has asked for yet, and names past a cache that is off.

use std::time::Duration;

use qudag_kit::Behaviour;

use super::load::{self, Load, Order, Pace};
use super::question::Questions;
use super::resolvers::{Resolver, Setting, Who};
use super::{Table, beside, median_of, upstream};
use crate::progress::Progress;
use crate::row::Row;
use crate::suites::DIRECT;
use crate::{Failure, cpu};

/// A server on another continent.
const FAR: Duration = Duration::from_millis(40);
const NAMES: u32 = 10_000;
const RATE: f64 = 2_000.0;

#[derive(Default)]
struct Rounds {
    cpu: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    failed: Vec<f64>,
}

impl Rounds {
    fn measure(&mut self, resolver: &Resolver, questions: &Questions) -> Result<(), Failure> {
        let before = cpu::of(resolver.pid())?;
        let outcome = once(resolver.address, questions)?;
        let cpu = cpu::of(resolver.pid())?.saturating_sub(before).as_secs_f64();
        self.cpu.push(cpu * 1e6 / outcome.right.max(1) as f64);
        self.note(&outcome);
        Ok(())
    }

    fn note(&mut self, outcome: &load::Outcome) {
        self.p50.push(outcome.micros(0.5) / 1e3);
        self.p99.push(outcome.micros(0.99) / 1e3);
        self.failed.push(outcome.failed_percent());
    }
}

/// Each name once.
fn once(to: std::net::SocketAddr, questions: &Questions) -> Result<load::Outcome, Failure> {
    load::run(Load {
        to,
        questions,
        order: Order::InTurn,
        pace: Pace::Open { rate: RATE, queries: questions.len() as u64 },
        patience: Duration::from_secs(5),
    })
}

pub(super) fn rows(table: &Table<'_>) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    for (title, behaviour) in
        [("dns cold", Behaviour::Good), ("dns cold, server 40 ms away", Behaviour::Delay(FAR))]
    {
        let upstream = upstream();
        upstream.behave(behaviour);
        let setting = Setting::new([upstream.addr()]);
        let mut running: Vec<(Resolver, Rounds)> = Vec::new();
        for who in table.all() {
            running.push((table.start(who, &setting)?, Rounds::default()));
        }
        let (rounds, names) = if table.plan.is_quick() { (1, NAMES / 5) } else { (3, NAMES) };
        let progress = Progress::new("dns, cold", u64::from(rounds) * running.len() as u64);
        for round in 0..rounds {
            let questions = Questions::new(round * names..(round + 1) * names);
            for (resolver, figures) in &mut running {
                progress.step(resolver.who.name());
                figures.measure(resolver, &questions)?;
            }
        }
        drop(progress);
        let of = |figure: fn(&Rounds) -> &Vec<f64>| median_of(&running, figure);
        rows.extend(beside(&format!("{title}: CPU per answer"), "µs", &of(|r| &r.cpu)));
        rows.extend(beside(&format!("{title}: latency p50"), "ms", &of(|r| &r.p50)));
        let p99 = beside(&format!("{title}: latency p99"), "ms", &of(|r| &r.p99));
        rows.extend(p99.into_iter().map(|row| row.at_most(100.0)));
        let failed = beside(&format!("{title}: failed"), "%", &of(|r| &r.failed));
        rows.extend(failed.into_iter().map(|row| row.at_most(0.1)));
    }
    Ok(rows)
}

/// With the cache switched off, beside the server itself.
pub(super) fn rows_past(table: &Table<'_>) -> Result<Vec<Row>, Failure> {
    let upstream = upstream();
    let setting = Setting { cache: false, ..Setting::new([upstream.addr()]) };
    let resolver = table.start(Who::Sidecar, &setting)?;
    let (mut ours, mut direct) = (Rounds::default(), Rounds::default());
    let questions = Questions::new(0..if table.plan.is_quick() { NAMES / 5 } else { NAMES });
    for _ in 0..table.plan.rounds.min(3) {
        ours.measure(&resolver, &questions)?;
        direct.note(&once(upstream.addr(), &questions)?);
    }
    let median = |figures: &[f64]| crate::measure::median(figures.to_vec());
    let row = |what: &str, ours: &[f64], direct: &[f64]| {
        Row::beside(format!("dns, cache off: {what}"), median(ours), "ms", DIRECT, median(direct))
    };
    Ok(vec![
        Row::alone("dns, cache off: CPU per answer", median(&ours.cpu), "µs"),
        row("latency p50", &ours.p50, &direct.p50),
        row("latency p99", &ours.p99, &direct.p99),
    ])
}
