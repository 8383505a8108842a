//! The way to the server while the filter is on: reading within a bound, and two tasks, one that follows the flushes of the fleet and one that
//! writes.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use qudag_core::breaker::{Breaker, Decision, Pass, Settings};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::client::{Connection, Content, Fault, Found, Write};
use super::entry::{self, Stored, Unfit};
use super::log::{FlushId, Verdict};
use super::rules::{Asked, Life, aged, life};
use super::state::SharedCacheState;

/// Failures in a row after which the server is left alone, and for how long: 250 ms at first, doubling to 30 s, with a jitter of 50 %.
pub(super) const BREAKER: Settings =
    Settings { failures: 3, open: Duration::from_millis(250), max_open: Duration::from_secs(30) };
/// How many replies are written at a time.
const BATCH: usize = 64;
/// How long a batch may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);
/// How many bytes of replies may wait to be written.
const MAX_WAITING_BYTES: usize = 4 << 20;
/// How often damaged entries are said in the log.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// The share of its life after which an entry is asked for anew, of at most so much: before a cache in front of us would do so, so that what it
/// gets is new.
const FRESH: (u32, Duration) = (70, Duration::from_secs(240));

/// What a look into Redis gave.
#[derive(Debug)]
pub(super) enum Look {
    /// An entry.
    Hit { reply: Bytes, age: Duration },
    /// An entry that may be served when no server answers.
    Aging { reply: Bytes, age: Duration },
    /// Nothing of use, and why.
    Miss(&'static str),
}

/// A thing for the task that writes.
enum Job {
    Store { of: Box<Asked>, reply: Bytes, flush: FlushId, at: Instant, fetched: u64 },
    Forget { key: String },
}

impl Job {
    fn bytes(&self) -> usize {
        match self {
            Self::Store { reply, .. } => reply.len(),
            Self::Forget { .. } => 0,
        }
    }
}

/// The way to the server. Its tasks and connections end with it.
pub(super) struct Link {
    pub(super) shared: Arc<Shared>,
    state: Arc<SharedCacheState>,
    queue: mpsc::Sender<Job>,
    /// When a damaged entry was last said in the log.
    said: Mutex<Option<Instant>>,
    _tasks: [AbortOnDropHandle<()>; 2],
}

/// What the link has in common with its tasks.
pub(super) struct Shared {
    /// The connection, while the flushes of the fleet are known.
    connection: ArcSwapOption<Connection>,
    breaker: Mutex<Breaker>,
    /// The bytes in the queue.
    waiting: AtomicUsize,
}

impl Shared {
    /// Uses a connection from now on, or none.
    pub(super) fn set(&self, connection: Option<Connection>) {
        if connection.is_some() {
            self.breaker.lock().unwrap_or_else(PoisonError::into_inner).forget();
        }
        self.connection.store(connection.map(Arc::new));
    }
}

/// A call under way. Dropped without an outcome, it was cancelled.
struct Call<'a> {
    breaker: &'a Mutex<Breaker>,
    pass: Option<Pass>,
}

impl<'a> Call<'a> {
    fn admit(breaker: &'a Mutex<Breaker>) -> Option<Self> {
        match breaker
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .admit(&BREAKER, Instant::now().into_std())
        {
            Decision::Admit(pass) => Some(Self { breaker, pass: Some(pass) }),
            Decision::Reject { .. } => None,
        }
    }

    /// Reports the outcome; whether that opened the breaker.
    fn end(mut self, success: bool) -> bool {
        let Some(pass) = self.pass.take() else { return false };
        let mut breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        if success {
            breaker.success(pass);
            return false;
        }
        breaker.failure(pass, &BREAKER, Instant::now().into_std(), fastrand::u64(..))
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if let Some(pass) = self.pass.take() {
            let mut breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
            breaker.cancel(pass, Instant::now().into_std());
        }
    }
}

impl Link {
    /// Starts the tasks.
    pub(super) fn start(state: Arc<SharedCacheState>) -> Self {
        let (queue, jobs) = mpsc::channel(state.max_queue());
        let shared = Arc::new(Shared {
            connection: ArcSwapOption::empty(),
            breaker: Mutex::default(),
            waiting: AtomicUsize::new(0),
        });
        let follow = super::follow::run(Arc::clone(&state), Arc::clone(&shared));
        let write = write(Arc::clone(&state), Arc::clone(&shared), jobs);
        let tasks = [tokio::spawn(follow), tokio::spawn(write)].map(AbortOnDropHandle::new);
        Self { shared, state, queue, said: Mutex::default(), _tasks: tasks }
    }

    /// The last flush that is known: replies that are asked for from here on are newer.
    pub(super) fn flush(&self) -> Option<FlushId> {
        self.state.log().known()
    }

    /// Counts a query that was answered.
    pub(super) fn hit(&self) {
        self.state.counts().hits.increment(1);
    }

    /// Counts a query that goes on, and why.
    pub(super) fn miss(&self, reason: &'static str) {
        self.state.counts().miss(reason);
    }

    /// Looks for an entry. Takes no longer than `timeout`, and fails for nothing.
    pub(super) async fn look(&self, of: &Asked, timeout: Duration) -> Look {
        let counts = self.state.counts();
        let Some(connection) = self.shared.connection.load_full() else { return Look::Miss("disconnected") };
        let Some(call) = Call::admit(&self.shared.breaker) else { return Look::Miss("paused") };
        let key = entry::key(self.state.prefix(), self.state.seal(), of);
        let start = Instant::now();
        let found = tokio::time::timeout(timeout, connection.read(&key)).await;
        let found = found.unwrap_or(Err(Fault::Timeout));
        counts.seconds.record(start.elapsed().as_secs_f64());
        let opened = call.end(found.is_ok());
        let found = match found {
            Ok(found) => found,
            Err(why) => {
                counts.error(why.label());
                if opened {
                    tracing::warn!(%why, server = %self.state.url(), "the shared DNS cache is left alone for a while");
                }
                return Look::Miss("failed");
            }
        };
        match self.judge(of, &key, found) {
            Ok((reply, age, aging)) if aging => Look::Aging { reply, age },
            Ok((reply, age, _)) => Look::Hit { reply, age },
            Err(why) => Look::Miss(why),
        }
    }

    /// The reply, its age, and whether it is due to be asked for anew.
    fn judge(&self, of: &Asked, key: &str, found: Found) -> Result<(Bytes, Duration, bool), &'static str> {
        let Found { value, left, current } = found;
        let unfit = |why: Unfit| {
            // What is from the future may be good for others, and what is expired goes by itself.
            if matches!(why, Unfit::Damaged | Unfit::Foreign) {
                self.forget(key);
            }
            if why == Unfit::Damaged {
                self.damaged(key);
            }
            why.label()
        };
        // Before the value: without the stream, and with flushes that are not known here, there is something to catch up with.
        let known = self.flush();
        if current.is_none() || current != known {
            self.state.wake();
        }
        let value = match value {
            Content::Nothing => return Err("absent"),
            Content::Other => return Err(unfit(Unfit::Foreign)),
            Content::Bytes(value) => value,
        };
        let current = current.ok_or("behind")?;
        let stored = Stored::decode(&value, key, self.state.seal()).map_err(unfit)?;
        let age = stored.age(wall_clock(), left).map_err(unfit)?;
        match self.state.log().verdict(of, stored.flush, current) {
            Verdict::Valid => {}
            Verdict::Flushed => return Err("flushed"),
            Verdict::Behind => return Err("behind"),
        }
        // What it says of itself is not believed beyond what the reply allows.
        let life = life(of, &stored.reply).ok_or_else(|| unfit(Unfit::Foreign))?.whole.min(stored.lifetime);
        if age >= life {
            return Err(Unfit::Expired.label());
        }
        let reply = aged(of, &stored.reply, age).ok_or(Unfit::Expired.label())?;
        let (percent, most) = FRESH;
        Ok((reply.into(), age, age >= life.min(most) * percent / 100))
    }

    /// Counts an entry whose seal is wrong. Said from time to time only: whoever writes such entries must not fill the log.
    fn damaged(&self, key: &str) {
        self.state.counts().damaged.increment(1);
        let now = Instant::now();
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_none_or(|said| now - said >= SAY_EVERY) {
            *said = Some(now);
            tracing::warn!(key, "an entry of the shared DNS cache is damaged or not from this fleet");
        }
    }

    /// Hands a reply to the task that writes. `flush` was the last one that was known when the reply was asked for.
    pub(super) fn offer(&self, of: Asked, reply: Bytes, flush: FlushId) {
        let (at, fetched) = (Instant::now(), wall_clock());
        self.push(Job::Store { of: Box::new(of), reply, flush, at, fetched });
    }

    fn forget(&self, key: &str) {
        self.push(Job::Forget { key: key.to_owned() });
    }

    fn push(&self, job: Job) {
        let (counts, bytes) = (self.state.counts(), job.bytes());
        let before = self.shared.waiting.fetch_add(bytes, Relaxed);
        if before + bytes > MAX_WAITING_BYTES || self.queue.try_send(job).is_err() {
            self.shared.waiting.fetch_sub(bytes, Relaxed);
            counts.writes("overflow", 1);
        }
        counts.queue.set((self.queue.max_capacity() - self.queue.capacity()) as f64);
    }
}

/// Milliseconds since 1970.
fn wall_clock() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Writes what the queue holds, in batches, until the queue is closed.
async fn write(state: Arc<SharedCacheState>, shared: Arc<Shared>, mut jobs: mpsc::Receiver<Job>) {
    let counts = state.counts();
    let breaker = Mutex::default();
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        batch.clear();
        if jobs.recv_many(&mut batch, BATCH).await == 0 {
            return;
        }
        let bytes: usize = batch.iter().map(Job::bytes).sum();
        shared.waiting.fetch_sub(bytes, Relaxed);
        counts.queue.set(jobs.len() as f64);
        let writes: Vec<_> = batch.drain(..).filter_map(|job| prepared(&state, job)).collect();
        if writes.is_empty() {
            continue;
        }
        let Some(connection) = shared.connection.load_full() else {
            counts.writes("disconnected", writes.len());
            continue;
        };
        let Some(call) = Call::admit(&breaker) else {
            counts.writes("paused", writes.len());
            continue;
        };
        let written = tokio::time::timeout(WRITE_TIMEOUT, connection.write(&writes)).await;
        let results = match written.unwrap_or(Err(Fault::Timeout)) {
            Ok(results) => results,
            Err(why) => {
                counts.error(why.label());
                counts.writes("failed", writes.len());
                call.end(false);
                continue;
            }
        };
        let failed = results.iter().filter_map(|result| result.as_ref().err());
        let failed = failed.inspect(|why| counts.error(why.label())).count();
        counts.writes("failed", failed);
        counts.writes("stored", results.len() - failed);
        call.end(failed == 0);
    }
}

/// What a job means for Redis, if it is still of use.
fn prepared(state: &SharedCacheState, job: Job) -> Option<Write> {
    let (of, reply, flush, at, fetched) = match job {
        Job::Forget { key } => return Some(Write::Delete { key }),
        Job::Store { of, reply, flush, at, fetched } => (of, reply, flush, at, fetched),
    };
    let Life { whole: lifetime, negative } = life(&of, &reply)?;
    let life = lifetime.checked_sub(at.elapsed()).filter(|life| *life >= Duration::from_secs(1))?;
    let key = entry::key(state.prefix(), state.seal(), &of);
    let stored = Stored { fetched, lifetime, negative, flush, reply };
    Some(Write::Set { value: stored.encode(&key, state.seal()), key, life })
}
