//! The threads behind [`Lanes`].

use std::io;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use qudag_filter_api::Lanes;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// The threads that were started.
#[derive(Clone, Default)]
pub struct Threads(Arc<Mutex<Vec<Thread>>>);

struct Thread {
    /// Dropped, it ends the thread.
    stop: oneshot::Sender<()>,
    /// Fails when the thread has ended.
    ended: mpsc::Receiver<()>,
}

impl Threads {
    /// Lanes on threads that are started as they are needed, `most` at most or one for each processor.
    pub fn lanes(&self, most: Option<NonZeroUsize>) -> Lanes {
        let most = most.or_else(|| available_parallelism().ok()).map_or(1, NonZeroUsize::get);
        let threads = self.clone();
        Lanes::new(most, move |number| {
            let started = threads.start(number);
            // The others carry more.
            started.inspect_err(|error| tracing::warn!(%error, "cannot start a thread for connections")).ok()
        })
    }

    fn start(&self, number: usize) -> io::Result<Handle> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let (sender, ended) = mpsc::channel::<()>();
        let run = move || {
            let _sender = sender;
            // An error says that `stop` was dropped.
            let _ = runtime.block_on(stopped);
            drop(runtime);
        };
        std::thread::Builder::new().name(format!("lane-{number}")).spawn(run)?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Thread { stop, ended });
        Ok(handle)
    }

    /// Ends the threads with what is on them, and waits for that, but no longer than `limit`.
    pub fn shutdown(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let threads = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let (stops, ended): (Vec<_>, Vec<_>) =
            threads.into_iter().map(|Thread { stop, ended }| (stop, ended)).unzip();
        drop(stops);
        for ended in ended {
            // Nothing is ever sent: this waits until there is no sender any more.
            let _ = ended.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_started_and_ended() {
        let threads = Threads::default();
        let lanes = threads.lanes(NonZeroUsize::new(2));
        let (sender, receiver) = std::sync::mpsc::channel();
        let lane = lanes.any();
        lane.handle().spawn(async move {
            sender.send(std::thread::current().name().map(str::to_owned)).unwrap();
            // Stays until the thread ends.
            std::future::pending::<()>().await;
            drop(sender);
        });
        let limit = Duration::from_secs(10);
        assert_eq!(receiver.recv_timeout(limit).unwrap().as_deref(), Some("lane-0"));
        threads.shutdown(limit);
        assert!(receiver.recv_timeout(limit).is_err(), "what was on it is gone");
    }
}
