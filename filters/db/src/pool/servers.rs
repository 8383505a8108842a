//! The servers of one user and database: making connections, handing them out, taking them back.

use std::collections::HashMap;
use std::fmt;
use std::future::poll_fn;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use metrics::{Counter, Histogram, counter, gauge, histogram};
use qudag_core::backoff::Backoff;
use qudag_core::limit::Limit;
use qudag_core::queue::Refusal;
use qudag_filter_api::{FilterError, Lane};
use tokio::sync::{Notify, oneshot};
use tokio::time::{sleep, sleep_until, timeout_at};

use super::conn::{CancelKey, Conn, closed, poll_read, poll_write};
use super::places::{Asked, Figures, Grant, Places, Room, Seat, Waiting, Who, plain};
use super::registry::{Doing, PoolStatus, Registry, ServerStatus, ServerTrace, StatementStatus};
use super::settings::{DbPool, Pressure};
use super::{Pools, SessionInfo, Target};
use crate::auth::{Identity, Login, LoginError, login};
use crate::session::{Down, Fingerprint, Parameters, Server, Texts, Tidy};
use crate::startup::shown;

/// Connections that are made at a time.
const PARALLEL: usize = 3;
const BACKOFF: Backoff = Backoff { min: Duration::from_millis(50), max: Duration::from_secs(1) };
/// How much is read of what nobody waits for any more, and for how long, before it is cancelled.
const ABANDONED_BYTES: usize = 16 << 20;
const ABANDONED_TIME: Duration = Duration::from_secs(1);
/// How long a CancelRequest may take.
const CANCEL_TIME: Duration = Duration::from_secs(5);
/// How often idle connections are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long a pool without sessions and connections is kept.
const KEEP: Duration = Duration::from_secs(60);
/// Start-up parameters of clients whose meaning for the server is remembered.
const WISHES: usize = 256;
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

/// Why no connection could be made.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) why: Arc<str>,
    /// The server's own ErrorResponse, as it came.
    pub(crate) response: Option<Bytes>,
    /// Trying again is no use: the user, the database or the password is wrong.
    hopeless: bool,
    at: Instant,
    /// The server says that it has too much.
    too_much: bool,
}

impl Failure {
    fn of(error: &LoginError) -> Self {
        let (response, sqlstate) = match error {
            LoginError::Refused { response, sqlstate } => {
                (Some(Bytes::copy_from_slice(response)), sqlstate.as_str())
            }
            _ => (None, ""),
        };
        Self {
            why: error.to_string().into(),
            response,
            hopeless: ["28", "3D", "42"].iter().any(|class| sqlstate.starts_with(class))
                || matches!(error, LoginError::Scram(_) | LoginError::Credentials(_)),
            at: Instant::now(),
            too_much: sqlstate.starts_with("53"),
        }
    }
}

/// What changes seldom, beside the places.
#[derive(Debug)]
struct Known {
    settings: Arc<DbPool>,
    /// What logs in.
    identity: Identity,
    /// What the server reported at the last login.
    welcome: Option<Arc<Parameters>>,
    /// What clients are told who gave these parameters at their start-up.
    wishes: HashMap<Box<[u8]>, Arc<Parameters>>,
    /// Attempts to connect that have failed since the last one that did not.
    failures: u32,
    failure: Option<Failure>,
    not_before: Option<Instant>,
    limit: Limit<Fingerprint>,
    statements: HashMap<Fingerprint, Statement>,
    pinned: usize,
    sessions: usize,
    used: Instant,
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
}

/// The servers of one user and database.
pub struct Pool {
    pub(crate) key: PoolKey,
    pub(crate) target: Arc<Target>,
    home: Weak<Pools>,
    pub(crate) lane: Arc<Lane>,
    places: Mutex<Places<Box<Conn>>>,
    known: Mutex<Known>,
    pub(crate) texts: Mutex<Texts>,
    pub(crate) sessions: Registry<SessionInfo>,
    servers: Registry<ServerTrace>,
    /// What is counted for each transaction.
    pub(crate) meters: Meters,
    /// Somebody new waits, so that the next deadline may be earlier.
    earlier: Notify,
    /// A connection was made or could not be made.
    news: Notify,
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
    wait: Histogram,
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

/// What a transaction asks for.
#[derive(Clone, Debug)]
pub(crate) struct Want {
    pub(crate) who: Who,
    /// What it holds while it waits.
    pub(crate) bytes: usize,
    /// That of `db_backpressure`, where the transaction passes through it.
    pub(crate) pressure: Option<Arc<Pressure>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    pub(crate) fn new(
        key: PoolKey,
        target: Arc<Target>,
        home: Weak<Pools>,
        lane: Arc<Lane>,
        settings: Arc<DbPool>,
        identity: Identity,
    ) -> Arc<Self> {
        let room = Room { size: settings.size, limit: settings.size };
        let known = Known {
            identity,
            welcome: None,
            wishes: HashMap::new(),
            failures: 0,
            failure: None,
            not_before: None,
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
            home,
            lane,
            places: Mutex::new(Places::new(room)),
            known: Mutex::new(known),
            texts: Mutex::new(Texts::new(settings.statements)),
            sessions: Registry::default(),
            servers: Registry::default(),
            meters: Meters::new(),
            earlier: Notify::new(),
            news: Notify::new(),
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
        self.fit_room();
    }

    /// A session has proved who it is; what logs in is newer than what was known.
    pub(crate) fn identify(&self, identity: Identity) {
        lock(&self.known).identity = identity;
    }

    fn fit_room(&self) {
        let room = {
            let known = lock(&self.known);
            let size = known.settings.size;
            Room { size, limit: size }
        };
        self.set_room(room);
    }

    fn set_room(&self, room: Room) {
        let surplus = lock(&self.places).set_room(room, Instant::now());
        for _ in surplus {
            closed("shrunk");
            self.disconnected();
        }
    }

    /// A place and a connection for a transaction.
    ///
    /// # Errors
    /// When there is none in time, or waiting for one is no use.
    pub(crate) async fn take(self: &Arc<Self>, want: Want) -> Result<Lease, FilterError> {
        let now = Instant::now();
        let settings = self.settings();
        let discipline =
            want.pressure.as_ref().map_or_else(|| plain(settings.wait.0), |pressure| pressure.discipline());
        let deadline = now + discipline.wait;
        let asked = lock(&self.places).ask(want.who, want.bytes, want.pressure.is_some(), discipline, now);
        let (seat, connection) = match asked {
            Asked::Now(seat, connection) => (seat, connection),
            Asked::Refused(refusal, after) => return Err(shed(refusal, after)),
            Asked::Later(waiting, answer) => {
                self.earlier.notify_one();
                let mut guard = Guard { pool: self, waiting: Some(waiting), answer };
                let answer = (&mut guard.answer).await;
                guard.waiting = None;
                self.meters.wait.record(now.elapsed().as_secs_f64());
                match answer {
                    Ok(Grant::Place(seat, connection)) => (seat, connection),
                    Ok(Grant::Refused(refusal, after)) => return Err(shed(refusal, after)),
                    Err(_) => return Err(FilterError::Draining),
                }
            }
        };
        let mut lease =
            Lease { pool: Arc::clone(self), seat: Some(seat), connection, pressure: want.pressure };
        while let Some(connection) = &mut lease.connection {
            if connection.is_quiet() {
                connection.seen.trace.does(Doing::Active, now);
                return Ok(lease);
            }
            closed("ended_idle");
            self.disconnected();
            lease.connection = lock(&self.places).replace();
        }
        self.feed(&mut lease, deadline).await?;
        Ok(lease)
    }

    /// Waits for a connection that is being made.
    async fn feed(self: &Arc<Self>, lease: &mut Lease, deadline: Instant) -> Result<(), FilterError> {
        let begun = Instant::now();
        let mut coming = Coming { pool: self, connection: lock(&self.places).hunger() };
        loop {
            self.make_connections();
            let news = self.news.notified();
            let failure = lock(&self.known).failure.clone();
            if let Some(failure) = failure.filter(|failure| failure.hopeless && failure.at >= begun) {
                return Err(failure.error());
            }
            let waited = tokio::select! {
                biased;
                connection = &mut coming.connection => connection.ok(),
                () = news => continue,
                () = sleep_until(deadline.into()) => None,
            };
            lease.connection = waited;
            return match &lease.connection {
                Some(_) => Ok(()),
                None => {
                    let failure = lock(&self.known).failure.clone();
                    Err(failure
                        .map_or(FilterError::Timeout { after: self.target.connect_timeout }, |failure| {
                            failure.error()
                        }))
                }
            };
        }
    }

    /// Makes as many connections as are wanted and may be made at a time.
    fn make_connections(self: &Arc<Self>) {
        let now = Instant::now();
        loop {
            if lock(&self.known).not_before.is_some_and(|time| now < time) {
                return;
            }
            let Some(home) = self.home.upgrade() else { return };
            if !lock(&self.places).wants_connection(PARALLEL) {
                return;
            }
            if !home.may_connect(self) {
                lock(&self.places).failed();
                return;
            }
            drop(self.lane.handle().spawn(Arc::clone(self).make_connection()));
        }
    }

    async fn make_connection(self: Arc<Self>) {
        match self.log_in().await {
            Ok((connection, parameters)) => {
                counter!("qudag_sidecar_db_connects_total", "outcome" => "ok").increment(1);
                {
                    let mut known = lock(&self.known);
                    known.failures = 0;
                    known.failure = None;
                    known.not_before = None;
                    known.welcome = Some(parameters);
                }
                let surplus = lock(&self.places).connected(Box::new(connection), Instant::now());
                if surplus.is_some() {
                    closed("shrunk");
                    self.disconnected();
                }
                self.news.notify_waiters();
            }
            Err(error) => {
                let failure = Failure::of(&error);
                let outcome = if failure.response.is_some() { "refused" } else { "failed" };
                counter!("qudag_sidecar_db_connects_total", "outcome" => outcome).increment(1);
                lock(&self.places).failed();
                self.disconnected();
                let wait = {
                    let mut known = lock(&self.known);
                    let wait = BACKOFF.limit(known.failures).mul_f64(0.5 + fastrand::f64() / 2.0);
                    if known.failures == 0 {
                        tracing::warn!(server = %self.key.server, error = %failure.why, "cannot connect to the database");
                    }
                    known.failures = known.failures.saturating_add(1);
                    known.not_before = Some(Instant::now() + wait);
                    if failure.too_much {
                        self.too_much(&mut known);
                    }
                    known.failure = Some(failure);
                    wait
                };
                self.news.notify_waiters();
                sleep(wait).await;
                lock(&self.known).not_before = None;
            }
        }
        self.make_connections();
    }

    async fn log_in(&self) -> Result<(Conn, Arc<Parameters>), LoginError> {
        let (identity, statements) = {
            let known = lock(&self.known);
            (known.identity.clone(), known.settings.statements)
        };
        let deadline = tokio::time::Instant::now() + self.target.connect_timeout;
        let connected = timeout_at(deadline, self.target.connect()).await.map_err(|_| LoginError::Timeout)?;
        let stream = connected.map_err(std::io::Error::other)?;
        let request = Login {
            user: &self.key.user,
            database: &self.key.database,
            parameters: &[],
            identity: &identity,
            tls: &self.target.tls,
            server: &self.target.address,
        };
        let logged = login(stream, &request, deadline).await?;
        let parameters = Arc::new(logged.parameters);
        let machine = Server::new(Arc::clone(&parameters), statements);
        let key = CancelKey { process: logged.process, secret: logged.secret };
        let mut connection = Conn::new(machine, logged.stream, key, Instant::now());
        connection.down = logged.rest;
        self.servers.add(&connection.seen);
        Ok((connection, parameters))
    }

    /// A connection less.
    fn disconnected(&self) {
        if let Some(home) = self.home.upgrade() {
            home.disconnected();
        }
    }

    /// A connection of its own for a session that is not pooled any more.
    pub(crate) async fn dedicated(self: &Arc<Self>) -> Result<Lease, FilterError> {
        let (connection, _) = self.log_in().await.map_err(|error| Failure::of(&error).error())?;
        Ok(Lease {
            pool: Arc::clone(self),
            seat: None,
            connection: Some(Box::new(connection)),
            pressure: None,
        })
    }

    /// What the server reports at a login.
    ///
    /// # Errors
    /// When no connection can be made in time.
    pub(crate) async fn welcome(self: &Arc<Self>, who: Who) -> Result<Arc<Parameters>, Failed> {
        if let Some(welcome) = lock(&self.known).welcome.clone() {
            return Ok(welcome);
        }
        let want = Want { who, bytes: 0, pressure: None };
        let timeout = self.target.connect_timeout;
        let taken = tokio::time::timeout(timeout, self.take(want)).await;
        match taken.unwrap_or(Err(FilterError::Timeout { after: timeout })) {
            Ok(lease) => lease.give_back(None),
            Err(error) => return Err(Failed { response: self.failure(), error }),
        }
        let welcome = lock(&self.known).welcome.clone();
        welcome
            .ok_or(Failed { error: FilterError::Upstream("the connection was lost".into()), response: None })
    }

    fn failure(&self) -> Option<Bytes> {
        lock(&self.known).failure.as_ref().and_then(|failure| failure.response.clone())
    }

    /// What clients are told who gave parameters at their start-up, where that is known.
    pub(crate) fn wish(&self, wish: &[u8]) -> Option<Arc<Parameters>> {
        lock(&self.known).wishes.get(wish).cloned()
    }

    pub(crate) fn remember_wish(&self, wish: Box<[u8]>, parameters: Arc<Parameters>) {
        let mut known = lock(&self.known);
        if known.wishes.len() >= WISHES {
            known.wishes.clear();
        }
        known.wishes.insert(wish, parameters);
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
        let new = Statement { shape: shape().into(), calls: 1, done: 0, busy: Duration::ZERO };
        known.statements.insert(statement, new);
    }

    /// A transaction has kept its server busy for so long.
    fn took(&self, statement: Fingerprint, busy: Duration, pressure: Option<&Pressure>) {
        let running = lock(&self.places).running();
        let room = {
            let mut known = lock(&self.known);
            if let Some(statement) = known.statements.get_mut(&statement) {
                statement.done += 1;
                statement.busy += busy;
            }
            let Some(pressure) = pressure else { return };
            let size = known.settings.size;
            let settings = pressure.limit(size);
            known.limit.took(statement, busy, running, &settings, Instant::now());
            let limit = if pressure.adaptive.enforce { known.limit.get(&settings) } else { size };
            Room { size, limit }
        };
        self.set_room(room);
    }

    /// The server says that it has too much.
    fn too_much(&self, known: &mut Known) {
        let settings = Pressure::default().limit(known.settings.size);
        known.limit.too_much(&settings, Instant::now());
    }

    /// Counts a session; gone when what is returned is dropped.
    pub(crate) fn enter(self: &Arc<Self>) -> Member {
        lock(&self.known).sessions += 1;
        Member { pool: Arc::clone(self), pinned: false }
    }

    pub(crate) fn pause(&self) {
        lock(&self.places).paused = true;
    }

    pub(crate) fn resume(self: &Arc<Self>) {
        lock(&self.places).resume(Instant::now());
        self.make_connections();
    }

    fn figures(&self) -> Figures {
        lock(&self.places).figures()
    }

    /// The pool as it is shown.
    pub(crate) fn status(&self) -> PoolStatus {
        let now = Instant::now();
        let Figures { size, limit, connecting, idle, running, waiting, oldest, paused, .. } = self.figures();
        let (sessions, pinned, adaptive, error, mut statements) = {
            let known = lock(&self.known);
            let adaptive = known.limit.get(&Pressure::default().limit(known.settings.size));
            let error = known.failure.as_ref().map(|failure| failure.why.to_string());
            let statements: Vec<_> =
                known.statements.iter().map(|(id, statement)| (*id, statement.clone())).collect();
            (known.sessions, known.pinned, adaptive, error, statements)
        };
        statements.sort_by_key(|(_, statement)| std::cmp::Reverse(statement.busy));
        let text = |name: &[u8]| shown(name);
        PoolStatus {
            server: self.key.server.to_string(),
            user: text(&self.key.user),
            database: text(&self.key.database),
            size,
            limit,
            adaptive_limit: adaptive,
            active: running,
            idle,
            connecting,
            sessions,
            pinned,
            waiting,
            oldest_wait: oldest.map_or(0.0, |oldest| now.saturating_duration_since(oldest).as_secs_f64()),
            paused,
            error,
            clients: self.sessions.all().iter().map(|session| session.status(now)).collect(),
            connections: self.servers.all().iter().map(|server| server_status(server, now)).collect(),
            statements: statements.into_iter().map(statement_status).collect(),
        }
    }

    /// Closes an idle connection in favour of another pool.
    pub(crate) fn give_up_idle(&self) -> bool {
        let mut first = true;
        let gone = lock(&self.places).take_idle(|_| std::mem::take(&mut first));
        for _ in &gone {
            closed("other_pool");
            self.disconnected();
        }
        !gone.is_empty()
    }

    pub(crate) fn wake_up(self: &Arc<Self>) {
        self.make_connections();
    }
}

fn server_status(server: &ServerTrace, now: Instant) -> ServerStatus {
    let (since, age) = server.trace.times(now);
    let transactions = server.trace.transactions.load(Relaxed);
    ServerStatus {
        process: server.process,
        doing: server.trace.doing(),
        since,
        age,
        transactions,
        tls: server.encrypted,
    }
}

fn statement_status((fingerprint, statement): (Fingerprint, Statement)) -> StatementStatus {
    let Statement { shape, calls, done, busy } = statement;
    StatementStatus {
        fingerprint: fingerprint.to_string(),
        calls,
        done,
        busy: busy.as_secs_f64(),
        text: shape.to_string(),
    }
}

/// An error at the login of a client, with the server's own words where it has said them.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) error: FilterError,
    pub(crate) response: Option<Bytes>,
}

impl Failure {
    fn error(&self) -> FilterError {
        FilterError::Unavailable { why: self.why.to_string().into(), retry_after: BACKOFF.max }
    }
}

fn shed(refusal: Refusal, retry_after: Duration) -> FilterError {
    counter!("qudag_sidecar_db_sheds_total", "reason" => refusal.label()).increment(1);
    FilterError::Shed { why: refusal.label(), retry_after }
}

/// Leaves the queue when whoever waits is gone.
struct Guard<'a> {
    pool: &'a Arc<Pool>,
    waiting: Option<Waiting>,
    answer: oneshot::Receiver<Grant<Box<Conn>>>,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let Some(waiting) = self.waiting.take() else { return };
        lock(&self.pool.places).leave(waiting, Instant::now());
        // The place may have come in this moment.
        if let Ok(Grant::Place(seat, connection)) = self.answer.try_recv() {
            Lease { pool: Arc::clone(self.pool), seat: Some(seat), connection, pressure: None }.unused();
        }
    }
}

/// A connection that is on its way to somebody, who may go before it comes.
struct Coming<'a> {
    pool: &'a Arc<Pool>,
    connection: oneshot::Receiver<Box<Conn>>,
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        self.connection.close();
        if let Ok(connection) = self.connection.try_recv() {
            lock(&self.pool.places).hand_back(connection, Instant::now());
        }
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
}

impl Member {
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

/// A server for a transaction. The place is free again when it is given back or dropped; dropped, the connection is closed.
#[derive(Debug)]
pub struct Lease {
    pool: Arc<Pool>,
    /// None for a connection beside the pool.
    seat: Option<Seat>,
    connection: Option<Box<Conn>>,
    pressure: Option<Arc<Pressure>>,
}

impl Lease {
    /// Whether it is the session's own, beside the pool.
    pub(crate) fn is_own(&self) -> bool {
        self.seat.is_none()
    }

    pub(crate) fn conn(&mut self) -> Option<&mut Conn> {
        self.connection.as_deref_mut()
    }

    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// The client is done with it, and the machine is clean. `busy`: what it has done, and for how long the server was busy with it.
    pub(crate) fn give_back(mut self, busy: Option<(Fingerprint, Duration)>) {
        if let Some((statement, busy)) = busy {
            self.pool.took(statement, busy, self.pressure.as_deref());
        }
        let (Some(seat), Some(mut connection)) = (self.seat, self.connection.take()) else { return };
        let now = Instant::now();
        connection.seen.trace.transactions.fetch_add(1, Relaxed);
        connection.seen.trace.does(Doing::Idle, now);
        connection.idle_since = now;
        let settings = self.pool.settings();
        self.seat = None;
        if now.saturating_duration_since(connection.created) > settings.server_lifetime.0 {
            closed("lifetime");
            drop(connection);
            self.pool.put(seat, None, now);
        } else {
            self.pool.put(seat, Some(connection), now);
        }
    }

    /// The connection as it came, nothing having been done with it.
    fn unused(mut self) {
        if let Some(seat) = self.seat.take() {
            match self.connection.take() {
                Some(connection) => self.pool.put(seat, Some(connection), Instant::now()),
                None => lock(&self.pool.places).release_hungry(seat, Instant::now()),
            }
        }
    }

    /// Makes the server clean for the next one, as a task: what is under way comes to its end, or is cancelled.
    pub(crate) fn tidy(mut self, tidy: Tidy) {
        let lane = self.pool.lane.handle();
        drop(lane.spawn(async move {
            match self.clean(tidy).await {
                Ok(()) => self.give_back(None),
                Err(why) => {
                    closed(why);
                }
            }
        }));
    }

    async fn clean(&mut self, mut tidy: Tidy) -> Result<(), &'static str> {
        let Some(connection) = self.connection.as_deref_mut() else { return Err("gone") };
        let deadline = tokio::time::Instant::now() + ABANDONED_TIME;
        let (mut read, mut nowhere) = (0, BytesMut::new());
        loop {
            match tidy {
                Tidy::Clean => return Ok(()),
                Tidy::Close(unknown) => return Err(unknown.label()),
                Tidy::Wait | Tidy::Cancelling => {}
            }
            let cancelling = tidy == Tidy::Cancelling;
            let progress = poll_fn(|cx| {
                let Conn { stream, up, .. } = &mut *connection;
                if let Poll::Ready(Err(why)) = poll_write(stream, cx, up) {
                    return Poll::Ready(Err(why));
                }
                if connection.poll_cancelled(cx).is_ready() {
                    return Poll::Ready(Ok(None));
                }
                poll_read(&mut connection.stream, cx, &mut connection.down).map_ok(Some)
            });
            let limit = if cancelling { deadline + CANCEL_TIME } else { deadline };
            match timeout_at(limit, progress).await {
                Err(_) => {
                    self.pool.target.cancel(&connection.key).await;
                    return Err("abandoned");
                }
                Ok(Err(_) | Ok(Some(0))) => return Err("lost"),
                Ok(Ok(None)) => {}
                Ok(Ok(Some(more))) => read += more,
            }
            if read > ABANDONED_BYTES {
                self.pool.target.cancel(&connection.key).await;
                return Err("abandoned");
            }
            nowhere.clear();
            match connection.machine.down(&mut connection.down, &mut nowhere, None) {
                Ok(Down::Tidy) => {}
                Ok(_) if !cancelling => continue,
                Ok(_) => {}
                Err(unknown) => return Err(unknown.label()),
            }
            tidy = connection.machine.tidy(&mut connection.up);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let now = Instant::now();
        match (self.seat.take(), self.connection.take()) {
            (Some(seat), Some(_)) => self.pool.put(seat, None, now),
            (Some(seat), None) => lock(&self.pool.places).release_hungry(seat, now),
            _ => {}
        }
    }
}

impl Pool {
    /// Takes a place back, with its connection unless that was closed.
    fn put(self: &Arc<Self>, seat: Seat, connection: Option<Box<Conn>>, now: Instant) {
        let lost = connection.is_none();
        let surplus = lock(&self.places).release(seat, connection, now);
        if surplus.is_some() {
            closed("shrunk");
        }
        if lost || surplus.is_some() {
            self.disconnected();
        }
        if let Some(home) = self.home.upgrade() {
            home.share(self);
        }
        if lost {
            self.make_connections();
        }
    }
}

impl Pool {
    /// Sets the gauges of the pool.
    fn show(&self, figures: &Figures, now: Instant) {
        let (user, database) = (shown(&self.key.user), shown(&self.key.database));
        let (sessions, pinned, limit) = {
            let known = lock(&self.known);
            // Names become labels only when the server knows them.
            if known.welcome.is_none() {
                return;
            }
            (known.sessions, known.pinned, known.limit.get(&Pressure::default().limit(known.settings.size)))
        };
        let busy = figures.connections.saturating_sub(figures.idle + figures.connecting);
        for (state, number) in [("active", busy), ("idle", figures.idle), ("connecting", figures.connecting)]
        {
            gauge!("qudag_sidecar_db_pool_servers", "database" => database.clone(), "user" => user.clone(), "state" => state)
                .set(number as f64);
        }
        for (state, number) in [("pooled", sessions.saturating_sub(pinned)), ("pinned", pinned)] {
            gauge!("qudag_sidecar_db_pool_sessions", "database" => database.clone(), "user" => user.clone(), "state" => state)
                .set(number as f64);
        }
        let age = figures.oldest.map_or(0.0, |oldest| now.saturating_duration_since(oldest).as_secs_f64());
        let labels = [("database", database), ("user", user)];
        gauge!("qudag_sidecar_db_pool_size", &labels).set(figures.size as f64);
        gauge!("qudag_sidecar_db_pool_limit", &labels).set(limit as f64);
        gauge!("qudag_sidecar_db_queue_depth", &labels).set(figures.waiting as f64);
        gauge!("qudag_sidecar_db_queue_oldest_seconds", &labels).set(age);
    }
}

/// Refuses those who have waited long enough, and closes what has been idle for too long.
async fn look_after(pool: Arc<Pool>) {
    let mut looked = Instant::now();
    loop {
        let now = Instant::now();
        let next = {
            let mut places = lock(&pool.places);
            places.expire(now);
            places.wake()
        };
        if now.saturating_duration_since(looked) >= LOOK {
            looked = now;
            if pool.look(now) {
                return;
            }
        }
        let next = next.unwrap_or(now + LOOK).min(looked + LOOK);
        tokio::select! {
            () = sleep_until(next.into()) => {}
            () = pool.earlier.notified() => {}
        }
    }
}

impl Pool {
    /// Closes connections that are too old, idle for too long, or dead. Whether the pool is not needed any more.
    fn look(self: &Arc<Self>, now: Instant) -> bool {
        let (settings, unused) = {
            let known = lock(&self.known);
            (
                Arc::clone(&known.settings),
                known.sessions == 0 && now.saturating_duration_since(known.used) > KEEP,
            )
        };
        let gone = lock(&self.places).take_idle(|connection| {
            let since = |time| now.saturating_duration_since(time);
            let reason = if since(connection.idle_since) > settings.server_idle.0 {
                "idle"
            } else if since(connection.created) > settings.server_lifetime.0 {
                "lifetime"
            } else if !connection.is_quiet() {
                "ended_idle"
            } else {
                return false;
            };
            closed(reason);
            true
        });
        for _ in &gone {
            self.disconnected();
        }
        let figures = self.figures();
        self.show(&figures, now);
        unused
            && figures.connections == 0
            && figures.running == 0
            && self.home.upgrade().is_none_or(|home| home.forget(self))
    }
}
