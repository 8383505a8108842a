//! Things that happen while clients work: how long until they are served again, and what they see of it.
//!
//! Clients ask for 0.8 times what the server can do, so that everybody could be served all the time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use super::cluster::Cluster;
use super::load::{self, Load, Patience, Program};
use super::overload::{late, name};
use super::schedule::{Arrivals, Step};
use super::stand::{Apart, POOL, Stand, Way, Who};
use super::tally::{BIN, Tally, recovered};
use super::wire::Operation;
use super::{Scale, Table, beside, work};
use crate::Failure;
use crate::measure::pause;
use crate::progress::Progress;
use crate::row::Row;

/// What happens.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Event {
    /// All processes of the server stop for a while and go on.
    Stall,
    /// The server ends all sessions, stops, and is started again.
    Restart,
    /// The pool becomes smaller while more is asked for than there can be.
    Shrink,
    /// A filter of the sidecar is switched off, and on again a while later.
    Toggle(&'static str),
}

// The restart is last, because PgBouncer needs up to 15 s to find out that the server is there again.
const EVENTS: [Event; 5] =
    [Event::Stall, Event::Shrink, Event::Toggle("db_pool"), Event::Toggle("db_backpressure"), Event::Restart];

/// The size to which a pool shrinks.
const FEW: usize = 5;

/// What is aimed at, ms: until operations succeed again after a stall, after a restart, after a toggle; until the pool is small.
const STALL: f64 = 1000.0;
const RESTART: f64 = 1000.0;
const TOGGLE: f64 = 100.0;
/// The longest transaction, which has a twentieth of a processor, and 100 ms.
const SHRINK: f64 = 150.0;

/// No event takes as long.
const LONGEST: Duration = Duration::from_secs(120);

/// How long things take.
#[derive(Clone, Copy)]
struct Times {
    scale: Scale,
    /// Whose clients are looked at where they matter most.
    patience: &'static [Patience],
    /// Before something happens.
    before: Duration,
    stall: Duration,
    /// The server is not there.
    away: Duration,
    /// A filter is off.
    off: Duration,
    /// After it.
    after: Duration,
}

const FULL: Times = Times {
    scale: Scale::FULL,
    patience: &[Patience::Patient, Patience::Abandoning],
    before: Duration::from_secs(2),
    stall: Duration::from_secs(5),
    away: Duration::from_secs(2),
    off: Duration::from_secs(2),
    after: Duration::from_secs(5),
};
const QUICK: Times = Times {
    scale: Scale::QUICK,
    patience: &[Patience::Abandoning],
    before: Duration::from_millis(300),
    stall: Duration::from_millis(400),
    away: Duration::from_millis(300),
    off: Duration::from_millis(300),
    after: Duration::from_millis(600),
};

impl Event {
    fn title(self, times: Times) -> String {
        match self {
            Self::Stall => format!("server stalls {} s", times.stall.as_secs_f64()),
            Self::Restart => format!("server away {} s", times.away.as_secs_f64()),
            Self::Shrink => format!("pool {POOL} to {FEW}"),
            Self::Toggle(filter) => format!("{filter} off and on"),
        }
    }

    /// Whom it can happen to.
    fn concerns(self, who: Who) -> bool {
        match self {
            Self::Stall | Self::Restart => true,
            Self::Shrink => matches!(who, Who::Sidecar | Who::Pgbouncer),
            Self::Toggle(_) => who == Who::Sidecar,
        }
    }

    /// Times the peak.
    fn load(self) -> f64 {
        if self == Self::Shrink { 2.0 } else { 0.8 }
    }

    /// Whose clients are looked at.
    fn patience(self, times: Times) -> &'static [Patience] {
        match self {
            Self::Stall | Self::Restart => times.patience,
            Self::Shrink | Self::Toggle(_) => &[Patience::Patient],
        }
    }

    /// Lets it happen.
    fn happen(self, cluster: &mut Cluster, way: &Way, times: Times) -> Result<Happened, Failure> {
        let mut happened = Happened { moments: Vec::new(), took: None };
        match self {
            Self::Stall => {
                cluster.freeze(true);
                pause(times.stall);
                cluster.freeze(false);
                happened.moments.push(Instant::now());
            }
            Self::Restart => {
                cluster.restart(times.away)?;
                happened.moments.push(Instant::now());
            }
            Self::Shrink => {
                let start = Instant::now();
                way.resize(FEW)?;
                while cluster.sessions().len() > FEW && start.elapsed() < times.after {
                    pause(Duration::from_millis(2));
                }
                happened.took = Some(start.elapsed());
            }
            Self::Toggle(filter) => {
                happened.moments.push(Instant::now());
                way.switch(filter, false)?;
                pause(times.off);
                happened.moments.push(Instant::now());
                way.switch(filter, true)?;
            }
        }
        Ok(happened)
    }
}

/// What happened, in time.
struct Happened {
    /// From each of these on, operations could succeed again.
    moments: Vec<Instant>,
    /// How long it took, where that is what counts.
    took: Option<Duration>,
}

impl Happened {
    /// Until operations succeeded again, after the moment where it took longest; or how long it took. In ms.
    fn until(&self, tally: &Tally, start: Instant) -> f64 {
        let places: Vec<Duration> =
            self.moments.iter().map(|moment| moment.saturating_duration_since(start)).collect();
        // Up to the next moment.
        let ends = places.iter().skip(1).map(|end| (end.as_nanos() / BIN.as_nanos()) as usize);
        let ends = ends.chain([tally.bins.len()]);
        let each = places
            .iter()
            .zip(ends)
            .map(|(from, end)| recovered(tally.bins.get(..end).unwrap_or(&tally.bins), *from));
        let longest = self.took.into_iter().chain(each).max().unwrap_or_default();
        longest.as_secs_f64() * 1e3
    }
}

/// What one way made of an event.
struct Seen {
    who: Who,
    /// ms.
    until: f64,
    tally: Tally,
    disconnects: u64,
}

pub(super) fn rows(table: &Table<'_>) -> Result<Vec<Row>, Failure> {
    let times = if table.plan.is_quick() { QUICK } else { FULL };
    let all: Vec<(Event, Patience)> = EVENTS
        .iter()
        .flat_map(|event| event.patience(times).iter().map(|patience| (*event, *patience)))
        .collect();
    let progress = Progress::new("db, events", (all.len() * table.who.len()) as u64);
    let mut seen: Vec<Vec<Seen>> = Vec::new();
    seen.resize_with(all.len(), Vec::new);
    let apart = Apart::new()?;
    let mut stand = Stand::start(table.stage, [], apart.core)?;
    let operation = work::calibrated(&stand.cluster, times.before / 2)?;
    let peak = work::peak(&stand.cluster, &operation, times.before)?;
    for who in &table.who {
        // Nobody else has sessions at the server meanwhile: those that it has are this one's, and so are those that come back to it.
        stand.only(table.stage, *who)?;
        for ((event, patience), seen) in all.iter().zip(&mut seen) {
            progress.step(who.name());
            if event.concerns(*who) {
                stand.calm()?;
                let one = watched(&mut stand, *event, *patience, peak, &operation, times);
                let what = format!("{}, {}, {}", event.title(times), name(*patience), who.name());
                seen.push(one.map_err(|why| format!("{what}: {why}"))?);
            }
        }
    }
    drop(progress);
    let told = |((event, patience), seen): (&(Event, Patience), &Vec<Seen>)| {
        told(*event, event.title(times), *patience, seen)
    };
    Ok(all.iter().zip(&seen).flat_map(told).collect())
}

/// Lets an event happen under a load.
fn watched(
    stand: &mut Stand,
    event: Event,
    patience: Patience,
    peak: f64,
    operation: &Operation,
    times: Times,
) -> Result<Seen, Failure> {
    let Stand { ways, cluster } = stand;
    let Some(way) = ways.first() else { return Err("nobody takes part".into()) };
    let end = Arc::new(AtomicBool::new(false));
    let load = Load {
        to: way.at,
        operation: operation.clone(),
        connections: times.scale.clients,
        patience,
        program: Program::NoQueue,
        deadline: times.scale.deadline,
        arrivals: Arrivals::Poisson,
        steps: vec![Step { rate: event.load() * peak, settle: Duration::ZERO, measure: LONGEST }],
        end: Arc::clone(&end),
        seed: 1,
    };
    let (tell, begun) = mpsc::channel();
    let (happened, outcome) = std::thread::scope(|scope| {
        // The server is started again from this thread, and ends with the thread that started it.
        // Whoever would hear of the beginning is gone only when everything ends.
        let loading = scope.spawn(move || load::run(load, move |start| _ = tell.send(start)));
        let happened = begun.recv().map_err(Failure::from).and_then(|start| {
            pause(times.before);
            let happened = event.happen(cluster, way, times)?;
            pause(times.after);
            Ok((start, happened))
        });
        end.store(true, Ordering::Relaxed);
        (happened, loading.join().unwrap_or_else(|_| Err("the load panicked".into())))
    });
    // Where connections could not even be opened, that says more than that nothing began.
    let (mut outcome, (start, happened)) = (outcome?, happened?);
    if event == Event::Shrink {
        way.resize(POOL)?;
    }
    let Some(tally) = outcome.steps.pop() else { return Err("there was no load".into()) };
    let what = format!("{}, {}, {}", event.title(times), name(patience), way.who.name());
    late(&what, &outcome);
    // Errors by kind are too many for rows.
    eprintln!("{what}: {}{}", tally.summary(), outcome.ends());
    Ok(Seen { who: way.who, until: happened.until(&tally, start), tally, disconnects: outcome.disconnects })
}

fn told(event: Event, title: String, patience: Patience, seen: &[Seen]) -> Vec<Row> {
    let title = |what: &str| format!("db, {title}, {}: {what}", name(patience));
    let figures = |of: &dyn Fn(&Seen) -> f64| -> Vec<(Who, f64)> {
        seen.iter().map(|seen| (seen.who, of(seen))).collect()
    };
    let percent = |of: fn(&Tally) -> u64| {
        move |seen: &Seen| of(&seen.tally) as f64 * 100.0 / seen.tally.due.max(1) as f64
    };
    let (until, aim) = match event {
        Event::Stall => ("until 95 % succeed again", STALL),
        Event::Restart => ("until 95 % succeed again", RESTART),
        Event::Shrink => ("until so few are left", SHRINK),
        Event::Toggle(_) => ("until 95 % succeed again", TOGGLE),
    };
    let until = beside(&title(until), "ms", &figures(&|seen| seen.until));
    let mut rows: Vec<Row> = until.into_iter().map(|row| row.at_most(aim)).collect();
    let unanswered = percent(|tally| tally.bad() - tally.refused - tally.failed);
    rows.extend(beside(&title("not answered in time"), "%", &figures(&unanswered)));
    rows.extend(beside(&title("refused"), "%", &figures(&percent(|tally| tally.refused))));
    let errors = beside(&title("other errors"), "%", &figures(&percent(|tally| tally.failed)));
    let ended = beside(&title("connections ended"), "", &figures(&|seen| seen.disconnects as f64));
    // A server that stalls or goes away may be told of; what an operator changes may not.
    let silent = matches!(event, Event::Shrink | Event::Toggle(_));
    rows.extend(errors.into_iter().chain(ended).map(|row| if silent { row.at_most(0.0) } else { row }));
    rows
}
