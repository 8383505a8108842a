//! Answers from the cache.

use std::time::Duration;

use super::load::{self, Load, Order, Outcome, Pace};
use super::question::Questions;
use super::resolvers::{Resolver, Setting, Who};
use super::{Table, beside, median_of, shown, upstream, warm};
use crate::progress::Progress;
use crate::row::Row;
use crate::{Failure, cpu};

/// As many names as a busy node asks for, and more than a small table holds.
const NAMES: u32 = 10_000;
/// A rate that every one of them can keep up with on a part of a core.
const RATE: f64 = 20_000.0;
/// Enough to keep a server busy, and few enough for the smallest receive buffer.
const IN_FLIGHT: usize = 128;

#[derive(Default)]
struct Rounds {
    per_cpu: Vec<f64>,
    cpu_at_rate: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    failed: Vec<f64>,
}

pub(super) fn rows(table: &Table<'_>) -> Result<Vec<Row>, Failure> {
    let upstream = upstream();
    let setting = Setting::new([upstream.addr()]);
    let questions = Questions::new(0..NAMES);
    let mut running = Vec::new();
    for who in table.all().chain([Who::Floor]) {
        let resolver = table.start(who, &setting)?;
        warm(&resolver, &questions)?;
        running.push((resolver, Rounds::default()));
    }
    let (rounds, time) = if table.plan.is_quick() {
        (5, Duration::from_millis(1000))
    } else {
        (9, Duration::from_millis(1500))
    };
    let progress = Progress::new("dns, cached", (rounds * running.len()) as u64);
    for round in 0..rounds {
        for step in 0..running.len() {
            let turn = (round + step) % running.len();
            let Some((resolver, figures)) = running.get_mut(turn) else { continue };
            progress.step(resolver.who.name());
            measure(resolver, &questions, time, figures)?;
        }
    }
    drop(progress);
    let of = |figure: fn(&Rounds) -> &Vec<f64>| median_of(&running, figure);
    let mut rows: Vec<Row> = beside("dns cached: answers per CPU-second", "/s", &of(|r| &r.per_cpu))
        .into_iter()
        .map(|row| match target(row.peer) {
            Some(target) => row.ratio_at_least(target),
            None => row,
        })
        .collect();
    rows.extend(beside("dns cached: CPU per answer at 20,000/s", "µs", &of(|r| &r.cpu_at_rate)));
    rows.extend(beside("dns cached: latency p50 at 20,000/s", "µs", &of(|r| &r.p50)));
    rows.extend(beside("dns cached: latency p99 at 20,000/s", "µs", &of(|r| &r.p99)));
    let worst = |rounds: &Rounds| rounds.failed.iter().copied().fold(0.0, f64::max);
    let failed: Vec<_> = running.iter().map(|(resolver, rounds)| (resolver.who, worst(rounds))).collect();
    rows.extend(beside("dns cached: failed at 20,000/s, worst round", "%", &failed));
    Ok(rows)
}

/// The ratio that is aimed at.
fn target(peer: Option<&str>) -> Option<f64> {
    match peer? {
        "unbound" => Some(1.2),
        "dnsmasq" => Some(1.6),
        "hickory-dns" => Some(5.0),
        _ => None,
    }
}

fn measure(
    resolver: &Resolver,
    questions: &Questions,
    time: Duration,
    figures: &mut Rounds,
) -> Result<(), Failure> {
    let at = |pace| -> Result<(Outcome, f64), Failure> {
        let before = cpu::of(resolver.pid())?;
        let outcome = load::run(Load {
            to: resolver.address,
            questions,
            order: Order::Spread,
            pace,
            patience: Duration::from_secs(2),
        })?;
        let cpu = cpu::of(resolver.pid())?.saturating_sub(before).as_secs_f64();
        // What is lost or refused counts in the latencies and in a row of its own: entries end during a long run.
        if outcome.wrong > 0 || outcome.right == 0 {
            return Err(format!("{}: {}", resolver.who.name(), shown(Some(&outcome))).into());
        }
        Ok((outcome, cpu))
    };
    let (outcome, cpu) = at(Pace::Closed { in_flight: IN_FLIGHT, time })?;
    figures.per_cpu.push(outcome.right as f64 / cpu.max(1e-3));
    let (outcome, cpu) = at(Pace::Open { rate: RATE, queries: (RATE * time.as_secs_f64()) as u64 })?;
    figures.cpu_at_rate.push(cpu * 1e6 / outcome.right.max(1) as f64);
    figures.p50.push(outcome.micros(0.5));
    figures.p99.push(outcome.micros(0.99));
    figures.failed.push(outcome.failed_percent());
    Ok(())
}
