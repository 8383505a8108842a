//! What `db_query_cache` learns from sessions: replies as they pass, and what was written.

use std::sync::Arc;
use std::time::Instant;

use crate::query_cache::{Filling, QueryCacheState};
use crate::session::Writes;

/// What a transaction has written, and who wants to know it.
#[derive(Debug)]
pub(crate) struct Written {
    pub(super) cache: Arc<QueryCacheState>,
    pub(super) writes: Writes,
    pub(super) changed: bool,
}

impl Written {
    pub(super) fn is_something(&self) -> bool {
        self.writes.tables(self.changed).is_none_or(|tables| !tables.is_empty())
    }

    pub(crate) fn tell(&self) {
        self.cache.wrote(&self.writes, self.changed);
    }
}

/// The reply to a question, as it passes.
pub(super) struct Capture {
    filling: Arc<Filling>,
    reply: Vec<u8>,
    /// It is longer than what is kept.
    over: bool,
}

impl Capture {
    pub(super) fn new(filling: Arc<Filling>) -> Self {
        Self { filling, reply: Vec::new(), over: false }
    }

    /// What was written behind the first `before` bytes for the client.
    pub(super) fn add(&mut self, out: &[u8], before: usize) {
        let new = out.get(before..).unwrap_or_default();
        if self.over {
            return;
        }
        if self.reply.len() + new.len() > self.filling.most() {
            self.over = true;
            self.reply = Vec::new();
            // Nobody waits for the rest of it.
            self.filling.too_large();
        } else {
            self.reply.extend_from_slice(new);
        }
    }

    pub(super) fn end(self, reads: bool) {
        if !self.over {
            self.filling.filled(&self.reply, reads, Instant::now());
        }
    }
}
