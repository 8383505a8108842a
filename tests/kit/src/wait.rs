//! Waiting on conditions.

use std::time::{Duration, Instant};

/// How long most conditions may take on a machine that is busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Polls `probe` until it gives a value.
///
/// # Panics
/// When the deadline passes; the message names `what`.
pub async fn eventually<T>(deadline: Duration, what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        if let Some(value) = probe().await {
            return value;
        }
        assert!(start.elapsed() < deadline, "{what}: not so after {:.1} s", start.elapsed().as_secs_f64());
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// The result of `future`.
///
/// # Panics
/// When it takes longer than `deadline`; the message names `what`.
pub async fn within<F: Future>(deadline: Duration, what: &str, future: F) -> F::Output {
    match tokio::time::timeout(deadline, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: took longer than {deadline:?}"),
    }
}
