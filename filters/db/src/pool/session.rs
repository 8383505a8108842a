//! One pooled session after its login: drives the machines of [`crate::session`] between the client's socket and those of servers.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use metrics::counter;
use qudag_filter_api::{Chains, FilterError, FilterSpec};
use qudag_filter_common::Drain;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::busy::Busy;
use super::capture::{Capture, Written};
use super::conn::{Conn, closed, poll_read, poll_write};
use super::registry::Doing;
use super::servers::Member;
use super::settings::Mode;
use super::taking::Lease;
use super::tapped::Tapped;
use super::{PoolKey, Prefers, SessionInfo, Transaction};
use crate::auth::SecureStream;
use crate::kind::{Db, DbAnswer, DbRequest};
use crate::query_cache::{Asked, QueryCache};
use crate::replicas::ReadReplicas;
use crate::session::{Asks, Client, Down, Fingerprint, Pins, Question, Sent, Step, Tidy};
use crate::wire::backend::Status;
use crate::wire::build::ErrorResponse;

/// How much may wait to be written to one side before the other side is not read any more.
const HIGH: usize = 256 << 10;
/// How much more is read of a client that waits for a server.
const WAITING: usize = 1 << 20;

/// What others want of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Cancel what it does or waits for: a CancelRequest has come.
    Cancel,
    /// Look whether it may keep the server that it has.
    Look,
}

/// What ends a session, as its flow's outcome.
type End = &'static str;

/// A session.
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) stream: SecureStream,
    pub(crate) inbox: BytesMut,
    pub(crate) out: BytesMut,
    pub(crate) info: Arc<SessionInfo>,
    pub(crate) member: Member,
    /// A server of its own, while `db_pool` is off.
    pub(crate) own: Option<Lease>,
    pub(crate) orders: mpsc::UnboundedReceiver<Order>,
    pub(crate) chains: Chains<Db>,
    /// How long a client may take no byte while there is something for it.
    pub(crate) stall: Duration,
    pub(crate) tapped: Tapped,
    /// When the last transaction ended that may have written.
    pub(crate) wrote: Option<Instant>,
    /// When the last one ended that has changed something by its command tags.
    pub(crate) changed: Option<Instant>,
    pub(crate) read: u64,
    pub(crate) written: u64,
}

/// What has happened at the sockets.
enum Event {
    /// Something was read or has arrived.
    Progress,
    /// The client has gone.
    ClientGone,
    /// The server has gone.
    ServerGone,
    Ordered(Order),
    /// The sidecar ends.
    Stopping,
}

/// What may become of a client without a server.
enum Idle {
    Read,
    Gone,
    Stopping,
}

impl Session {
    /// Serves the client until one of the two goes; the outcome.
    pub(crate) async fn run(&mut self, drain: &Drain) -> End {
        let mut stopping = pin!(drain.stopping());
        loop {
            match self.client.feed(&mut self.inbox, &mut self.out) {
                Err(violation) => {
                    violation.write(&mut self.out);
                    self.last_words().await;
                    return "malformed";
                }
                Ok(Step::Terminate) => {
                    self.last_words().await;
                    return "ok";
                }
                Ok(Step::More) => match self.rest(stopping.as_mut()).await {
                    Idle::Read => {}
                    Idle::Gone => return "client_gone",
                    Idle::Stopping => {
                        self.ended(&FilterError::Draining);
                        self.last_words().await;
                        return "draining";
                    }
                },
                Ok(Step::Batch) => {
                    let end = self.transaction(stopping.as_mut()).await;
                    let after = self.passed();
                    self.tapped.end(&self.info, end, after);
                    if let Some(end) = end {
                        self.last_words().await;
                        return end;
                    }
                }
            }
        }
    }

    /// Bytes of the client that were taken, and that were meant for it, so far.
    fn passed(&self) -> (u64, u64) {
        (self.read.saturating_sub(self.inbox.len() as u64), self.written + self.out.len() as u64)
    }

    /// Waits for more of a client that has no server, and says so.
    async fn rest(&mut self, stopping: Pin<&mut impl Future<Output = ()>>) -> Idle {
        self.info.trace.does(Doing::Idle, Instant::now());
        self.idle(stopping).await
    }

    /// Waits for more of a client that has no server.
    async fn idle(&mut self, mut stopping: Pin<&mut impl Future<Output = ()>>) -> Idle {
        std::future::poll_fn(|cx| {
            let pending = self.out.len();
            if let Poll::Ready(Err(_)) = poll_write(&mut self.stream, cx, &mut self.out) {
                return Poll::Ready(Idle::Gone);
            }
            self.written += (pending - self.out.len()) as u64;
            // There is nothing to cancel.
            while let Poll::Ready(Some(_)) = self.orders.poll_recv(cx) {}
            match poll_read(&mut self.stream, cx, &mut self.inbox) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Idle::Gone),
                Poll::Ready(Ok(read)) => {
                    self.read += read as u64;
                    return Poll::Ready(Idle::Read);
                }
                Poll::Pending => {}
            }
            // A thousand idle clients need no buffers.
            for buffer in [&mut self.inbox, &mut self.out] {
                if buffer.is_empty() {
                    *buffer = BytesMut::new();
                }
            }
            stopping.as_mut().poll(cx).map(|()| Idle::Stopping)
        })
        .await
    }

    /// One transaction, from the client's batch to the end of its need for a server; or a refusal.
    async fn transaction(&mut self, stopping: Pin<&mut impl Future<Output = ()>>) -> Option<End> {
        let Some(generation) = (self.chains)() else {
            self.refuse(&FilterError::Draining);
            return None;
        };
        let before = self.passed();
        let work = self.client.work(&self.inbox);
        let statement = work.fingerprint();
        self.info.pool.note(statement, || work.shape());
        let now = Instant::now();
        self.tapped.begin(now, statement, || work.shape(), before);
        let trace = &self.info.trace;
        trace.transactions.fetch_add(1, Relaxed);
        trace.does(Doing::Waiting, now);
        let own = self.own.is_some();
        let (session, bytes) = (Arc::clone(&self.info), self.inbox.len());
        let asks = match generation.chain.has(ReadReplicas::NAME) {
            true => self.client.asks(&self.inbox),
            false => Asks::Nothing,
        };
        let asked = match generation.chain.has(QueryCache::NAME) {
            true => self.asked(statement),
            false => {
                self.info.pool.cache.clear();
                None
            }
        };
        let question = asked.as_ref().map(|asked| asked.question.clone());
        let request = Transaction {
            session,
            bytes,
            statement,
            own,
            asks,
            wrote: self.wrote,
            changed: self.changed,
            asked,
            filling: None,
            route: None,
            pressure: None,
        };
        let answer = {
            let mut call = pin!(generation.chain.call(DbRequest::Transaction(request)));
            std::future::poll_fn(|cx| {
                if let Poll::Ready(answer) = call.as_mut().poll(cx) {
                    return Poll::Ready(Ok(answer));
                }
                self.poll_waiting(cx).map(Err)
            })
            .await
        };
        match answer {
            Ok(Ok(DbAnswer::Server(server))) => {
                self.own = None;
                self.serve(server, statement, stopping).await
            }
            Ok(Ok(DbAnswer::Own)) => match self.own.take() {
                Some(server) => self.serve(server, statement, stopping).await,
                None => Some("internal"),
            },
            Ok(Ok(DbAnswer::Reply(reply))) => match question {
                Some(question) => match self.reply(&question, &reply) {
                    None => self.make_room().await,
                    end => end,
                },
                None => Some("internal"),
            },
            Ok(Ok(_)) => Some("internal"),
            Ok(Err(error)) => {
                self.refuse(&error);
                None
            }
            Err(Event::Ordered(Order::Cancel)) => {
                self.cancelled();
                None
            }
            Err(_) => Some("client_gone"),
        }
    }

    /// The batch that is there, with all that its reply depends on, where a rule names it.
    fn asked(&self, statement: Fingerprint) -> Option<Asked> {
        let cache = self.info.pool.cache.get()?;
        let named = cache.named(statement, &self.client.work(&self.inbox))?;
        let PoolKey { server, user, database } = &self.info.pool.key;
        let prefers: &[u8] = match self.info.prefers {
            Prefers::Any => b"any",
            Prefers::Primary => b"primary",
            Prefers::Replica => b"replica",
        };
        let question = self.client.question(&self.inbox, &[server.as_bytes(), user, database, prefers])?;
        Some(Asked { question, named })
    }

    /// Answers the batch that is there with a reply that was kept.
    fn reply(&mut self, question: &Question, reply: &[u8]) -> Option<End> {
        self.tapped.cached();
        counter!("qudag_sidecar_db_transactions_total", "outcome" => "cached").increment(1);
        let mut texts = self.info.pool.texts.lock().unwrap_or_else(PoisonError::into_inner);
        let answered = self.client.answer_with(question, reply, &mut texts, &mut self.inbox, &mut self.out);
        drop(texts);
        match answered {
            Ok(()) => None,
            Err(violation) => {
                violation.write(&mut self.out);
                Some("malformed")
            }
        }
    }

    /// After an answer without a server: what is behind it in a pipeline waits until the client has taken enough, and lets others go first.
    async fn make_room(&mut self) -> Option<End> {
        while self.out.len() >= HIGH {
            let before = self.out.len();
            let some = std::future::poll_fn(|cx| match poll_write(&mut self.stream, cx, &mut self.out) {
                Poll::Ready(Err(_)) => Poll::Ready(Some("client_gone")),
                _ if self.out.len() < before => Poll::Ready(None),
                _ => Poll::Pending,
            });
            let end = timeout(self.stall, some).await.unwrap_or(Some("stalled"));
            self.written += (before - self.out.len()) as u64;
            if end.is_some() {
                return end;
            }
        }
        if !self.inbox.is_empty() {
            tokio::task::yield_now().await;
        }
        None
    }

    /// Watches a client that waits for a server: whether it goes, or cancels.
    fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        while let Poll::Ready(Some(order)) = self.orders.poll_recv(cx) {
            if order == Order::Cancel {
                return Poll::Ready(Event::Ordered(order));
            }
        }
        while self.inbox.len() < WAITING {
            match poll_read(&mut self.stream, cx, &mut self.inbox) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Event::ClientGone),
                Poll::Ready(Ok(read)) => self.read += read as u64,
                Poll::Pending => break,
            }
        }
        Poll::Pending
    }

    /// Leads a client with a server through its transaction; `Some` when the session ends.
    async fn serve(
        &mut self,
        mut server: Lease,
        statement: Fingerprint,
        mut stopping: Pin<&mut impl Future<Output = ()>>,
    ) -> Option<End> {
        let pool = Arc::clone(server.pool());
        let settings = pool.settings();
        let kept = settings.mode == Mode::Session;
        let (reads, fence) = (server.reads, server.routed);
        let mut capture = server.filling.take().filter(|_| !kept).map(Capture::new);
        self.client.note_writes(pool.cache.watches(), false);
        // What follows in a pipeline may be for the primary, and is not of the reply.
        self.client.send_singly(reads || capture.is_some());
        let mut guest = match Arc::ptr_eq(&pool, &self.info.pool) {
            true => None,
            false => {
                let work = self.client.work(&self.inbox);
                pool.note(statement, || work.shape());
                Some(pool.enter())
            }
        };
        let conn = server.conn()?;
        let mut ready = conn.machine.attach(&mut self.client, &mut conn.up);
        let mut busy = Busy::default();
        let now = Instant::now();
        self.info.trace.does(Doing::Active, now);
        self.tapped.served(now);
        let end = loop {
            let mut held = !ready;
            if ready {
                self.client.note_writes(pool.cache.watches(), true);
                let before = self.out.len();
                let mut texts = pool.texts.lock().unwrap_or_else(PoisonError::into_inner);
                let sent = self.client.up(
                    &mut conn.machine,
                    &mut texts,
                    &mut self.inbox,
                    &mut conn.up,
                    &mut self.out,
                );
                drop(texts);
                if let Some(capture) = &mut capture {
                    capture.add(&self.out, before);
                }
                match sent {
                    Ok(Sent::More) => {}
                    Ok(Sent::Held) => held = true,
                    Ok(Sent::Terminate) => break Some("ok"),
                    Err(violation) => {
                        violation.write(&mut self.out);
                        break Some("malformed");
                    }
                }
            }
            busy.look(&conn.machine);
            if fence && pool.target.is_fenced() {
                let message = "qudag-sidecar: another server is the primary now";
                self.client.end_with(&conn.machine, "57P01", message, &mut self.out);
                closed("old_primary");
                return Some("upstream");
            }
            let limit = if busy.is_running() {
                (!self.out.is_empty()).then_some((self.stall, "stalled"))
            } else if conn.machine.status() != Status::Idle {
                Some((settings.idle_in_transaction.0, "idle_in_transaction"))
            } else {
                None
            };
            let event = {
                let exchange =
                    std::future::poll_fn(|cx| self.poll_exchange(conn, cx, held, stopping.as_mut()));
                match limit {
                    None => Ok(exchange.await),
                    Some((limit, end)) => timeout(limit, exchange).await.map_err(|_| end),
                }
            };
            match event {
                Ok(Event::Progress) => {}
                Ok(Event::ClientGone) => break Some("client_gone"),
                Ok(Event::ServerGone) => {
                    // What it has said before is the client's.
                    let _ = conn.machine.down(&mut conn.down, &mut self.out, Some(&mut self.client.seen));
                    self.client.lost(&conn.machine, &mut self.out);
                    // What was not answered may have been carried out.
                    drop(self.settle(reads, Instant::now()));
                    closed("lost");
                    return Some("upstream");
                }
                Ok(Event::Ordered(Order::Cancel)) => {
                    if conn.machine.is_busy() {
                        let (arrived, key, target) =
                            (conn.cancel_begun(), conn.key.clone(), Arc::clone(&pool.target));
                        drop(tokio::spawn(async move {
                            target.cancel(&key).await;
                            // The connection may be closed by now.
                            let _ = arrived.send(());
                        }));
                    }
                    continue;
                }
                Ok(Event::Ordered(Order::Look)) => {}
                Ok(Event::Stopping) => {
                    self.ended(&FilterError::Draining);
                    break Some("draining");
                }
                Err("stalled") => break Some("stalled"),
                Err(end) => {
                    let message = "terminating connection due to idle-in-transaction timeout";
                    let hint = Some("filters.db.db_pool.idle_in_transaction of qudag-sidecar");
                    ErrorResponse { fatal: true, sqlstate: "25P03", message, detail: None, hint }
                        .write(&mut self.out);
                    break Some(end);
                }
            }
            let before = self.out.len();
            let down = conn.machine.down(&mut conn.down, &mut self.out, Some(&mut self.client.seen));
            if let Some(capture) = &mut capture {
                capture.add(&self.out, before);
            }
            busy.look(&conn.machine);
            match down {
                Ok(Down::Ready) => ready = true,
                Ok(Down::Free) if kept => drop(self.settle(reads, Instant::now())),
                Ok(Down::Free | Down::Tidy) => break None,
                Ok(Down::SetupFailed) => {
                    let failure = conn.machine.failure().to_vec();
                    self.client.refuse_with(&self.inbox, &mut self.out, &failure);
                    break None;
                }
                Ok(Down::More) => {
                    let pins = self.client.pins();
                    if !pins.is_empty() && conn.machine.is_between_transactions() {
                        drop(self.settle(reads, Instant::now()));
                        if !self.pin(guest.as_mut(), pins) {
                            break Some("overloaded");
                        }
                    }
                }
                Err(unknown) => {
                    self.client.lost(&conn.machine, &mut self.out);
                    drop(self.settle(reads, Instant::now()));
                    closed(unknown.label());
                    return Some("upstream");
                }
            }
        };
        if self.client.take_refused_writing() && reads {
            self.info.pool.writes(statement);
        }
        // One that has come to its end has done so with what was just read.
        let now = busy.ended().filter(|_| end.is_none()).unwrap_or_else(Instant::now);
        let written = self.settle(reads, now);
        if let Some(capture) = capture.filter(|_| end.is_none()) {
            capture.end(reads);
        }
        self.member.pin(false);
        drop(guest);
        self.info.trace.pinned.store(false, Relaxed);
        let took = busy.total();
        self.tapped.busy(took);
        if end.is_none() { &pool.meters.ok } else { &pool.meters.ended }.increment(1);
        pool.meters.busy.record(took.as_secs_f64());
        match conn.machine.leave(&mut self.client, &mut conn.up) {
            Tidy::Clean if server.is_own() => self.own = Some(server),
            Tidy::Clean => server.give_back(Some((statement, took)), now),
            tidy => server.tidy(tidy, written),
        }
        end
    }

    /// A transaction is over, or what is to be known of it is: its client is told of what it has written from here on, and others too.
    fn settle(&mut self, reads: bool, now: Instant) -> Option<Written> {
        let changed = self.client.take_changed();
        let written = self.client.take_writes().and_then(|writes| {
            let written = Written { cache: self.info.pool.cache.get()?, writes, changed };
            written.is_something().then_some(written)
        });
        if let Some(written) = &written {
            written.tell();
        }
        let changed = changed || written.is_some();
        // Whoever only reads may have come to the primary for want of a replica, where everything is carried out.
        if changed || !reads {
            self.wrote = Some(now);
            if changed {
                self.changed = Some(now);
            }
        }
        written
    }

    /// Both directions at once: writes what there is to write and reads what there is to read. A side that does not take holds the other.
    fn poll_exchange(
        &mut self,
        conn: &mut Conn,
        cx: &mut Context<'_>,
        held: bool,
        stopping: Pin<&mut impl Future<Output = ()>>,
    ) -> Poll<Event> {
        if let Poll::Ready(Err(_)) = poll_write(&mut conn.stream, cx, &mut conn.up) {
            // It may have said why.
            let _ = poll_read(&mut conn.stream, cx, &mut conn.down);
            return Poll::Ready(Event::ServerGone);
        }
        let pending = self.out.len();
        if let Poll::Ready(Err(_)) = poll_write(&mut self.stream, cx, &mut self.out) {
            return Poll::Ready(Event::ClientGone);
        }
        self.written += (pending - self.out.len()) as u64;
        if self.out.len() < HIGH {
            match poll_read(&mut conn.stream, cx, &mut conn.down) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Event::ServerGone),
                Poll::Ready(Ok(_)) => return Poll::Ready(Event::Progress),
                Poll::Pending => {}
            }
        }
        if !held && conn.up.len() < HIGH {
            match poll_read(&mut self.stream, cx, &mut self.inbox) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Event::ClientGone),
                Poll::Ready(Ok(read)) => {
                    self.read += read as u64;
                    return Poll::Ready(Event::Progress);
                }
                Poll::Pending => {}
            }
        }
        if let Poll::Ready(Some(order)) = self.orders.poll_recv(cx) {
            return Poll::Ready(Event::Ordered(order));
        }
        if conn.poll_cancelled(cx).is_ready() {
            return Poll::Ready(Event::Progress);
        }
        if conn.machine.is_between_transactions() {
            return stopping.poll(cx).map(|()| Event::Stopping);
        }
        Poll::Pending
    }

    /// The session keeps its server, of its own pool or that where it is a guest; `false` when too many do.
    fn pin(&mut self, guest: Option<&mut Member>, pins: Pins) -> bool {
        let member = guest.unwrap_or(&mut self.member);
        if member.is_pinned() {
            return true;
        }
        if !member.pin(true) {
            let message = "qudag-sidecar: too many sessions keep their servers";
            let hint = Some(
                "filters.db.db_pool.max_pinned; LISTEN, temporary tables, session locks and SET keep a server",
            );
            ErrorResponse { fatal: true, sqlstate: "53300", message, detail: None, hint }
                .write(&mut self.out);
            return false;
        }
        self.info.trace.pinned.store(true, Relaxed);
        self.info.trace.pins.fetch_or(pins.bits(), Relaxed);
        for reason in pins.labels() {
            counter!("qudag_sidecar_db_pins_total", "reason" => reason).increment(1);
        }
        true
    }
}
