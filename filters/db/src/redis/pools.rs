//! All pools: which there are, how many connections there may be of all together, and which are paused.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use arc_swap::ArcSwap;
use qudag_filter_api::FilterError;
use qudag_filter_common::{Seat, Seats};
use serde::Serialize;

use super::conn::{Conn, LoginError, Of};
use super::credentials::Credentials;
use super::filters::RedisPool;
use super::pool::{Pool, RedisPoolStatus};
use super::settings::RedisUpstream;
use crate::pool::desk::{Desk, lock};

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

/// All pools, as they are shown.
#[derive(Clone, Debug, Serialize)]
pub struct RedisStatus {
    /// Shared connections to servers, and the most that there may be.
    pub servers: usize,
    /// `max_servers`.
    pub max_servers: usize,
    /// Sessions with a connection of their own, and the most that there may be.
    pub own: usize,
    /// `max_own`.
    pub max_own: usize,
    /// The pools.
    pub pools: Vec<RedisPoolStatus>,
}

/// All pools.
#[derive(Debug)]
pub struct Pools {
    pools: Mutex<HashMap<PoolKey, Arc<Pool>>>,
    /// Shared connections, those of sessions, and logins under way.
    shared: Seats,
    own: Seats,
    /// Those of the present generation, as far as a session or a batch has passed through it.
    settings: ArcSwap<RedisPool>,
    /// Databases that are paused, also for pools to come; `None` is all of them.
    paused: Mutex<HashSet<Option<u32>>>,
}

impl Pools {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            pools: Mutex::default(),
            shared: Seats::default(),
            own: Seats::default(),
            settings: ArcSwap::default(),
            paused: Mutex::default(),
        })
    }

    /// The pool of a key; `None` when there are too many pools.
    pub(crate) fn pool(self: &Arc<Self>, key: &PoolKey, target: &Arc<RedisUpstream>) -> Option<Arc<Pool>> {
        let settings = self.settings();
        let mut pools = lock(&self.pools);
        if let Some(pool) = pools.get(key) {
            pool.wanted();
            return Some(Arc::clone(pool));
        }
        if pools.len() >= POOLS {
            return None;
        }
        let pool = Pool::new(key.clone(), Arc::clone(target), Arc::downgrade(self), settings);
        let paused = lock(&self.paused);
        if paused.contains(&None) || paused.contains(&Some(key.database)) {
            pool.pause();
        }
        pools.insert(key.clone(), Arc::clone(&pool));
        Some(pool)
    }

    /// Whether connections of this key have been made and could be made last.
    pub(crate) fn knows(&self, key: &PoolKey) -> bool {
        let pool = lock(&self.pools).get(key).cloned();
        pool.is_some_and(|pool| pool.figures().connections > 0)
    }

    /// The settings of the present generation.
    pub(crate) fn settings(&self) -> Arc<RedisPool> {
        self.settings.load_full()
    }

    /// A session or a batch has passed through a generation with these settings.
    pub(crate) fn set(&self, settings: &Arc<RedisPool>) {
        if !Arc::ptr_eq(&self.settings.load(), settings) {
            self.settings.store(Arc::clone(settings));
        }
    }

    /// Makes a connection now, to see whether the server lets this key in. It is kept where there is room for it.
    ///
    /// # Errors
    /// What the server says, or why it cannot be asked.
    pub(crate) async fn try_out(
        self: &Arc<Self>,
        key: &PoolKey,
        target: &Arc<RedisUpstream>,
    ) -> Result<Arc<Pool>, LoginError> {
        let too_many = || FilterError::Overloaded("too many connections".into());
        let seat = self.room(None).ok_or_else(too_many)?;
        let connection = Conn::open(target, key, None, (seat, Of::Pool)).await?;
        // No pool before the server has agreed: wrong passwords leave nothing behind.
        let pool = self.pool(key, target).ok_or_else(too_many)?;
        pool.adopt(connection, Instant::now());
        Ok(pool)
    }

    /// Room for one more shared connection, made by closing an idle one of another pool if need be.
    pub(super) fn room(&self, wants: Option<&Pool>) -> Option<Seat> {
        let most = self.settings.load().max_servers;
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
    ) -> Result<Conn, LoginError> {
        let seat = self.own_seat()?;
        Conn::open(target, key, name, (seat, Of::Session)).await
    }

    /// Room for one more session with a connection of its own.
    pub(crate) fn own_seat(&self) -> Result<Seat, FilterError> {
        self.own
            .take(self.settings.load().max_own)
            .ok_or(FilterError::Overloaded("too many sessions with a connection of their own".into()))
    }

    /// A pool that nobody needs goes; `false` when somebody does.
    pub(super) fn forget(&self, pool: &Arc<Pool>) -> bool {
        let mut pools = lock(&self.pools);
        // This map, and the task that looks after it.
        if Arc::strong_count(pool) > 2 {
            return false;
        }
        pools.remove(&pool.key);
        true
    }

    /// All pools as they are shown.
    pub fn status(&self) -> RedisStatus {
        let settings = self.settings();
        let all: Vec<_> = lock(&self.pools).values().cloned().collect();
        let mut pools: Vec<_> = all.iter().map(|pool| pool.status()).collect();
        pools.sort_by(|a, b| {
            (&a.server, a.database, &a.user, a.protocol).cmp(&(&b.server, b.database, &b.user, b.protocol))
        });
        RedisStatus {
            servers: self.shared.taken(),
            max_servers: settings.max_servers,
            own: self.own.taken(),
            max_own: settings.max_own,
            pools,
        }
    }

    /// Holds batches back, of one database or of all, also in pools to come; those under way and transactions go on. Returns how many pools
    /// there are of it; a database that has none is not paused.
    pub fn pause(&self, database: Option<u32>) -> usize {
        // In this order everywhere, so that no pool is made between the two.
        let pools = lock(&self.pools);
        let found = each(&pools, database).map(|pool| pool.pause()).count();
        if found > 0 || database.is_none() {
            lock(&self.paused).insert(database);
        }
        found
    }

    /// Lets batches go on.
    pub fn resume(&self, database: Option<u32>) -> usize {
        let found: Vec<_> = {
            let pools = lock(&self.pools);
            match database {
                None => lock(&self.paused).clear(),
                Some(_) => drop(lock(&self.paused).remove(&database)),
            }
            each(&pools, database).cloned().collect()
        };
        // Connections may be made now, for which the other pools are looked at.
        found.iter().map(Pool::resume).count()
    }
}

/// The pools of one database, or all.
fn each(pools: &HashMap<PoolKey, Arc<Pool>>, database: Option<u32>) -> impl Iterator<Item = &Arc<Pool>> {
    pools.values().filter(move |pool| database.is_none_or(|database| pool.key.database == database))
}
