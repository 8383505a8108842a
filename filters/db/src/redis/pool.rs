//! The shared connections of one user, database and version of the protocol: making them, looking after them, showing them.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use metrics::{counter, gauge, histogram};
use qudag_core::limit::Limit;
use qudag_core::queue::Refusal;
use qudag_filter_common::Seat;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::conn::{Conn, LoginError, Of, closed};
use super::filters::RedisPool;
use super::machine::{Done, Like};
use super::pools::{PoolKey, Pools};
use super::settings::RedisUpstream;
use crate::pool::Pressure;
use crate::pool::desk::{Attempts, Desk, PARALLEL, lock, look_after};
use crate::pool::places::{Figures, Places, Room, Seat as Place};

/// How long a pool without connections is kept that no session has.
const KEEP: Duration = Duration::from_secs(10);

/// A pool, as it is shown.
#[derive(Clone, Debug, Serialize)]
pub struct RedisPoolStatus {
    /// The server, as configured.
    pub server: String,
    /// The user; `default` where the clients or the sidecar have named none.
    pub user: String,
    /// The number of the database.
    pub database: u32,
    /// The version of the protocol: 2 or 3.
    pub protocol: u8,
    /// The most connections.
    pub size: usize,
    /// The most batches under `redis_backpressure` at a time.
    pub limit: usize,
    /// What the adaptive limit would be, or is.
    pub adaptive_limit: usize,
    /// Batches and transactions under way.
    pub active: usize,
    /// Connections that are in no use.
    pub idle: usize,
    /// Connections that are being made.
    pub connecting: usize,
    /// Batches that wait for a connection.
    pub waiting: usize,
    /// How long the oldest of them has waited, in seconds.
    pub oldest_wait: f64,
    /// Whether batches are held back.
    pub paused: bool,
    /// How many batches were carried out, and how many commands there were in them.
    pub batches: u64,
    /// See `batches`.
    pub commands: u64,
    /// How long connections were busy with them, in seconds.
    pub busy: f64,
    /// Why no connection can be made; `null` when one can.
    pub error: Option<String>,
}

/// What a pool's connections have done.
#[derive(Debug, Default)]
struct Work {
    batches: AtomicU64,
    commands: AtomicU64,
    /// In microseconds.
    busy: AtomicU64,
}

/// What changes seldom, beside the places.
#[derive(Debug)]
struct Known {
    settings: Arc<RedisPool>,
    attempts: Attempts<(LoginError, Instant)>,
    limit: Limit<Like>,
    used: Instant,
    shown: Shown,
}

/// What the gauges say of the pool. Others may have the same labels, where users have changed their passwords.
#[derive(Clone, Copy, Debug, Default)]
struct Shown {
    active: usize,
    idle: usize,
    connecting: usize,
    waiting: usize,
}

/// The shared connections of one user, database and version of the protocol.
pub struct Pool {
    pub(crate) key: PoolKey,
    pub(crate) target: Arc<RedisUpstream>,
    home: Weak<Pools>,
    pub(super) places: Mutex<Places<Box<Conn>>>,
    known: Mutex<Known>,
    work: Work,
    earlier: Notify,
    /// A connection was made or could not be made.
    pub(super) news: Notify,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("key", &self.key).finish_non_exhaustive()
    }
}

impl Pool {
    pub(super) fn new(
        key: PoolKey,
        target: Arc<RedisUpstream>,
        home: Weak<Pools>,
        settings: Arc<RedisPool>,
    ) -> Arc<Self> {
        let room = Room { size: settings.size, limit: settings.size };
        let known = Known {
            settings,
            attempts: Attempts::default(),
            limit: Limit::default(),
            used: Instant::now(),
            shown: Shown::default(),
        };
        let pool = Arc::new(Self {
            key,
            target,
            home,
            places: Mutex::new(Places::new(room)),
            known: Mutex::new(known),
            work: Work::default(),
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

    /// Somebody wants it.
    pub(super) fn wanted(&self) {
        lock(&self.known).used = Instant::now();
    }

    /// Takes over the settings of the present generation.
    pub(crate) fn set(&self, settings: &Arc<RedisPool>) {
        {
            let mut known = lock(&self.known);
            known.used = Instant::now();
            if Arc::ptr_eq(&known.settings, settings) {
                return;
            }
            known.settings = Arc::clone(settings);
        }
        self.set_room(Room { size: settings.size, limit: settings.size });
    }

    /// Why the last attempt to connect failed, and when.
    pub(super) fn failure(&self) -> Option<(LoginError, Instant)> {
        lock(&self.known).attempts.failure().cloned()
    }

    /// Makes as many connections as are wanted and may be made at a time.
    pub(super) fn make_connections(self: &Arc<Self>) {
        let Some(home) = self.home.upgrade() else { return };
        loop {
            if !lock(&self.known).attempts.may(Instant::now())
                || !lock(&self.places).wants_connection(PARALLEL)
            {
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
                lock(&self.known).attempts.made();
                if lock(&self.places).connected(Box::new(connection), Instant::now()).is_some() {
                    closed("shrunk");
                }
                self.news.notify_waiters();
            }
            Err(error) => {
                lock(&self.places).failed();
                let why = error.error();
                let (wait, first) = {
                    let mut known = lock(&self.known);
                    if error.is_too_much() {
                        let settings = Pressure::default().limit(known.settings.size);
                        known.limit.too_much(&settings, Instant::now());
                    }
                    let now = Instant::now();
                    known.attempts.fail((error, now), now)
                };
                if first {
                    tracing::warn!(server = %self.key.server, error = %why, "cannot connect to Redis");
                }
                self.news.notify_waiters();
                sleep(wait).await;
                lock(&self.known).attempts.waited();
            }
        }
        self.make_connections();
    }

    /// Keeps a connection that was made to see whether the server lets the user in, where there is room for it.
    pub(super) fn adopt(&self, connection: Conn, now: Instant) {
        lock(&self.known).attempts.made();
        if lock(&self.places).adopt(Box::new(connection), now).is_some() {
            closed("surplus");
        }
    }

    /// A batch has kept its connection busy for so long.
    pub(super) fn took(&self, done: Done, busy: Duration, pressure: Option<&Pressure>) {
        self.work.batches.fetch_add(1, Relaxed);
        self.work.commands.fetch_add(done.commands as u64, Relaxed);
        self.work.busy.fetch_add(u64::try_from(busy.as_micros()).unwrap_or(u64::MAX), Relaxed);
        let Some(pressure) = pressure.filter(|_| !done.failed) else { return };
        let running = lock(&self.places).running();
        let room = {
            let mut known = lock(&self.known);
            let settings = pressure.limit(known.settings.size);
            known.limit.took(done.like, busy, running, &settings, Instant::now());
            pressure.room(known.settings.size, &known.limit)
        };
        self.set_room(room);
    }

    pub(super) fn resume(self: &Arc<Self>) {
        lock(&self.places).resume(Instant::now());
        self.make_connections();
    }

    pub(super) fn user(&self) -> String {
        let user = self.key.credentials.as_ref().and_then(|known| known.user.as_deref());
        user.map_or_else(|| "default".to_owned(), |user| String::from_utf8_lossy(user).into_owned())
    }

    fn protocol(&self) -> u8 {
        if self.key.resp3 { 3 } else { 2 }
    }

    /// The pool as it is shown.
    pub(super) fn status(&self) -> RedisPoolStatus {
        let now = Instant::now();
        let figures = self.figures();
        let Figures { size, limit, connecting, idle, running, waiting, paused, .. } = figures;
        let (adaptive, error) = {
            let known = lock(&self.known);
            let adaptive = known.limit.get(&Pressure::default().limit(known.settings.size));
            (adaptive, known.attempts.failure().map(|(why, _)| why.error().to_string()))
        };
        RedisPoolStatus {
            server: self.key.server.to_string(),
            user: self.user(),
            database: self.key.database,
            protocol: self.protocol(),
            size,
            limit,
            adaptive_limit: adaptive,
            active: running,
            idle,
            connecting,
            waiting,
            oldest_wait: figures.oldest_wait(now),
            paused,
            batches: self.work.batches.load(Relaxed),
            commands: self.work.commands.load(Relaxed),
            busy: self.work.busy.load(Relaxed) as f64 / 1e6,
            error,
        }
    }

    /// Sets the gauges of the pool.
    fn show(&self, figures: &Figures, now: Instant) {
        let shown = Shown {
            active: figures.in_use(),
            idle: figures.idle,
            connecting: figures.connecting,
            waiting: figures.waiting,
        };
        let (before, size, limit) = {
            let mut known = lock(&self.known);
            let size = known.settings.size;
            let limit = known.limit.get(&Pressure::default().limit(size));
            (std::mem::replace(&mut known.shown, shown), size, limit)
        };
        let labels = [
            ("database", self.key.database.to_string()),
            ("user", self.user()),
            ("protocol", self.protocol().to_string()),
        ];
        let of = |state: &str| [&labels[..], &[("state", state.to_owned())]].concat();
        for (state, was, is) in [
            ("active", before.active, shown.active),
            ("idle", before.idle, shown.idle),
            ("connecting", before.connecting, shown.connecting),
        ] {
            gauge!("qudag_sidecar_redis_pool_servers", &of(state)).increment(is as f64 - was as f64);
        }
        gauge!("qudag_sidecar_redis_pool_size", &labels).set(size as f64);
        gauge!("qudag_sidecar_redis_pool_limit", &labels).set(limit as f64);
        gauge!("qudag_sidecar_redis_queue_depth", &labels)
            .increment(shown.waiting as f64 - before.waiting as f64);
        if shown.waiting + before.waiting > 0 {
            gauge!("qudag_sidecar_redis_queue_oldest_seconds", &labels).set(figures.oldest_wait(now));
        }
    }
}

impl Desk for Pool {
    type Conn = Conn;

    fn places(&self) -> &Mutex<Places<Box<Conn>>> {
        &self.places
    }

    fn earlier(&self) -> &Notify {
        &self.earlier
    }

    fn closed(&self, reason: &'static str) {
        closed(reason);
    }

    fn put(self: &Arc<Self>, place: Place, connection: Option<Box<Conn>>, now: Instant) {
        let lost = connection.is_none();
        if lock(&self.places).release(place, connection, now).is_some() {
            closed("shrunk");
        }
        if lost {
            self.make_connections();
        }
    }

    fn look(self: &Arc<Self>, now: Instant) -> bool {
        let (ages, used) = {
            let known = lock(&self.known);
            (known.settings.ages(), known.used)
        };
        self.close_outlived(ages, now);
        let figures = self.figures();
        self.show(&figures, now);
        now.saturating_duration_since(used) > KEEP
            && figures.connections == 0
            && figures.running == 0
            && self.home.upgrade().is_none_or(|home| home.forget(self))
    }

    fn shed(&self, why: Refusal) {
        counter!("qudag_sidecar_redis_sheds_total", "reason" => why.label()).increment(1);
    }

    fn waited(&self, time: Duration) {
        histogram!("qudag_sidecar_redis_queue_wait_seconds").record(time.as_secs_f64());
    }
}
