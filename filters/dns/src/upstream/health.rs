//! Which servers failed lately. The time is an argument.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::server::Server;

/// How long a server that failed once is asked last.
const FIRST: Duration = Duration::from_secs(1);
/// How long at most.
const LAST: Duration = Duration::from_secs(30);
/// More servers in trouble are not remembered.
const MOST: usize = 64;

#[derive(Debug)]
struct Trouble {
    failures: u32,
    until: Instant,
    /// One query has been let through to find out.
    probed: bool,
}

/// The servers in trouble. Every other server is healthy.
#[derive(Debug, Default)]
pub(super) struct Health {
    troubled: Mutex<HashMap<Server, Trouble>>,
}

impl Health {
    fn lock(&self) -> MutexGuard<'_, HashMap<Server, Trouble>> {
        self.troubled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The order in which to ask: as configured, but servers in trouble last. When a server's time is over, one query, this
    /// one, takes it in its configured place again.
    pub(super) fn order(&self, mut servers: Vec<Server>, now: Instant) -> Vec<Server> {
        let mut troubled = self.lock();
        if !troubled.is_empty() {
            servers.sort_by_cached_key(|server| match troubled.get_mut(server) {
                None => false,
                Some(trouble) if now >= trouble.until => {
                    trouble.probed = true;
                    trouble.until = now + pause(trouble.failures);
                    false
                }
                Some(_) => true,
            });
        }
        servers
    }

    /// A server did not answer, or worse than the next one did.
    pub(super) fn failed(&self, server: &Server, now: Instant) {
        let mut troubled = self.lock();
        if troubled.len() >= MOST && !troubled.contains_key(server) {
            troubled.clear();
        }
        let trouble =
            troubled.entry(server.clone()).or_insert(Trouble { failures: 0, until: now, probed: false });
        // The many queries that were under way when it failed are one failure.
        if trouble.probed || now >= trouble.until {
            trouble.failures = trouble.failures.saturating_add(1);
            trouble.until = now + pause(trouble.failures);
            trouble.probed = false;
        }
    }

    /// A server gave a good answer.
    pub(super) fn succeeded(&self, server: &Server) {
        let mut troubled = self.lock();
        if !troubled.is_empty() {
            troubled.remove(server);
        }
    }
}

fn pause(failures: u32) -> Duration {
    FIRST.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX)).min(LAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_failed_is_asked_last_and_probed_by_one_query() {
        let (a, b): (Server, Server) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let health = Health::default();
        let start = Instant::now();
        let first = |after| health.order(vec![a.clone(), b.clone()], start + after).remove(0);
        let ms = Duration::from_millis;
        assert_eq!(first(ms(0)), a);
        for _ in 0..100 {
            health.failed(&a, start);
        }
        assert_eq!(first(ms(999)), b);
        assert_eq!(first(ms(1000)), a, "the probe");
        assert_eq!(first(ms(1000)), b, "nobody else");
        health.failed(&a, start + ms(1400));
        // Two failures: two seconds.
        assert_eq!(first(ms(3399)), b);
        assert_eq!(first(ms(3400)), a);
        health.succeeded(&a);
        assert_eq!(first(ms(3401)), a);
        assert_eq!(first(ms(3401)), a);
    }

    #[test]
    fn when_all_are_in_trouble_the_configured_order_holds() {
        let servers: Vec<Server> = vec!["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()];
        let health = Health::default();
        let now = Instant::now();
        servers.iter().rev().for_each(|server| health.failed(server, now));
        assert_eq!(health.order(servers.clone(), now), servers);
        assert_eq!(pause(100), LAST);
    }
}
