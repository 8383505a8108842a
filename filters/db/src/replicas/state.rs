//! The servers of a cluster as they are now: asked again and again, and where a transaction goes by what they say.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use metrics::{counter, gauge};
use qudag_filter_api::FilterError;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::ReadReplicas;
use super::probe::{Asker, Connection, ProbeError};
use super::topology::{Report, Topology};
use crate::auth::Identity;
use crate::pool::{Mode, Pool, PoolKey, Prefers, Route, Target, Transaction};
use crate::session::Asks;

/// How long a transaction waits for the first probes, or for a primary to be found.
const PATIENCE: Duration = Duration::from_secs(2);
/// The least time that a probe has.
const LEAST: Duration = Duration::from_secs(1);

/// A cluster's servers. Kept while the filter is off, when nothing is asked.
pub struct Replicas {
    settings: ReadReplicas,
    known: Mutex<Known>,
    /// A server has said something new.
    news: Notify,
    /// The primary is in doubt: ask now.
    doubt: Notify,
    running: Mutex<Weak<Running>>,
}

impl std::fmt::Debug for Replicas {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replicas").field("servers", &self.settings.servers).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Known {
    /// The listener's server, then the others; empty until a session has come.
    targets: Vec<Arc<Target>>,
    topology: Option<Topology>,
    /// Who asks: a user that has proved who it is. Another one is wanted when servers refuse this one.
    asker: Option<Asker>,
    refused: bool,
    /// The primary as it was told last.
    told: usize,
}

impl Replicas {
    pub(super) fn new(settings: ReadReplicas, previous: Option<&Self>) -> Arc<Self> {
        let mut known = Known::default();
        if let Some(previous) = previous {
            let before = previous.known();
            known.asker.clone_from(&before.asker);
            known.aim(before.targets.first(), &settings);
            if let (Some(topology), Some(before)) = (&mut known.topology, &before.topology) {
                topology.inherit(before);
            }
        }
        Arc::new(Self {
            settings,
            known: Mutex::new(known),
            news: Notify::new(),
            doubt: Notify::new(),
            running: Mutex::default(),
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A user has proved who it is at the listener, whose server is `server`. Where it begins: the primary, as far as one is known.
    pub(crate) fn enter(&self, server: &Arc<Target>, key: &PoolKey, identity: &Identity) -> Arc<Target> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        let anew = {
            let mut known = self.known();
            known.meet(key, identity);
            let anew = known.targets.first().is_none_or(|first| !Arc::ptr_eq(first, server));
            if anew {
                if known.targets.first().is_some_and(|first| first.name != server.name) {
                    known.topology = None;
                }
                known.aim(Some(server), &self.settings);
            }
            anew
        };
        if let Some(running) = running {
            if anew {
                running.stop();
            }
            running.start();
        }
        let known = self.known();
        let primary = known.topology.as_ref().and_then(Topology::primary);
        let target = primary.and_then(|primary| known.targets.get(primary));
        Arc::clone(target.unwrap_or(server))
    }

    /// The end of a probe.
    fn probed(
        &self,
        server: usize,
        asked: &Arc<Target>,
        begun: Instant,
        outcome: Result<Report, ProbeError>,
    ) {
        let mut known = self.known();
        let known = &mut *known;
        // The servers may be others by now.
        let target = known.targets.get(server).filter(|target| Arc::ptr_eq(target, asked));
        let Some(target) = target else { return };
        let name = Arc::clone(&target.name);
        let Some(topology) = &mut known.topology else { return };
        let report = match outcome {
            Ok(report) => Some(report),
            Err(error) => {
                tracing::debug!(server = %name, %error, "a database server did not say what it is");
                known.refused |= error.is_of_user();
                None
            }
        };
        let before = topology.primary();
        topology.probed(server, begun, report);
        let primary = topology.primary();
        let judged = topology.judge(server, Instant::now(), None, &self.settings.rules());
        gauge!("qudag_sidecar_db_replica_usable", "server" => name.to_string())
            .set(f64::from(judged.is_ok()));
        if let Some(lag) = topology.lag(server).filter(|_| Some(server) != primary) {
            gauge!("qudag_sidecar_db_replica_lag_seconds", "server" => name.to_string())
                .set(lag.as_secs_f64());
        }
        if let Some(primary) = primary.filter(|primary| *primary != known.told) {
            known.told = primary;
            counter!("qudag_sidecar_db_failovers_total").increment(1);
            if let Some(target) = known.targets.get(primary) {
                tracing::warn!(server = %target.name, "another database server is the primary");
            }
        }
        if primary.is_none() || primary != before || (report.is_none() && primary == Some(server)) {
            self.doubt.notify_waiters();
        }
        self.news.notify_waiters();
    }
}

impl Known {
    /// Makes the targets of the configured servers, which are reached as the listener's own.
    fn aim(&mut self, server: Option<&Arc<Target>>, settings: &ReadReplicas) {
        let Some(server) = server else { return };
        let others = settings.servers.iter().filter(|address| **address != server.address).map(|address| {
            Arc::new(Target {
                name: address.to_string().into(),
                address: address.clone(),
                resolve: Arc::clone(&server.resolve),
                tls: Arc::clone(&server.tls),
                connect_timeout: server.connect_timeout,
            })
        });
        self.targets = std::iter::once(Arc::clone(server)).chain(others).collect();
        if self.topology.is_none() {
            self.topology = Some(Topology::new(self.targets.len()));
        }
    }

    fn meet(&mut self, key: &PoolKey, identity: &Identity) {
        if self.asker.is_none() || std::mem::take(&mut self.refused) {
            let (user, database) = (key.user.clone(), key.database.clone());
            self.asker = Some(Asker { user, database, identity: identity.clone() });
        }
    }
}

/// The filter while it is on: its probes end with it.
pub(super) struct Running {
    replicas: Arc<Replicas>,
    probes: Mutex<Vec<AbortOnDropHandle<()>>>,
}

impl Running {
    /// The same for all generations that follow each other.
    pub(super) fn of(replicas: &Arc<Replicas>) -> Arc<Self> {
        let mut running = replicas.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = running.upgrade() {
            return running;
        }
        let new = Arc::new(Self { replicas: Arc::clone(replicas), probes: Mutex::default() });
        *running = Arc::downgrade(&new);
        new
    }

    pub(super) fn replicas(&self) -> &Arc<Replicas> {
        &self.replicas
    }

    fn stop(&self) {
        self.probes.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Begins to ask the servers, unless that is done.
    fn start(&self) {
        let mut probes = self.probes.lock().unwrap_or_else(PoisonError::into_inner);
        if !probes.is_empty() {
            return;
        }
        let targets = {
            let mut known = self.replicas.known();
            if known.asker.is_none() {
                return;
            }
            if let Some(topology) = &mut known.topology {
                topology.forget();
            }
            known.targets.clone()
        };
        for (server, target) in targets.into_iter().enumerate() {
            let replicas = Arc::downgrade(&self.replicas);
            probes.push(AbortOnDropHandle::new(tokio::spawn(watch(replicas, server, target))));
        }
    }

    /// Where a transaction goes.
    pub(super) async fn route(&self, transaction: &Transaction) -> Result<Option<Route>, FilterError> {
        let session = &transaction.session;
        let settings = &self.replicas.settings;
        // What keeps its server to the session's end must not be led by its first transaction.
        let asks = match session.pool.settings().mode {
            Mode::Transaction => transaction.asks,
            Mode::Session => Asks::Nothing,
        };
        let reads = settings.route.allows(session.prefers, asks);
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let news = self.replicas.news.notified();
            match self.decide(transaction, reads) {
                Decided::To(target) => {
                    let Some(pool) = session.pool_at(&target) else {
                        return Err(FilterError::Overloaded("too many pools".into()));
                    };
                    return Ok(Some(Route { pool, reads }));
                }
                Decided::Unknown => self.begin(&session.pool),
                Decided::Wait => {}
            }
            if timeout_at(deadline, news).await.is_err() {
                let retry_after = settings.probe.0;
                let why = "no server is known to be the primary".into();
                return Err(FilterError::Unavailable { why, retry_after });
            }
        }
    }

    /// A transaction comes of a session that is older than the filter.
    fn begin(&self, pool: &Arc<Pool>) {
        {
            let mut known = self.replicas.known();
            if known.targets.is_empty() {
                known.aim(Some(&pool.target), &self.replicas.settings);
            }
            known.meet(&pool.key, &pool.identity());
        }
        self.start();
    }

    fn decide(&self, transaction: &Transaction, reads: bool) -> Decided {
        let asked = !self.probes.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        let mut known = self.replicas.known();
        if known.refused {
            let pool = &transaction.session.pool;
            known.meet(&pool.key, &pool.identity());
        }
        let Some(topology) = known.topology.as_ref().filter(|_| asked) else { return Decided::Unknown };
        if !topology.is_settled() {
            return Decided::Wait;
        }
        let to =
            |server: usize| known.targets.get(server).map_or(Decided::Wait, |it| Decided::To(Arc::clone(it)));
        if reads {
            let (seed, now) = (transaction.session.seed, Instant::now());
            match topology.replica(seed, transaction.wrote, now, &self.replicas.settings.rules()) {
                Ok(server) => {
                    counter!("qudag_sidecar_db_reads_total", "to" => "replica", "why" => "usable")
                        .increment(1);
                    return to(server);
                }
                Err(why) => {
                    counter!("qudag_sidecar_db_reads_total", "to" => "primary", "why" => why.label())
                        .increment(1);
                }
            }
        }
        topology.primary().map_or(Decided::Wait, to)
    }
}

enum Decided {
    To(Arc<Target>),
    /// Nobody was asked yet.
    Unknown,
    /// What is known says nothing yet.
    Wait,
}

impl super::Routing {
    /// Whether a transaction may be carried out by a replica.
    fn allows(&self, prefers: Prefers, asks: Asks) -> bool {
        match asks {
            Asks::Primary if self.hint => false,
            Asks::Replica if self.hint => true,
            Asks::ReadOnly if self.read_only_transactions => true,
            _ if self.start_up && prefers == Prefers::Replica => true,
            Asks::Select => self.parser && !(self.start_up && prefers == Prefers::Primary),
            _ => false,
        }
    }
}

/// Asks one server, as long as the filter is on.
async fn watch(replicas: Weak<Replicas>, server: usize, target: Arc<Target>) {
    let mut kept = None;
    loop {
        let Some(here) = replicas.upgrade() else { return };
        let doubt = here.doubt.notified();
        let interval = here.settings.probe.0;
        let Some(asker) = here.known().asker.clone() else { return };
        let begun = Instant::now();
        let deadline = tokio::time::Instant::now() + interval.max(LEAST);
        let outcome = timeout_at(deadline, probe(&mut kept, &target, &asker, deadline)).await;
        here.probed(server, &target, begun, outcome.unwrap_or(Err(ProbeError::Timeout)));
        tokio::select! {
            () = sleep(interval) => {}
            // Not at once: whoever doubts has just asked.
            () = doubt => sleep(interval / 10).await,
        }
        drop(here);
    }
}

/// Asks on the connection that is kept, or on a new one where that was closed.
async fn probe(
    kept: &mut Option<Connection>,
    target: &Target,
    asker: &Asker,
    deadline: tokio::time::Instant,
) -> Result<Report, ProbeError> {
    if let Some(mut connection) = kept.take()
        && let Ok(report) = connection.ask().await
    {
        *kept = Some(connection);
        return Ok(report);
    }
    let mut connection = Connection::open(target, asker, deadline).await?;
    let report = connection.ask().await?;
    *kept = Some(connection);
    Ok(report)
}
