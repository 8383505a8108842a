//! How loaded the database servers are, as they say themselves, and what is too much.
//!
//! `figures` is what is asked, `cpu` what the kernel of this host says, `indicator` when something is too much; here they are asked again and
//! again, on one connection to each server.

mod cpu;
mod figures;
mod indicator;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use metrics::{counter, gauge};
use qudag_filter_api::{ConfigError, ConfigPath, Period};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use crate::asking::{AskError, Asker, Connection};
use crate::pool::{Pools, Target};
use crate::startup::shown;
use cpu::{Backend, Processes};
use figures::{Figures, OF_ALL_STATS, QUESTION, Totals, figures};
use indicator::{Growth, LASTING, Level, What};

/// How long a server has for its answer, with connecting.
const ANSWER: Duration = Duration::from_secs(5);
/// How often queues are looked at, at least.
const LOOK: Duration = Duration::from_secs(1);

/// `listeners.postgres.probe.load`: each server is asked how loaded it is, while sessions are pooled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LoadSettings {
    /// Whether it is.
    pub enabled: bool,
    /// How often: 100 ms to 1 minute.
    pub every: Period,
}

impl Default for LoadSettings {
    fn default() -> Self {
        Self { enabled: true, every: Period::secs(5) }
    }
}

impl LoadSettings {
    pub(crate) fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        if (100..=60_000).contains(&self.every.0.as_millis()) {
            return Vec::new();
        }
        vec![at.key("every").error(format!("{} is out of range", self.every)).hint("100ms to 1m")]
    }
}

/// A server's load, as it is shown. What is not visible to the user that asks, or from this host, is `null`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LoadStatus {
    /// The server, as configured.
    pub server: String,
    /// Who asks.
    pub user: String,
    /// How long ago it has answered, in seconds; `null` when it has not.
    pub asked: Option<f64>,
    /// Why it has not answered the last time.
    pub error: Option<String>,
    /// Connections of clients, this one with them.
    pub connections: Option<u64>,
    /// `max_connections`.
    pub max_connections: Option<u64>,
    /// How many of those are for superusers.
    pub reserved: Option<u64>,
    /// Connections that carry something out.
    pub active: Option<u64>,
    /// Those of them that wait for a lock.
    pub lock_waits: Option<u64>,
    /// Those of them that wait for a disk.
    pub io_waits: Option<u64>,
    /// The age of the oldest transaction, in seconds.
    pub oldest_transaction: Option<f64>,
    /// Transactions a second of all databases, since the answer before.
    pub commits: Option<f64>,
    /// Those that were rolled back.
    pub rollbacks: Option<f64>,
    /// Deadlocks a second.
    pub deadlocks: Option<f64>,
    /// Bytes a second that were written to temporary files.
    pub temporary_bytes: Option<f64>,
    /// The share of its processors that the server has used since the answer before; only of a server whose processes are found on this host.
    pub cpu: Option<f64>,
    /// How many processors it may use.
    pub processors: Option<f64>,
    /// Transactions that wait for a connection to it in the sidecar.
    pub waiting: usize,
    /// What is too much: `connections`, `queue`, `cpu`.
    pub indicators: Vec<&'static str>,
    /// What cannot be seen.
    pub not_visible: Vec<&'static str>,
}

/// The servers that are asked.
pub(crate) struct Load {
    settings: LoadSettings,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    pools: Weak<Pools>,
    /// A user that has proved who it is, for servers without a configured one.
    asker: Option<Asker>,
    refused: bool,
    watched: Vec<Watched>,
}

struct Watched {
    target: Arc<Target>,
    status: Arc<Mutex<(LoadStatus, Option<Instant>)>>,
    _task: AbortOnDropHandle<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Load {
    /// Takes over who asks from what was there before. Needs a runtime where there was something.
    pub(crate) fn new(settings: &LoadSettings, target: &Arc<Target>, previous: Option<&Self>) -> Arc<Self> {
        let new = Arc::new(Self { settings: settings.clone(), known: Mutex::default() });
        let before = previous.and_then(|previous| {
            let known = lock(&previous.known);
            known.pools.upgrade().zip(known.asker.clone())
        });
        if let Some((pools, asker)) = before {
            new.enter(&pools, vec![Arc::clone(target)], || asker);
        }
        new
    }

    /// A user has proved who it is; these are the servers.
    pub(crate) fn enter(
        self: &Arc<Self>,
        pools: &Arc<Pools>,
        targets: Vec<Arc<Target>>,
        asker: impl FnOnce() -> Asker,
    ) {
        if !self.settings.enabled {
            return;
        }
        let mut known = lock(&self.known);
        if known.asker.is_none() || std::mem::take(&mut known.refused) {
            known.asker = Some(asker());
        }
        known.pools = Arc::downgrade(pools);
        let is = |watched: &Watched, target: &Arc<Target>| Arc::ptr_eq(&watched.target, target);
        known.watched.retain(|watched| targets.iter().any(|target| is(watched, target)));
        for target in targets {
            if known.watched.iter().any(|watched| is(watched, &target)) {
                continue;
            }
            let server = target.name.to_string();
            let status = Arc::new(Mutex::new((LoadStatus { server, ..LoadStatus::default() }, None)));
            let watch = watch(Arc::downgrade(self), Arc::clone(&target), Arc::clone(&status));
            let task = AbortOnDropHandle::new(tokio::spawn(watch));
            known.watched.push(Watched { target, status, _task: task });
        }
    }

    /// The servers as they were when they were asked last.
    pub(crate) fn status(&self) -> Vec<LoadStatus> {
        let all: Vec<_> =
            lock(&self.known).watched.iter().map(|watched| Arc::clone(&watched.status)).collect();
        all.iter()
            .map(|status| {
                let status = lock(status);
                let (shown, at) = &*status;
                LoadStatus { asked: at.map(|at| at.elapsed().as_secs_f64()), ..shown.clone() }
            })
            .collect()
    }

    fn asker(&self, target: &Target) -> Option<Asker> {
        target.probe.as_ref().map(|probe| probe.asker()).or_else(|| lock(&self.known).asker.clone())
    }

    fn waiting(&self, target: &Target) -> Option<usize> {
        lock(&self.known).pools.upgrade().map(|pools| pools.waiting(&target.name))
    }
}

/// Looks at one server for as long as it is wanted.
async fn watch(load: Weak<Load>, target: Arc<Target>, status: Arc<Mutex<(LoadStatus, Option<Instant>)>>) {
    let mut server = Server::new(&target);
    let mut due = Instant::now();
    loop {
        let Some(here) = load.upgrade() else { return };
        let Some(waiting) = here.waiting(&target) else { return };
        let every = here.settings.every.0;
        if due <= Instant::now() {
            due = Instant::now() + every;
            let Some(asker) = here.asker(&target) else { return };
            let asked = timeout(ANSWER, server.ask(&target, &asker)).await.unwrap_or(Err(AskError::Timeout));
            let mut status = lock(&status);
            let (shown, at) = &mut *status;
            shown.user = shown_name(&asker);
            match asked {
                Ok(figures) => {
                    server.show(shown, &figures);
                    *at = Some(Instant::now());
                }
                Err(error) => {
                    tracing::debug!(server = %target.name, %error, "a database server did not say how loaded it is");
                    lock(&here.known).refused |= error.is_of_user();
                    server.lost(error.is_too_many());
                    *shown = LoadStatus {
                        server: target.name.to_string(),
                        user: shown_name(&asker),
                        error: Some(error.to_string()),
                        indicators: std::mem::take(&mut shown.indicators),
                        ..LoadStatus::default()
                    };
                    *at = None;
                }
            }
            server.export(shown);
        }
        {
            let mut status = lock(&status);
            let (shown, _) = &mut *status;
            shown.waiting = waiting;
            server.judge(shown);
        }
        drop(here);
        let left = due.saturating_duration_since(Instant::now());
        tokio::time::sleep(left.min(LOOK)).await;
    }
}

fn shown_name(asker: &Asker) -> String {
    shown(&asker.user)
}

/// What is kept of a server between two answers.
struct Server {
    name: Arc<str>,
    kept: Option<Connection>,
    processes: Option<Processes>,
    share: Option<f64>,
    /// It has refused a connection, having too many.
    full: bool,
    totals: Option<(Instant, Totals)>,
    connections: Level,
    cpu: Level,
    queue: Growth,
}

impl Server {
    fn new(target: &Target) -> Self {
        Self {
            name: Arc::clone(&target.name),
            kept: None,
            processes: None,
            share: None,
            full: false,
            totals: None,
            connections: Level::new(0.9, 0.8, Duration::ZERO),
            cpu: Level::new(0.8, 0.7, LASTING),
            queue: Growth::default(),
        }
    }

    /// Asks on the connection that is kept, or on a new one where that was closed.
    async fn ask(&mut self, target: &Target, asker: &Asker) -> Result<Figures, AskError> {
        if let Some(mut connection) = self.kept.take()
            && let Ok(answer) = connection.ask(QUESTION, figures).await
        {
            self.kept = Some(connection);
            self.share = self.processes.as_mut().and_then(Processes::share);
            return Ok(answer);
        }
        let deadline = tokio::time::Instant::now() + ANSWER;
        let mut connection = Connection::open(target, asker, deadline).await?;
        let answer = connection.ask(QUESTION, figures).await?;
        let name = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
        let backend = Backend {
            process: answer.process,
            user: name(&asker.user),
            database: name(&asker.database),
            client: (!answer.client.is_empty()).then(|| answer.client.clone()),
            listener: connection.listener,
        };
        // It reads files.
        let found = tokio::task::spawn_blocking(move || Processes::find(&backend)).await;
        self.processes = found.ok().flatten();
        self.share = None;
        self.kept = Some(connection);
        Ok(answer)
    }

    /// It has not answered; because it has no room for a connection more, or for another reason.
    fn lost(&mut self, full: bool) {
        self.full = full;
        (self.kept, self.processes, self.share, self.totals) = (None, None, None, None);
    }

    fn show(&mut self, shown: &mut LoadStatus, answer: &Figures) {
        self.full = false;
        let now = Instant::now();
        let before = self.totals.replace((now, answer.totals));
        let since =
            before.map(|(then, before)| (now.saturating_duration_since(then), answer.totals.since(before)));
        let rate = |of: fn(Totals) -> u64| {
            since.map(|(time, totals)| of(totals) as f64 / time.as_secs_f64().max(1e-3))
        };
        if let Some((_, totals)) = since {
            let count = |outcome: &'static str, number| {
                counter!("qudag_sidecar_db_load_transactions_total", "server" => self.name.to_string(), "outcome" => outcome)
                    .increment(number);
            };
            count("commit", totals.commits);
            count("rollback", totals.rollbacks);
            counter!("qudag_sidecar_db_load_deadlocks_total", "server" => self.name.to_string())
                .increment(totals.deadlocks);
            counter!("qudag_sidecar_db_load_temporary_bytes_total", "server" => self.name.to_string())
                .increment(totals.temporary);
        }
        let mut not_visible: Vec<_> = match answer.active {
            None => OF_ALL_STATS.to_vec(),
            Some(_) => Vec::new(),
        };
        if self.processes.is_none() {
            not_visible.push("cpu");
        }
        *shown = LoadStatus {
            server: std::mem::take(&mut shown.server),
            user: std::mem::take(&mut shown.user),
            asked: None,
            error: None,
            connections: Some(answer.connections),
            max_connections: Some(answer.most),
            reserved: Some(answer.reserved),
            active: answer.active,
            lock_waits: answer.lock_waits,
            io_waits: answer.io_waits,
            oldest_transaction: answer.oldest,
            commits: rate(|totals| totals.commits),
            rollbacks: rate(|totals| totals.rollbacks),
            deadlocks: rate(|totals| totals.deadlocks),
            temporary_bytes: rate(|totals| totals.temporary),
            cpu: self.share,
            processors: self.processes.as_ref().map(|processes| processes.processors),
            waiting: shown.waiting,
            indicators: std::mem::take(&mut shown.indicators),
            not_visible,
        };
    }

    /// Sets the gauges. What is not visible is not a number.
    fn export(&self, shown: &LoadStatus) {
        let real = |number: Option<u64>| number.map_or(f64::NAN, |number| number as f64);
        for (what, number) in
            [("used", shown.connections), ("most", shown.max_connections), ("reserved", shown.reserved)]
        {
            gauge!("qudag_sidecar_db_load_connections", "server" => self.name.to_string(), "what" => what)
                .set(real(number));
        }
        for (what, number) in
            [("active", shown.active), ("lock_waits", shown.lock_waits), ("io_waits", shown.io_waits)]
        {
            gauge!("qudag_sidecar_db_load_backends", "server" => self.name.to_string(), "what" => what)
                .set(real(number));
        }
        gauge!("qudag_sidecar_db_load_oldest_transaction_seconds", "server" => self.name.to_string())
            .set(shown.oldest_transaction.unwrap_or(f64::NAN));
        gauge!("qudag_sidecar_db_load_cpu_ratio", "server" => self.name.to_string())
            .set(shown.cpu.unwrap_or(f64::NAN));
    }

    /// Says what is too much, once.
    fn judge(&mut self, shown: &mut LoadStatus) {
        let now = Instant::now();
        let used = shown.connections.zip(shown.max_connections);
        let used = used.map(|(used, most)| used as f64 / most.max(1) as f64).or(self.full.then_some(1.0));
        let raised = What::ALL.map(|what| match what {
            What::Connections => self.connections.look(used, now),
            What::Queue => self.queue.look(shown.waiting, now),
            What::Cpu => self.cpu.look(shown.cpu, now),
        });
        let before = std::mem::take(&mut shown.indicators);
        for (what, raised) in What::ALL.into_iter().zip(raised) {
            let label = what.label();
            gauge!("qudag_sidecar_db_indicator", "server" => self.name.to_string(), "what" => label)
                .set(f64::from(raised));
            match (before.contains(&label), raised) {
                (false, true) => tracing::warn!(
                    server = %self.name, indicator = label, connections = shown.connections, waiting = shown.waiting,
                    cpu = shown.cpu, "the database is overloaded: {}", what.advice()
                ),
                (true, false) => {
                    tracing::info!(server = %self.name, indicator = label, "the database is not overloaded any more")
                }
                _ => {}
            }
            if raised {
                shown.indicators.push(label);
            }
        }
    }
}
