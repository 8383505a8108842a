//! What the pools of all protocols do alike: handing places out to those who wait, spacing attempts to connect, and looking after what is idle.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use qudag_core::backoff::Backoff;
use qudag_core::queue::{Refusal, Settings as Discipline};
use qudag_filter_api::{FilterError, Period};
use tokio::sync::{Notify, oneshot};
use tokio::time::sleep_until;

use super::places::{Asked, Figures, Grant, Places, Room, Seat, Waiting, Who, plain};
use super::settings::Pressure;

/// Connections that are made at a time.
pub(crate) const PARALLEL: usize = 3;
/// The pauses between attempts to connect.
pub(crate) const BACKOFF: Backoff = Backoff { min: Duration::from_millis(50), max: Duration::from_secs(1) };
/// How often idle connections are looked at.
const LOOK: Duration = Duration::from_secs(1);

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection, as far as its pool looks at it.
pub(crate) trait Connection: Send + 'static {
    /// Since when it is there, and since when nobody uses it.
    fn since(&self) -> (Instant, Instant);

    /// Whether nothing came while nobody had it.
    fn is_quiet(&mut self) -> bool;
}

/// A pool, as far as it is like others.
pub(crate) trait Desk: Send + Sync + Sized + 'static {
    type Conn: Connection;

    fn places(&self) -> &Mutex<Places<Box<Self::Conn>>>;

    /// Somebody new waits, so that the next deadline may be earlier.
    fn earlier(&self) -> &Notify;

    /// Takes a place back, with its connection unless that was closed.
    fn put(self: &Arc<Self>, seat: Seat, connection: Option<Box<Self::Conn>>, now: Instant);

    /// Looks at idle connections and at what is shown. Whether the pool is not needed any more.
    fn look(self: &Arc<Self>, now: Instant) -> bool;

    /// Somebody was refused.
    fn shed(&self, why: Refusal);

    /// Somebody has waited.
    fn waited(&self, time: Duration);

    /// A connection was closed.
    fn closed(&self, reason: &'static str);

    fn figures(&self) -> Figures {
        lock(self.places()).figures()
    }

    fn set_room(&self, room: Room) {
        let surplus = lock(self.places()).set_room(room, Instant::now());
        surplus.iter().for_each(|_| self.closed("shrunk"));
    }

    /// Nobody gets a place until it goes on.
    fn pause(&self) {
        lock(self.places()).paused = true;
    }

    /// Closes an idle connection in favour of another pool.
    fn give_up_idle(&self) -> bool {
        let mut first = true;
        let gone = lock(self.places()).take_idle(|_| std::mem::take(&mut first));
        gone.iter().for_each(|_| self.closed("other_pool"));
        !gone.is_empty()
    }

    /// Closes connections that are too old, idle for too long, or dead.
    fn close_outlived(&self, ages: Ages, now: Instant) {
        let mut reasons = Vec::new();
        let gone = lock(self.places()).take_idle(|connection| {
            let (created, idle_since) = connection.since();
            let outlived = ages.outlived(created, idle_since, now);
            let reason = outlived.or_else(|| (!connection.is_quiet()).then_some("ended_idle"));
            reasons.extend(reason);
            reason.is_some()
        });
        drop(gone);
        reasons.into_iter().for_each(|reason| self.closed(reason));
    }
}

/// What a transaction or a batch asks for.
#[derive(Clone, Debug)]
pub(crate) struct Want {
    pub(crate) who: Who,
    /// What it holds while it waits.
    pub(crate) bytes: usize,
    /// That of `db_backpressure` or `redis_backpressure`, where it passes through that.
    pub(crate) pressure: Option<Arc<Pressure>>,
}

impl Want {
    /// How it waits; `wait`: for so long at most where there is no backpressure.
    pub(crate) fn discipline(&self, wait: impl FnOnce() -> Period) -> Discipline {
        self.pressure.as_ref().map_or_else(|| plain(wait().0), |pressure| pressure.discipline())
    }
}

/// What somebody gets and when: a place, and a connection where one was at hand.
pub(crate) type Placed<C> = (Seat, Option<Box<C>>, Instant);

/// A place for somebody, now or later.
///
/// # Errors
/// When there is none in time.
pub(crate) async fn place<D: Desk>(
    pool: &Arc<D>,
    want: &Want,
    discipline: Discipline,
    now: Instant,
) -> Result<Placed<D::Conn>, FilterError> {
    let refused = |why: Refusal, retry_after| {
        pool.shed(why);
        FilterError::Shed { why: why.label(), retry_after }
    };
    let managed = want.pressure.is_some();
    let asked = lock(pool.places()).ask(want.who, want.bytes, managed, discipline, now);
    let (waiting, answer) = match asked {
        Asked::Now(seat, connection) => return Ok((seat, connection, now)),
        Asked::Refused(why, after) => return Err(refused(why, after)),
        Asked::Later(waiting, answer) => (waiting, answer),
    };
    pool.earlier().notify_one();
    let mut guard = Guard { pool, waiting: Some(waiting), answer };
    let answer = (&mut guard.answer).await;
    guard.waiting = None;
    let then = Instant::now();
    pool.waited(then.saturating_duration_since(now));
    match answer {
        Ok(Grant::Place(seat, connection)) => Ok((seat, connection, then)),
        Ok(Grant::Refused(why, after)) => Err(refused(why, after)),
        Err(_) => Err(FilterError::Draining),
    }
}

/// Leaves the queue when whoever waits is gone.
struct Guard<'a, D: Desk> {
    pool: &'a Arc<D>,
    waiting: Option<Waiting>,
    answer: oneshot::Receiver<Grant<Box<D::Conn>>>,
}

impl<D: Desk> Drop for Guard<'_, D> {
    fn drop(&mut self) {
        let Some(waiting) = self.waiting.take() else { return };
        let now = Instant::now();
        lock(self.pool.places()).leave(waiting, now);
        // The place may have come in this moment.
        match self.answer.try_recv() {
            Ok(Grant::Place(seat, Some(connection))) => self.pool.put(seat, Some(connection), now),
            Ok(Grant::Place(seat, None)) => lock(self.pool.places()).release_hungry(seat, now),
            _ => {}
        }
    }
}

/// A connection that is on its way to somebody, who may go before it comes.
pub(crate) struct Hungry<'a, D: Desk> {
    pool: &'a Arc<D>,
    pub(crate) connection: oneshot::Receiver<Box<D::Conn>>,
}

impl<'a, D: Desk> Hungry<'a, D> {
    pub(crate) fn new(pool: &'a Arc<D>) -> Self {
        Self { pool, connection: lock(pool.places()).hunger() }
    }
}

impl<D: Desk> Drop for Hungry<'_, D> {
    fn drop(&mut self) {
        self.connection.close();
        if let Ok(connection) = self.connection.try_recv() {
            lock(self.pool.places()).hand_back(connection, Instant::now());
        }
    }
}

/// Refuses those who have waited long enough, and looks at the pool once in a while, until it is not needed any more.
pub(crate) async fn look_after<D: Desk>(pool: Arc<D>) {
    let mut looked = Instant::now();
    loop {
        let now = Instant::now();
        let next = {
            let mut places = lock(pool.places());
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
            () = pool.earlier().notified() => {}
        }
    }
}

/// Attempts to connect, and what came of them. `F` is why one failed.
#[derive(Debug)]
pub(crate) struct Attempts<F> {
    /// Those that have failed since the last one that did not.
    failed: u32,
    failure: Option<F>,
    not_before: Option<Instant>,
}

impl<F> Default for Attempts<F> {
    fn default() -> Self {
        Self { failed: 0, failure: None, not_before: None }
    }
}

impl<F> Attempts<F> {
    /// Whether the next one may be made.
    pub(crate) fn may(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|time| now >= time)
    }

    /// One was good.
    pub(crate) fn made(&mut self) {
        *self = Self::default();
    }

    /// One has failed; how long to wait before the next one. Whether it is the first in a row.
    pub(crate) fn fail(&mut self, failure: F, now: Instant) -> (Duration, bool) {
        let wait = BACKOFF.limit(self.failed).mul_f64(0.5 + fastrand::f64() / 2.0);
        let first = self.failed == 0;
        self.failed = self.failed.saturating_add(1);
        self.not_before = Some(now + wait);
        self.failure = Some(failure);
        (wait, first)
    }

    /// That time has passed.
    pub(crate) fn waited(&mut self) {
        self.not_before = None;
    }

    /// Why the last one failed.
    pub(crate) fn failure(&self) -> Option<&F> {
        self.failure.as_ref()
    }
}

/// How old connections become, and how long they are idle.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ages {
    pub(crate) lifetime: Duration,
    pub(crate) idle: Duration,
}

impl Ages {
    /// Why a connection that nobody has is to be closed.
    pub(crate) fn outlived(
        self,
        created: Instant,
        idle_since: Instant,
        now: Instant,
    ) -> Option<&'static str> {
        let since = |time| now.saturating_duration_since(time);
        if since(idle_since) > self.idle {
            Some("idle")
        } else if since(created) > self.lifetime {
            Some("lifetime")
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_spaced_and_one_that_is_good_ends_that() {
        let (mut attempts, now) = (Attempts::default(), Instant::now());
        assert!(attempts.may(now));
        let (wait, first) = attempts.fail("a", now);
        assert!(first && (BACKOFF.min / 2..=BACKOFF.min).contains(&wait), "{wait:?}");
        assert!(!attempts.may(now) && attempts.may(now + wait));
        for _ in 0..20 {
            assert!(!attempts.fail("b", now).1);
        }
        let (wait, _) = attempts.fail("c", now);
        assert!((BACKOFF.max / 2..=BACKOFF.max).contains(&wait), "{wait:?}");
        assert_eq!(attempts.failure(), Some(&"c"));
        attempts.made();
        assert!(attempts.may(now) && attempts.failure().is_none() && attempts.fail("d", now).1);
    }

    #[test]
    fn connections_are_closed_for_their_age() {
        let ages = Ages { lifetime: Duration::from_secs(10), idle: Duration::from_secs(5) };
        let then = Instant::now();
        let at = |seconds| then + Duration::from_secs(seconds);
        assert_eq!(ages.outlived(then, at(6), at(8)), None);
        assert_eq!(ages.outlived(then, at(6), at(12)), Some("idle"));
        assert_eq!(ages.outlived(then, at(10), at(11)), Some("lifetime"));
    }
}
