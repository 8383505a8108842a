//! The servers of a cluster as they are now: asked again and again, and where a transaction goes by what they say.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use metrics::{counter, gauge};
use qudag_filter_api::FilterError;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::ReadReplicas;
use super::probe::{QUESTION, report};
use super::topology::{Report, Topology};
use crate::asking::{AskError, Asker, Connection};
use crate::auth::Identity;
use crate::pool::{Mode, Pool, PoolKey, Pools, Prefers, Route, Target, Transaction};
use crate::session::Asks;

/// How long a transaction waits for the first probes, or for a primary to be found.
const PATIENCE: Duration = Duration::from_secs(2);
/// The least time that a probe has.
const LEAST: Duration = Duration::from_secs(1);

/// A cluster's servers. Kept while the filter is off, when nothing is asked.
pub struct Replicas {
    pub(super) settings: ReadReplicas,
    known: Mutex<Known>,
    /// A server has said something new.
    news: Notify,
    /// Another server is the primary, or may be read from, than before.
    moved: Notify,
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
pub(super) struct Known {
    /// The listener's server, then the others; empty until a session has come.
    pub(super) targets: Vec<Arc<Target>>,
    pub(super) topology: Option<Topology>,
    /// Who asks: a user that has proved who it is. Another one is wanted when servers refuse this one.
    asker: Option<Asker>,
    refused: bool,
    /// The primary as it was told last.
    told: Option<Arc<str>>,
    /// How many transactions that only read each server was given.
    pub(super) reads: Vec<u64>,
    /// The sessions, for when a server is fenced.
    pools: Weak<Pools>,
}

impl Replicas {
    pub(super) fn new(settings: ReadReplicas, previous: Option<&Self>) -> Arc<Self> {
        let mut known = Known::default();
        if let Some(previous) = previous {
            let before = previous.known();
            known.asker.clone_from(&before.asker);
            known.aim(before.targets.first(), &settings);
            known.told.clone_from(&before.told);
            known.pools = Weak::clone(&before.pools);
            let names =
                |known: &Known| -> Vec<_> { known.targets.iter().map(|it| Arc::clone(&it.name)).collect() };
            let same = names(&known) == names(&before);
            if same {
                known.reads.clone_from(&before.reads);
            }
            match (&mut known.topology, &before.topology) {
                (Some(topology), Some(before)) if same => topology.clone_from(before),
                (Some(topology), Some(before)) => topology.inherit(before),
                _ => {}
            }
        }
        Arc::new(Self {
            settings,
            known: Mutex::new(known),
            news: Notify::new(),
            moved: Notify::new(),
            doubt: Notify::new(),
            running: Mutex::default(),
        })
    }

    pub(super) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A user has proved who it is at the listener, whose server is `server`. Where it begins: the primary, as far as one is known.
    pub(crate) fn enter(
        &self,
        pools: &Arc<Pools>,
        server: &Arc<Target>,
        key: &PoolKey,
        identity: &Identity,
    ) -> Arc<Target> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        let anew = {
            let mut known = self.known();
            known.pools = Arc::downgrade(pools);
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

    /// All servers, the listener's first; none before a session has come.
    pub(crate) fn targets(&self) -> Vec<Arc<Target>> {
        self.known().targets.clone()
    }

    /// No connection could be made to a server for a transaction: others are asked to do what it was for.
    fn suspect(&self, target: &Target, reads: bool) {
        let mut known = self.known();
        let place = known.targets.iter().position(|known| known.name == target.name);
        if let (true, Some(server), Some(topology)) = (reads, place, known.topology.as_mut()) {
            topology.suspect(server);
        }
        drop(known);
        self.doubt.notify_waiters();
    }

    /// The end of a probe.
    fn probed(&self, server: usize, asked: &Arc<Target>, begun: Instant, outcome: Result<Report, AskError>) {
        let mut fenced = Vec::new();
        let pools = {
            let mut known = self.known();
            self.take_in(&mut known, server, asked, begun, outcome, &mut fenced);
            known.pools.upgrade()
        };
        for name in fenced {
            pools.iter().for_each(|pools| pools.fenced(&name));
        }
        self.news.notify_waiters();
    }

    fn take_in(
        &self,
        known: &mut Known,
        server: usize,
        asked: &Arc<Target>,
        begun: Instant,
        outcome: Result<Report, AskError>,
        fenced: &mut Vec<Arc<str>>,
    ) {
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
        let (rules, now) = (self.settings.rules(), Instant::now());
        let before = (topology.primary(), topology.judge(server, now, None, &rules).is_ok());
        topology.probed(server, begun, report);
        let primary = topology.primary();
        let judged = topology.judge(server, now, None, &rules);
        gauge!("qudag_sidecar_db_replica_usable", "server" => name.to_string())
            .set(f64::from(judged.is_ok()));
        if let Some(lag) = topology.lag(server).filter(|_| Some(server) != primary) {
            gauge!("qudag_sidecar_db_replica_lag_seconds", "server" => name.to_string())
                .set(lag.as_secs_f64());
        }
        let found = primary.and_then(|primary| known.targets.get(primary));
        if let Some(target) = found.filter(|target| known.told.as_ref() != Some(&target.name)) {
            known.told = Some(Arc::clone(&target.name));
            counter!("qudag_sidecar_db_failovers_total").increment(1);
            tracing::warn!(server = %target.name, "another database server is the primary");
        }
        for (place, target) in known.targets.iter().enumerate() {
            let old = topology.is_old(place);
            if target.fence(old) && old {
                tracing::warn!(server = %target.name, "a database server is the primary no more: its sessions end");
                fenced.push(Arc::clone(&target.name));
            }
        }
        if primary.is_none() || primary != before.0 || (report.is_none() && primary == Some(server)) {
            self.doubt.notify_waiters();
        }
        if before != (primary, judged.is_ok()) {
            self.moved.notify_waiters();
        }
    }
}

impl Known {
    /// Makes the targets of the configured servers, which are reached as the listener's own.
    fn aim(&mut self, server: Option<&Arc<Target>>, settings: &ReadReplicas) {
        let Some(server) = server else { return };
        let others = settings.servers.iter().filter(|address| **address != server.address);
        let others = others.map(|address| Arc::new(server.beside(address.clone())));
        self.targets = std::iter::once(Arc::clone(server)).chain(others).collect();
        if self.topology.is_none() {
            self.topology = Some(Topology::new(self.targets.len()));
            self.told = Some(Arc::clone(&server.name));
        }
        self.reads.resize(self.targets.len(), 0);
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

impl Drop for Running {
    fn drop(&mut self) {
        // Off, nobody knows which server is the primary.
        for target in self.replicas.targets() {
            target.fence(false);
        }
    }
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
            if known.asker.is_none() && known.targets.first().is_none_or(|target| target.probe.is_none()) {
                return;
            }
            if let Some(topology) = &mut known.topology {
                topology.forget(Instant::now(), self.replicas.settings.rules().stale);
            }
            known.targets.clone()
        };
        for (server, target) in targets.into_iter().enumerate() {
            let replicas = Arc::downgrade(&self.replicas);
            probes.push(AbortOnDropHandle::new(tokio::spawn(watch(replicas, server, target))));
        }
    }

    /// Where a transaction goes.
    pub(super) async fn route(&self, transaction: &Transaction) -> Result<Route, FilterError> {
        let session = &transaction.session;
        let settings = &self.replicas.settings;
        // What keeps its server to the session's end must not be led by its first transaction.
        let asks = match session.pool.settings().mode {
            Mode::Transaction => transaction.asks,
            Mode::Session => Asks::Nothing,
        };
        let mut reads = settings.route.allows(session.prefers, asks);
        if asks == Asks::Select && reads && session.prefers != Prefers::Replica {
            reads = !session.pool.is_known_to_write(transaction.statement);
        }
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let news = self.replicas.news.notified();
            match self.decide(transaction, reads) {
                Decided::To(target) => {
                    let Some(pool) = session.pool_at(&target) else {
                        return Err(FilterError::Overloaded("too many pools".into()));
                    };
                    return Ok(Route { pool, reads });
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

    /// Resolves when a transaction would go elsewhere than it went, which has not got a server there yet.
    pub(super) async fn outdated(&self, route: &Route) {
        loop {
            let moved = self.replicas.moved.notified();
            {
                let known = self.replicas.known();
                let place = known.targets.iter().position(|target| target.name == route.pool.target.name);
                let (Some(topology), Some(place)) = (&known.topology, place) else { return };
                let serves = match topology.primary() {
                    Some(primary) if primary == place => true,
                    _ if route.reads => {
                        topology.judge(place, Instant::now(), None, &self.replicas.settings.rules()).is_ok()
                    }
                    primary => primary.is_none(),
                };
                if !serves {
                    return;
                }
            }
            moved.await;
        }
    }

    /// Whether a transaction that got no server is tried elsewhere: nothing of it was sent.
    pub(super) fn failed(&self, route: &Route, error: &FilterError) -> bool {
        let unreachable = matches!(
            error,
            FilterError::Unavailable { .. } | FilterError::Connect { .. } | FilterError::BreakerOpen { .. }
        );
        unreachable && self.suspect(route)
    }

    /// A server cannot be reached: whether a transaction goes elsewhere.
    pub(super) fn suspect(&self, route: &Route) -> bool {
        let elsewhere = route.reads && !self.is_primary(&route.pool.target);
        self.replicas.suspect(&route.pool.target, elsewhere);
        elsewhere
    }

    fn is_primary(&self, target: &Target) -> bool {
        let known = self.replicas.known();
        let primary = known.topology.as_ref().and_then(Topology::primary);
        primary.and_then(|primary| known.targets.get(primary)).is_some_and(|known| known.name == target.name)
    }

    /// A transaction comes of a session that is older than the filter.
    fn begin(&self, pool: &Arc<Pool>) {
        {
            let mut known = self.replicas.known();
            if known.targets.is_empty() {
                known.aim(Some(&pool.target), &self.replicas.settings);
            }
            known.pools = pool.home();
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
        let known = &mut *known;
        let Some(topology) = known.topology.as_ref().filter(|_| asked) else { return Decided::Unknown };
        if !topology.is_settled() {
            return Decided::Wait;
        }
        let targets = &known.targets;
        let to = |server: usize| targets.get(server).map_or(Decided::Wait, |it| Decided::To(Arc::clone(it)));
        if reads {
            let (seed, now) = (transaction.session.seed, Instant::now());
            match topology.replica(seed, transaction.wrote, now, &self.replicas.settings.rules()) {
                Ok(server) => {
                    counter!("qudag_sidecar_db_reads_total", "to" => "replica", "why" => "usable")
                        .increment(1);
                    if let Some(reads) = known.reads.get_mut(server) {
                        *reads += 1;
                    }
                    return to(server);
                }
                Err(why) => {
                    counter!("qudag_sidecar_db_reads_total", "to" => "primary", "why" => why.label())
                        .increment(1);
                    let primary = topology.primary();
                    if let Some(reads) = primary.and_then(|it| known.reads.get_mut(it)) {
                        *reads += 1;
                    }
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
        let asker = target.probe.as_ref().map(|probe| probe.asker()).or_else(|| here.known().asker.clone());
        let Some(asker) = asker else { return };
        let begun = Instant::now();
        let deadline = tokio::time::Instant::now() + interval.max(LEAST);
        let outcome = timeout_at(deadline, probe(&mut kept, &target, &asker, deadline)).await;
        here.probed(server, &target, begun, outcome.unwrap_or(Err(AskError::Timeout)));
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
) -> Result<Report, AskError> {
    if let Some(mut connection) = kept.take()
        && let Ok(report) = connection.ask(QUESTION, report).await
    {
        *kept = Some(connection);
        return Ok(report);
    }
    let mut connection = Connection::open(target, asker, deadline).await?;
    let report = connection.ask(QUESTION, report).await?;
    *kept = Some(connection);
    Ok(report)
}
