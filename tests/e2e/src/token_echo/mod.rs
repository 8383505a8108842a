//! Clients whose every question carries a token of its own, and who look whether each answer carries it: a row, an error, a notice or
//! a cancellation that belongs to somebody else is found at once, and so is one that is missing, doubled or out of order.

mod asking;
mod judge;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::task::JoinSet;

use asking::Client;

/// What is not as it should be is told so often.
const TOLD: usize = 20;

/// What clients did and saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// Statements that were answered rightly, with rows, an error or a notice of their own.
    pub right: AtomicU64,
    /// Batches that the sidecar refused.
    pub refused: AtomicU64,
    /// Statements that were cancelled by their own client.
    pub cancelled: AtomicU64,
    /// Connections that clients left in the middle of a result or before it.
    pub left: AtomicU64,
    /// Connections that were lost.
    pub lost: AtomicU64,
    /// Answers that were not right: somebody else's, or incomplete.
    pub wrong: AtomicU64,
    /// The first of what was wrong or lost.
    pub told: Mutex<Vec<String>>,
}

impl Seen {
    fn wrong(&self, what: String) {
        self.wrong.fetch_add(1, Ordering::Relaxed);
        self.tell(what);
    }

    fn tell(&self, what: String) {
        let mut told = self.told.lock().unwrap();
        if told.len() < TOLD {
            told.push(what);
        }
    }
}

/// The function that says a text in a notice.
pub const SETUP: &str = "create function say(what text) returns text language plpgsql as $$ begin raise notice '%', what; return what; \
                         end $$";

/// Lets `clients` ask until they have asked `questions` in all; the same seed asks the same.
///
/// # Panics
/// When a client panics.
pub async fn run(door: SocketAddr, clients: u64, questions: u64, seed: u64) -> Arc<Seen> {
    let seen = Arc::new(Seen::default());
    let mut tasks = JoinSet::new();
    for number in 0..clients {
        let seen = Arc::clone(&seen);
        tasks.spawn(async move {
            let mut client = Client::new(door, number, seed, seen);
            client.go_on(questions).await;
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    seen
}
