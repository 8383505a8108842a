//! The load generator: clients of PostgreSQL that send operations when they are due, whatever became of those before,
//! and give each a deadline.
//!
//! A latency begins when its operation was due ("coordinated omission" is [`schedule`](super::schedule)'s matter). Timers
//! have a granularity of a millisecond, so a latency may be counted up to that much too long, never too short. Everything runs on one
//! thread; an operation takes no memory.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::sync::Notify;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{sleep, sleep_until, timeout, timeout_at};

use super::closed::open_all;
use super::connection::{Broken, Connection, Reply};
use super::schedule::{Arrivals, Due, Schedule, Step};
use super::tally::{BIN, Fate, Tally};
use super::wire::Operation;
use crate::Failure;
use crate::measure::nanos;

/// Between two attempts to open a connection that was lost: doubled from the first to the second.
const BACKOFF: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(800)];

/// How long clients may take to be ready, once their connections are open.
const GATHERING: Duration = Duration::from_secs(1);

/// What a client does at the deadline of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// It waits on, and counts an answer that comes later as a failure.
    Patient,
    /// It closes the connection and opens another one.
    Abandoning,
}

/// What the program does with an operation when all its connections are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// It has no place for it.
    NoQueue,
    /// The operation waits for a connection until its deadline, first come, first served.
    Queue,
}

/// An open load.
#[derive(Clone, Debug)]
pub struct Load {
    /// Where clients connect.
    pub to: SocketAddr,
    /// What they do.
    pub operation: Operation,
    /// How many of them there are.
    pub connections: usize,
    /// What they do at the deadline.
    pub patience: Patience,
    /// What becomes of operations beyond them.
    pub program: Program,
    /// For each operation, from when it was due.
    pub deadline: Duration,
    /// How operations follow each other.
    pub arrivals: Arrivals,
    /// How many, and how long.
    pub steps: Vec<Step>,
    /// Ends it before all steps are done.
    pub end: Arc<AtomicBool>,
    /// Of the random numbers.
    pub seed: u64,
}

/// What a load saw.
pub struct Outcome {
    /// Of each step.
    pub steps: Vec<Tally>,
    /// Connections that the other side ended, with an operation under way or without one.
    pub disconnects: u64,
    /// Connections that could not be opened again at an attempt.
    pub not_opened: u64,
    /// The SQLSTATEs with which the other side did so.
    pub codes: BTreeMap<[u8; 5], u64>,
    /// From when an operation was due until the generator looked at it, ns: what it adds itself.
    pub lag: Histogram<u64>,
}

impl Outcome {
    /// What became of connections, for people.
    pub fn ends(&self) -> String {
        let codes = self.codes.iter();
        let codes: Vec<_> =
            codes.map(|(code, count)| format!("{count} × {}", String::from_utf8_lossy(code))).collect();
        format!(
            "; connections ended {}, not opened {}; {}",
            self.disconnects,
            self.not_opened,
            codes.join(", ")
        )
    }
}

/// One operation that is due.
#[derive(Clone, Copy)]
struct Arrival {
    at: Instant,
    due: Due,
}

/// One client.
#[derive(Default)]
struct Client {
    /// What it does now.
    arrival: Cell<Option<Arrival>>,
    given: Notify,
}

struct State {
    outcome: Outcome,
    /// Clients that have nothing to do; the one that has waited longest is first.
    idle: VecDeque<usize>,
    waiting: VecDeque<Arrival>,
    /// What ends the benchmark.
    wrong: Option<String>,
}

struct Shared {
    load: Load,
    clients: Vec<Client>,
    state: RefCell<State>,
}

impl Shared {
    fn new(load: Load) -> Result<Self, Failure> {
        let tally = |step: &Step| Tally::new(load.deadline, step.settle + step.measure);
        let outcome = Outcome {
            steps: load.steps.iter().map(tally).collect::<Result<_, _>>()?,
            disconnects: 0,
            not_opened: 0,
            codes: BTreeMap::new(),
            lag: Histogram::new_with_bounds(1, 60_000_000_000, 3)?,
        };
        let most = load.steps.iter().fold(0.0, |most: f64, step| most.max(step.rate));
        let room = match load.program {
            Program::NoQueue => 0,
            Program::Queue => (most * load.deadline.as_secs_f64() * 1.5) as usize + 64,
        };
        let state = State {
            outcome,
            idle: VecDeque::with_capacity(load.connections),
            waiting: VecDeque::with_capacity(room),
            wrong: None,
        };
        let clients = (0..load.connections).map(|_| Client::default()).collect();
        Ok(Self { load, clients, state: RefCell::new(state) })
    }

    fn count(&self, arrival: Arrival, fate: Fate) {
        let Arrival { at, due } = arrival;
        if !due.counted {
            return;
        }
        let in_step = self.in_step(due);
        let mut state = self.state.borrow_mut();
        if let Some(tally) = state.outcome.steps.get_mut(due.step) {
            tally.count(fate, at, in_step, Instant::now());
        }
    }

    fn expired(&self, arrival: Arrival) -> bool {
        arrival.at.elapsed() >= self.load.deadline
    }

    /// The oldest operation that waits in the program, where its time is over. So the queue is bounded by rate × deadline.
    fn pop_expired(&self) -> Option<Arrival> {
        let mut state = self.state.borrow_mut();
        let first = *state.waiting.front()?;
        if self.expired(first) { state.waiting.pop_front() } else { None }
    }

    /// The next operation that waits in the program and can still succeed.
    fn take_waiting(&self) -> Option<Arrival> {
        while let Some(expired) = self.pop_expired() {
            self.count(expired, Fate::Unsent);
        }
        self.state.borrow_mut().waiting.pop_front()
    }

    /// Gives an operation to a client, or to the program's queue.
    fn arrive(&self, arrival: Arrival) {
        let idle = self.state.borrow_mut().idle.pop_front();
        if let Some(client) = idle.and_then(|number| self.clients.get(number)) {
            client.arrival.set(Some(arrival));
            client.given.notify_one();
            return;
        }
        match self.load.program {
            Program::NoQueue => self.count(arrival, Fate::Unsent),
            Program::Queue => {
                while let Some(first) = self.pop_expired() {
                    self.count(first, Fate::Unsent);
                }
                self.state.borrow_mut().waiting.push_back(arrival);
            }
        }
    }

    /// Leaves out slices of time after the last operation, which was this one.
    fn cut(&self, last: Due) {
        let length = self.in_step(last);
        let mut state = self.state.borrow_mut();
        if let Some(tally) = state.outcome.steps.get_mut(last.step) {
            tally.bins.truncate((length.as_nanos() / BIN.as_nanos()) as usize + 1);
        }
    }

    /// From the beginning of its step.
    fn in_step(&self, due: Due) -> Duration {
        let before: Duration =
            self.load.steps.iter().take(due.step).map(|step| step.settle + step.measure).sum();
        due.after.saturating_sub(before)
    }

    /// Whether an operation has not ended.
    fn is_busy(&self) -> bool {
        !self.state.borrow().waiting.is_empty()
            || self.clients.iter().any(|client| client.arrival.get().is_some())
    }

    /// Notes why a connection is of no use any more.
    fn ended(&self, broken: Broken) {
        let mut state = self.state.borrow_mut();
        match broken {
            Broken::Ended(refusal) => {
                if let Some(refusal) = refusal {
                    *state.outcome.codes.entry(refusal.code).or_default() += 1;
                }
            }
            Broken::Wrong(why) => {
                state.wrong.get_or_insert(why);
            }
        }
    }

    /// Serves operations until the connection is of no use any more.
    async fn serve(&self, number: usize, client: &Client, mut connection: Connection) {
        loop {
            if client.arrival.get().is_none() {
                client.arrival.set(self.take_waiting());
            }
            if client.arrival.get().is_none() {
                self.state.borrow_mut().idle.push_back(number);
                tokio::select! {
                    biased;
                    () = client.given.notified() => {}
                    broken = connection.until_it_ends() => {
                        self.state.borrow_mut().idle.retain(|idle| *idle != number);
                        self.state.borrow_mut().outcome.disconnects += 1;
                        self.ended(broken);
                        if let Some(arrival) = client.arrival.take() {
                            // It was given at this very moment.
                            client.given.notified().await;
                            self.count(arrival, Fate::Disconnected);
                        }
                        return;
                    }
                }
            }
            let Some(arrival) = client.arrival.get() else { continue };
            let end = match self.load.patience {
                Patience::Patient => Ok(connection.operate().await),
                Patience::Abandoning => {
                    timeout_at((arrival.at + self.load.deadline).into(), connection.operate()).await
                }
            };
            client.arrival.set(None);
            match end {
                Ok(Ok(Reply::Right)) => self.count(arrival, Fate::Answered),
                Ok(Ok(Reply::Refused(refusal))) if refusal.ours => {
                    self.count(arrival, Fate::Refused(refusal))
                }
                Ok(Ok(Reply::Refused(refusal))) => self.count(arrival, Fate::Failed(refusal)),
                Ok(Err(broken)) => {
                    self.count(arrival, Fate::Disconnected);
                    self.state.borrow_mut().outcome.disconnects += 1;
                    return self.ended(broken);
                }
                Err(_) => return self.count(arrival, Fate::GivenUp),
            }
        }
    }

    /// Opens a connection again, as often as it takes.
    async fn reopen(&self, seed: u64) -> Connection {
        let [mut pause, most] = BACKOFF;
        loop {
            let opened = Connection::open(self.load.to, &self.load.operation, seed);
            match timeout(self.load.deadline, opened).await {
                Ok(Ok(connection)) => return connection,
                Ok(Err(broken)) => self.ended(broken),
                Err(_) => {}
            }
            self.state.borrow_mut().outcome.not_opened += 1;
            sleep(pause).await;
            pause = most.min(pause * 2);
        }
    }
}

/// Runs a load to its end. `begun` gets the moment in which it begins, when all connections are open.
///
/// # Errors
/// When connections cannot be opened at the beginning, or an answer is wrong.
pub fn run(load: Load, begun: impl FnOnce(Instant) + Send) -> Result<Outcome, Failure> {
    // A thread of its own, because a priority is one's for good, and of what one starts.
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            // What measures must not wait for what it measures. Only root may have that.
            let _ = rustix::process::setpriority_process(None, -10);
            // Timers are looked at more often than usual, so that many connections at once do not keep what is due waiting.
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().event_interval(16).build()?;
            LocalSet::new().block_on(&runtime, drive(load, begun))
        });
        thread.join().unwrap_or_else(|_| Err("the generator panicked".into()))
    })
}

async fn drive(load: Load, begun: impl FnOnce(Instant)) -> Result<Outcome, Failure> {
    let connections = open_all(load.to, &load.operation, load.connections, load.seed).await?;
    let shared = Rc::new(Shared::new(load)?);
    let mut work = JoinSet::new();
    for (number, connection) in connections.into_iter().enumerate() {
        let shared = Rc::clone(&shared);
        work.spawn_local(async move {
            let Some(client) = shared.clients.get(number) else { return };
            let mut seed = shared.load.seed.wrapping_add(number as u64);
            let mut connection = connection;
            loop {
                shared.serve(number, client, connection).await;
                seed = seed.wrapping_add(shared.clients.len() as u64);
                connection = shared.reopen(seed).await;
            }
        });
    }
    // Everybody is at its place before the first operation is due.
    let opened = Instant::now();
    while shared.state.borrow().idle.len() < shared.load.connections && opened.elapsed() < GATHERING {
        tokio::task::yield_now().await;
    }
    let start = Instant::now();
    begun(start);
    for due in Schedule::new(shared.load.arrivals, &shared.load.steps, shared.load.seed) {
        let at = start + due.after;
        if Instant::now() < at {
            sleep_until(at.into()).await;
        }
        shared.state.borrow_mut().outcome.lag.saturating_record(nanos(at.elapsed()));
        shared.arrive(Arrival { at, due });
        if shared.state.borrow().wrong.is_some() {
            break;
        }
        if shared.load.end.load(Ordering::Relaxed) {
            shared.cut(due);
            break;
        }
    }
    // By then everything has ended well, or has not.
    let end = Instant::now() + shared.load.deadline + Duration::from_millis(50);
    while shared.is_busy() && Instant::now() < end {
        sleep(Duration::from_millis(5)).await;
    }
    work.shutdown().await;
    let waiting = std::mem::take(&mut shared.state.borrow_mut().waiting);
    for arrival in waiting {
        shared.count(arrival, Fate::Unsent);
    }
    for arrival in shared.clients.iter().filter_map(|client| client.arrival.take()) {
        shared.count(arrival, Fate::Unanswered);
    }
    let shared = Rc::into_inner(shared).ok_or("a client goes on")?;
    let State { outcome, wrong, .. } = shared.state.into_inner();
    match wrong {
        Some(why) => Err(format!("a wrong answer: {why}").into()),
        None => Ok(outcome),
    }
}
