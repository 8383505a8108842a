//! `db_pool` and `db_backpressure`.

use std::hash::Hash;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::Either;

use qudag_core::limit::{self, Limit};
use qudag_core::queue;
use qudag_filter_api::{
    BuildError, ByteSize, ConfigError, ConfigPath, Env, FilterError, FilterSpec, Period, Svc, service_fn,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt};

use super::Pools;
use super::desk::Ages;
use super::places::Room;
use crate::kind::{Db, DbAnswer, DbRequest};

/// The most connections of a pool and of all.
const MOST: usize = 10_000;
/// The most prepared statements of a connection.
const MOST_STATEMENTS: usize = 100_000;

/// When a session gets a server of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// For each transaction.
    #[default]
    Transaction,
    /// From its first transaction to its end.
    Session,
}

/// `db_pool`: sessions share the connections to the server, of which each carries one transaction at a time. The sidecar answers
/// start-up, TLS and authentication of clients itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DbPool {
    /// When a session gets a server.
    pub mode: Mode,
    /// The most connections of one user and database.
    #[schemars(range(min = 1, max = 10_000))]
    pub size: usize,
    /// The most connections of all users and databases together.
    #[schemars(range(min = 1, max = 10_000))]
    pub max_servers: usize,
    /// How many sessions of a pool may keep their server between transactions, because they listen, have temporary tables or the like; null
    /// for one less than `size`.
    pub max_pinned: Option<usize>,
    /// How long a transaction waits for a server, unless `db_backpressure` says otherwise.
    pub wait: Period,
    /// How long a client may leave a transaction open without doing anything, before it is ended with its connection.
    pub idle_in_transaction: Period,
    /// How old a connection becomes at most.
    pub server_lifetime: Period,
    /// How long a connection may be idle before it is closed.
    pub server_idle: Period,
    /// The most prepared statements of a connection; the least recently used ones are closed.
    #[schemars(range(min = 1, max = 100_000))]
    pub statements: usize,
}

impl Default for DbPool {
    fn default() -> Self {
        Self {
            mode: Mode::Transaction,
            size: 20,
            max_servers: 100,
            max_pinned: None,
            wait: Period::secs(120),
            idle_in_transaction: Period::secs(60),
            server_lifetime: Period::secs(3600),
            server_idle: Period::secs(600),
            statements: 1000,
        }
    }
}

impl DbPool {
    pub(crate) fn ages(&self) -> Ages {
        Ages { lifetime: self.server_lifetime.0, idle: self.server_idle.0 }
    }

    /// How many sessions of a pool may keep their server.
    pub(crate) fn most_pinned(&self) -> usize {
        self.max_pinned.unwrap_or(self.size.saturating_sub(1))
    }
}

pub(crate) fn within(
    errors: &mut Vec<ConfigError>,
    at: &ConfigPath,
    key: &'static str,
    value: usize,
    most: usize,
) {
    if !(1..=most).contains(&value) {
        errors.push(at.key(key).error(format!("{value} is out of range")).hint(format!("1 to {most}")));
    }
}

pub(crate) fn above_zero(errors: &mut Vec<ConfigError>, at: &ConfigPath, key: &'static str, period: Period) {
    if period.0.is_zero() {
        errors.push(at.key(key).error("0s leaves no time").hint("above 0s"));
    }
}

impl FilterSpec for DbPool {
    type Kind = Db;
    type State = Pools;
    const NAME: &'static str = "db_pool";

    fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        within(&mut errors, at, "size", self.size, MOST);
        within(&mut errors, at, "max_servers", self.max_servers, MOST);
        within(&mut errors, at, "statements", self.statements, MOST_STATEMENTS);
        if self.max_servers < self.size {
            let error = at.key("max_servers").error("less than `size`");
            errors.push(error.hint(format!("at least {}", self.size)));
        }
        if self.max_pinned.is_some_and(|most| most >= self.size && self.mode == Mode::Transaction) {
            let error = at.key("max_pinned").error("sessions that keep their servers could take all of them");
            errors.push(error.hint("less than `size`"));
        }
        above_zero(&mut errors, at, "wait", self.wait);
        above_zero(&mut errors, at, "idle_in_transaction", self.idle_in_transaction);
        above_zero(&mut errors, at, "server_lifetime", self.server_lifetime);
        above_zero(&mut errors, at, "server_idle", self.server_idle);
        errors
    }

    fn state(&self, env: &Env, previous: Option<(&Self, Arc<Pools>)>) -> Result<Arc<Pools>, BuildError> {
        Ok(previous.map_or_else(|| Pools::new(env.lanes.clone()), |(_, pools)| pools))
    }

    fn wrap(&self, pools: Arc<Pools>, inner: Svc<Db>) -> Svc<Db> {
        let settings = Arc::new(self.clone());
        service_fn::<Db, _, _>(move |request| match request {
            DbRequest::Session(mut session) => {
                session.pooled = Some((Arc::clone(&pools), Arc::clone(&settings)));
                Either::Left(inner.clone().oneshot(DbRequest::Session(session)))
            }
            DbRequest::Transaction(transaction) => {
                let pool = Arc::clone(transaction.pool());
                let routed = transaction.route.is_some();
                let reads = transaction.route.as_ref().is_some_and(|route| route.reads);
                pools.apply(&pool, &settings);
                let filling = transaction.filling.clone();
                let want = transaction.want();
                Either::Right(async move {
                    let mut lease = pool.take(want).await?;
                    lease.reads = reads;
                    lease.routed = routed;
                    lease.filling = filling;
                    Ok(DbAnswer::Server(lease))
                })
            }
        })
    }
}

/// `db_backpressure`: refuses early what would wait too long, and serves the newest first under overload, so that the database does useful
/// work at any load. Needs `db_pool`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DbBackpressure {
    /// How long a transaction waits for a server at most. A little less than what programs wait for an answer is right.
    pub wait: Period,
    /// How long whoever comes may have to wait in the order of arrival. Where it is longer for all of `standing`, the queue is overloaded:
    /// until it is empty the newest are served first.
    pub tolerable: Period,
    /// See `tolerable`.
    pub standing: Period,
    /// How long a transaction waits while the queue is overloaded.
    pub age: Period,
    /// The most transactions that wait for the servers of one user and database.
    pub most: usize,
    /// The most bytes that they hold.
    pub bytes: ByteSize,
    /// A limit of transactions under way that is found from how long they take.
    pub adaptive: Adaptive,
}

/// The adaptive limit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Adaptive {
    /// Whether it holds; otherwise it is shown only.
    pub enforce: bool,
    /// The least that it becomes.
    pub min: usize,
    /// How many times as long as usual things may take before it is lowered.
    pub tolerance: f64,
}

impl Default for Adaptive {
    fn default() -> Self {
        Self { enforce: false, min: 4, tolerance: 2.0 }
    }
}

impl Default for DbBackpressure {
    fn default() -> Self {
        Self {
            wait: Period::secs(1),
            tolerable: Period::millis(100),
            standing: Period::millis(100),
            age: Period::millis(15),
            most: 10_000,
            bytes: ByteSize(64 << 20),
            adaptive: Adaptive::default(),
        }
    }
}

/// The settings of `db_backpressure` as a transaction carries them.
pub type Pressure = DbBackpressure;

impl DbBackpressure {
    pub(crate) fn discipline(&self) -> queue::Settings {
        queue::Settings {
            most: self.most,
            bytes: usize::try_from(self.bytes.0).unwrap_or(usize::MAX),
            wait: self.wait.0,
            tolerable: self.tolerable.0,
            standing: self.standing.0,
            age: self.age.0,
        }
    }

    /// How much may be under way of so many connections.
    pub(crate) fn room<K: Eq + Hash>(&self, size: usize, found: &Limit<K>) -> Room {
        let limit = if self.adaptive.enforce { found.get(&self.limit(size)) } else { size };
        Room { size, limit }
    }

    pub(crate) fn limit(&self, size: usize) -> limit::Settings {
        limit::Settings { min: self.adaptive.min, max: size, tolerance: self.adaptive.tolerance }
    }
}

impl FilterSpec for DbBackpressure {
    type Kind = Db;
    /// The queues belong to the pools.
    type State = ();
    const NAME: &'static str = "db_backpressure";

    fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        above_zero(&mut errors, at, "wait", self.wait);
        above_zero(&mut errors, at, "age", self.age);
        within(&mut errors, at, "most", self.most, 1_000_000);
        if self.age.0 > self.wait.0 {
            errors.push(at.key("age").error("more than `wait`").hint(format!("at most {}", self.wait)));
        }
        if !(1 << 16..=1 << 34).contains(&self.bytes.0) {
            errors.push(
                at.key("bytes").error(format!("{} is out of range", self.bytes)).hint("64KiB to 16GiB"),
            );
        }
        let adaptive = at.key("adaptive");
        within(&mut errors, &adaptive, "min", self.adaptive.min, MOST);
        if !(1.1..=100.0).contains(&self.adaptive.tolerance) {
            let error =
                adaptive.key("tolerance").error(format!("{} is out of range", self.adaptive.tolerance));
            errors.push(error.hint("1.1 to 100"));
        }
        errors
    }

    fn state(&self, _: &Env, _: Option<(&Self, Arc<()>)>) -> Result<Arc<()>, BuildError> {
        Ok(Arc::new(()))
    }

    fn wrap(&self, _: Arc<()>, inner: Svc<Db>) -> Svc<Db> {
        BoxCloneSyncService::new(Pressed { pressure: Arc::new(self.clone()), inner })
    }
}

/// Marks transactions that pass.
#[derive(Clone)]
struct Pressed {
    pressure: Arc<Pressure>,
    inner: Svc<Db>,
}

impl Service<DbRequest> for Pressed {
    type Response = DbAnswer;
    type Error = FilterError;
    type Future = <Svc<Db> as Service<DbRequest>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), FilterError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: DbRequest) -> Self::Future {
        if let DbRequest::Transaction(transaction) = &mut request {
            transaction.pressure = Some(Arc::clone(&self.pressure));
        }
        self.inner.call(request)
    }
}
