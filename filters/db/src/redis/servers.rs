//! The shared connections of one user, database and version of the protocol: making them, handing them out, taking them back.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use metrics::{counter, histogram};
use qudag_core::backoff::Backoff;
use qudag_core::queue::Refusal;
use qudag_filter_api::FilterError;
use qudag_filter_common::{Seat, Seats};
use tokio::sync::{Notify, oneshot};
use tokio::time::{sleep, sleep_until};

use super::conn::{Conn, LoginError, Of, closed};
use super::credentials::Credentials;
use super::filters::{RedisBackpressure, RedisPool};
use super::settings::RedisUpstream;
use crate::pool::places::{Asked, Grant, Places, Room, Seat as Place, Waiting, Who, plain};

/// Connections that are made at a time.
const PARALLEL: usize = 3;
const BACKOFF: Backoff = Backoff { min: Duration::from_millis(50), max: Duration::from_secs(1) };
/// How often idle connections are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long a pool without connections is kept that no session has.
const KEEP: Duration = Duration::from_secs(10);
/// The most pools.
const POOLS: usize = 10_000;

/// Whose connections they are.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct PoolKey {
    /// The server, as configured.
    pub(crate) server: Arc<str>,
    pub(crate) credentials: Option<Arc<Credentials>>,
    pub(crate) database: u32,
    /// The protocol is RESP3, otherwise RESP2.
    pub(crate) resp3: bool,
}

/// All pools.
#[derive(Debug)]
pub struct Pools {
    pools: Mutex<HashMap<PoolKey, Arc<Pool>>>,
    /// Shared connections, those of sessions, and logins under way.
    shared: Seats,
    own: Seats,
    most: AtomicUsize,
}

impl Pools {
    pub(crate) fn new() -> Arc<Self> {
        let most = AtomicUsize::new(RedisPool::default().max_servers);
        Arc::new(Self { pools: Mutex::default(), shared: Seats::default(), own: Seats::default(), most })
    }

    /// The pool of a key; `None` when there are too many pools.
    pub(crate) fn pool(
        self: &Arc<Self>,
        key: &PoolKey,
        target: &Arc<RedisUpstream>,
        settings: &Arc<RedisPool>,
    ) -> Option<Arc<Pool>> {
        let pool = {
            let mut pools = lock(&self.pools);
            match pools.get(key) {
                Some(pool) => Arc::clone(pool),
                None if pools.len() >= POOLS => return None,
                None => {
                    let pool = Pool::new(key.clone(), Arc::clone(target), Arc::downgrade(self), settings);
                    pools.insert(key.clone(), Arc::clone(&pool));
                    pool
                }
            }
        };
        self.apply(&pool, settings);
        Some(pool)
    }

    /// Whether connections of this key have been made and could be made last.
    pub(crate) fn knows(&self, key: &PoolKey) -> bool {
        let pool = lock(&self.pools).get(key).cloned();
        pool.is_some_and(|pool| lock(&pool.places).figures().connections > 0)
    }

    /// The settings of the present generation.
    pub(crate) fn apply(&self, pool: &Pool, settings: &Arc<RedisPool>) {
        self.most.store(settings.max_servers, Relaxed);
        pool.set(settings);
    }

    /// Makes a connection now, to see whether the server lets this key in. It is kept where there is room for it.
    ///
    /// # Errors
    /// What the server says, or why it cannot be asked.
    pub(crate) async fn try_out(
        self: &Arc<Self>,
        key: &PoolKey,
        target: &Arc<RedisUpstream>,
        settings: &Arc<RedisPool>,
    ) -> Result<Arc<Pool>, LoginError> {
        let too_many = || FilterError::Overloaded("too many connections".into());
        let seat = self.room(None).ok_or_else(too_many)?;
        let connection = Conn::open(target, key, None, (seat, Of::Pool)).await?;
        // No pool before the server has agreed: wrong passwords leave nothing behind.
        let pool = self.pool(key, target, settings).ok_or_else(too_many)?;
        pool.connects();
        if lock(&pool.places).adopt(Box::new(connection), Instant::now()).is_some() {
            closed("surplus");
        }
        Ok(pool)
    }

    /// Room for one more shared connection, made by closing an idle one of another pool if need be.
    fn room(&self, wants: Option<&Pool>) -> Option<Seat> {
        let most = self.most.load(Relaxed);
        self.shared.take(most).or_else(|| {
            let others: Vec<_> = lock(&self.pools).values().cloned().collect();
            let gave = others.iter().any(|other| {
                wants.is_none_or(|wants| !std::ptr::eq(&**other, wants)) && other.give_up_idle()
            });
            if gave { self.shared.take(most) } else { None }
        })
    }

    /// A new connection for one session, with its name.
    pub(crate) async fn own(
        &self,
        target: &RedisUpstream,
        key: &PoolKey,
        name: Option<&[u8]>,
        most: usize,
    ) -> Result<Conn, LoginError> {
        let seat = self.own_seat(most)?;
        Conn::open(target, key, name, (seat, Of::Session)).await
    }

    /// Room for one more session with a connection of its own.
    pub(crate) fn own_seat(&self, most: usize) -> Result<Seat, FilterError> {
        self.own
            .take(most)
            .ok_or(FilterError::Overloaded("too many sessions with a connection of their own".into()))
    }

    /// A pool that nobody needs goes; `false` when somebody does.
    fn forget(&self, pool: &Arc<Pool>) -> bool {
        let mut pools = lock(&self.pools);
        // This map, and the task that looks after it.
        if Arc::strong_count(pool) > 2 {
            return false;
        }
        pools.remove(&pool.key);
        true
    }
}

/// What changes seldom, beside the places.
#[derive(Debug)]
struct Known {
    settings: Arc<RedisPool>,
    /// Attempts to connect that have failed since the last one that did not.
    failures: u32,
    failure: Option<(LoginError, Instant)>,
    not_before: Option<Instant>,
    used: Instant,
}

/// The shared connections of one user, database and version of the protocol.
pub struct Pool {
    pub(crate) key: PoolKey,
    pub(crate) target: Arc<RedisUpstream>,
    home: Weak<Pools>,
    places: Mutex<Places<Box<Conn>>>,
    known: Mutex<Known>,
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

/// What a batch asks for.
#[derive(Clone, Debug)]
pub(crate) struct Want {
    pub(crate) who: Who,
    /// What it holds while it waits.
    pub(crate) bytes: usize,
    /// That of `redis_backpressure`, where the batch passes through it.
    pub(crate) pressure: Option<Arc<RedisBackpressure>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    fn new(
        key: PoolKey,
        target: Arc<RedisUpstream>,
        home: Weak<Pools>,
        settings: &Arc<RedisPool>,
    ) -> Arc<Self> {
        let room = Room { size: settings.size, limit: settings.size };
        let pool = Arc::new(Self {
            key,
            target,
            home,
            places: Mutex::new(Places::new(room)),
            known: Mutex::new(Known {
                settings: Arc::clone(settings),
                failures: 0,
                failure: None,
                not_before: None,
                used: Instant::now(),
            }),
            earlier: Notify::new(),
            news: Notify::new(),
        });
        drop(tokio::spawn(look_after(Arc::clone(&pool))));
        pool
    }

    /// The server, as configured.
    pub(crate) fn server(&self) -> &str {
        &self.key.server
    }

    pub(crate) fn settings(&self) -> Arc<RedisPool> {
        Arc::clone(&lock(&self.known).settings)
    }

    /// Takes over the settings of the present generation.
    fn set(&self, settings: &Arc<RedisPool>) {
        {
            let mut known = lock(&self.known);
            known.used = Instant::now();
            if Arc::ptr_eq(&known.settings, settings) {
                return;
            }
            known.settings = Arc::clone(settings);
        }
        let room = Room { size: settings.size, limit: settings.size };
        let surplus = lock(&self.places).set_room(room, Instant::now());
        surplus.iter().for_each(|_| closed("shrunk"));
    }

    /// A place and a connection for a batch.
    ///
    /// # Errors
    /// When there is none in time, or waiting for one is no use.
    pub(crate) async fn take(self: &Arc<Self>, want: Want) -> Result<Lease, FilterError> {
        let now = Instant::now();
        let pressure = want.pressure.as_ref();
        let discipline = pressure.map_or_else(|| plain(self.settings().wait.0), |with| with.discipline());
        let deadline = now + discipline.wait;
        let asked = lock(&self.places).ask(want.who, want.bytes, pressure.is_some(), discipline, now);
        let (place, connection) = match asked {
            Asked::Now(place, connection) => (place, connection),
            Asked::Refused(refusal, after) => return Err(shed(refusal, after)),
            Asked::Later(waiting, answer) => {
                self.earlier.notify_one();
                let mut guard = Guard { pool: self, waiting: Some(waiting), answer };
                let answer = (&mut guard.answer).await;
                guard.waiting = None;
                histogram!("qudag_sidecar_redis_queue_wait_seconds").record(now.elapsed().as_secs_f64());
                match answer {
                    Ok(Grant::Place(place, connection)) => (place, connection),
                    Ok(Grant::Refused(refusal, after)) => return Err(shed(refusal, after)),
                    Err(_) => return Err(FilterError::Draining),
                }
            }
        };
        let mut lease = Lease { pool: Arc::clone(self), place: Some(place), connection };
        while let Some(connection) = &mut lease.connection {
            if connection.is_quiet() {
                return Ok(lease);
            }
            closed("ended_idle");
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
            let news = self.news.notified();
            self.make_connections();
            let failure = lock(&self.known).failure.clone();
            // A server that refuses or cannot be reached now will not be there before the deadline, as a rule: an early error is
            // worth more than a late one.
            if let Some((failure, _)) = failure.filter(|(_, at)| *at >= begun) {
                return Err(unavailable(&failure));
            }
            tokio::select! {
                biased;
                connection = &mut coming.connection => {
                    lease.connection = connection.ok();
                    return if lease.connection.is_some() { Ok(()) } else { Err(FilterError::Draining) };
                }
                () = news => {}
                // Other pools may have given up connections.
                () = sleep(BACKOFF.min) => {}
                () = sleep_until(deadline.into()) => {
                    let failure = lock(&self.known).failure.clone();
                    let after = self.target.connect_timeout;
                    return Err(failure.map_or(FilterError::Timeout { after }, |(why, _)| unavailable(&why)));
                }
            }
        }
    }

    /// Makes as many connections as are wanted and may be made at a time.
    fn make_connections(self: &Arc<Self>) {
        let Some(home) = self.home.upgrade() else { return };
        loop {
            let now = Instant::now();
            if lock(&self.known).not_before.is_some_and(|time| now < time) {
                return;
            }
            if !lock(&self.places).wants_connection(PARALLEL) {
                return;
            }
            let Some(seat) = home.room(Some(self)) else {
                lock(&self.places).failed();
                return;
            };
            drop(tokio::spawn(Arc::clone(self).make_connection(seat)));
        }
    }

    async fn make_connection(self: Arc<Self>, seat: Seat) {
        match Conn::open(&self.target, &self.key, None, (seat, Of::Pool)).await {
            Ok(connection) => {
                self.connects();
                let surplus = lock(&self.places).connected(Box::new(connection), Instant::now());
                if surplus.is_some() {
                    closed("shrunk");
                }
                self.news.notify_waiters();
            }
            Err(error) => {
                lock(&self.places).failed();
                let wait = {
                    let mut known = lock(&self.known);
                    let wait = BACKOFF.limit(known.failures).mul_f64(0.5 + fastrand::f64() / 2.0);
                    if known.failures == 0 {
                        let why = error.error();
                        tracing::warn!(server = %self.key.server, error = %why, "cannot connect to Redis");
                    }
                    known.failures = known.failures.saturating_add(1);
                    known.not_before = Some(Instant::now() + wait);
                    known.failure = Some((error, Instant::now()));
                    wait
                };
                self.news.notify_waiters();
                sleep(wait).await;
                lock(&self.known).not_before = None;
            }
        }
        self.make_connections();
    }

    /// A connection could be made.
    fn connects(&self) {
        let mut known = lock(&self.known);
        known.failures = 0;
        known.failure = None;
        known.not_before = None;
    }

    /// Closes an idle connection in favour of another pool.
    fn give_up_idle(&self) -> bool {
        let mut first = true;
        let gone = lock(&self.places).take_idle(|_| std::mem::take(&mut first));
        gone.iter().for_each(|_| closed("other_pool"));
        !gone.is_empty()
    }

    /// Takes a place back, with its connection unless that was closed.
    fn put(self: &Arc<Self>, place: Place, connection: Option<Box<Conn>>) {
        let lost = connection.is_none();
        if lock(&self.places).release(place, connection, Instant::now()).is_some() {
            closed("shrunk");
        }
        if lost {
            self.make_connections();
        }
    }

    /// Closes connections that are too old, idle for too long, or dead. Whether the pool is not needed any more.
    fn look(self: &Arc<Self>, now: Instant) -> bool {
        let (settings, used) = {
            let known = lock(&self.known);
            (Arc::clone(&known.settings), known.used)
        };
        drop(lock(&self.places).take_idle(|connection| {
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
        }));
        let figures = lock(&self.places).figures();
        now.saturating_duration_since(used) > KEEP
            && figures.connections == 0
            && figures.running == 0
            && self.home.upgrade().is_none_or(|home| home.forget(self))
    }
}

/// Why a batch gets no connection.
fn unavailable(why: &LoginError) -> FilterError {
    let why = match why {
        LoginError::Failed(error) => error.to_string(),
        LoginError::Refused(why) => {
            let words = format!("by the server: {}", why.escape_ascii());
            // A user that the server does not let in is no failure of the server.
            let denied = ["NOAUTH", "WRONGPASS", "NOPERM", "NOPROTO"];
            if denied.iter().any(|code| why.starts_with(code.as_bytes())) {
                return FilterError::Refused(words.into());
            }
            format!("refused {words}")
        }
    };
    FilterError::Unavailable { why: why.into(), retry_after: BACKOFF.max }
}

fn shed(refusal: Refusal, retry_after: Duration) -> FilterError {
    counter!("qudag_sidecar_redis_sheds_total", "reason" => refusal.label()).increment(1);
    FilterError::Shed { why: refusal.label(), retry_after }
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
        if let Ok(Grant::Place(place, connection)) = self.answer.try_recv() {
            let now = Instant::now();
            match connection {
                Some(connection) => self.pool.put(place, Some(connection)),
                None => lock(&self.pool.places).release_hungry(place, now),
            }
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

/// A connection for a batch. The place is free again when it is given back or dropped; dropped, the connection is closed.
#[derive(Debug)]
pub struct Lease {
    pool: Arc<Pool>,
    place: Option<Place>,
    connection: Option<Box<Conn>>,
}

impl Lease {
    pub(crate) fn conn(&mut self) -> Option<&mut Conn> {
        self.connection.as_deref_mut()
    }

    /// All answers have come and there is no transaction.
    pub(crate) fn give_back(mut self) {
        let (Some(place), Some(mut connection)) = (self.place.take(), self.connection.take()) else { return };
        let now = Instant::now();
        connection.idle_since = now;
        if !connection.scan.is_between() {
            // Something has begun that is no answer to anything.
            closed("unknown");
            self.pool.put(place, None);
        } else if now.saturating_duration_since(connection.created) > self.pool.settings().server_lifetime.0 {
            closed("lifetime");
            self.pool.put(place, None);
        } else {
            self.pool.put(place, Some(connection));
        }
    }

    /// The connection becomes the session's own; the pool has room for another one.
    pub(crate) fn keep(mut self) -> Option<Box<Conn>> {
        let connection = self.connection.take();
        if let Some(place) = self.place.take() {
            self.pool.put(place, None);
        }
        connection
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        match (self.place.take(), self.connection.take()) {
            (Some(place), Some(_)) => {
                closed("abandoned");
                self.pool.put(place, None);
            }
            (Some(place), None) => lock(&self.pool.places).release_hungry(place, Instant::now()),
            _ => {}
        }
    }
}
