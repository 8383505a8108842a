//! Taking a server for a transaction, and giving it back clean.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use metrics::counter;
use qudag_core::queue::Refusal;
use qudag_filter_api::FilterError;
use tokio::sync::oneshot;
use tokio::time::{sleep_until, timeout_at};

use super::CANCEL_TIME;
use super::conn::{Conn, closed, poll_read, poll_write};
use super::places::{Asked, Grant, Seat, Waiting, Who, plain};
use super::registry::Doing;
use super::servers::{Pool, lock};
use super::session::Written;
use super::settings::Pressure;
use crate::query_cache::Filling;
use crate::session::{Down, Fingerprint, Tidy};

/// How much is read of what nobody waits for any more, and for how long, before it is cancelled.
const ABANDONED_BYTES: usize = 16 << 20;
const ABANDONED_TIME: Duration = Duration::from_secs(1);

/// What a transaction asks for.
#[derive(Clone, Debug)]
pub(crate) struct Want {
    pub(crate) who: Who,
    /// What it holds while it waits.
    pub(crate) bytes: usize,
    /// That of `db_backpressure`, where the transaction passes through it.
    pub(crate) pressure: Option<Arc<Pressure>>,
}

impl Pool {
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
        let mut lease = Lease {
            pool: Arc::clone(self),
            seat: Some(seat),
            connection,
            pressure: want.pressure,
            reads: false,
            routed: false,
            filling: None,
        };
        while let Some(connection) = &mut lease.connection {
            if connection.is_quiet() {
                connection.seen.trace.does(Doing::Active, now);
                return Ok(lease);
            }
            self.closed("ended_idle");
            lease.connection = lock(&self.places).replace();
        }
        self.feed(&mut lease, deadline).await?;
        Ok(lease)
    }

    /// Waits for a connection that is being made.
    async fn feed(self: &Arc<Self>, lease: &mut Lease, deadline: Instant) -> Result<(), FilterError> {
        let begun = Instant::now();
        let mut coming = Hungry { pool: self, connection: lock(&self.places).hunger() };
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

    /// Takes a place back, with its connection unless that was closed.
    fn put(self: &Arc<Self>, seat: Seat, connection: Option<Box<Conn>>, now: Instant) {
        let lost = connection.is_none();
        let surplus = lock(&self.places).release(seat, connection, now);
        if surplus.is_some() {
            self.closed("shrunk");
        } else if lost {
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
            let pool = Arc::clone(self.pool);
            let pressure = None;
            Lease {
                pool,
                seat: Some(seat),
                connection,
                pressure,
                reads: false,
                routed: false,
                filling: None,
            }
            .unused();
        }
    }
}

/// A connection that is on its way to somebody, who may go before it comes.
struct Hungry<'a> {
    pool: &'a Arc<Pool>,
    connection: oneshot::Receiver<Box<Conn>>,
}

impl Drop for Hungry<'_> {
    fn drop(&mut self) {
        self.connection.close();
        if let Ok(connection) = self.connection.try_recv() {
            lock(&self.pool.places).hand_back(connection, Instant::now());
        }
    }
}

/// A server for a transaction. The place is free again when it is given back or dropped; dropped, the connection is closed.
#[derive(Debug)]
pub struct Lease {
    pub(super) pool: Arc<Pool>,
    /// None for a connection beside the pool.
    pub(super) seat: Option<Seat>,
    pub(super) connection: Option<Box<Conn>>,
    pub(super) pressure: Option<Arc<Pressure>>,
    /// Whether it is for a transaction that only reads, which may be at a replica.
    pub(crate) reads: bool,
    /// Whether `read_replicas` has chosen the server.
    pub(crate) routed: bool,
    /// Where the reply is kept.
    pub(crate) filling: Option<Arc<Filling>>,
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

    /// Whether it is of a primary that another one has taken the place of.
    pub(crate) fn is_fenced(&self) -> bool {
        self.routed && self.pool.target.is_fenced()
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
        let old = now.saturating_duration_since(connection.created) > settings.server_lifetime.0;
        if old {
            closed("lifetime");
        }
        self.pool.put(seat, Some(connection).filter(|_| !old), now);
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
    /// `written`: what may be carried out only now.
    pub(crate) fn tidy(mut self, tidy: Tidy, written: Option<Written>) {
        let lane = self.pool.lane.handle();
        drop(lane.spawn(async move {
            let cleaned = self.clean(tidy).await;
            if let Some(written) = written {
                written.tell();
            }
            match cleaned {
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
