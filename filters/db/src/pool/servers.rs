//! The servers of one user and database: what is known of them, and their sessions.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use metrics::{Counter, Histogram, counter, histogram};
use qudag_core::limit::Limit;
use qudag_filter_api::Lane;
use tokio::sync::{Notify, Semaphore};

use super::conn::Conn;
use super::connecting::Failure;
use super::desk::{Attempts, Desk, PARALLEL, lock, look_after};
use super::places::{Places, Room};
use super::registry::{Registry, ServerTrace};
use super::settings::{DbPool, Pressure};
use super::{Pools, SessionInfo, Target};
use crate::auth::Identity;
use crate::query_cache::Slot;
use crate::session::{Fingerprint, Parameters, Texts};

/// Statements that are told apart.
const STATEMENTS: usize = 1024;

/// Whose servers they are.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct PoolKey {
    /// The server, as configured.
    pub(crate) server: Arc<str>,
    pub(crate) user: Box<[u8]>,
    pub(crate) database: Box<[u8]>,
}

/// What changes seldom, beside the places.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) settings: Arc<DbPool>,
    /// What logs in.
    pub(super) identity: Identity,
    /// What the server reported at the last login.
    pub(super) welcome: Option<Arc<Parameters>>,
    /// What clients are told who gave these parameters at their start-up.
    pub(super) wishes: HashMap<Box<[u8]>, Arc<Parameters>>,
    pub(super) attempts: Attempts<Failure>,
    /// The server had no connection for a session alone.
    pub(super) no_own_before: Option<Instant>,
    pub(super) limit: Limit<Fingerprint>,
    pub(super) statements: HashMap<Fingerprint, Statement>,
    pub(super) pinned: usize,
    pub(super) sessions: usize,
    pub(super) used: Instant,
}

/// What is known of statements with one fingerprint.
#[derive(Clone, Debug)]
pub(crate) struct Statement {
    /// The text without its values.
    pub(crate) shape: Arc<str>,
    /// How many transactions began with it.
    pub(crate) calls: u64,
    /// How many of those were carried out.
    pub(crate) done: u64,
    /// How long servers were busy with them.
    pub(crate) busy: Duration,
    /// A replica has refused it, since it writes.
    pub(crate) writes: bool,
}

/// The servers of one user and database.
pub struct Pool {
    pub(crate) key: PoolKey,
    pub(crate) target: Arc<Target>,
    pub(super) home: Weak<Pools>,
    pub(crate) lane: Arc<Lane>,
    pub(super) places: Mutex<Places<Box<Conn>>>,
    pub(super) known: Mutex<Known>,
    /// Shared with the pools of the same user and database at other servers.
    pub(crate) texts: Arc<Mutex<Texts>>,
    /// Shared by all pools.
    pub(crate) cache: Arc<Slot>,
    pub(crate) sessions: Registry<SessionInfo>,
    pub(super) servers: Registry<ServerTrace>,
    /// What is counted for each transaction.
    pub(crate) meters: Meters,
    /// Somebody new waits, so that the next deadline may be earlier.
    pub(super) earlier: Notify,
    /// A connection was made or could not be made.
    pub(super) news: Notify,
    /// For making connections that sessions get for themselves.
    pub(super) own: Semaphore,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("key", &self.key).finish_non_exhaustive()
    }
}

/// What is counted for each transaction, looked up once.
pub(crate) struct Meters {
    pub(crate) ok: Counter,
    pub(crate) ended: Counter,
    pub(crate) busy: Histogram,
    pub(super) wait: Histogram,
}

impl Meters {
    fn new() -> Self {
        let outcome =
            |outcome: &'static str| counter!("qudag_sidecar_db_transactions_total", "outcome" => outcome);
        Self {
            ok: outcome("ok"),
            ended: outcome("ended"),
            busy: histogram!("qudag_sidecar_db_busy_seconds"),
            wait: histogram!("qudag_sidecar_db_queue_wait_seconds"),
        }
    }
}

impl Pool {
    pub(crate) fn new(
        key: PoolKey,
        target: Arc<Target>,
        home: &Arc<Pools>,
        lane: Arc<Lane>,
        settings: Arc<DbPool>,
        texts: Arc<Mutex<Texts>>,
        identity: Identity,
    ) -> Arc<Self> {
        let room = Room { size: settings.size, limit: settings.size };
        let known = Known {
            identity,
            welcome: None,
            wishes: HashMap::new(),
            attempts: Attempts::default(),
            no_own_before: None,
            limit: Limit::default(),
            statements: HashMap::new(),
            pinned: 0,
            sessions: 0,
            used: Instant::now(),
            settings: Arc::clone(&settings),
        };
        let pool = Arc::new(Self {
            key,
            target,
            home: Arc::downgrade(home),
            cache: Arc::clone(&home.cache),
            lane,
            places: Mutex::new(Places::new(room)),
            known: Mutex::new(known),
            texts,
            sessions: Registry::default(),
            servers: Registry::default(),
            meters: Meters::new(),
            earlier: Notify::new(),
            news: Notify::new(),
            own: Semaphore::new(PARALLEL),
        });
        drop(pool.lane.handle().spawn(look_after(Arc::clone(&pool))));
        pool
    }

    /// The server, as configured.
    pub(crate) fn server(&self) -> &str {
        &self.key.server
    }

    pub(crate) fn settings(&self) -> Arc<DbPool> {
        Arc::clone(&lock(&self.known).settings)
    }

    /// Takes over the settings of the present generation.
    pub(crate) fn set(&self, settings: &Arc<DbPool>) {
        {
            let mut known = lock(&self.known);
            if Arc::ptr_eq(&known.settings, settings) {
                return;
            }
            known.settings = Arc::clone(settings);
        }
        self.set_room(Room { size: settings.size, limit: settings.size });
    }

    /// The pool of the same user and database at another server; `None` when there are too many pools.
    pub(crate) fn at(&self, target: &Arc<Target>) -> Option<Arc<Self>> {
        let key = PoolKey { server: Arc::clone(&target.name), ..self.key.clone() };
        self.home.upgrade()?.pool(&key, target, &self.settings(), self.identity())
    }

    /// All pools, as long as there are any.
    pub(crate) fn home(&self) -> Weak<Pools> {
        Weak::clone(&self.home)
    }

    /// What logs in.
    pub(crate) fn identity(&self) -> Identity {
        lock(&self.known).identity.clone()
    }

    /// A session has proved who it is; what logs in is newer than what was known.
    pub(crate) fn identify(&self, identity: Identity) {
        lock(&self.known).identity = identity;
    }

    /// A connection less.
    pub(super) fn disconnected(&self) {
        if let Some(home) = self.home.upgrade() {
            home.disconnected();
        }
    }

    /// A transaction begins with a statement.
    pub(crate) fn note(&self, statement: Fingerprint, shape: impl FnOnce() -> String) {
        let mut known = lock(&self.known);
        if let Some(known) = known.statements.get_mut(&statement) {
            known.calls += 1;
            return;
        }
        if known.statements.len() >= STATEMENTS {
            // The rarer half is forgotten.
            let mut calls: Vec<_> = known.statements.values().map(|statement| statement.calls).collect();
            calls.sort_unstable();
            let middle = calls.get(calls.len() / 2).copied().unwrap_or(0);
            known.statements.retain(|_, statement| statement.calls > middle);
        }
        let new = Statement { shape: shape().into(), calls: 1, done: 0, busy: Duration::ZERO, writes: false };
        known.statements.insert(statement, new);
    }

    /// A transaction has kept its server busy for so long.
    pub(super) fn took(
        &self,
        statement: Fingerprint,
        busy: Duration,
        pressure: Option<&Pressure>,
        now: Instant,
    ) {
        // Of use to the limit only.
        let running = pressure.map_or(0, |_| lock(&self.places).running());
        let room = {
            let mut known = lock(&self.known);
            if let Some(statement) = known.statements.get_mut(&statement) {
                statement.done += 1;
                statement.busy += busy;
            }
            let Some(pressure) = pressure else { return };
            let size = known.settings.size;
            known.limit.took(statement, busy, running, &pressure.limit(size), now);
            pressure.room(size, &known.limit)
        };
        self.set_room(room);
    }

    /// The server says that it has too much.
    pub(super) fn too_much(&self, known: &mut Known) {
        let settings = Pressure::default().limit(known.settings.size);
        known.limit.too_much(&settings, Instant::now());
    }

    /// Counts a session; gone when what is returned is dropped.
    pub(crate) fn enter(self: &Arc<Self>) -> Member {
        lock(&self.known).sessions += 1;
        Member { pool: Arc::clone(self), pinned: false }
    }

    pub(crate) fn resume(self: &Arc<Self>) {
        lock(&self.places).resume(Instant::now());
        self.make_connections();
    }

    /// Closes all idle connections.
    pub(super) fn close_idle(&self, reason: &'static str) {
        for _ in lock(&self.places).take_idle(|_| true) {
            self.closed(reason);
        }
    }

    /// Transactions that begin with a statement cannot be carried out by replicas, as one of them has said.
    pub(crate) fn writes(&self, statement: Fingerprint) {
        if let Some(statement) = lock(&self.known).statements.get_mut(&statement) {
            statement.writes = true;
        }
    }

    /// Whether that was said.
    pub(crate) fn is_known_to_write(&self, statement: Fingerprint) -> bool {
        lock(&self.known).statements.get(&statement).is_some_and(|statement| statement.writes)
    }
}

/// A session of a pool.
#[derive(Debug)]
pub(crate) struct Member {
    pool: Arc<Pool>,
    pinned: bool,
}

impl Member {
    /// The session keeps its server from now on, or no longer; `false` when as many do as may.
    pub(crate) fn pin(&mut self, pinned: bool) -> bool {
        if self.pinned == pinned {
            return true;
        }
        let mut known = lock(&self.pool.known);
        if pinned && known.pinned >= known.settings.most_pinned() {
            return false;
        }
        known.pinned = if pinned { known.pinned + 1 } else { known.pinned.saturating_sub(1) };
        self.pinned = pinned;
        true
    }

    /// Whether the session keeps its server.
    pub(crate) fn is_pinned(&self) -> bool {
        self.pinned
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.pin(false);
        let mut known = lock(&self.pool.known);
        known.sessions = known.sessions.saturating_sub(1);
        known.used = Instant::now();
    }
}
