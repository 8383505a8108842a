//! How long servers are busy.

use std::time::{Duration, Instant};

use crate::session::Server;

/// How long the server has been busy with a transaction, without the time in which it waited for the client.
#[derive(Default)]
pub(super) struct Busy {
    total: Duration,
    since: Option<Instant>,
    ended: Option<Instant>,
}

impl Busy {
    pub(super) fn look(&mut self, machine: &Server) {
        match (machine.outstanding() > 0, self.since) {
            (true, None) => self.since = Some(Instant::now()),
            (false, Some(since)) => {
                let now = Instant::now();
                self.total += now.saturating_duration_since(since);
                (self.since, self.ended) = (None, Some(now));
            }
            _ => {}
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.since.is_some()
    }

    /// When it was done last.
    pub(super) fn ended(&self) -> Option<Instant> {
        self.ended
    }

    pub(super) fn total(&self) -> Duration {
        self.total + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}
