//! Who may use a pool's servers: the places, the queues in front of them, and the connections that are there. Decides and does nothing;
//! what is decided is sent through oneshot channels.
//!
//! A place is the right to one server for one transaction. Whoever has a place has a connection, or is *hungry* for one that is
//! being made. There are never more places in use than the pool has room for, so that a connection is there or can be made for each.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use qudag_core::queue::{Queue, Refusal, Settings as Discipline, Ticket};
use tokio::sync::oneshot;

/// Whose request it is, for fair shares: the client's address, none for a Unix socket.
pub(crate) type Who = Option<IpAddr>;

/// A place as it is to be given back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seat {
    /// Whether it was asked for under `db_backpressure`.
    pub(crate) managed: bool,
    pub(crate) who: Who,
}

/// What somebody who waits for a place is told.
#[derive(Debug)]
pub(crate) enum Grant<C> {
    /// A place, and a connection where one was at hand.
    Place(Seat, Option<C>),
    /// None, and after how long it may be worth while to ask again.
    Refused(Refusal, Duration),
}

/// What becomes of a request for a place.
#[derive(Debug)]
pub(crate) enum Asked<C> {
    /// It is there at once, with a connection where one was at hand.
    Now(Seat, Option<C>),
    /// The answer comes later.
    Later(Waiting, oneshot::Receiver<Grant<C>>),
    /// There will be none.
    Refused(Refusal, Duration),
}

/// Somebody in a queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    managed: bool,
    ticket: Ticket,
}

/// One queue: of those under `db_backpressure`, or of the others.
#[derive(Debug)]
struct Line<C> {
    queue: Queue<Who>,
    waiting: HashMap<Ticket, (Who, oneshot::Sender<Grant<C>>)>,
    discipline: Discipline,
    /// When a place was given to it last, counted in places.
    served: u64,
    running: usize,
}

impl<C> Line<C> {
    fn new() -> Self {
        let discipline = plain(Duration::ZERO);
        Self { queue: Queue::default(), waiting: HashMap::new(), discipline, served: 0, running: 0 }
    }
}

/// The discipline without `db_backpressure`: in the order of arrival, for a fixed time.
pub(crate) fn plain(wait: Duration) -> Discipline {
    let never = Duration::from_secs(365 * 86_400);
    Discipline { most: usize::MAX, bytes: 64 << 20, wait, tolerable: never, standing: never, age: never }
}

/// How many places there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    /// The most connections.
    pub(crate) size: usize,
    /// The most places for those under `db_backpressure`, at most `size`.
    pub(crate) limit: usize,
}

/// The places of a pool. `C` is a connection.
#[derive(Debug)]
pub(crate) struct Places<C> {
    room: Room,
    pub(crate) paused: bool,
    /// The one that was used last is the last one.
    idle: Vec<C>,
    /// All connections: idle, in use, and being made.
    connections: usize,
    connecting: usize,
    running: usize,
    /// Without and with `db_backpressure`.
    lines: [Line<C>; 2],
    turn: u64,
    hungry: VecDeque<oneshot::Sender<C>>,
}

impl<C> Places<C> {
    pub(crate) fn new(room: Room) -> Self {
        Self {
            room,
            paused: false,
            idle: Vec::new(),
            connections: 0,
            connecting: 0,
            running: 0,
            lines: [Line::new(), Line::new()],
            turn: 0,
            hungry: VecDeque::new(),
        }
    }

    fn line(&mut self, managed: bool) -> &mut Line<C> {
        let [plain, with] = &mut self.lines;
        if managed { with } else { plain }
    }

    fn is_free(&self, managed: bool) -> bool {
        let most = if managed { self.room.limit.min(self.room.size) } else { self.room.size };
        !self.paused && self.running < most
    }

    /// Changes the room. Returns connections to be closed: the idle ones that are too many now.
    pub(crate) fn set_room(&mut self, room: Room, now: Instant) -> Vec<C> {
        if self.room == room {
            return Vec::new();
        }
        self.room = room;
        let mut closed = Vec::new();
        while self.connections > self.room.size && !self.idle.is_empty() {
            closed.push(self.idle.remove(0));
            self.connections -= 1;
        }
        self.admit(None, now);
        closed
    }

    /// Somebody wants a place. `bytes` is what it holds while it waits.
    pub(crate) fn ask(
        &mut self,
        who: Who,
        bytes: usize,
        managed: bool,
        discipline: Discipline,
        now: Instant,
    ) -> Asked<C> {
        let free = self.is_free(managed);
        let line = self.line(managed);
        line.discipline = discipline;
        if free && line.queue.is_empty() {
            line.queue.take(&who);
            self.take(managed);
            return Asked::Now(Seat { managed, who }, self.idle.pop());
        }
        match line.queue.arrive(&who, bytes, None, &discipline, now) {
            Err((refusal, after)) => Asked::Refused(refusal, after),
            Ok(ticket) => {
                let (sender, receiver) = oneshot::channel();
                line.waiting.insert(ticket, (who, sender));
                self.admit(None, now);
                Asked::Later(Waiting { managed, ticket }, receiver)
            }
        }
    }

    fn take(&mut self, managed: bool) {
        self.running += 1;
        self.turn += 1;
        let turn = self.turn;
        let line = self.line(managed);
        line.served = turn;
        line.running += 1;
    }

    /// Gives places to those who wait, as long as there are any; the first one gets `at_hand`, a connection that has just become free.
    fn admit(&mut self, mut at_hand: Option<C>, now: Instant) {
        self.expire(now);
        loop {
            // Who has a place already comes first.
            while at_hand.is_some()
                && let Some(hungry) = self.hungry.pop_front()
            {
                at_hand = at_hand.and_then(|connection| hungry.send(connection).err());
            }
            let Some(managed) = self.next_line() else { break };
            let line = self.line(managed);
            let discipline = line.discipline;
            let Some(ticket) = line.queue.next(&discipline, now) else { break };
            let Some((who, sender)) = line.waiting.remove(&ticket) else {
                debug_assert!(false, "a ticket without a waiter");
                continue;
            };
            self.take(managed);
            let connection = at_hand.take().or_else(|| self.idle.pop());
            if let Err(Grant::Place(seat, connection)) =
                sender.send(Grant::Place(Seat { managed, who }, connection))
            {
                // It has gone in this moment.
                at_hand = connection;
                self.leave_seat(seat);
                self.line(managed).queue.finished(&who);
            }
        }
        self.idle.extend(at_hand);
    }

    /// The queue that is to be served next.
    fn next_line(&self) -> Option<bool> {
        let [plain, with] = &self.lines;
        let ready = |line: &Line<C>, managed| {
            (!line.queue.is_empty() && self.is_free(managed)).then_some((line.running, line.served, managed))
        };
        ready(plain, false).into_iter().chain(ready(with, true)).min().map(|(_, _, managed)| managed)
    }

    /// A place is free again, and so is its connection, unless it is closed.
    pub(crate) fn release(&mut self, seat: Seat, connection: Option<C>, now: Instant) -> Option<C> {
        self.leave_seat(seat);
        self.line(seat.managed).queue.finished(&seat.who);
        let connection = match connection {
            None => {
                self.connections = self.connections.saturating_sub(1);
                None
            }
            // Shrinking retires what comes back, also when everything is in use all the time.
            Some(connection) if self.connections > self.room.size => {
                self.connections -= 1;
                self.admit(None, now);
                return Some(connection);
            }
            connection => connection,
        };
        self.admit(connection, now);
        None
    }

    /// A place is given back by somebody who never had a connection.
    pub(crate) fn release_hungry(&mut self, seat: Seat, now: Instant) {
        self.leave_seat(seat);
        self.line(seat.managed).queue.finished(&seat.who);
        self.admit(None, now);
    }

    fn leave_seat(&mut self, seat: Seat) {
        self.running = self.running.saturating_sub(1);
        let line = self.line(seat.managed);
        line.running = line.running.saturating_sub(1);
    }

    /// Somebody who has a place waits for a connection.
    pub(crate) fn hunger(&mut self) -> oneshot::Receiver<C> {
        let (sender, receiver) = oneshot::channel();
        // One may have come back since the place was given.
        match self.idle.pop() {
            // The receiver is here.
            Some(connection) => drop(sender.send(connection)),
            None => self.hungry.push_back(sender),
        }
        receiver
    }

    /// Whether a connection is to be made now, of which at most `parallel` are under way; it counts from here on.
    pub(crate) fn wants_connection(&mut self, parallel: usize) -> bool {
        self.hungry.retain(|hungry| !hungry.is_closed());
        let wanted = self.connecting < parallel
            && self.connecting < self.hungry.len()
            && self.connections < self.room.size;
        if wanted {
            self.connecting += 1;
            self.connections += 1;
        }
        wanted
    }

    /// A connection was made.
    pub(crate) fn connected(&mut self, connection: C, now: Instant) -> Option<C> {
        self.connecting = self.connecting.saturating_sub(1);
        if self.connections > self.room.size {
            self.connections -= 1;
            return Some(connection);
        }
        self.admit(Some(connection), now);
        None
    }

    /// A connection that was made for another reason than hunger, where there is room for it; otherwise it comes back.
    pub(crate) fn adopt(&mut self, connection: C, now: Instant) -> Option<C> {
        if self.connections >= self.room.size {
            return Some(connection);
        }
        self.connections += 1;
        self.admit(Some(connection), now);
        None
    }

    /// A connection comes back that nobody has used, from somebody who was hungry.
    pub(crate) fn hand_back(&mut self, connection: C, now: Instant) {
        self.admit(Some(connection), now);
    }

    /// None could be made.
    pub(crate) fn failed(&mut self) {
        self.connecting = self.connecting.saturating_sub(1);
        self.connections = self.connections.saturating_sub(1);
    }

    /// Somebody waits no longer.
    pub(crate) fn leave(&mut self, waiting: Waiting, now: Instant) {
        let line = self.line(waiting.managed);
        line.queue.leave(waiting.ticket, now);
        line.waiting.remove(&waiting.ticket);
    }

    /// Refuses those for whom it is too late.
    pub(crate) fn expire(&mut self, now: Instant) {
        for line in &mut self.lines {
            if line.queue.is_empty() {
                continue;
            }
            let discipline = line.discipline;
            for (ticket, refusal) in line.queue.expired(&discipline, now) {
                if let Some((_, sender)) = line.waiting.remove(&ticket) {
                    let after = line.queue.retry_after(&discipline, now);
                    // Whoever has gone needs no answer.
                    let _ = sender.send(Grant::Refused(refusal, after));
                }
            }
        }
    }

    /// When [`Places::expire`] has to be called, if nothing happens before.
    pub(crate) fn wake(&self) -> Option<Instant> {
        self.lines.iter().filter_map(|line| line.queue.wake(&line.discipline)).min()
    }

    /// Goes on after a pause.
    pub(crate) fn resume(&mut self, now: Instant) {
        self.paused = false;
        self.admit(None, now);
    }

    /// Takes idle connections out that this is true for; the caller closes them.
    pub(crate) fn take_idle(&mut self, gone: impl FnMut(&mut C) -> bool) -> Vec<C> {
        let gone: Vec<C> = self.idle.extract_if(.., gone).collect();
        self.connections = self.connections.saturating_sub(gone.len());
        gone
    }

    /// A connection that was taken with a place has turned out to be dead: the next idle one.
    pub(crate) fn replace(&mut self) -> Option<C> {
        self.connections = self.connections.saturating_sub(1);
        self.idle.pop()
    }

    /// Places in use.
    pub(crate) fn running(&self) -> usize {
        self.running
    }

    pub(crate) fn figures(&self) -> Figures {
        Figures {
            size: self.room.size,
            limit: self.room.limit,
            connections: self.connections,
            connecting: self.connecting,
            idle: self.idle.len(),
            running: self.running,
            waiting: self.lines.iter().map(|line| line.queue.len()).sum(),
            oldest: self.lines.iter().filter_map(|line| line.queue.oldest()).min(),
            hungry: self.hungry.iter().filter(|hungry| !hungry.is_closed()).count(),
            paused: self.paused,
        }
    }
}

/// A pool in figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Figures {
    pub(crate) size: usize,
    pub(crate) limit: usize,
    pub(crate) connections: usize,
    pub(crate) connecting: usize,
    pub(crate) idle: usize,
    /// Places in use.
    pub(crate) running: usize,
    pub(crate) waiting: usize,
    /// Since when the oldest waits.
    pub(crate) oldest: Option<Instant>,
    /// Have a place and wait for a connection.
    pub(crate) hungry: usize,
    pub(crate) paused: bool,
}

impl Figures {
    /// Connections that somebody has.
    pub(crate) fn in_use(&self) -> usize {
        self.connections.saturating_sub(self.idle + self.connecting)
    }

    /// How long the oldest has waited, in seconds.
    pub(crate) fn oldest_wait(&self, now: Instant) -> f64 {
        self.oldest.map_or(0.0, |oldest| now.saturating_duration_since(oldest).as_secs_f64())
    }
}

#[cfg(test)]
#[path = "places_tests.rs"]
mod tests;
