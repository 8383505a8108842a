//! Taking a server for a transaction, and giving it back clean.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use qudag_filter_api::FilterError;
use tokio::time::{sleep_until, timeout_at};

use super::CANCEL_TIME;
use super::capture::Written;
use super::conn::{Conn, closed, poll_read, poll_write};
use super::desk::{Connection, Desk, Hungry, Want, lock, place};
use super::places::Seat;
use super::registry::Doing;
use super::servers::Pool;
use super::settings::Pressure;
use crate::query_cache::Filling;
use crate::session::{Down, Fingerprint, Tidy};

/// How much is read of what nobody waits for any more, and for how long, before it is cancelled.
const ABANDONED_BYTES: usize = 16 << 20;
const ABANDONED_TIME: Duration = Duration::from_secs(1);

impl Pool {
    /// A place and a connection for a transaction.
    ///
    /// # Errors
    /// When there is none in time, or waiting for one is no use.
    pub(crate) async fn take(self: &Arc<Self>, want: Want) -> Result<Lease, FilterError> {
        let now = Instant::now();
        let discipline = want.discipline(|| self.settings().wait);
        let deadline = now + discipline.wait;
        let (seat, connection, now) = place(self, &want, discipline, now).await?;
        let mut lease = Lease::new(self, Some(seat), connection, want.pressure);
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
        let mut coming = Hungry::new(self);
        loop {
            self.make_connections();
            let news = self.news.notified();
            let failure = lock(&self.known).attempts.failure().cloned();
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
                    let failure = lock(&self.known).attempts.failure().cloned();
                    Err(failure
                        .map_or(FilterError::Timeout { after: self.target.connect_timeout }, |failure| {
                            failure.error()
                        }))
                }
            };
        }
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
    /// Whether it is for a transaction that only reads, which may be at a replica.
    pub(crate) reads: bool,
    /// Whether `read_replicas` has chosen the server.
    pub(crate) routed: bool,
    /// Where the reply is kept.
    pub(crate) filling: Option<Arc<Filling>>,
}

impl Lease {
    pub(super) fn new(
        pool: &Arc<Pool>,
        seat: Option<Seat>,
        connection: Option<Box<Conn>>,
        pressure: Option<Arc<Pressure>>,
    ) -> Self {
        Self {
            pool: Arc::clone(pool),
            seat,
            connection,
            pressure,
            reads: false,
            routed: false,
            filling: None,
        }
    }

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
    pub(crate) fn give_back(mut self, busy: Option<(Fingerprint, Duration)>, now: Instant) {
        if let Some((statement, busy)) = busy {
            self.pool.took(statement, busy, self.pressure.as_deref(), now);
        }
        let (Some(seat), Some(mut connection)) = (self.seat, self.connection.take()) else { return };
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
                Ok(()) => self.give_back(None, Instant::now()),
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
