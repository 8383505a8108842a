//! When which entry is to be refreshed.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::{Arc, Mutex, Weak};

use tokio::time::Instant;

use crate::dns_cache::store::{Entry, lock};

/// The most refreshes that are planned; entries beyond are refreshed when they are asked for.
const MOST: usize = 1 << 17;

struct Due {
    at: Instant,
    entry: Weak<Entry>,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    /// The earliest is the greatest.
    fn cmp(&self, other: &Self) -> Ordering {
        other.at.cmp(&self.at)
    }
}

/// The planned refreshes. Keeps no entry in memory.
#[derive(Default)]
pub(crate) struct Schedule(Mutex<BinaryHeap<Due>>);

impl Schedule {
    /// Plans a refresh. Returns whether it is the first one now.
    pub(crate) fn push(&self, at: Instant, entry: &Arc<Entry>) -> bool {
        let mut heap = lock(&self.0);
        if heap.len() >= MOST {
            return false;
        }
        let first = heap.peek().is_none_or(|first| at < first.at);
        heap.push(Due { at, entry: Arc::downgrade(entry) });
        first
    }

    /// When the first refresh is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        lock(&self.0).peek().map(|first| first.at)
    }

    /// The next entry that is due and still there.
    pub(crate) fn pop(&self, now: Instant) -> Option<Arc<Entry>> {
        let mut heap = lock(&self.0);
        while heap.peek().is_some_and(|first| first.at <= now) {
            if let Some(entry) = heap.pop().and_then(|due| due.entry.upgrade()) {
                return Some(entry);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::dns_cache::store::tests::entry;

    #[test]
    fn what_is_due_first_comes_first_and_what_is_gone_does_not_come() {
        let (schedule, now) = (Schedule::default(), Instant::now());
        let entries: Vec<_> = (1..4).map(|ttl| Arc::new(entry("a.example", ttl))).collect();
        let secs = Duration::from_secs;
        assert!(schedule.push(now + secs(3), &entries[0]));
        assert!(schedule.push(now + secs(1), &entries[1]));
        assert!(!schedule.push(now + secs(2), &Arc::new(entry("gone.example", 1))));
        assert!(!schedule.push(now + secs(2), &entries[2]));
        assert_eq!(schedule.next(), Some(now + secs(1)));
        assert!(schedule.pop(now).is_none());
        let popped: Vec<_> = std::iter::from_fn(|| schedule.pop(now + secs(3))).collect();
        let lives: Vec<_> = popped.iter().map(|entry| entry.life().lowest).collect();
        assert_eq!(lives, [2, 3, 1]);
        assert_eq!(schedule.next(), None);
    }
}
