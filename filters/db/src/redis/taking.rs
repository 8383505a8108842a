//! Taking a connection for a batch, and giving it back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use qudag_filter_api::FilterError;
use tokio::time::{sleep, sleep_until};

use super::conn::{Conn, LoginError, closed};
use super::machine::Done;
use super::pool::Pool;
use crate::pool::Pressure;
use crate::pool::desk::{BACKOFF, Connection, Desk, Hungry, Want, lock, place};
use crate::pool::places::Seat as Place;

impl Pool {
    /// A place and a connection for a batch.
    ///
    /// # Errors
    /// When there is none in time, or waiting for one is no use.
    pub(crate) async fn take(self: &Arc<Self>, want: Want) -> Result<Lease, FilterError> {
        let now = Instant::now();
        let discipline = want.discipline(|| self.settings().wait);
        let deadline = now + discipline.wait;
        let (place, connection, _) = place(self, &want, discipline, now).await?;
        let mut lease =
            Lease { pool: Arc::clone(self), place: Some(place), connection, pressure: want.pressure };
        while let Some(connection) = &mut lease.connection {
            if connection.is_quiet() {
                return Ok(lease);
            }
            closed("ended_idle");
            lease.connection = lock(&self.places).replace();
        }
        self.feed(&mut lease, deadline).await?;
        Ok(lease)
    }

    /// Waits for a connection that is being made.
    async fn feed(self: &Arc<Self>, lease: &mut Lease, deadline: Instant) -> Result<(), FilterError> {
        let begun = Instant::now();
        let mut coming = Hungry::new(self);
        loop {
            let news = self.news.notified();
            self.make_connections();
            // A server that refuses or cannot be reached now will not be there before the deadline, as a rule: an early error is
            // worth more than a late one.
            if let Some((failure, _)) = self.failure().filter(|(_, at)| *at >= begun) {
                return Err(unavailable(&failure));
            }
            tokio::select! {
                biased;
                connection = &mut coming.connection => {
                    lease.connection = connection.ok();
                    return if lease.connection.is_some() { Ok(()) } else { Err(FilterError::Draining) };
                }
                () = news => {}
                // Other pools may have given up connections.
                () = sleep(BACKOFF.min) => {}
                () = sleep_until(deadline.into()) => {
                    let after = self.target.connect_timeout;
                    let late = FilterError::Timeout { after };
                    return Err(self.failure().map_or(late, |(why, _)| unavailable(&why)));
                }
            }
        }
    }
}

/// Why a batch gets no connection.
fn unavailable(why: &LoginError) -> FilterError {
    let why = match why {
        LoginError::Failed(error) => error.to_string(),
        LoginError::Refused(why) => {
            let words = format!("by the server: {}", why.escape_ascii());
            // A user that the server does not let in is no failure of the server.
            let denied = ["NOAUTH", "WRONGPASS", "NOPERM", "NOPROTO"];
            if denied.iter().any(|code| why.starts_with(code.as_bytes())) {
                return FilterError::Refused(words.into());
            }
            format!("refused {words}")
        }
    };
    FilterError::Unavailable { why: why.into(), retry_after: BACKOFF.max }
}

/// A connection for a batch. The place is free again when it is given back or dropped; dropped, the connection is closed.
#[derive(Debug)]
pub struct Lease {
    pool: Arc<Pool>,
    place: Option<Place>,
    connection: Option<Box<Conn>>,
    pressure: Option<Arc<Pressure>>,
}

impl Lease {
    pub(crate) fn conn(&mut self) -> Option<&mut Conn> {
        self.connection.as_deref_mut()
    }

    /// All answers to a batch have come. `comparable`: how long that took may be compared with other times.
    pub(crate) fn took(&self, done: Done, busy: Duration, comparable: bool) {
        self.pool.took(done, busy, self.pressure.as_deref().filter(|_| comparable));
    }

    /// All answers have come and there is no transaction.
    pub(crate) fn give_back(mut self) {
        let (Some(place), Some(mut connection)) = (self.place.take(), self.connection.take()) else { return };
        let now = Instant::now();
        connection.idle_since = now;
        if !connection.scan.is_between() {
            // Something has begun that is no answer to anything.
            closed("unknown");
            self.pool.put(place, None, now);
        } else if now.saturating_duration_since(connection.created) > self.pool.settings().server_lifetime.0 {
            closed("lifetime");
            self.pool.put(place, None, now);
        } else {
            self.pool.put(place, Some(connection), now);
        }
    }

    /// The connection becomes the session's own; the pool has room for another one.
    pub(crate) fn keep(mut self) -> Option<Box<Conn>> {
        let connection = self.connection.take();
        if let Some(place) = self.place.take() {
            self.pool.put(place, None, Instant::now());
        }
        connection
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let now = Instant::now();
        match (self.place.take(), self.connection.take()) {
            (Some(place), Some(_)) => {
                closed("abandoned");
                self.pool.put(place, None, now);
            }
            (Some(place), None) => lock(&self.pool.places).release_hungry(place, now),
            _ => {}
        }
    }
}
