//! How long servers are busy.

use std::time::{Duration, Instant};

use crate::session::Server;

/// How long the server has been busy with a transaction, without the time in which it waited for the client.
#[derive(Default)]
pub(super) struct Busy {
    total: Duration,
    since: Option<Instant>,
}

impl Busy {
    pub(super) fn look(&mut self, machine: &Server) {
        match (machine.outstanding() > 0, self.since) {
            (true, None) => self.since = Some(Instant::now()),
            (false, Some(since)) => {
                self.total += since.elapsed();
                self.since = None;
            }
            _ => {}
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.since.is_some()
    }

    pub(super) fn total(&self) -> Duration {
        self.total + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}
