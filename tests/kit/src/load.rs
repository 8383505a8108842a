//! Load that counts what fails.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What a load did.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Operations that succeeded.
    pub done: u64,
    /// Operations that failed.
    pub failed: u64,
    /// The first failures, as text.
    pub failures: Vec<String>,
    /// The slowest operation.
    pub slowest: Duration,
}

impl Outcome {
    fn add(&mut self, result: Result<(), String>, took: Duration) {
        self.slowest = self.slowest.max(took);
        match result {
            Ok(()) => self.done += 1,
            Err(failure) => {
                self.failed += 1;
                if self.failures.len() < 8 {
                    self.failures.push(failure);
                }
            }
        }
    }
}

/// Workers that repeat an operation until they are told to stop.
pub struct Load {
    name: &'static str,
    stop: CancellationToken,
    workers: JoinSet<()>,
    outcome: Arc<Mutex<Outcome>>,
}

impl Load {
    /// Starts `workers` workers. Each gets its own state from `make`, hands it to `operation` again and again, and
    /// rests for `pause` in between.
    pub fn start<S, M, O>(name: &'static str, workers: usize, pause: Duration, make: M, operation: O) -> Self
    where
        S: Send + 'static,
        M: Fn(usize) -> S,
        O: for<'a> Fn(&'a mut S) -> futures_util::future::BoxFuture<'a, Result<(), String>>,
        O: Clone + Send + Sync + 'static,
    {
        let stop = CancellationToken::new();
        let outcome = Arc::new(Mutex::new(Outcome::default()));
        let mut tasks = JoinSet::new();
        for worker in 0..workers {
            let mut state = make(worker);
            let (stop, outcome, operation) = (stop.clone(), Arc::clone(&outcome), operation.clone());
            tasks.spawn(async move {
                // An operation that has begun is always finished, so that stopping never looks like a failure.
                while !stop.is_cancelled() {
                    let start = Instant::now();
                    let result = operation(&mut state).await;
                    outcome.lock().unwrap().add(result, start.elapsed());
                    tokio::time::sleep(pause).await;
                }
            });
        }
        Self { name, stop, workers: tasks, outcome }
    }

    /// What it did so far.
    pub fn so_far(&self) -> Outcome {
        self.outcome.lock().unwrap().clone()
    }

    /// Stops it and returns what it did.
    ///
    /// # Panics
    /// When a worker panicked.
    pub async fn stop(mut self) -> Outcome {
        self.stop.cancel();
        while let Some(worker) = self.workers.join_next().await {
            worker.unwrap();
        }
        self.so_far()
    }

    /// Stops it and expects that it did something and that nothing failed.
    ///
    /// # Panics
    /// When an operation failed, or none was done.
    pub async fn stop_clean(self) -> Outcome {
        let name = self.name;
        let outcome = self.stop().await;
        println!("{name}: {} done, {} failed, slowest {:?}", outcome.done, outcome.failed, outcome.slowest);
        assert_eq!(outcome.failed, 0, "{name}: {:#?}", outcome.failures);
        assert!(outcome.done > 0, "{name} did nothing");
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn failures_are_counted() {
        let load = Load::start(
            "numbers",
            2,
            Duration::from_millis(1),
            |_| 0,
            |count: &mut u32| {
                *count += 1;
                let result = if count.is_multiple_of(2) { Err("even".to_owned()) } else { Ok(()) };
                Box::pin(std::future::ready(result))
            },
        );
        crate::eventually(Duration::from_secs(5), "some work", async || {
            (load.so_far().failed > 3).then_some(())
        })
        .await;
        let outcome = load.stop().await;
        assert!(outcome.done >= outcome.failed);
        assert_eq!(outcome.failures[0], "even");
    }
}
