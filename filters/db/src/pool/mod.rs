//! Pooled sessions: many clients on few connections to the server.
//!
//! `places` decides who gets a server, and `desk` is what pools of every protocol do with that. `servers` is what is known of those of one
//! user and database; `connecting` makes connections, `taking` hands them out and takes them back clean, `upkeep` looks after them.
//! `startup` brings a client to its session, which `session` leads: it drives the machines of [`crate::session`] between two sockets, with
//! `telling` for what the sidecar says itself and `capture` for what the query cache learns. `console` answers the database
//! `qudag_sidecar`.

mod busy;
mod cancels;
mod capture;
pub(crate) mod conn;
mod connecting;
mod console;
pub(crate) mod desk;
pub(crate) mod places;
mod registry;
mod servers;
mod session;
mod settings;
mod startup;
mod taking;
mod tapped;
mod telling;
mod upkeep;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::{BufMut, BytesMut};
use qudag_filter_api::{Address, FlowKey, Lanes, Resolve};
use qudag_filter_common::{Stream, connect};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::asking::ProbeUser;
use crate::auth::{ClientTls, Identity};
use crate::query_cache::{Asked, Filling, QueryCacheState, Slot};
use crate::session::{Asks, Fingerprint, Texts};
use crate::startup::CANCEL_REQUEST;
use conn::CancelKey;
use desk::{Desk, Want, lock};

pub(crate) use cancels::Cancels;
use registry::Trace;
pub use registry::{ClientStatus, DbStatus, Doing, PoolStatus, ServerStatus, StatementStatus};
pub use servers::Pool;
pub(crate) use servers::PoolKey;
pub use settings::{Adaptive, DbBackpressure, DbPool, Mode, Pressure};
pub(crate) use settings::{above_zero, within};
pub(crate) use startup::{Access, Coming, pooled};
pub use taking::Lease;
pub use tapped::TRANSACTIONS;

/// How long a CancelRequest may take.
const CANCEL_TIME: Duration = Duration::from_secs(5);
/// How many statements of all pools are shown, and of one at least.
const STATEMENTS_SHOWN: usize = 10_000;
const LEAST_SHOWN: usize = 10;
/// The most pools.
const POOLS: usize = 10_000;

/// A server, and how it is reached.
pub(crate) struct Target {
    /// As a label.
    pub(crate) name: Arc<str>,
    pub(crate) address: Address,
    pub(crate) resolve: Arc<dyn Resolve>,
    pub(crate) tls: Arc<ClientTls>,
    /// For a connection with its login.
    pub(crate) connect_timeout: Duration,
    /// Who asks it what it is, where that is configured.
    pub(crate) probe: Option<Arc<ProbeUser>>,
    /// Whether it is a primary that another one has taken the place of: what it acknowledges is lost. Set by `read_replicas`.
    fenced: AtomicBool,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Target {
    pub(crate) fn new(
        address: Address,
        resolve: Arc<dyn Resolve>,
        tls: Arc<ClientTls>,
        connect_timeout: Duration,
        probe: Option<Arc<ProbeUser>>,
    ) -> Self {
        let name = address.to_string().into();
        Self { name, address, resolve, tls, connect_timeout, probe, fenced: AtomicBool::new(false) }
    }

    /// Another server of the same kind.
    pub(crate) fn beside(&self, address: Address) -> Self {
        let (resolve, tls) = (Arc::clone(&self.resolve), Arc::clone(&self.tls));
        Self::new(address, resolve, tls, self.connect_timeout, self.probe.clone())
    }

    /// Whether it is a primary that another one has taken the place of.
    pub(crate) fn is_fenced(&self) -> bool {
        self.fenced.load(Relaxed)
    }

    /// Whether this is new. See [`Pools::fenced`] for what has to follow.
    pub(crate) fn fence(&self, fenced: bool) -> bool {
        self.fenced.swap(fenced, Relaxed) != fenced
    }

    /// A new connection.
    pub(crate) async fn connect(&self) -> Result<Stream, qudag_filter_api::FilterError> {
        connect(&self.address, &*self.resolve, self.connect_timeout).await
    }

    /// Asks the server to cancel what the connection with this key does. Returns when the server has closed the connection of the
    /// request, by which its signal is sent; without an answer after a while.
    pub(crate) async fn cancel(&self, key: &CancelKey) {
        let mut packet = BytesMut::new();
        packet.put_u32(u32::try_from(12 + key.secret.len()).unwrap_or(u32::MAX));
        packet.put_u32(CANCEL_REQUEST);
        packet.put_u32(key.process);
        packet.put_slice(&key.secret);
        let request = async {
            let mut stream = self.connect().await.ok()?;
            stream.write_all(&packet).await.ok()?;
            stream.read_u8().await.ok()
        };
        let _ = timeout(CANCEL_TIME, request).await;
    }
}

/// A pooled session as its transactions know it.
#[derive(Debug)]
pub struct SessionInfo {
    /// The client; `None` for a Unix socket.
    pub client: Option<SocketAddr>,
    /// The flow, the same for the session and all its transactions.
    pub key: FlowKey,
    /// The pool of the user and database at the server that was the primary when the session began.
    pub pool: Arc<Pool>,
    /// What it prefers by its start-up.
    pub(crate) prefers: Prefers,
    /// Decides which of several replicas it reads from.
    pub(crate) seed: u64,
    /// Pools of the user and database at other servers, as far as it has used them.
    others: Mutex<Vec<Arc<Pool>>>,
    /// Wakes it up, for the reason that is said.
    orders: mpsc::UnboundedSender<session::Order>,
    /// What the client calls itself.
    pub(crate) application: String,
    pub(crate) tls: bool,
    pub(crate) trace: Trace,
}

/// The most pools at other servers that a session remembers.
const OTHERS: usize = 64;

/// Where a session wants its transactions to be carried out that say nothing of it themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Prefers {
    /// As it is configured.
    #[default]
    Any,
    Primary,
    Replica,
}

impl SessionInfo {
    /// The pool of its user and database at a server.
    pub(crate) fn pool_at(&self, target: &Arc<Target>) -> Option<Arc<Pool>> {
        if *self.pool.key.server == *target.name {
            return Some(Arc::clone(&self.pool));
        }
        let mut others = lock(&self.others);
        if let Some(pool) = others.iter().find(|pool| *pool.key.server == *target.name) {
            return Some(Arc::clone(pool));
        }
        let pool = self.pool.at(target)?;
        if others.len() >= OTHERS {
            others.clear();
        }
        others.push(Arc::clone(&pool));
        Some(pool)
    }

    fn status(&self, now: Instant) -> ClientStatus {
        let (since, age) = self.trace.times(now);
        ClientStatus {
            client: self.client,
            application: self.application.clone(),
            doing: self.trace.doing(),
            since,
            age,
            transactions: self.trace.transactions.load(Relaxed),
            pinned: self.trace.pinned.load(Relaxed),
            tls: self.tls,
        }
    }
}

/// A server is wanted for a transaction of a pooled session.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// Whose.
    pub session: Arc<SessionInfo>,
    /// How many bytes of it are there.
    pub bytes: usize,
    /// What it begins with.
    pub statement: Fingerprint,
    /// Whether the session has a server of its own, which it got while `db_pool` was off.
    pub own: bool,
    /// Where it wants to be carried out.
    pub asks: Asks,
    /// When the session's last transaction ended that may have written.
    pub wrote: Option<Instant>,
    /// When the session's last transaction ended that has changed something by its command tags.
    pub changed: Option<Instant>,
    /// Its only batch, where a rule of `db_query_cache` names it.
    pub asked: Option<Asked>,
    /// Set by `db_query_cache`: the reply is to be kept.
    pub filling: Option<Arc<Filling>>,
    /// Set by `read_replicas`.
    pub(crate) route: Option<Route>,
    /// Set by `db_backpressure`.
    pub pressure: Option<Arc<Pressure>>,
}

/// Where a transaction is carried out.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) pool: Arc<Pool>,
    /// Whether it only reads.
    pub(crate) reads: bool,
}

impl Transaction {
    /// The pool that it gets its server from.
    pub(crate) fn pool(&self) -> &Arc<Pool> {
        self.route.as_ref().map_or(&self.session.pool, |route| &route.pool)
    }

    /// What it asks of a pool.
    pub(crate) fn want(&self) -> Want {
        Want {
            who: self.session.client.map(|client| client.ip()),
            bytes: self.bytes,
            pressure: self.pressure.clone(),
        }
    }
}

/// A user and a database.
type Owner = (Box<[u8]>, Box<[u8]>);

/// All pools.
pub struct Pools {
    lanes: Lanes,
    pools: Mutex<HashMap<PoolKey, Arc<Pool>>>,
    /// The statements of each user and database, which have one number at all servers.
    texts: Mutex<HashMap<Owner, Weak<Mutex<Texts>>>>,
    /// All connections, and how many there may be.
    connections: AtomicUsize,
    most: AtomicUsize,
    /// Those of the present generation, as far as a session has passed through it.
    settings: ArcSwap<DbPool>,
    /// Databases that are paused, also for pools to come; `None` is all of them.
    paused: Mutex<HashSet<Option<String>>>,
    /// That of `db_query_cache`, while it is on.
    cache: Arc<Slot>,
    /// Pools that want a connection more than there may be.
    blocked: Mutex<Vec<Arc<Pool>>>,
    any_blocked: AtomicBool,
}

impl fmt::Debug for Pools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pools").field("connections", &self.connections).finish_non_exhaustive()
    }
}

impl Pools {
    pub(crate) fn new(lanes: Lanes) -> Arc<Self> {
        Arc::new(Self {
            lanes,
            pools: Mutex::default(),
            texts: Mutex::default(),
            connections: AtomicUsize::new(0),
            most: AtomicUsize::new(DbPool::default().max_servers),
            settings: ArcSwap::default(),
            paused: Mutex::default(),
            cache: Arc::default(),
            blocked: Mutex::default(),
            any_blocked: AtomicBool::new(false),
        })
    }

    fn all(&self) -> Vec<Arc<Pool>> {
        lock(&self.pools).values().cloned().collect()
    }

    /// The pool of a user and database, into which a client was let with `identity`; `None` when there are too many pools.
    pub(crate) fn pool(
        self: &Arc<Self>,
        key: &PoolKey,
        target: &Arc<Target>,
        settings: &Arc<DbPool>,
        identity: Identity,
    ) -> Option<Arc<Pool>> {
        let pool = {
            let mut pools = lock(&self.pools);
            match pools.get(key) {
                Some(pool) => Arc::clone(pool),
                None if pools.len() >= POOLS => return None,
                None => {
                    let name = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
                    let lane = self.lanes.named(&format!(
                        "db {} {} {}",
                        key.server,
                        name(&key.user),
                        name(&key.database)
                    ));
                    let pool = Pool::new(
                        key.clone(),
                        Arc::clone(target),
                        self,
                        lane,
                        Arc::clone(settings),
                        self.texts(key, settings.statements),
                        identity.clone(),
                    );
                    let paused = self.paused();
                    if paused.contains(&None) || paused.contains(&Some(name(&key.database))) {
                        pool.pause();
                    }
                    pools.insert(key.clone(), Arc::clone(&pool));
                    pool
                }
            }
        };
        pool.identify(identity);
        self.apply(&pool, settings);
        Some(pool)
    }

    /// The statements of a user and database. They are kept as long as there is a pool of it, at whatever server: a client's statement
    /// goes to all of them under one name.
    fn texts(&self, key: &PoolKey, most: usize) -> Arc<Mutex<Texts>> {
        let owner = (key.user.clone(), key.database.clone());
        let mut all = lock(&self.texts);
        if let Some(texts) = all.get(&owner).and_then(Weak::upgrade) {
            return texts;
        }
        all.retain(|_, texts| texts.strong_count() > 0);
        let texts = Arc::new(Mutex::new(Texts::new(most)));
        all.insert(owner, Arc::downgrade(&texts));
        texts
    }

    /// All pools as they are shown.
    pub fn status(&self) -> DbStatus {
        let mut pools: Vec<_> = self.all().iter().map(|pool| pool.status()).collect();
        pools.sort_by(|a, b| (&a.server, &a.database, &a.user).cmp(&(&b.server, &b.database, &b.user)));
        let most = (STATEMENTS_SHOWN / pools.len().max(1)).max(LEAST_SHOWN);
        for pool in &mut pools {
            pool.statements.truncate(most);
        }
        DbStatus { servers: self.connections.load(Relaxed), max_servers: self.most.load(Relaxed), pools }
    }

    /// How many transactions wait for connections to a server.
    pub(crate) fn waiting(&self, server: &str) -> usize {
        let of = self.all().into_iter().filter(|pool| &*pool.key.server == server);
        of.map(|pool| pool.figures().waiting).sum()
    }

    fn paused(&self) -> MutexGuard<'_, HashSet<Option<String>>> {
        lock(&self.paused)
    }

    /// Holds transactions back, of one database or of all, also in pools to come; those under way go on. Returns how many pools there are
    /// of it; a database that has none is not paused.
    pub fn pause(&self, database: Option<&str>) -> usize {
        let found = self.each(database, |pool| pool.pause());
        if found > 0 || database.is_none() {
            self.paused().insert(database.map(str::to_owned));
        }
        found
    }

    /// A server was fenced: sessions that have one of its connections end, and no other connection is used again.
    pub(crate) fn fenced(&self, server: &str) {
        for pool in self.all() {
            if &*pool.key.server == server {
                pool.close_idle("old_primary");
            }
            // Wherever a session belongs, it may be a guest there.
            for session in pool.sessions.all() {
                // Whoever has gone needs no telling.
                let _ = session.orders.send(session::Order::Look);
            }
        }
    }

    /// Lets transactions go on.
    pub fn resume(&self, database: Option<&str>) -> usize {
        match database {
            None => self.paused().clear(),
            Some(name) => drop(self.paused().remove(&Some(name.to_owned()))),
        }
        self.each(database, |pool| pool.resume())
    }

    fn each(&self, database: Option<&str>, work: impl Fn(&Arc<Pool>)) -> usize {
        let of = |pool: &&Arc<Pool>| database.is_none_or(|name| name.as_bytes() == &*pool.key.database);
        let pools = self.all();
        pools.iter().filter(of).map(work).count()
    }

    /// The settings of the present generation.
    pub(crate) fn apply(&self, pool: &Pool, settings: &Arc<DbPool>) {
        pool.set(settings);
        if !Arc::ptr_eq(&self.settings.load(), settings) {
            self.settings.store(Arc::clone(settings));
            self.most.store(settings.max_servers, Relaxed);
        }
    }

    fn settings(&self) -> Arc<DbPool> {
        self.settings.load_full()
    }

    /// The query cache, while sessions use one.
    pub fn cache(&self) -> Option<Arc<QueryCacheState>> {
        self.cache.get()
    }

    /// Whether there may be one more connection, which counts from here on; otherwise the pool is woken up when there may.
    fn may_connect(&self, pool: &Arc<Pool>) -> bool {
        let most = self.most.load(Relaxed);
        let counted = self.connections.fetch_update(Relaxed, Relaxed, |now| (now < most).then_some(now + 1));
        if counted.is_ok() {
            return true;
        }
        {
            let mut blocked = lock(&self.blocked);
            if !blocked.iter().any(|known| Arc::ptr_eq(known, pool)) {
                blocked.push(Arc::clone(pool));
            }
            self.any_blocked.store(true, Relaxed);
        }
        for other in self.all() {
            if !Arc::ptr_eq(&other, pool) && other.give_up_idle() {
                break;
            }
        }
        false
    }

    fn disconnected(&self) {
        self.connections.fetch_sub(1, Relaxed);
        if self.any_blocked.swap(false, Relaxed) {
            let blocked = std::mem::take(&mut *lock(&self.blocked));
            for pool in blocked {
                // On its own lane, since this may be within the turn of another pool.
                let lane = pool.lane.handle();
                drop(lane.spawn(async move { pool.make_connections() }));
            }
        }
    }

    /// A connection of `pool` has come back: it is closed when another pool needs it more.
    fn share(&self, pool: &Arc<Pool>) {
        if self.any_blocked.load(Relaxed) {
            pool.give_up_idle();
        }
    }

    /// A pool without sessions and connections goes; `false` when it has a session again.
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
