//! The task that keeps the connection and follows the flushes of the fleet.
//!
//! Waiting for a record of the stream (`XREAD BLOCK`) is subscribing to it, but nothing is lost when the connection is: reading goes on behind the last
//! record that is known. Only when that record itself is gone can flushes have been missed; everything is flushed then.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use metrics::Gauge;
use qudag_core::backoff::Backoff;
use tokio::time::Instant;

use super::client::{Connection, Fault, RECORDS};
use super::link::Shared;
use super::log::{FlushId, What};
use super::state::SharedCacheState;
use crate::FlushSelector;
use crate::dns_cache::HARD_LIMIT;

/// The pauses between attempts to connect.
const PAUSES: Backoff = Backoff { min: Duration::from_millis(200), max: Duration::from_secs(10) };
/// A connection that lasted so long is followed by another one soon; one that did not is a failure.
const STABLE: Duration = Duration::from_secs(10);
/// How long the server keeps us waiting for a flush before it says that there was none.
const BLOCK: Duration = Duration::from_secs(5);
/// How long an answer may take here, where no query waits for it.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often the stream is looked at when there is a reason at every query.
const LOOKS: Duration = Duration::from_millis(5);

/// Follows the fleet. Never returns.
pub(super) async fn run(state: Arc<SharedCacheState>, shared: Arc<Shared>) {
    let mut failures = 0;
    let mut said = "";
    loop {
        let start = Instant::now();
        let why = match Box::pin(session(&state, &shared)).await {
            Session::Failed(why) => why,
            Session::Ended(why) => {
                said = "";
                why
            }
        };
        state.counts().error(why.label());
        // Each kind of trouble once, and again after it was over.
        if said != why.label() {
            tracing::warn!(%why, server = %state.url(), "no connection to the shared DNS cache");
            said = why.label();
        }
        failures = if start.elapsed() < STABLE { failures + 1 } else { 0 };
        tokio::time::sleep(PAUSES.wait(failures, fastrand::u64(..))).await;
    }
}

enum Session {
    /// It was never of use.
    Failed(Fault),
    /// It was, for a while.
    Ended(Fault),
}

/// Shows that there is a connection, and takes it away at the end.
struct Connected<'a>(&'a Shared, Gauge);

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.0.set(None);
        self.1.decrement(1.0);
    }
}

async fn session(state: &SharedCacheState, shared: &Shared) -> Session {
    let server = state.server();
    // One that waits for flushes, and one for all the rest.
    let (connection, waiting) = match tokio::try_join!(server.connect(), server.connect()) {
        Ok(both) => both,
        Err(why) => return Session::Failed(why),
    };
    if let Err(why) = catch_up(state, &connection).await {
        return Session::Failed(why);
    }
    tracing::info!(server = %state.url(), "connected to the shared DNS cache");
    shared.set(Some(connection.clone()));
    state.counts().connected.increment(1.0);
    let _connected = Connected(shared, state.counts().connected.clone());
    let mut next_look = Instant::now();
    loop {
        let known = state.log().known().unwrap_or_default();
        let mut record = pin!(until_record(&waiting, known));
        // Only waiting is given up for something else. A flush of which it is not known whether Redis has taken it would be sent again.
        loop {
            let (new, result) = tokio::select! {
                result = &mut record => (true, result),
                () = wished(state, next_look) => (false, Ok(())),
                () = connection.ended() => (true, Err(Fault::Closed)),
                () = waiting.ended() => (true, Err(Fault::Closed)),
            };
            let result = match result {
                Ok(()) => catch_up(state, &connection).await,
                failed => failed,
            };
            if let Err(why) = result {
                return Session::Ended(why);
            }
            next_look = Instant::now() + LOOKS;
            if new {
                break;
            }
        }
    }
}

async fn until_record(waiting: &Connection, known: FlushId) -> Result<(), Fault> {
    let longest = BLOCK + PATIENCE;
    tokio::time::timeout(longest, waiting.wait(known, BLOCK)).await.unwrap_or(Err(Fault::Timeout))
}

/// Resolves when somebody wants the stream looked at, not earlier than `next`. The wish is taken last, so that it is not lost when
/// something else comes first.
async fn wished(state: &SharedCacheState, next: Instant) {
    tokio::time::sleep_until(next).await;
    state.woken().await;
}

/// Writes our flushes to the stream, and reads those of others.
async fn catch_up(state: &SharedCacheState, connection: &Connection) -> Result<(), Fault> {
    let work = Box::pin(catch_up_now(state, connection));
    tokio::time::timeout(PATIENCE, work).await.unwrap_or(Err(Fault::Timeout))
}

async fn catch_up_now(state: &SharedCacheState, connection: &Connection) -> Result<(), Fault> {
    loop {
        // Not in the condition, where the guard would be held while Redis is asked.
        let next = state.log().next();
        let Some((number, selector)) = next else { break };
        connection.append(&What::Flush(selector), state.origin()).await?;
        state.written(number);
        state.counts().flush("sent");
    }
    loop {
        let known = state.log().known();
        let Some(known) = known else { return begin(state, connection).await };
        let Some(records) = connection.since(known).await? else {
            return begin_again(state, connection).await;
        };
        let complete = records.len() < RECORDS;
        for record in records {
            let (what, own) = (record.what.clone(), record.origin == state.origin());
            state.log().add(record);
            if let (What::Flush(selector), false) = (&what, own) {
                flush_here(state, selector);
            }
        }
        if complete {
            return Ok(());
        }
    }
}

fn flush_here(state: &SharedCacheState, selector: &FlushSelector) {
    state.flush_here(selector);
    state.counts().flush("received");
    tracing::info!(flush = What::Flush(selector.clone()).text(), "another sidecar has flushed the DNS cache");
}

/// Reads the stream for the first time. What was flushed while we were not there still concerns what the cache in front holds.
async fn begin(state: &SharedCacheState, connection: &Connection) -> Result<(), Fault> {
    let (mut records, mut now) = connection.newest().await?;
    if records.is_empty() {
        connection.append(&What::Start, state.origin()).await?;
        (records, now) = connection.newest().await?;
    }
    let oldest = now.saturating_sub(u64::try_from((HARD_LIMIT + PATIENCE).as_millis()).unwrap_or(u64::MAX));
    let recent: Vec<_> = records
        .iter()
        .filter(|record| record.id.ms >= oldest && record.origin != state.origin())
        .cloned()
        .collect();
    state.log().restart(records);
    for record in recent {
        if let What::Flush(selector) = &record.what {
            flush_here(state, selector);
        }
    }
    Ok(())
}

/// The last record that is known here is gone: Redis was emptied, or restored from a copy, or there were too many flushes meanwhile. Entries may have
/// come back that a lost flush concerned, and flushes may have been missed, so everything goes, there and here.
async fn begin_again(state: &SharedCacheState, connection: &Connection) -> Result<(), Fault> {
    connection.append(&What::Start, state.origin()).await?;
    let (records, _) = connection.newest().await?;
    state.log().restart(records);
    state.flush_here(&FlushSelector::All);
    state.counts().flush("lost");
    tracing::warn!(server = %state.url(), "the shared DNS cache has lost the record of flushes: everything is flushed");
    Ok(())
}
