//! What sessions and connections there are, for those who look.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use serde::Serialize;

use super::desk::lock;

/// What a session or a connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Doing {
    /// Nothing: a session without a server, a connection in the pool.
    Idle,
    /// Waits for a server.
    Waiting,
    /// Within a transaction.
    Active,
}

impl Doing {
    const ALL: [Self; 3] = [Self::Idle, Self::Waiting, Self::Active];

    /// As it is shown.
    pub fn label(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Waiting => "waiting",
            Self::Active => "active",
        }
    }
}

/// The traces of a session or a connection: written by its task, read by anybody.
#[derive(Debug)]
pub(crate) struct Trace {
    born: Instant,
    doing: AtomicU8,
    /// Since when, in microseconds after `born`.
    since: AtomicU64,
    pub(crate) transactions: AtomicU64,
    pub(crate) pinned: AtomicBool,
    /// Why it has ever kept its server: `Pins::bits`.
    pub(crate) pins: AtomicU16,
}

impl Trace {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            born: now,
            doing: AtomicU8::new(0),
            since: AtomicU64::new(0),
            transactions: AtomicU64::new(0),
            pinned: AtomicBool::new(false),
            pins: AtomicU16::new(0),
        }
    }

    pub(crate) fn does(&self, doing: Doing, now: Instant) {
        let since = now.saturating_duration_since(self.born).as_micros();
        self.since.store(u64::try_from(since).unwrap_or(u64::MAX), Relaxed);
        self.doing.store(doing as u8, Relaxed);
    }

    pub(crate) fn doing(&self) -> Doing {
        let doing = usize::from(self.doing.load(Relaxed));
        Doing::ALL.get(doing).copied().unwrap_or(Doing::Idle)
    }

    /// For how long it has done that, and for how long it is there, in seconds.
    pub(crate) fn times(&self, now: Instant) -> (f64, f64) {
        let age = now.saturating_duration_since(self.born).as_secs_f64();
        ((age - self.since.load(Relaxed) as f64 / 1e6).max(0.0), age)
    }
}

/// Those that are there.
#[derive(Debug)]
pub(crate) struct Registry<T>(Mutex<Vec<Weak<T>>>);

impl<T> Default for Registry<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Registry<T> {
    pub(crate) fn add(&self, one: &Arc<T>) {
        let mut all = lock(&self.0);
        // What has gone is forgotten whenever the list would grow.
        if all.len() == all.capacity() {
            all.retain(|one| one.strong_count() > 0);
        }
        all.push(Arc::downgrade(one));
    }

    pub(crate) fn all(&self) -> Vec<Arc<T>> {
        lock(&self.0).iter().filter_map(Weak::upgrade).collect()
    }
}

/// A connection to a server, as others see it.
#[derive(Debug)]
pub(crate) struct ServerTrace {
    pub(crate) process: u32,
    pub(crate) encrypted: bool,
    pub(crate) trace: Trace,
}

/// All pools, as they are shown.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DbStatus {
    /// Connections to servers, and the most that there may be.
    pub servers: usize,
    /// `max_servers`.
    pub max_servers: usize,
    /// The pools.
    pub pools: Vec<PoolStatus>,
}

/// A pool.
#[derive(Clone, Debug, Serialize)]
pub struct PoolStatus {
    /// The server, as configured.
    pub server: String,
    /// The user.
    pub user: String,
    /// The database.
    pub database: String,
    /// The most connections.
    pub size: usize,
    /// The most transactions under `db_backpressure` at a time.
    pub limit: usize,
    /// What the adaptive limit would be, or is.
    pub adaptive_limit: usize,
    /// Transactions under way.
    pub active: usize,
    /// Connections that are in no use.
    pub idle: usize,
    /// Connections that are being made.
    pub connecting: usize,
    /// Sessions.
    pub sessions: usize,
    /// Sessions that keep their server between transactions.
    pub pinned: usize,
    /// Transactions that wait for a server.
    pub waiting: usize,
    /// How long the oldest of them has waited, in seconds.
    pub oldest_wait: f64,
    /// Whether transactions are held back by `PAUSE`.
    pub paused: bool,
    /// Why no connection can be made; `null` when one can.
    pub error: Option<String>,
    /// Its sessions.
    pub clients: Vec<ClientStatus>,
    /// Its connections.
    pub connections: Vec<ServerStatus>,
    /// The statements that transactions began with, those first that keep servers busy for longest.
    pub statements: Vec<StatementStatus>,
}

/// A session.
#[derive(Clone, Debug, Serialize)]
pub struct ClientStatus {
    /// The client; `null` for a Unix socket.
    pub client: Option<SocketAddr>,
    /// What the client calls itself.
    pub application: String,
    /// What it does.
    pub doing: Doing,
    /// For how long, in seconds.
    pub since: f64,
    /// For how long it is there, in seconds.
    pub age: f64,
    /// How many transactions it has done.
    pub transactions: u64,
    /// Whether it keeps its server between transactions.
    pub pinned: bool,
    /// Whether it is encrypted.
    pub tls: bool,
}

/// A connection to a server.
#[derive(Clone, Debug, Serialize)]
pub struct ServerStatus {
    /// The server's process.
    pub process: u32,
    /// What it does.
    pub doing: Doing,
    /// For how long, in seconds.
    pub since: f64,
    /// For how long it is there, in seconds.
    pub age: f64,
    /// How many transactions it has carried.
    pub transactions: u64,
    /// Whether it is encrypted.
    pub tls: bool,
}

/// Statements that differ only in their values.
#[derive(Clone, Debug, Serialize)]
pub struct StatementStatus {
    /// What tells them from others.
    pub fingerprint: String,
    /// How many transactions began with them.
    pub calls: u64,
    /// How many of those were carried out to their end.
    pub done: u64,
    /// How long servers were busy with those, in seconds.
    pub busy: f64,
    /// The text without its values.
    pub text: String,
}
