//! What waits to be done, and who does what next. No threads and no clock: only decisions.
//!
//! Small requests are done by the task that brings them, as long as it is the only one: handing them to a thread would cost more than they do. That task *leads*: what
//! others bring while it works is done by it afterwards, together, or by a thread when that would take long. When several came together lately,
//! a task that could lead lets others come first. Large requests are cut in pieces, which threads take from each request in turn.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qudag_filter_api::FilterError;

use super::ticket::{Piece, Ticket};
use crate::work::{BATCH, Cost};

/// The most that a task does at once, and about what a piece of a large request takes.
const SMALL: Cost = Cost::micros(100);
/// What takes longer than this is not left to the task that leads: neither before it goes back to its own business nor after.
const SOON: Cost = Cost::micros(50);
/// So many signatures together are worth no more waiting: they fill the lanes of the widest backend.
const FULL: usize = 8;
/// One lone request in so many looks whether others come as well.
const LOOK_ROUND: u8 = 32;
/// The least that a refused program is asked to wait.
const LEAST_WAIT: Duration = Duration::from_millis(1);

/// How much may wait, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) operations: usize,
    pub(super) bytes: usize,
    /// How long a task that leads may let others come first; 0 for never.
    pub(super) gather: Duration,
    /// How many threads there are.
    pub(super) threads: u32,
    /// How many keys may be kept.
    pub(super) keys: usize,
}

/// An amount of work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) operations: usize,
    pub(super) bytes: usize,
    pub(super) cost: Cost,
}

/// Work that is done in one go: pieces that go together, with at most [`BATCH`] operations in all.
pub(super) type Round = Vec<Piece>;

/// The line. A request is in it until the last of its pieces is taken.
pub(super) struct Line {
    small: VecDeque<(Arc<Ticket>, Instant)>,
    large: VecDeque<Large>,
    waiting: Load,
    /// The part of `waiting` that is small requests.
    small_waiting: Load,
    leader: Leader,
    /// The last task that led did not work for itself alone.
    company: bool,
    /// Lone requests since one looked round.
    lone: u8,
    /// How often a task has let others come first.
    turns: u64,
}

/// A request of which some pieces are taken.
struct Large {
    ticket: Arc<Ticket>,
    next: usize,
}

/// Whether a task leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leader {
    Nobody,
    /// One does, but lets others come first. The number tells it from another one.
    Gathering(u64),
    /// One does.
    Working,
}

/// What a task that brings a request does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It leads.
    Lead,
    /// It lets others come, and then leads if nobody else began to ([`Line::begin`]).
    Gather(u64),
    /// It waits for the reply. So many threads can be woken for the request.
    Wait(usize),
}

impl Line {
    pub(super) fn new() -> Self {
        Self {
            small: VecDeque::new(),
            large: VecDeque::new(),
            waiting: Load::default(),
            small_waiting: Load::default(),
            leader: Leader::Nobody,
            company: false,
            lone: 0,
            turns: 0,
        }
    }

    /// What waits.
    pub(super) fn waiting(&self) -> Load {
        self.waiting
    }

    /// Takes a request in.
    ///
    /// # Errors
    /// [`FilterError::Shed`] when too much waits already. A request that is larger than the line is taken when nothing waits.
    pub(super) fn bring(
        &mut self,
        ticket: Arc<Ticket>,
        limits: &Limits,
        now: Instant,
    ) -> Result<Next, FilterError> {
        let Limits { operations, bytes, threads, gather, .. } = *limits;
        let load = Load { operations: ticket.operations.len(), bytes: ticket.bytes, cost: ticket.cost };
        let full =
            self.waiting.operations + load.operations > operations || self.waiting.bytes + load.bytes > bytes;
        if full && self.waiting.operations > 0 {
            let retry_after = (self.waiting.cost.time() / threads.max(1)).max(LEAST_WAIT);
            return Err(FilterError::Shed { why: "crypto_queue", retry_after });
        }
        self.waiting.add(load);
        if ticket.cost > SMALL {
            let pieces = load.cost.in_units_of(SMALL);
            self.large.push_back(Large { ticket, next: 0 });
            return Ok(Next::Wait(pieces));
        }
        self.small_waiting.add(load);
        self.small.push_back((ticket, now));
        let leader = self.leader;
        Ok(match leader {
            Leader::Nobody if !gather.is_zero() && self.looks_round() => {
                self.turns += 1;
                self.leader = Leader::Gathering(self.turns);
                Next::Gather(self.turns)
            }
            Leader::Nobody => self.lead(),
            Leader::Gathering(_) if self.is_due(gather, now) => self.lead(),
            Leader::Gathering(_) => Next::Wait(0),
            Leader::Working => Next::Wait(usize::from(self.small_waiting.cost > SOON)),
        })
    }

    fn lead(&mut self) -> Next {
        self.leader = Leader::Working;
        Next::Lead
    }

    /// Whether a task that could lead shall let others come first.
    fn looks_round(&mut self) -> bool {
        if self.small_waiting.operations >= FULL {
            return false;
        }
        self.lone = if self.company { 0 } else { (self.lone + 1) % LOOK_ROUND };
        self.lone == 0
    }

    /// Whether what waits is enough, or has waited long enough.
    fn is_due(&self, gather: Duration, now: Instant) -> bool {
        let waited =
            self.small.front().map_or(Duration::ZERO, |(_, since)| now.saturating_duration_since(*since));
        self.small_waiting.operations >= FULL || waited >= gather
    }

    /// A task that let others come first leads now, unless another one does or did.
    pub(super) fn begin(&mut self, turn: u64) -> bool {
        let begins = self.leader == Leader::Gathering(turn);
        if begins {
            self.leader = Leader::Working;
        }
        begins
    }

    /// A task that let others come first will not lead. Returns how many threads are to be woken.
    pub(super) fn give_up(&mut self, turn: u64) -> usize {
        if self.leader == Leader::Gathering(turn) {
            self.leader = Leader::Nobody;
        }
        usize::from(!self.small.is_empty())
    }

    /// What the task that leads does next, after work that took so much for so many requests.
    ///
    /// # Errors
    /// It does not lead any more; so many threads are to be woken.
    pub(super) fn lead_on(&mut self, spent: Cost, served: usize) -> Result<Round, usize> {
        if spent <= SOON {
            let round = self.take_small();
            if !round.is_empty() {
                return Ok(round);
            }
        }
        self.company = served > 1;
        Err(self.stop_leading())
    }

    /// Nobody leads any more. Returns how many threads are to be woken.
    pub(super) fn stop_leading(&mut self) -> usize {
        self.leader = Leader::Nobody;
        usize::from(!self.small.is_empty())
    }

    /// What a thread does next.
    pub(super) fn take(&mut self) -> Option<Round> {
        if !matches!(self.leader, Leader::Gathering(_)) {
            let round = self.take_small();
            if !round.is_empty() {
                return Some(round);
            }
        }
        self.take_piece().map(|piece| vec![piece])
    }

    /// The small requests that come first and go together.
    fn take_small(&mut self) -> Round {
        let (mut round, mut operations) = (Round::new(), 0);
        while let Some((ticket, _)) = self.small.front() {
            let number = ticket.operations.len();
            let fits = round
                .first()
                .is_none_or(|first: &Piece| first.ticket.goes_with(ticket) && operations + number <= BATCH);
            if !fits {
                break;
            }
            let load = Load { operations: number, bytes: ticket.bytes, cost: ticket.cost };
            self.waiting.remove(load);
            self.small_waiting.remove(load);
            if let Some((ticket, _)) = self.small.pop_front()
                && !ticket.is_abandoned()
            {
                operations += number;
                round.push(Piece::new(ticket, 0..number));
            }
        }
        round
    }

    /// A piece of the large request whose turn it is.
    fn take_piece(&mut self) -> Option<Piece> {
        loop {
            let Large { ticket, next } = self.large.pop_front()?;
            let number = ticket.operations.len();
            let (mut end, mut cost) = (next, Cost::ZERO);
            while end < number && (ticket.is_abandoned() || (cost < SMALL && end - next < BATCH)) {
                cost += ticket.cost_of(end);
                end += 1;
            }
            let bytes = if end < number { 0 } else { ticket.bytes };
            self.waiting.remove(Load { operations: end - next, bytes, cost });
            if end < number {
                self.large.push_back(Large { ticket: Arc::clone(&ticket), next: end });
            }
            if !ticket.is_abandoned() {
                return Some(Piece::new(ticket, next..end));
            }
        }
    }
}

impl Load {
    fn add(&mut self, load: Self) {
        self.operations += load.operations;
        self.bytes += load.bytes;
        self.cost += load.cost;
    }

    fn remove(&mut self, load: Self) {
        self.operations = self.operations.saturating_sub(load.operations);
        self.bytes = self.bytes.saturating_sub(load.bytes);
        self.cost = self.cost - load.cost;
    }
}
