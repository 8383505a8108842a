//! The threads, and the tasks that work themselves.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use arrayvec::ArrayVec;
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use qudag_filter_api::FilterError;
use qudag_mldsa::Scratch;
use tokio::task::yield_now;

use super::keys::Registry;
use super::line::{Limits, Line, Load, Next, Round};
use super::ticket::{Part, Piece, Ticket, Waiting};
use crate::work::{BATCH, Cost, Meters, Place, hash, verify};
use crate::{CryptoCall, CryptoReply, Operations};

/// Threads with their line. They end when this is dropped and nothing waits any more.
pub(super) struct Pool(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Something waits that a thread shall do.
    work: Condvar,
    registry: Arc<Registry>,
    /// For the task that leads.
    scratch: Mutex<Scratch>,
    meters: PoolMeters,
}

struct State {
    line: Line,
    /// Threads that wait for work.
    idle: usize,
    closed: bool,
}

struct PoolMeters {
    operations: Meters,
    batches: Histogram,
    queued: Gauge,
    queued_bytes: Gauge,
    refused: Counter,
}

impl Pool {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the operating system gives none.
    pub(super) fn start(threads: u32, registry: Arc<Registry>) -> io::Result<Self> {
        let pool = Self(Arc::new(Shared {
            state: Mutex::new(State { line: Line::new(), idle: 0, closed: false }),
            work: Condvar::new(),
            registry,
            scratch: Mutex::default(),
            meters: PoolMeters {
                operations: Meters::new(),
                batches: histogram!("qudag_sidecar_crypto_batch_operations"),
                queued: gauge!("qudag_sidecar_crypto_queue_operations"),
                queued_bytes: gauge!("qudag_sidecar_crypto_queue_bytes"),
                refused: counter!("qudag_sidecar_crypto_refused_total", "reason" => "queue"),
            },
        }));
        for number in 0..threads {
            let shared = Arc::clone(&pool.0);
            // Those that were started end with the pool.
            thread::Builder::new().name(format!("crypto-{number}")).spawn(move || shared.serve())?;
        }
        Ok(pool)
    }

    /// What waits.
    pub(super) fn waiting(&self) -> Load {
        self.0.state().line.waiting()
    }

    /// Does a request.
    ///
    /// # Errors
    /// [`FilterError::Shed`] when too much waits.
    pub(super) async fn perform(
        &self,
        call: &CryptoCall,
        limits: &Limits,
    ) -> Result<CryptoReply, FilterError> {
        self.0.registry.resize(limits.keys);
        let ticket = Ticket::new(call, self.0.registry.fresh());
        let waiting = Waiting(Arc::clone(&ticket));
        match self.0.bring(ticket, limits)? {
            Next::Lead => self.0.lead(),
            Next::Wait(threads) => self.0.wake(threads),
            Next::Gather(turn) => {
                let gathering = Gathering { shared: &self.0, turn };
                yield_now().await;
                gathering.end();
            }
        }
        waiting.await
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.0.state().closed = true;
        self.0.work.notify_all();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bring(&self, ticket: Arc<Ticket>, limits: &Limits) -> Result<Next, FilterError> {
        let mut state = self.state();
        let next = state.line.bring(ticket, limits, Instant::now());
        match &next {
            // It is taken again in a moment.
            Ok(Next::Lead) => {}
            Ok(Next::Gather(_) | Next::Wait(_)) => self.show(state.line.waiting()),
            Err(_) => self.meters.refused.increment(1),
        }
        next
    }

    fn show(&self, waiting: Load) {
        self.meters.queued.set(waiting.operations as f64);
        self.meters.queued_bytes.set(waiting.bytes as f64);
    }

    /// Wakes up to so many threads.
    fn wake(&self, threads: usize) {
        // A wake-up is a system call, so only for somebody who hears it.
        let threads = if threads == 0 { 0 } else { threads.min(self.state().idle) };
        (0..threads).for_each(|_| self.work.notify_one());
    }

    /// Does what small requests wait, as the task that leads.
    fn lead(&self) {
        let leading = Leading(self);
        let (mut spent, mut served) = (Cost::ZERO, 0);
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let round = {
                let mut state = self.state();
                let round = state.line.lead_on(spent, served);
                self.show(state.line.waiting());
                round
            };
            match round {
                Ok(round) => {
                    served += round.len();
                    spent +=
                        round.iter().map(|piece| piece.ticket.cost).fold(Cost::ZERO, |sum, cost| sum + cost);
                    self.run(round, &mut scratch);
                }
                Err(threads) => {
                    std::mem::forget(leading);
                    return self.wake(threads);
                }
            }
        }
    }

    /// A thread's life.
    fn serve(&self) {
        let mut scratch = Scratch::new();
        let mut state = self.state();
        loop {
            if let Some(round) = state.line.take() {
                self.show(state.line.waiting());
                drop(state);
                // The pieces fail by being dropped.
                if catch_unwind(AssertUnwindSafe(|| self.run(round, &mut scratch))).is_err() {
                    tracing::error!("cryptographic work has panicked");
                }
                state = self.state();
            } else if state.closed {
                return;
            } else {
                state.idle += 1;
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }

    fn run(&self, round: Round, scratch: &mut Scratch) {
        let Some(first) = round.first() else { return };
        let first = Arc::clone(&first.ticket);
        let operations = &self.meters.operations;
        match &*first.operations {
            Operations::Signatures(_) | Operations::Fingerprints(_) => {
                let verdicts = {
                    let of = |piece: &Piece| piece.places.clone();
                    let places = |piece| of(piece).map(|place| (&*piece.ticket.operations, place));
                    let places: ArrayVec<Place<'_>, BATCH> =
                        round.iter().flat_map(places).take(BATCH).collect();
                    self.meters.batches.record(places.len() as f64);
                    verify(first.backend, first.independent, &*self.registry, scratch, &places)
                };
                let mut rest = verdicts.as_slice();
                for piece in round {
                    let Some((own, others)) = rest.split_at_checked(piece.places.len()) else { return };
                    rest = others;
                    // What is done a second time is not done for a program.
                    if !piece.ticket.independent {
                        operations.verdicts(&piece.ticket.operations, own);
                    }
                    piece.done(Part::Verdicts(own));
                }
            }
            Operations::Hashes(data) => {
                for piece in round {
                    let data = data.get(piece.places.clone()).unwrap_or_default();
                    operations.hashes(data.len());
                    piece.done(Part::Hashes(data.iter().map(|(data, length)| hash(data, *length)).collect()));
                }
            }
            Operations::Keys(keys) => {
                for piece in round {
                    let keys = keys.get(piece.places.clone()).unwrap_or_default();
                    operations.keys(keys.len());
                    let register = |key| self.registry.register(key, first.backend);
                    piece.done(Part::Keys(keys.iter().map(register).collect()));
                }
            }
            Operations::Status => {}
        }
    }
}

/// A task that lets others come first.
struct Gathering<'a> {
    shared: &'a Shared,
    turn: u64,
}

impl Gathering<'_> {
    /// It leads, unless another one has begun to.
    fn end(self) {
        let leads = self.shared.state().line.begin(self.turn);
        if leads {
            self.shared.lead();
        }
        std::mem::forget(self);
    }
}

impl Drop for Gathering<'_> {
    /// Its program has gone: what others brought is left to a thread.
    fn drop(&mut self) {
        let threads = self.shared.state().line.give_up(self.turn);
        self.shared.wake(threads);
    }
}

/// A task that leads. Dropped, when its work has panicked, it does no more.
struct Leading<'a>(&'a Shared);

impl Drop for Leading<'_> {
    fn drop(&mut self) {
        let threads = self.0.state().line.stop_leading();
        self.0.wake(threads);
    }
}
