//! The connections to other sidecars.

mod dial;
mod meters;
pub mod rules;
mod status;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use qudag_filter_api::{HostPort, Lane, Lanes, Resolve};
use quinn::{Connection, Endpoint, VarInt};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::exchange::Exchange;
use crate::identity::{Identity, PeerName};
use crate::tunnel::header::Class;
use crate::tunnel::transport::Choices;
use crate::tunnel::{Failure, OpenLimits};
use meters::Meters;
use rules::{Choice, Id, Limits, Refusal, Rules, Sample, Work};

pub use status::{ConnectionStatus, PoolStatus};

/// How often a pool looks after its connections.
const TICK: Duration = Duration::from_secs(1);
/// The code of a connection that is closed because nobody needs it.
const DONE: VarInt = VarInt::from_u32(0);

/// Where a pool's connections lead, and how they are made. Of the generation that asked last.
#[derive(Clone)]
pub(crate) struct Target {
    /// Where the other sidecar listens. Names are resolved at each dial.
    pub(crate) to: Vec<HostPort>,
    pub(crate) identity: Arc<Identity>,
    pub(crate) resolve: Arc<dyn Resolve>,
    pub(crate) exchange: Arc<Exchange>,
    pub(crate) settings: Settings,
    /// What packets are marked with.
    pub(crate) mark: Option<u32>,
    pub(crate) lanes: Lanes,
}

/// What can be chosen of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) limits: Limits,
    pub(crate) opening: OpenLimits,
    /// For one dial, the handshake and all addresses included.
    pub(crate) dial: Duration,
    pub(crate) transport: Choices,
}

/// All pools.
#[derive(Default)]
pub(crate) struct Pools(Mutex<BTreeMap<(PeerName, Class), Arc<PeerPool>>>);

impl Pools {
    /// The pool of a peer and a class, with its target as it is now.
    pub(crate) fn pool(self: &Arc<Self>, name: &PeerName, class: Class, target: Target) -> Arc<PeerPool> {
        let pool = {
            let mut pools = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let home = Arc::downgrade(self);
            let new = || Arc::new(PeerPool::new(name.clone(), class, target.clone(), home));
            Arc::clone(pools.entry((name.clone(), class)).or_insert_with(new))
        };
        pool.aim(target);
        pool
    }

    /// Forgets a pool that nobody wants and that has no connection any more. Returns whether it is forgotten.
    fn retire(&self, pool: &Arc<PeerPool>) -> bool {
        let mut pools = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Two: the caller, and this list. Others would be left with a pool that the list does not know.
        let unused = Arc::strong_count(pool) == 2 && pool.lock().is_idle(Instant::now());
        if unused {
            pools.remove(&(pool.name.clone(), pool.class));
        }
        unused
    }

    /// What is known of every pool.
    pub(crate) fn statuses(&self) -> Vec<PoolStatus> {
        let pools: Vec<_> = self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        pools.iter().map(|pool| pool.status()).collect()
    }
}

/// The lane of a pool and of the clients whose streams it carries.
pub(crate) fn lane(lanes: &Lanes, name: &PeerName, class: Class) -> Arc<Lane> {
    lanes.named(&format!("{} {name}", class.label()))
}

/// The connections to one peer for one class of streams.
pub(crate) struct PeerPool {
    name: PeerName,
    class: Class,
    /// Where its connections are driven.
    lane: Arc<Lane>,
    inner: Mutex<Inner>,
    /// A connection came or went, or a stream ended.
    changed: Notify,
    meters: Meters,
    home: Weak<Pools>,
}

struct Inner {
    rules: Rules,
    links: HashMap<Id, Link>,
    target: Target,
    /// The change of the identity that the connections are made with.
    identity: u64,
    /// Somebody looks after the connections.
    tended: bool,
    /// Why the last dial failed.
    last: Option<&'static str>,
}

impl Inner {
    /// Nobody wants connections, and there are none.
    fn is_idle(&self, now: Instant) -> bool {
        !self.rules.is_wanted(now.into_std()) && self.links.is_empty() && !self.rules.is_dialling()
    }
}

/// A connection, with a socket of its own.
struct Link {
    connection: Connection,
    /// Drives the socket.
    _endpoint: Endpoint,
    since: Instant,
    /// What the meters have been told.
    told: Sample,
}

fn sample(connection: &Connection) -> Sample {
    let stats = connection.stats();
    Sample {
        rtt: stats.path.rtt,
        sent: stats.path.sent_packets,
        lost: stats.path.lost_packets,
        black_holes: stats.path.black_holes_detected,
        heard: stats.udp_rx.datagrams,
    }
}

/// A connection changes its certificates with the identity: which one that is.
fn version(identity: &Identity) -> u64 {
    *identity.changes().borrow()
}

impl PeerPool {
    fn new(name: PeerName, class: Class, target: Target, home: Weak<Pools>) -> Self {
        let meters = Meters::new(&name, class);
        let lane = lane(&target.lanes, &name, class);
        let inner = Inner {
            rules: Rules::new(Instant::now().into_std()),
            links: HashMap::new(),
            identity: version(&target.identity),
            target,
            tended: false,
            last: None,
        };
        Self { name, class, lane, inner: Mutex::new(inner), changed: Notify::new(), meters, home }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The peer's name.
    pub(crate) fn name(&self) -> &PeerName {
        &self.name
    }

    /// Takes the settings of a generation over.
    fn aim(&self, target: Target) {
        let mut inner = self.lock();
        let other = inner.target.to != target.to
            || !Arc::ptr_eq(&inner.target.identity, &target.identity)
            || inner.target.settings.transport != target.settings.transport
            || inner.target.mark != target.mark;
        if other {
            inner.identity = version(&target.identity);
            inner.rules.outdate();
        }
        inner.target = target;
    }

    /// Says that streams may come: connections are made and kept for a while.
    pub(crate) fn want(self: &Arc<Self>) {
        let now = Instant::now();
        let mut inner = self.lock();
        inner.rules.want(now.into_std());
        self.work(&mut inner, now);
    }

    /// Does what the rules say, now and every second.
    fn work(self: &Arc<Self>, inner: &mut Inner, now: Instant) {
        let Work { close, dial } = inner.rules.tend(&inner.target.settings.limits, now.into_std());
        for id in close {
            if let Some(link) = inner.links.remove(&id) {
                link.connection.close(DONE, b"");
            }
        }
        if let Some(dial) = dial {
            self.lane.handle().spawn(dial::dial(Arc::clone(self), inner.target.clone(), dial));
        }
        if !inner.tended {
            inner.tended = true;
            self.lane.handle().spawn(tend(Arc::downgrade(self)));
        }
    }

    /// Looks at every connection. Returns whether there is nothing more to look after.
    fn tick(self: &Arc<Self>) -> bool {
        let now = Instant::now();
        let mut inner = self.lock();
        let current = version(&inner.target.identity);
        if inner.identity != current {
            inner.identity = current;
            inner.rules.outdate();
        }
        let Inner { rules, links, .. } = &mut *inner;
        for (id, link) in links.iter_mut() {
            let sample = sample(&link.connection);
            rules.sampled(*id, sample, now.into_std());
            self.meters.count(&link.told, &sample);
            link.told = sample;
        }
        self.work(&mut inner, now);
        self.meters.show(&inner);
        inner.is_idle(now)
    }

    /// A connection for a stream, where it has its place until the answer is dropped. `patient` streams wait while the peer is probed.
    ///
    /// # Errors
    /// When there is none within `patience`.
    pub(crate) async fn place(self: &Arc<Self>, patience: Duration, patient: bool) -> Result<Place, Failure> {
        let deadline = Instant::now() + patience;
        let mut failures = None;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let (waiting, until) = {
                let now = Instant::now();
                let mut inner = self.lock();
                let failed = inner.rules.failures();
                if failures.is_some_and(|before| before < failed) && inner.rules.live_count() == 0 {
                    return Err(Failure::Dial(inner.last.unwrap_or("failed")));
                }
                failures.get_or_insert(failed);
                let limits = inner.target.settings.limits;
                let choice = inner.rules.choose(&limits, now.into_std(), fastrand::u64(..), patient);
                self.work(&mut inner, now);
                match choice {
                    Choice::Use(id) => {
                        let connection = inner.links.get(&id).map(|link| link.connection.clone());
                        drop(inner);
                        if let Some(connection) = connection {
                            return Ok(Place { pool: Arc::clone(self), id, connection });
                        }
                        self.closed(id);
                        continue;
                    }
                    Choice::Refuse(Refusal::Crowded) => return Err(Failure::Crowded),
                    Choice::Refuse(Refusal::Down) => return Err(Failure::Down),
                    Choice::Wait { until } => (Waiting(self), until.map(Instant::from_std)),
                }
            };
            let wake = until.map_or(deadline, |until| until.min(deadline));
            let late = tokio::time::timeout_at(wake, changed).await.is_err();
            drop(waiting);
            if late && wake == deadline {
                return Err(Failure::Pending);
            }
        }
    }

    /// A connection is not there any more.
    fn closed(&self, id: Id) {
        let mut inner = self.lock();
        inner.rules.closed(id);
        if let Some(link) = inner.links.remove(&id) {
            self.meters.count(&link.told, &sample(&link.connection));
        }
        drop(inner);
        self.changed.notify_waiters();
    }
}

/// A stream that waits for a connection.
struct Waiting<'a>(&'a PeerPool);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.lock().rules.waited();
    }
}

/// A stream's place on a connection, given back when it is dropped.
pub(crate) struct Place {
    pool: Arc<PeerPool>,
    id: Id,
    connection: Connection,
}

impl Place {
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The connection has served, or was at fault.
    pub(crate) fn answered(&self, well: bool) {
        self.pool.lock().rules.answered(self.id, well);
    }

    /// The other side wants no more streams on the connection, or it is lost.
    pub(crate) fn leave(&self) {
        self.pool.lock().rules.leave(self.id);
        self.pool.changed.notify_waiters();
    }

    /// Nothing comes over the connection.
    pub(crate) fn dead(&self) {
        self.pool.lock().rules.dead(self.id);
        self.pool.changed.notify_waiters();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut inner = self.pool.lock();
        inner.rules.released(self.id, now.into_std());
        self.pool.work(&mut inner, now);
        drop(inner);
        self.pool.changed.notify_waiters();
    }
}

/// Looks after a pool until it is forgotten.
async fn tend(pool: Weak<PeerPool>) {
    loop {
        match pool.upgrade() {
            // Whoever has it just now may still want it, and the next look is soon.
            Some(pool) if pool.tick() && pool.home.upgrade().is_none_or(|home| home.retire(&pool)) => return,
            Some(_) => {}
            None => return,
        }
        tokio::time::sleep(TICK).await;
    }
}
