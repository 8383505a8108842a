//! The load generator: queries over UDP from many ports, every answer checked, everything that is missing counted.
//!
//! At a fixed rate a latency begins when its query was due, not when it left, so a server that stops answering for a
//! while cannot hide that by slowing the generator down ("coordinated omission").

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;

use super::batch::{BATCH, Batch};
use super::question::{Questions, SIZE, Verdict};
use crate::Failure;
use crate::measure::nanos;

/// Source ports: a server that spreads clients over threads by port sees many of them.
const SOCKETS: usize = 16;
/// An id is the number of a slot and how often the slot was used before, modulo 16.
const SLOTS: usize = 4096;

/// When queries leave.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// So many are under way at any moment, for a time.
    Closed {
        /// Queries under way.
        in_flight: usize,
        /// How long.
        time: Duration,
    },
    /// So many in all at a rate, whatever happens to them.
    Open {
        /// Queries a second.
        rate: f64,
        /// How many in all.
        queries: u64,
    },
}

/// In which order questions are asked.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    /// From the first to the last, then again.
    InTurn,
    /// Each once in a turn, but far from its neighbours.
    Spread,
}

/// A load.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// The server.
    pub to: SocketAddr,
    /// What is asked.
    pub questions: &'a Questions,
    /// In which order.
    pub order: Order,
    /// When.
    pub pace: Pace,
    /// When a query counts as lost.
    pub patience: Duration,
}

/// What a load saw.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Queries that left, or should have.
    pub sent: u64,
    /// Right answers.
    pub right: u64,
    /// Answers with a code other than NOERROR.
    pub refused: u64,
    /// Answers that claim success and are wrong.
    pub wrong: u64,
    /// No answer within the patience.
    pub lost: u64,
    /// The time from when a query was due until its answer, ns. A lost one counts with the whole patience.
    pub took: Histogram<u64>,
    /// From the first query to the end.
    pub elapsed: Duration,
}

impl Outcome {
    /// Queries without a right answer.
    pub fn failed(&self) -> u64 {
        self.refused + self.wrong + self.lost
    }

    /// The same of a hundred queries.
    pub fn failed_percent(&self) -> f64 {
        self.failed() as f64 * 100.0 / self.sent.max(1) as f64
    }

    /// A quantile of the latency in µs.
    pub fn micros(&self, quantile: f64) -> f64 {
        self.took.value_at_quantile(quantile) as f64 / 1e3
    }
}

/// One answer.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// What it is.
    pub verdict: Verdict,
    /// When its query was due.
    pub asked: Instant,
    /// How long it took from then.
    pub took: Duration,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    uses: u16,
    /// The question and when it was due, while an answer is awaited.
    waiting: Option<(u32, Instant)>,
}

/// Queries under way from one port.
struct Slots {
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// Slots in the order in which they were filled, with their use.
    order: VecDeque<(u16, u16)>,
}

impl Slots {
    fn new() -> Self {
        let free = (0..SLOTS as u16).rev().collect();
        Self { slots: vec![Slot::default(); SLOTS], free, order: VecDeque::new() }
    }

    fn under_way(&self) -> usize {
        SLOTS - self.free.len()
    }

    /// The id for a query, if a slot is free.
    fn take(&mut self, question: u32, due: Instant) -> Option<u16> {
        let number = self.free.pop()?;
        let slot = self.slots.get_mut(usize::from(number))?;
        slot.uses = slot.uses.wrapping_add(1);
        slot.waiting = Some((question, due));
        self.order.push_back((number, slot.uses));
        Some(number | slot.uses << 12)
    }

    /// What an answer with this id belongs to.
    fn waiting(&self, id: u16) -> Option<(u32, Instant)> {
        let slot = self.slots.get(usize::from(id) % SLOTS)?;
        slot.waiting.filter(|_| slot.uses << 12 == id & 0xf000)
    }

    fn release(&mut self, id: u16) {
        let number = id % SLOTS as u16;
        if let Some(slot) = self.slots.get_mut(usize::from(number)) {
            slot.waiting = None;
            self.free.push(number);
        }
    }

    /// Gives up what was due before `limit`; how many there were.
    fn expire(&mut self, limit: Instant) -> u64 {
        let mut lost = 0;
        while let Some(&(number, uses)) = self.order.front() {
            let slot = self.slots.get(usize::from(number)).filter(|slot| slot.uses == uses);
            match slot.and_then(|slot| slot.waiting) {
                Some((_, due)) if due >= limit => break,
                Some(_) => {
                    lost += 1;
                    self.release(number);
                }
                None => {}
            }
            self.order.pop_front();
        }
        lost
    }
}

/// One source port.
struct Port {
    socket: UdpSocket,
    slots: Slots,
}

impl Port {
    fn open(to: SocketAddr) -> io::Result<Self> {
        const BUFFER: usize = 4 << 20;
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(to)?;
        // Beyond the system's limit with root's rights, up to it without.
        let _ = sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER)
            .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, BUFFER));
        Ok(Self { socket, slots: Slots::new() })
    }
}

/// Runs a load to its end.
///
/// # Errors
/// When no socket can be had.
pub fn run(load: Load<'_>) -> Result<Outcome, Failure> {
    run_watched(load, |_| {})
}

/// The same; `watch` gets every answer.
///
/// # Errors
/// When no socket can be had.
pub fn run_watched(load: Load<'_>, watch: impl FnMut(Answer)) -> Result<Outcome, Failure> {
    // A sleep may otherwise take 50 µs more than asked for.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    let mut ports = Vec::new();
    for _ in 0..SOCKETS {
        ports.push(Port::open(load.to)?);
    }
    let start = Instant::now();
    let mut run = Run {
        load,
        start,
        next: 0,
        batch: Batch::default(),
        out: Vec::with_capacity(BATCH),
        watch,
        outcome: Outcome {
            sent: 0,
            right: 0,
            refused: 0,
            wrong: 0,
            lost: 0,
            took: Histogram::new_with_bounds(1, 60_000_000_000, 3)?,
            elapsed: Duration::ZERO,
        },
    };
    run.drive(&mut ports)?;
    run.outcome.elapsed = start.elapsed();
    Ok(run.outcome)
}

struct Run<'a, W> {
    load: Load<'a>,
    start: Instant,
    /// Queries that have left.
    next: u64,
    batch: Batch,
    out: Vec<[u8; SIZE]>,
    watch: W,
    outcome: Outcome,
}

impl<W: FnMut(Answer)> Run<'_, W> {
    fn drive(&mut self, ports: &mut [Port]) -> io::Result<()> {
        let mut turn = 0;
        loop {
            let now = Instant::now();
            let more = self.fill(ports, &mut turn, now)?;
            let patience = self.load.patience;
            let mut under_way = 0;
            for port in &mut *ports {
                if let Some(limit) = now.checked_sub(patience) {
                    let lost = port.slots.expire(limit);
                    self.outcome.lost += lost;
                    self.outcome.took.saturating_record_n(nanos(patience), lost);
                }
                under_way += port.slots.under_way();
            }
            if !more && under_way == 0 {
                return Ok(());
            }
            let waiting = self.wait(ports, now, more)?;
            if waiting.iter().any(|ready| *ready) {
                for (port, _) in ports.iter_mut().zip(&waiting).filter(|(_, ready)| **ready) {
                    self.receive(port)?;
                }
            }
        }
    }

    /// Sends what is due; whether there is more to come.
    fn fill(&mut self, ports: &mut [Port], turn: &mut usize, now: Instant) -> io::Result<bool> {
        match self.load.pace {
            Pace::Closed { in_flight, time } => {
                if now >= self.start + time {
                    return Ok(false);
                }
                let each = in_flight.div_ceil(ports.len().max(1));
                for port in ports {
                    let free = each.saturating_sub(port.slots.under_way());
                    self.send(port, free, |_| now)?;
                }
                Ok(true)
            }
            Pace::Open { rate, queries } => {
                let due = ((now - self.start).as_secs_f64() * rate) as u64 + 1;
                let start = self.start;
                while self.next < due.min(queries) {
                    let count = (due.min(queries) - self.next).min(BATCH as u64 / 4);
                    let number = ports.len().max(1);
                    let Some(port) = ports.get_mut(*turn % number) else { break };
                    *turn += 1;
                    self.send(port, count as usize, |next| {
                        start + Duration::from_secs_f64(next as f64 / rate)
                    })?;
                }
                Ok(self.next < queries)
            }
        }
    }

    fn send(&mut self, port: &mut Port, count: usize, due: impl Fn(u64) -> Instant) -> io::Result<()> {
        let mut left = count;
        while left > 0 {
            self.out.clear();
            let mut ids = [0; BATCH];
            for id in ids.iter_mut().take(left) {
                let question = self.question();
                let due = due(self.next);
                self.next += 1;
                self.outcome.sent += 1;
                match port.slots.take(question as u32, due) {
                    Some(number) => {
                        *id = number;
                        self.out.push(self.load.questions.query(question, number));
                    }
                    // So many are under way that a client would have given up long ago.
                    None => self.outcome.lost += 1,
                }
            }
            left -= left.min(BATCH);
            let mut from = 0;
            while let Some(rest) = self.out.get(from..).filter(|rest| !rest.is_empty()) {
                let sent = self.batch.send(&port.socket, rest, &[None; BATCH])?;
                if sent == 0 {
                    // The rest is on its way to being lost, as in a network that is full.
                    break;
                }
                from += sent;
            }
        }
        Ok(())
    }

    fn question(&self) -> usize {
        let names = self.load.questions.len().max(1) as u64;
        let at = match self.load.order {
            Order::InTurn => self.next,
            // Coprime to any number of names in use.
            Order::Spread => self.next.wrapping_mul(7919),
        };
        (at % names) as usize
    }

    /// Waits until something arrives or is due; which ports have something.
    fn wait(&self, ports: &[Port], now: Instant, more: bool) -> io::Result<[bool; SOCKETS]> {
        let pause = match self.load.pace {
            Pace::Open { rate, .. } if more => {
                let due = self.start + Duration::from_secs_f64(self.next as f64 / rate);
                due.saturating_duration_since(now)
            }
            Pace::Open { .. } | Pace::Closed { .. } => Duration::from_millis(5),
        };
        let pause = Timespec::try_from(pause.min(Duration::from_millis(5))).unwrap_or_default();
        let mut fds: Vec<_> = ports.iter().map(|port| PollFd::new(&port.socket, PollFlags::IN)).collect();
        match poll(&mut fds, Some(&pause)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(why) => return Err(why.into()),
        }
        let mut ready = [false; SOCKETS];
        for (ready, fd) in ready.iter_mut().zip(&fds) {
            *ready = !fd.revents().is_empty();
        }
        Ok(ready)
    }

    fn receive(&mut self, port: &mut Port) -> io::Result<()> {
        let Self { load, batch, outcome, watch, .. } = self;
        let Port { socket, slots } = port;
        let (patience, questions) = (load.patience, load.questions);
        batch.receive(socket, false, |reply, _| {
            let Some(&[high, low]) = reply.get(..2) else { return };
            let id = u16::from_be_bytes([high, low]);
            let Some((question, asked)) = slots.waiting(id) else { return };
            let verdict = questions.judge(question as usize, reply);
            if verdict == Verdict::Foreign {
                return;
            }
            slots.release(id);
            let took = asked.elapsed();
            match verdict {
                // It would be lost to a client that has given up.
                _ if took > patience => outcome.lost += 1,
                Verdict::Right { .. } => outcome.right += 1,
                Verdict::Code(_) => outcome.refused += 1,
                Verdict::Wrong | Verdict::Foreign => outcome.wrong += 1,
            }
            outcome.took.saturating_record(nanos(took.min(patience)));
            watch(Answer { verdict, asked, took });
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use qudag_kit::{Behaviour, FaultyDns};

    use super::*;

    fn load<'a>(server: &FaultyDns, questions: &'a Questions, pace: Pace) -> Load<'a> {
        let patience = Duration::from_millis(400);
        Load { to: server.addr(), questions, order: Order::InTurn, pace, patience }
    }

    #[test]
    fn every_query_of_an_open_load_has_one_end() {
        let (server, questions) = (FaultyDns::start(), Questions::new(0..700));
        let pace = Pace::Open { rate: 2_000.0, queries: 700 };
        let outcome = run(load(&server, &questions, pace)).unwrap();
        assert_eq!((outcome.sent, outcome.right, outcome.failed()), (700, 700, 0));
        assert_eq!((server.total(), outcome.took.len()), (700, 700));
        assert!(outcome.elapsed >= Duration::from_millis(349), "{:?}", outcome.elapsed);

        server.behave(Behaviour::ServFail);
        let outcome = run(load(&server, &questions, pace)).unwrap();
        assert_eq!((outcome.sent, outcome.refused, outcome.failed()), (700, 700, 700));
        server.behave(Behaviour::BlackHole);
        let outcome = run(load(&server, &questions, pace)).unwrap();
        assert_eq!((outcome.lost, outcome.failed_percent()), (700, 100.0));
        assert!(outcome.micros(0.5) >= 399_000.0, "a lost query counts with the whole patience");
        server.behave(Behaviour::WrongId);
        let outcome = run(load(&server, &questions, pace)).unwrap();
        assert_eq!((outcome.right, outcome.lost), (0, 700), "a reply to nothing is none");
    }

    #[test]
    fn a_closed_load_keeps_so_many_under_way() {
        let (server, questions) = (FaultyDns::start(), Questions::new(0..10));
        server.behave(Behaviour::Delay(Duration::from_millis(50)));
        let pace = Pace::Closed { in_flight: 32, time: Duration::from_millis(210) };
        let mut seen = 0;
        let outcome = run_watched(load(&server, &questions, pace), |answer| {
            assert!(answer.took >= Duration::from_millis(50));
            seen += 1;
        })
        .unwrap();
        assert_eq!((outcome.right, seen, outcome.failed()), (outcome.sent, outcome.sent, 0));
        // Five turns at most, and at least two on a machine that does other things too.
        assert!((64..=160).contains(&outcome.sent), "{}", outcome.sent);
    }

    #[test]
    fn the_delay_of_a_server_is_what_is_measured() {
        let (server, questions) = (FaultyDns::start(), Questions::new(0..500));
        server.behave(Behaviour::Delay(Duration::from_millis(150)));
        let pace = Pace::Open { rate: 1_000.0, queries: 500 };
        let outcome = run(load(&server, &questions, pace)).unwrap();
        assert_eq!(outcome.right, 500);
        assert!(outcome.micros(0.01) >= 150_000.0);
    }

    #[test]
    fn a_slot_is_not_taken_for_another_use_of_it() {
        let (mut slots, now) = (Slots::new(), Instant::now());
        let first = slots.take(1, now).unwrap();
        slots.release(first);
        let second = slots.take(2, now).unwrap();
        assert_eq!(first % SLOTS as u16, second % SLOTS as u16);
        assert_eq!((slots.waiting(first), slots.waiting(second)), (None, Some((2, now))));
        assert_eq!(slots.expire(now), 0);
        assert_eq!(slots.expire(now + Duration::from_nanos(1)), 1);
        assert_eq!((slots.under_way(), slots.expire(now + Duration::from_secs(1))), (0, 0));
    }
}
