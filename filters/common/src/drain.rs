//! How a listener and the work that it started come to their end.

use std::future::Future;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a request that was on its way when a drain began may take to arrive.
const LAST_REQUEST: Duration = Duration::from_millis(500);
/// How long work may take to end by itself after the abort. Shorter than what [`Drain::finish`] waits.
const ABORT_GRACE: Duration = Duration::from_millis(500);

/// Two signals and a count: *stopping* (accept nothing new, finish what is there), *aborted* (the deadline has passed), and the
/// tasks under way.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    stopping: CancellationToken,
    aborted: CancellationToken,
    tasks: TaskTracker,
}

impl Drain {
    /// A drain that nobody has started.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs a unit of work that a drain waits for.
    pub fn spawn<F>(&self, work: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        drop(self.tasks.spawn(work));
    }

    /// The same on another runtime.
    pub fn spawn_on<F>(&self, runtime: &Handle, work: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        drop(self.tasks.spawn_on(work, runtime));
    }

    /// Does some work; after the abort only for as long as it may take to say its last words.
    pub async fn until_aborted(self, work: impl Future<Output = ()>) {
        let mut work = std::pin::pin!(work);
        tokio::select! {
            biased;
            () = &mut work => {}
            () = self.aborted() => {
                let _ = tokio::time::timeout(ABORT_GRACE, work).await;
            }
        }
    }

    /// Whether nothing new may be accepted.
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }

    /// Resolves when nothing new may be accepted.
    pub async fn stopping(&self) {
        self.stopping.cancelled().await;
    }

    /// Resolves when a connection shall read no more requests: when the drain starts; where a request is on its way (none has come
    /// on a new connection, or a part of one) a moment later. To be polled after the read itself, so that what has arrived is
    /// read in any case.
    pub async fn read_enough(&self, on_its_way: bool) {
        self.stopping().await;
        if on_its_way {
            tokio::time::sleep(LAST_REQUEST).await;
        }
    }

    /// Resolves when work under way must end now.
    pub async fn aborted(&self) {
        self.aborted.cancelled().await;
    }

    /// How many units of work are under way.
    pub fn in_flight(&self) -> usize {
        self.tasks.len()
    }

    /// Starts the drain; returns at once.
    pub fn stop(&self) {
        self.stopping.cancel();
        self.tasks.close();
    }

    /// Stops, waits for the work under way, and aborts what is left at the deadline. Returns how many units
    /// of work were aborted.
    pub async fn finish(&self, deadline: Duration) -> usize {
        self.stop();
        if tokio::time::timeout(deadline, self.tasks.wait()).await.is_ok() {
            return 0;
        }
        let left = self.in_flight();
        self.aborted.cancel();
        // Work that sees the abort ends in a moment; work that does not is left behind.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.tasks.wait()).await;
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_under_way_is_finished_and_late_work_is_aborted() {
        let drain = Drain::new();
        drain.spawn(tokio::time::sleep(Duration::from_secs(1)));
        assert_eq!(drain.in_flight(), 1);
        assert_eq!(drain.finish(Duration::from_secs(2)).await, 0);

        let drain = Drain::new();
        let late = drain.clone();
        drain.spawn(async move { late.aborted().await });
        assert_eq!(drain.finish(Duration::from_secs(2)).await, 1);
        assert_eq!(drain.in_flight(), 0);
    }
}
