//! A pooled session: the machine between the client's socket and the connections that its batches get.
//!
//! `exchange` carries a batch, or refuses it; `alone` does what the commands ask for that are not for the server's connections; `tapped`
//! shows batches to those who look.

mod alone;
mod exchange;
mod tapped;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use metrics::{Counter, counter};
use qudag_filter_api::Chains;
use qudag_filter_common::Drain;
use tokio::time::{sleep, timeout};

use super::conn::Conn;
use super::kind::{Pooled, Redis};
use super::machine::{LONG, Machine};
use super::pool::Pool;
use super::pools::{PoolKey, Pools};
use super::reply::line;
use super::settings::RedisUpstream;
use super::taking::Lease;
use crate::auth::SecureStream;
use crate::pool::conn::{poll_read, poll_write};
pub use tapped::BATCHES;
use tapped::Tapped;

/// How much is read of a server before the client has taken it.
const MOST_OUT: usize = 256 << 10;

/// How a pooled session ends.
pub(crate) enum End {
    /// With this outcome. What is still to be said to the client has been said.
    Over(&'static str),
    /// It has a connection of its own from now on: bytes are passed on.
    Own(Box<Conn>),
}

/// A pooled session.
pub(crate) struct Session {
    pub(crate) client: SecureStream,
    address: Option<SocketAddr>,
    /// From the client, and towards it.
    pub(crate) inbox: BytesMut,
    pub(crate) out: BytesMut,
    machine: Machine,
    chains: Chains<Redis>,
    pools: Arc<Pools>,
    target: Arc<RedisUpstream>,
    pool: Arc<Pool>,
    /// The pool before what the server is being asked for.
    before: Option<Arc<Pool>>,
    /// The connection of a transaction.
    held: Option<Lease>,
    /// What the client calls itself.
    name: Option<Vec<u8>>,
    /// The client has finished.
    ended: bool,
    /// What was written to the client has not all left.
    unflushed: bool,
    stall: Duration,
    /// Bytes passed on.
    pub(crate) up: u64,
    pub(crate) down: u64,
    pub(crate) commands: u64,
    counted: Counter,
    tapped: Tapped,
}

type Step = Result<(), End>;

const GONE: End = End::Over("client_gone");

impl Session {
    /// `None` when there are too many pools.
    pub(crate) fn new(
        client: SecureStream,
        pooled: Pooled,
        chains: Chains<Redis>,
        stall: Duration,
    ) -> Option<Self> {
        let Pooled { pools, upstream } = pooled;
        let pool = pools.pool(&first_key(&upstream), &upstream)?;
        Some(Self {
            address: client.peer_addr(),
            client,
            inbox: BytesMut::new(),
            out: BytesMut::new(),
            machine: Machine::default(),
            chains,
            pools,
            target: upstream,
            pool,
            before: None,
            held: None,
            name: None,
            ended: false,
            unflushed: false,
            stall,
            up: 0,
            down: 0,
            commands: 0,
            counted: counter!("qudag_sidecar_redis_commands_total"),
            tapped: Tapped::default(),
        })
    }

    /// Serves the client until its session ends or is passed on.
    pub(crate) async fn run(&mut self, drain: &Drain) -> End {
        loop {
            self.machine.look(&self.inbox);
            self.inbox.advance(self.machine.take_empty().min(self.inbox.len()));
            let step = if let Some(batch) = self.machine.batch() {
                self.batch(batch).await
            } else if let Some((class, length)) = self.machine.take_alone() {
                self.alone(class, length).await
            } else if let Some(why) = self.machine.malformed() {
                // As servers say it before they close.
                self.out.extend_from_slice(&line(&format!("ERR Protocol error: {why}")));
                self.flush().await.and(Err(End::Over("malformed")))
            } else if self.ended {
                self.flush().await.and(Err(End::Over("ok")))
            } else {
                self.wait(drain).await
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    /// Waits for more of the client.
    async fn wait(&mut self, drain: &Drain) -> Step {
        let idle = self.held.as_ref().map(|_| self.pools.settings().idle_in_transaction.0);
        let quiet = idle.is_none() && self.inbox.is_empty() && !self.waits();
        tokio::select! {
            biased;
            turn = self.turn() => turn,
            () = drain.stopping(), if quiet => Err(End::Over("ok")),
            () = sleep(idle.unwrap_or_default()), if idle.is_some() => Err(End::Over("idle_in_transaction")),
        }
    }

    /// Whether something is to be written to the client.
    fn waits(&self) -> bool {
        !self.out.is_empty() || self.unflushed
    }

    /// Writes to the client; ready when all has left.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        if !self.waits() {
            return Poll::Ready(Ok(()));
        }
        let written = poll_write(&mut self.client, cx, &mut self.out);
        self.unflushed = written.is_pending();
        written.map_err(|_| GONE)
    }

    /// Writes to the client until all is written, or reads something of it; what comes first.
    async fn turn(&mut self) -> Step {
        let stall = self.stall;
        let waits = self.waits();
        let turn = poll_fn(|cx| {
            if waits {
                match self.poll_out(cx) {
                    Poll::Pending => {}
                    ready => return ready,
                }
            }
            self.poll_inbox(cx)
        });
        if waits { timeout(stall, turn).await.unwrap_or(Err(End::Over("stalled"))) } else { turn.await }
    }

    /// Reads of the client unless much is there already.
    fn poll_inbox(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        if self.ended || self.inbox.len() >= 2 * LONG {
            return Poll::Pending;
        }
        match std::task::ready!(poll_read(&mut self.client, cx, &mut self.inbox)) {
            Ok(0) => self.ended = true,
            Ok(_) => {}
            Err(_) => return Poll::Ready(Err(GONE)),
        }
        Poll::Ready(Ok(()))
    }

    /// Writes all that is to be said to the client.
    async fn flush(&mut self) -> Step {
        while self.waits() {
            let (before, stall) = (self.out.len(), self.stall);
            let written = poll_fn(|cx| match self.poll_out(cx) {
                Poll::Pending if self.out.len() < before => Poll::Ready(Ok(())),
                polled => polled,
            });
            timeout(stall, written).await.unwrap_or(Err(End::Over("stalled")))?;
        }
        Ok(())
    }
}

/// What a session begins with, and goes back to by RESET.
fn first_key(target: &RedisUpstream) -> PoolKey {
    PoolKey {
        server: Arc::clone(&target.name),
        credentials: target.credentials.clone(),
        database: 0,
        resp3: false,
    }
}
