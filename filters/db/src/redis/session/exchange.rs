//! A batch: a connection is asked for, the commands go up and the answers down; or each command gets an error.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Buf;
use metrics::counter;
use qudag_filter_api::FilterError;
use tokio::time::timeout;

use super::{End, GONE, MOST_OUT, Session, Step};
use crate::pool::conn::{poll_read, poll_write};
use crate::redis::conn::Conn;
use crate::redis::kind::{RedisAnswer, RedisBatch, RedisRequest};
use crate::redis::machine::{Batch, LONG};
use crate::redis::reply::refusal;
use crate::redis::taking::Lease;

/// What the chain says to a batch.
enum Admitted {
    Lease(Lease),
    /// There is no pool any more.
    Own,
    Refused(FilterError),
}

impl Session {
    /// Carries a batch, or refuses it.
    pub(super) async fn batch(&mut self, batch: Batch) -> Step {
        self.tapped.begin(&self.inbox, batch, (self.up, self.down));
        let step = self.carry(batch).await;
        match &step {
            Ok(()) => self.tapped.end(self.address, &self.pool, None, (self.up, self.down)),
            Err(End::Over(why)) => self.tapped.end(self.address, &self.pool, Some(why), (self.up, self.down)),
            // The connection that the session has got carries it.
            Err(End::Own(_)) => self.tapped.forget(),
        }
        step
    }

    async fn carry(&mut self, batch: Batch) -> Step {
        if self.out.len() > MOST_OUT {
            self.flush().await?;
        }
        let held = self.held.take();
        let was_held = held.is_some();
        let mut lease = match held {
            Some(lease) => lease,
            None => match self.admit(batch.bytes).await? {
                Admitted::Lease(lease) => lease,
                Admitted::Own => return self.own("pool_off", 0).await,
                Admitted::Refused(error) => return self.refuse(batch, &error).await,
            },
        };
        self.commands += batch.commands as u64;
        self.counted.increment(batch.commands as u64);
        let began = Instant::now();
        self.tapped.served(began);
        self.exchange(&mut lease, batch.bytes).await?;
        let busy = began.elapsed();
        self.tapped.busy(busy);
        let pinned = self.machine.is_pinned();
        // Commands of a transaction are done at its end, and a client may take its time for a long one.
        let comparable = !was_held && !pinned && !batch.long;
        lease.took(self.machine.done(), busy, comparable);
        if pinned {
            self.held = Some(lease);
        } else {
            lease.give_back();
        }
        if let Some(before) = self.before.take()
            && self.machine.was_declined()
        {
            self.pool = before;
        }
        Ok(())
    }

    /// Asks the chain for a connection; meanwhile the client is heard.
    async fn admit(&mut self, bytes: usize) -> Result<Admitted, End> {
        let Some(generation) = (self.chains)() else { return Ok(Admitted::Refused(FilterError::Draining)) };
        let pool = Arc::clone(&self.pool);
        let batch = RedisBatch { client: self.address, pool, bytes, pressure: None };
        let mut asked = pin!(generation.chain.call(RedisRequest::Batch(batch)));
        let answer = loop {
            tokio::select! {
                biased;
                answer = &mut asked => break answer,
                turn = self.turn() => {
                    turn?;
                    if self.ended {
                        // It does not wait for an answer any more, as far as anybody can tell.
                        return Err(GONE);
                    }
                }
            }
        };
        Ok(match answer {
            Ok(RedisAnswer::Server(lease)) => Admitted::Lease(lease),
            Ok(RedisAnswer::Own) => Admitted::Own,
            Ok(RedisAnswer::PassThrough(..) | RedisAnswer::Pooled(_)) => {
                Admitted::Refused(FilterError::Internal("a session for a batch".into()))
            }
            Err(error) => Admitted::Refused(error),
        })
    }

    /// Sends the batch, which is the first bytes of the inbox, and takes all its answers.
    async fn exchange(&mut self, lease: &mut Lease, bytes: usize) -> Step {
        let Some(conn) = lease.conn() else { return Err(End::Over("internal")) };
        conn.up.unsplit(self.inbox.split_to(bytes));
        self.up += bytes as u64;
        self.machine.sent();
        loop {
            let waits = self.waits();
            let stall = self.stall;
            let progress = poll_fn(|cx| self.poll_progress(cx, conn));
            if waits {
                timeout(stall, progress).await.unwrap_or(Err(End::Over("stalled")))?;
            } else {
                progress.await?;
            }
            if self.machine.is_long() {
                if self.ended {
                    return Err(GONE);
                }
                let more = self.machine.more(&self.inbox).map_err(|_| End::Over("malformed"))?;
                self.up += more as u64;
                conn.up.unsplit(self.inbox.split_to(more));
            }
            let passed = self.machine.pass(&mut conn.scan, &mut conn.down, &mut self.out);
            self.down += passed.ok_or(End::Over("upstream"))? as u64;
            if self.machine.is_answered() && !self.machine.is_long() && conn.up.is_empty() {
                return Ok(());
            }
        }
    }

    /// Moves bytes between the sockets and the buffers; ready when any have moved.
    fn poll_progress(&mut self, cx: &mut Context<'_>, conn: &mut Conn) -> Poll<Step> {
        const LOST: End = End::Over("upstream");
        let mut moved = false;
        if !conn.up.is_empty() || conn.unflushed {
            let before = conn.up.len();
            match poll_write(&mut conn.stream, cx, &mut conn.up) {
                Poll::Ready(Err(_)) => return Poll::Ready(Err(LOST)),
                written => conn.unflushed = written.is_pending(),
            }
            moved |= conn.up.len() < before;
        }
        if self.waits() {
            let before = self.out.len();
            if let Poll::Ready(Err(end)) = self.poll_out(cx) {
                return Poll::Ready(Err(end));
            }
            moved |= self.out.len() < before;
        }
        if !self.machine.is_long() || conn.up.len() < LONG {
            match self.poll_inbox(cx) {
                Poll::Ready(Ok(())) => moved = true,
                Poll::Ready(Err(end)) => return Poll::Ready(Err(end)),
                Poll::Pending => {}
            }
        }
        if self.out.len() < MOST_OUT {
            match poll_read(&mut conn.stream, cx, &mut conn.down) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(LOST)),
                Poll::Ready(Ok(_)) => moved = true,
                Poll::Pending => {}
            }
        }
        if moved { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// One error for each command of a batch.
    async fn refuse(&mut self, batch: Batch, error: &FilterError) -> Step {
        let label = error.label();
        counter!("qudag_sidecar_redis_refused_total", "reason" => label).increment(batch.commands as u64);
        self.tapped.refused(label);
        self.inbox.advance(batch.bytes);
        self.machine.refused();
        if let Some(before) = self.before.take() {
            self.pool = before;
        }
        let refusal = refusal(error);
        for _ in 0..batch.commands {
            self.out.extend_from_slice(&refusal);
        }
        while self.machine.is_long() {
            let more = self.machine.more(&self.inbox).map_err(|_| End::Over("malformed"))?;
            self.inbox.advance(more);
            if self.machine.is_long() {
                if self.ended {
                    return Err(GONE);
                }
                self.turn().await?;
            }
        }
        if batch.opens || matches!(error, FilterError::Draining) {
            // Without a MULTI or WATCH that has failed, what comes next would be carried out otherwise than the client means it.
            self.flush().await?;
            return Err(End::Over(label));
        }
        Ok(())
    }
}
