//! One thread and two.

use std::time::Duration;

use super::load::{self, Load, Order, Pace};
use super::question::Questions;
use super::resolvers::{Resolver, Setting, Who};
use super::{Table, beside, median_of, upstream, warm};
use crate::progress::Progress;
use crate::row::Row;
use crate::{Failure, cpu};

const NAMES: u32 = 10_000;
const IN_FLIGHT: usize = 256;

#[derive(Default)]
struct Rounds {
    per_cpu: Vec<f64>,
    per_second: Vec<f64>,
}

/// The generator needs a core too: on a machine with two, answers per second cannot double, and what the second thread
/// costs shows in the answers per CPU-second.
pub(super) fn rows(table: &Table<'_>) -> Result<Vec<Row>, Failure> {
    let upstream = upstream();
    let questions = Questions::new(0..NAMES);
    let mut running: Vec<(Resolver, Rounds)> = Vec::new();
    // dnsmasq has one thread.
    for who in table.all().filter(|who| *who != Who::Dnsmasq) {
        for threads in [1, 2] {
            let setting = Setting { threads, ..Setting::new([upstream.addr()]) };
            let resolver = table.start(who, &setting)?;
            warm(&resolver, &questions)?;
            running.push((resolver, Rounds::default()));
        }
    }
    let rounds = if table.plan.is_quick() { 3 } else { 7 };
    let progress = Progress::new("dns, scaling", (rounds * running.len()) as u64);
    for _ in 0..rounds {
        for (resolver, figures) in &mut running {
            progress.step(resolver.who.name());
            let before = cpu::of(resolver.pid())?;
            let outcome = load::run(Load {
                to: resolver.address,
                questions: &questions,
                order: Order::Spread,
                pace: Pace::Closed { in_flight: IN_FLIGHT, time: Duration::from_secs(1) },
                patience: Duration::from_secs(2),
            })?;
            let cpu = cpu::of(resolver.pid())?.saturating_sub(before).as_secs_f64();
            figures.per_cpu.push(outcome.right as f64 / cpu.max(1e-3));
            figures.per_second.push(outcome.right as f64 / outcome.elapsed.as_secs_f64());
        }
    }
    drop(progress);
    let mut rows = Vec::new();
    let mut two_to_one = |what: &str, figure: fn(&Rounds) -> &Vec<f64>| {
        let medians = median_of(&running, figure);
        let ratios: Vec<_> = medians
            .chunks_exact(2)
            .filter_map(|pair| match pair {
                [(who, one), (_, two)] => Some((*who, two / one.max(1.0))),
                _ => None,
            })
            .collect();
        rows.extend(beside(&format!("dns, two threads ÷ one: {what}"), "×", &ratios));
    };
    two_to_one("answers per CPU-second", |r| &r.per_cpu);
    two_to_one("answers per second", |r| &r.per_second);
    Ok(rows)
}
