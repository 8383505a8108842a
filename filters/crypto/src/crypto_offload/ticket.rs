//! A request on its way through the threads.

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use qudag_filter_api::FilterError;
use qudag_mldsa::Backend;

use crate::work::Cost;
use crate::{CryptoCall, CryptoReply, KeyId, Operations, Verdict};

/// A request and what is known of its reply.
pub(super) struct Ticket {
    pub(super) operations: Arc<Operations>,
    pub(super) backend: Backend,
    pub(super) independent: bool,
    /// Of all operations.
    pub(super) cost: Cost,
    /// The share of fresh keys that the cost is estimated for.
    fresh: u8,
    pub(super) bytes: usize,
    /// Nobody waits for the reply any more.
    abandoned: AtomicBool,
    progress: Mutex<Progress>,
}

struct Progress {
    /// As long as the reply will be.
    reply: CryptoReply,
    /// How many operations are not done yet.
    left: usize,
    /// Some operation came to no end.
    failed: bool,
    waker: Option<Waker>,
}

/// What became of some operations that follow each other.
pub(super) enum Part<'a> {
    Verdicts(&'a [Verdict]),
    Hashes(Vec<Box<[u8]>>),
    Keys(Vec<KeyId>),
}

impl Ticket {
    /// `fresh` is as in [`Cost::of`].
    pub(super) fn new(call: &CryptoCall, fresh: u8) -> Arc<Self> {
        let operations = Arc::clone(&call.operations);
        let fresh = if call.independent { u8::MAX } else { fresh };
        let cost = Cost::all(&operations, call.backend, fresh);
        let (left, bytes) = (operations.len(), operations.bytes());
        let reply = match &*operations {
            Operations::Keys(_) => CryptoReply::Keys(vec![KeyId([0; _]); left]),
            Operations::Hashes(_) => CryptoReply::Hashes(vec![Box::default(); left]),
            Operations::Signatures(_) | Operations::Fingerprints(_) | Operations::Status => {
                CryptoReply::Verdicts(vec![Verdict::UnknownKey; left])
            }
        };
        let progress = Mutex::new(Progress { reply, left, failed: false, waker: None });
        let (backend, independent) = (call.backend, call.independent);
        let abandoned = AtomicBool::new(false);
        Arc::new(Self { operations, backend, independent, cost, fresh, bytes, abandoned, progress })
    }

    /// Of the operation at a place.
    pub(super) fn cost_of(&self, place: usize) -> Cost {
        Cost::of(&self.operations, place, self.backend, self.fresh)
    }

    /// Whether signatures of this request and of another one can be verified together.
    pub(super) fn goes_with(&self, other: &Self) -> bool {
        let signatures = |ticket: &Self| {
            matches!(*ticket.operations, Operations::Signatures(_) | Operations::Fingerprints(_))
        };
        signatures(self)
            && signatures(other)
            && (self.backend, self.independent) == (other.backend, other.independent)
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Relaxed)
    }

    /// Notes what became of the operations from a place on.
    pub(super) fn done(&self, from: usize, part: Part<'_>) {
        let mut progress = self.progress();
        let number = match (part, &mut progress.reply) {
            (Part::Verdicts(part), CryptoReply::Verdicts(all)) => {
                all.iter_mut().skip(from).zip(part).for_each(|(all, part)| *all = *part);
                part.len()
            }
            (Part::Hashes(part), CryptoReply::Hashes(all)) => put(all, from, part),
            (Part::Keys(part), CryptoReply::Keys(all)) => put(all, from, part),
            // A part is made of the operations that the reply is about.
            _ => 0,
        };
        progress.ended(number);
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn put<T>(all: &mut [T], from: usize, part: Vec<T>) -> usize {
    let number = part.len();
    all.iter_mut().skip(from).zip(part).for_each(|(all, part)| *all = part);
    number
}

impl Progress {
    fn ended(&mut self, number: usize) {
        self.left = self.left.saturating_sub(number);
        if self.left == 0 || self.failed {
            self.waker.take().into_iter().for_each(Waker::wake);
        }
    }
}

/// Some operations of a request that are done in one go. Whoever has it tells the ticket what became of them; one that is dropped fails.
pub(super) struct Piece {
    pub(super) ticket: Arc<Ticket>,
    pub(super) places: Range<usize>,
    told: bool,
}

impl Piece {
    pub(super) fn new(ticket: Arc<Ticket>, places: Range<usize>) -> Self {
        Self { ticket, places, told: false }
    }

    pub(super) fn done(mut self, part: Part<'_>) {
        self.told = true;
        self.ticket.done(self.places.start, part);
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if !self.told {
            let mut progress = self.ticket.progress();
            progress.failed = true;
            progress.ended(self.places.len());
        }
    }
}

/// The reply, when it is there. A request whose reply nobody waits for any more is not begun.
pub(super) struct Waiting(pub(super) Arc<Ticket>);

impl Future for Waiting {
    type Output = Result<CryptoReply, FilterError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut progress = self.0.progress();
        if progress.failed {
            return Poll::Ready(Err(FilterError::Internal("a thread has failed".into())));
        }
        if progress.left == 0 {
            let none = CryptoReply::Verdicts(Vec::new());
            return Poll::Ready(Ok(std::mem::replace(&mut progress.reply, none)));
        }
        match &mut progress.waker {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        Poll::Pending
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.abandoned.store(true, Relaxed);
    }
}
