//! What happens when entries end: by their TTL, by a flush, by a switch, and when everybody wants the same new one.

use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use qudag_kit::{Behaviour, FaultyDns};
use serde_json::Value;

use super::load::{self, Answer, Load, Order, Pace};
use super::question::{Questions, Verdict, name};
use super::resolvers::{Resolver, Setting, Who};
use super::{Table, beside, upstream, warm};
use crate::Failure;
use crate::progress::Progress;
use crate::row::Row;

/// Names that live for 5 s, asked for steadily, for five of their lives: an answer that did not wait for the server is a hit.
pub(super) fn rows_hit_rate(table: &Table<'_>) -> Result<Vec<Row>, Failure> {
    const TTL: u32 = 5;
    const AWAY: Duration = Duration::from_millis(300);
    const WAITED: Duration = Duration::from_millis(250);
    const RATE: f64 = 2_000.0;
    let questions = Questions::new(0..1_000);
    let lives = if table.plan.is_quick() { 2 } else { 5 };
    let progress = Progress::new("dns, TTL", 1 + table.others.len() as u64);
    let mut figures = Vec::new();
    for who in table.all() {
        progress.step(who.name());
        let upstream = FaultyDns::start();
        upstream.set_ttl(TTL);
        upstream.behave(Behaviour::Delay(AWAY));
        let resolver = table.start(who, &Setting::new([upstream.addr()]))?;
        let mut load = Load {
            to: resolver.address,
            questions: &questions,
            order: Order::Spread,
            pace: Pace::Open { rate: RATE, queries: 2_000 },
            patience: Duration::from_secs(3),
        };
        load::run(load)?;
        load.pace = Pace::Open { rate: RATE, queries: u64::from(TTL) * RATE as u64 * lives };
        let mut hits = 0_u64;
        let outcome = load::run_watched(load, |answer| {
            hits += u64::from(matches!(answer.verdict, Verdict::Right { .. }) && answer.took < WAITED);
        })?;
        figures.push((who, hits as f64 * 100.0 / outcome.sent.max(1) as f64));
    }
    let rows = beside("dns: hits among names with a TTL of 5 s", "%", &figures);
    Ok(rows.into_iter().map(|row| row.at_least(99.99)).collect())
}

/// 10,000 queries for one name before its first answer has come.
pub(super) fn rows_flight(table: &Table<'_>) -> Result<Vec<Row>, Failure> {
    const QUERIES: u64 = 10_000;
    const AWAY: Duration = Duration::from_millis(350);
    let (questions, others) = (Questions::new(5..6), Questions::new(100..200));
    let (mut asked, mut failed) = (Vec::new(), Vec::new());
    for who in table.all() {
        let upstream = upstream();
        let resolver = table.start(who, &Setting::new([upstream.addr()]))?;
        upstream.behave(Behaviour::Delay(AWAY));
        // So that everybody knows how long that server takes: who is silent for longer than usual may be asked again.
        load::run(Load {
            to: resolver.address,
            questions: &others,
            order: Order::InTurn,
            pace: Pace::Open { rate: 100.0, queries: others.len() as u64 },
            patience: Duration::from_secs(5),
        })?;
        let outcome = load::run(Load {
            to: resolver.address,
            questions: &questions,
            order: Order::InTurn,
            // All of them in a fifth of a second.
            pace: Pace::Open { rate: 50_000.0, queries: QUERIES },
            patience: Duration::from_secs(5),
        })?;
        let name = name(5);
        asked.push((who, upstream.queries(&name, qudag_kit::dns::hickory_proto::rr::RecordType::A) as f64));
        failed.push((who, outcome.failed_percent()));
    }
    let asked = beside("dns, 10,000 ask for one new name: queries upstream", "", &asked);
    let failed = beside("dns, 10,000 ask for one new name: failed", "%", &failed);
    Ok(asked
        .into_iter()
        .map(|row| row.at_most(1.0))
        .chain(failed.into_iter().map(|row| row.at_most(0.1)))
        .collect())
}

/// How long old answers come after a flush has been asked for, while the names are in use.
pub(super) fn rows_flush(table: &Table<'_>) -> Result<Vec<Row>, Failure> {
    const AIM: f64 = 10.0;
    let questions = Questions::new(0..1_000);
    let flushes = if table.plan.is_quick() { 3 } else { 10 };
    let mut worst = Vec::new();
    // The others have no command that could be timed.
    for who in table.all().filter(|who| matches!(who, Who::Sidecar | Who::Unbound)) {
        let upstream = upstream();
        let resolver = table.start(who, &Setting::new([upstream.addr()]))?;
        let mut slowest = 0.0_f64;
        for flush in 0..flushes {
            warm(&resolver, &questions)?;
            slowest = slowest.max(until_new(&resolver, &upstream, &questions, flush + 1)?);
        }
        worst.push((who, slowest));
    }
    let rows = beside("dns: flush to no old answer, slowest", "ms", &worst);
    Ok(rows.into_iter().map(|row| row.at_most(AIM)).collect())
}

fn until_new(
    resolver: &Resolver,
    upstream: &FaultyDns,
    questions: &Questions,
    epoch: u8,
) -> Result<f64, Failure> {
    let load = Load {
        to: resolver.address,
        questions,
        order: Order::Spread,
        pace: Pace::Open { rate: 2_000.0, queries: 3_000 },
        patience: Duration::from_secs(3),
    };
    let last_old: Mutex<Option<Instant>> = Mutex::new(None);
    let watch = |answer: Answer| {
        if matches!(answer.verdict, Verdict::Right { epoch: seen, .. } if seen != epoch)
            && let Ok(mut last) = last_old.lock()
        {
            *last = Some(answer.asked + answer.took);
        }
    };
    let (outcome, flushed) = std::thread::scope(|scope| {
        let flush = scope.spawn(|| {
            std::thread::park_timeout(Duration::from_millis(500));
            upstream.set_epoch(epoch);
            let asked = Instant::now();
            flush(resolver).map(|()| asked)
        });
        (load::run_watched(load, watch), flush.join())
    });
    outcome?;
    let flushed = flushed.map_err(|_| "the flush panicked")??;
    let last = last_old.into_inner().ok().flatten();
    Ok(last.map_or(0.0, |last| last.saturating_duration_since(flushed).as_secs_f64() * 1e3))
}

fn flush(resolver: &Resolver) -> Result<(), Failure> {
    if let Some(sidecar) = resolver.sidecar() {
        return sidecar.post("/cache/flush", Value::Null);
    }
    let config = resolver.folder().unwrap_or_default().join("config");
    let done = Command::new("unbound-control").arg("-c").arg(config).args(["flush_zone", "."]).output()?;
    if done.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&done.stderr).into()) }
}

/// The cache switched off and on while names are asked for.
pub(super) fn rows_toggles(table: &Table<'_>) -> Result<Vec<Row>, Failure> {
    let questions = Questions::new(0..10_000);
    let toggles: u32 = if table.plan.is_quick() { 10 } else { 50 };
    let upstream = upstream();
    let resolver = table.start(Who::Sidecar, &Setting::new([upstream.addr()]))?;
    let sidecar = resolver.sidecar().ok_or("no sidecar")?;
    let pause = Duration::from_millis(100);
    let load = Load {
        to: resolver.address,
        questions: &questions,
        order: Order::Spread,
        pace: Pace::Open { rate: 1_000.0, queries: u64::from(toggles) * 2 * 100 + 500 },
        patience: Duration::from_secs(5),
    };
    let (outcome, toggled) = std::thread::scope(|scope| {
        let toggling = scope.spawn(|| -> Result<(), Failure> {
            for _ in 0..toggles {
                for verb in ["disable", "enable"] {
                    std::thread::park_timeout(pause);
                    sidecar.post(&format!("/filters/dns.dns_cache/{verb}"), Value::Null)?;
                }
            }
            Ok(())
        });
        (load::run(load), toggling.join())
    });
    toggled.map_err(|_| "the switch panicked")??;
    let row = format!("dns, cache off and on {toggles} times at 1,000/s: failed");
    Ok(vec![Row::alone(row, outcome?.failed_percent(), "%").at_most(0.0)])
}
