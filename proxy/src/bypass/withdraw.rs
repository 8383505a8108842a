//! Moves the names to the node itself without the sidecar: for a sidecar that is dead, by its service manager or by a guard beside it.

use std::time::Duration;

use qudag_filter_api::Resolve;
use tokio::time::sleep;

use super::Published;
use super::publish::publish;
use crate::config::BypassConfig;

/// How often it is tried, and the pause in between.
const ATTEMPTS: usize = 20;
const PAUSE: Duration = Duration::from_millis(250);

/// Moves the names in the zones of other servers, and tries again until it is done or somebody else's names are in the way.
pub async fn withdraw(config: &BypassConfig, resolve: &dyn Resolve) -> Published {
    let mut published = publish(config, true, resolve).await;
    for attempts in 2..=ATTEMPTS {
        let conflict = published.names.iter().any(|name| name.outcome == "conflict");
        if published.complete || conflict {
            break;
        }
        sleep(PAUSE).await;
        published = publish(config, true, resolve).await;
        published.attempts = u32::try_from(attempts).unwrap_or(u32::MAX);
    }
    published
}

/// How often in a row a sidecar gives no sign of life before it counts as dead.
const MISSES: u32 = 3;

/// Returns when a sidecar has given no sign of life for three looks in a row.
pub async fn until_dead(pause: Duration, alive: impl AsyncFn() -> bool) {
    let mut missed = 0;
    while missed < MISSES {
        sleep(pause).await;
        missed = if alive().await { 0 } else { missed + 1 };
    }
}

/// Returns when a sidecar lives.
pub async fn until_alive(pause: Duration, alive: impl AsyncFn() -> bool) {
    while !alive().await {
        sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn three_misses_in_a_row_are_a_death() {
        let looks = Cell::new(0);
        let start = tokio::time::Instant::now();
        until_dead(Duration::from_millis(500), async || {
            looks.set(looks.get() + 1);
            matches!(looks.get(), 1 | 4)
        })
        .await;
        assert_eq!(looks.get(), 7, "two misses, a sign of life, three misses");
        assert_eq!(start.elapsed(), Duration::from_millis(3500));
    }
}
