//! Another sidecar, as it is known here.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use metrics::gauge;
use qudag_core::breaker::{self, Breaker, Decision, Pass};
use qudag_filter_api::Address;
use qudag_filter_common::LiveGauge;
use qudag_mldsa::Backend;

use super::connection::{Ended, Failure, Line};
use super::rule::{Slowness, times, work, work_behind};
use super::wire::Capability;
use crate::{Operations, OtherSidecarStatus, Verdict};

/// When nothing is sent there for a while: after three batches in a row without verdicts.
const BREAKER: breaker::Settings =
    breaker::Settings { failures: 3, open: Duration::from_secs(1), max_open: Duration::from_secs(30) };

/// Why a batch is done here. Of several sidecars the reason counts that comes last here: that one was nearest to getting it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kept {
    /// It has too few operations.
    Small,
    /// It names keys by their ids.
    KeysById,
    /// No other sidecar can be reached.
    Unreachable,
    /// It gave a wrong verdict.
    Stopped,
    /// Its backend is no better.
    NoBetter,
    /// It would take longer.
    Slower,
    /// It failed a few times in a row.
    BreakerOpen,
}

impl Kept {
    pub(super) const ALL: [Self; 7] = [
        Self::Small,
        Self::KeysById,
        Self::Unreachable,
        Self::Stopped,
        Self::NoBetter,
        Self::Slower,
        Self::BreakerOpen,
    ];

    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::KeysById => "keys_by_id",
            Self::Unreachable => "unreachable",
            Self::Stopped => "stopped",
            Self::NoBetter => "no_better",
            Self::Slower => "slower",
            Self::BreakerOpen => "breaker_open",
        }
    }
}

/// Another sidecar.
pub(super) struct Link {
    pub(super) address: Address,
    book: Mutex<Book>,
}

/// What is known of it.
struct Book {
    /// Its connections that can be used, each in its place.
    lines: Vec<Option<Line>>,
    /// What it said last; kept while it cannot be reached.
    told: Option<Capability>,
    round_trip: Option<Duration>,
    slowness: Slowness,
    breaker: Breaker,
    /// Why nothing is sent there any more.
    stopped: Option<String>,
    /// Why the connection that ended last did.
    trouble: Option<String>,
    ready: LiveGauge,
    measured: Option<LiveGauge>,
}

impl Link {
    /// With places for so many connections.
    pub(super) fn new(address: Address, connections: usize) -> Arc<Self> {
        let ready = gauge!("qudag_sidecar_crypto_routing_ready", "sidecar" => address.to_string());
        let book = Book {
            lines: vec![None; connections],
            told: None,
            round_trip: None,
            slowness: Slowness::default(),
            breaker: Breaker::default(),
            stopped: None,
            trouble: None,
            ready: LiveGauge::new(ready, 0.0),
            measured: None,
        };
        Arc::new(Self { address, book: Mutex::new(book) })
    }

    /// The other sidecar has told what is in force there, on the connection in this place.
    pub(super) fn told(&self, place: usize, line: &Line, capability: Capability, round_trip: Duration) {
        let mut book = self.book();
        if book.told.map(|told| told.backend) != Some(capability.backend) {
            let backend = capability.backend.map_or("unknown", Backend::name);
            tracing::info!(sidecar = %self.address, backend, "the backend of another sidecar");
        }
        book.told = Some(capability);
        // The last few: one that met a busy moment does not stand for the way.
        let round_trip = book.round_trip.map_or(round_trip, |before| (before * 3 + round_trip) / 4);
        book.round_trip = Some(round_trip);
        let address = &self.address;
        let measured = || {
            let gauge =
                gauge!("qudag_sidecar_crypto_routing_round_trip_seconds", "sidecar" => address.to_string());
            LiveGauge::new(gauge, 0.0)
        };
        book.measured.get_or_insert_with(measured).set(round_trip.as_secs_f64());
        if let Some(place) = book.lines.get_mut(place) {
            place.get_or_insert_with(|| line.clone());
        }
        book.show();
    }

    /// The connection in this place has ended, or could not be made. Returns whether it could be used before.
    pub(super) fn down(&self, place: usize, why: &Ended) -> bool {
        let why = why.to_string();
        let mut book = self.book();
        let was_up = book.lines.get_mut(place).and_then(Option::take).is_some();
        if was_up || book.trouble.as_ref() != Some(&why) {
            tracing::warn!(sidecar = %self.address, why, "no connection to another sidecar's cryptography");
        }
        book.trouble = Some(why);
        if !book.is_up() {
            book.measured = None;
        }
        book.show();
        was_up
    }

    /// A verdict of it was wrong: it gets nothing any more.
    pub(super) fn stop(&self, why: String) {
        let mut book = self.book();
        tracing::error!(sidecar = %self.address, why, "nothing is routed to another sidecar any more");
        book.stopped = Some(why);
        book.show();
    }

    /// How long a batch would take there, by estimate, where the backend is better than the one here.
    pub(super) fn estimate(
        &self,
        operations: &Operations,
        here: Backend,
        now: Instant,
    ) -> Result<Duration, Kept> {
        let book = self.book();
        if book.stopped.is_some() {
            return Err(Kept::Stopped);
        }
        let (true, Some(told), Some(way)) = (book.is_up(), book.told, book.round_trip) else {
            return Err(Kept::Unreachable);
        };
        let backend = told.backend.filter(|backend| *backend > here).ok_or(Kept::NoBetter)?;
        let expected = work_behind(work(operations, backend), operations.len(), told.queue);
        Ok(way.saturating_add(times(expected, book.slowness.factor(now))))
    }

    /// The right to send one batch there; `None` while it is left alone.
    pub(super) fn admit(self: &Arc<Self>, now: Instant) -> Option<Turn> {
        let mut book = self.book();
        let line = book.lines.iter().flatten().max_by_key(|line| line.room())?.clone();
        match book.breaker.admit(&BREAKER, now) {
            Decision::Admit(pass) => Some(Turn { link: Arc::clone(self), line, pass: Some(pass) }),
            Decision::Reject { .. } => None,
        }
    }

    pub(super) fn status(&self) -> OtherSidecarStatus {
        let book = self.book();
        let state = if book.stopped.is_some() {
            "stopped"
        } else if !book.is_up() {
            "unreachable"
        } else if book.breaker.status() == breaker::Status::Closed {
            "ready"
        } else {
            "failing"
        };
        let trouble = book.trouble.as_ref().filter(|_| !book.is_up());
        OtherSidecarStatus {
            address: self.address.to_string(),
            state,
            why: book.stopped.as_ref().or(trouble).cloned(),
            backend: book.told.and_then(|told| told.backend).map(Backend::name),
            connections: book.lines.iter().flatten().count(),
            round_trip_us: book.round_trip.map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
            queued: book.told.map(|told| told.queue.operations),
        }
    }

    /// Sets the length of the way.
    #[cfg(test)]
    pub(super) fn measured(&self, round_trip: Duration) {
        self.book().round_trip = Some(round_trip);
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn is_up(&self) -> bool {
        self.lines.iter().any(Option::is_some)
    }

    fn show(&self) {
        self.ready.set(if self.is_up() && self.stopped.is_none() { 1.0 } else { 0.0 });
    }
}

/// The right to send one batch.
pub(super) struct Turn {
    pub(super) link: Arc<Link>,
    line: Line,
    /// `None` when the breaker knows what came of it.
    pass: Option<Pass>,
}

impl Turn {
    /// Has a batch done there. What comes of it is remembered for the next ones.
    pub(super) async fn ask(
        mut self,
        operations: &Operations,
        limit: Duration,
    ) -> Result<Vec<Verdict>, Failure> {
        let started = now();
        let result = self.line.ask(operations, limit).await;
        let now = now();
        let Some(pass) = self.pass.take() else { return result };
        let mut book = self.link.book();
        match &result {
            Ok(_) => {
                book.breaker.success(pass);
                if let (Some(told), Some(way)) = (book.told, book.round_trip)
                    && let Some(backend) = told.backend
                {
                    let expected = work_behind(work(operations, backend), operations.len(), told.queue);
                    let took = now.saturating_duration_since(started).saturating_sub(way);
                    book.slowness.note(took, expected, now);
                }
            }
            Err(failure) if failure.is_theirs() => {
                if book.breaker.failure(pass, &BREAKER, now, fastrand::u64(..)) {
                    tracing::warn!(sidecar = %self.link.address, ?failure, "another sidecar is left alone for a while");
                }
            }
            Err(_) => book.breaker.cancel(pass, now),
        }
        drop(book);
        result
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // The program has gone while its batch was on the way: that says nothing.
        if let Some(pass) = self.pass.take() {
            self.link.book().breaker.cancel(pass, now());
        }
    }
}

/// The time for the breaker and the rule: the runtime's clock, which tests can stop.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
