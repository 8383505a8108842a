//! How many may be inside, and how many may wait.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tokio::sync::Notify;

/// A number of seats. How many there are is said at each entry, so that a change of the settings counts at once.
#[derive(Debug, Default)]
pub(super) struct Gate {
    inside: AtomicUsize,
    waiting: AtomicUsize,
    left: Notify,
}

/// A seat, until it is dropped.
#[derive(Debug)]
pub(super) struct Seat(Arc<Gate>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Relaxed);
        self.0.left.notify_one();
    }
}

/// One who waits.
struct Waiting<'a>(&'a Gate);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

impl Gate {
    /// How many are inside.
    pub(super) fn inside(&self) -> usize {
        self.inside.load(Relaxed)
    }

    /// Takes a seat if one is free.
    pub(super) fn try_enter(self: &Arc<Self>, seats: usize) -> Option<Seat> {
        let enter = |inside| (inside < seats).then_some(inside + 1);
        self.inside.fetch_update(Relaxed, Relaxed, enter).ok()?;
        Some(Seat(Arc::clone(self)))
    }

    /// Waits for a seat; `None` at once when too many wait already.
    pub(super) async fn enter(self: &Arc<Self>, seats: usize, most_waiting: usize) -> Option<Seat> {
        if let Some(seat) = self.try_enter(seats) {
            return Some(seat);
        }
        let wait = |waiting| (waiting < most_waiting).then_some(waiting + 1);
        self.waiting.fetch_update(Relaxed, Relaxed, wait).ok()?;
        let _waiting = Waiting(self);
        loop {
            // In the line before the second try: whoever leaves from now on wakes this one up.
            let mut left = pin!(self.left.notified());
            left.as_mut().enable();
            if let Some(seat) = self.try_enter(seats) {
                return Some(seat);
            }
            left.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn those_who_wait_come_in_as_others_leave() {
        let gate = Arc::new(Gate::default());
        let first = gate.enter(2, 0).await.unwrap();
        let _second = gate.enter(2, 0).await.unwrap();
        assert!(gate.enter(2, 0).await.is_none());
        let third = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move { gate.enter(2, 1).await.is_some() }
        });
        crate::testing::until("the third waits", || gate.waiting.load(Relaxed) == 1).await;
        assert!(gate.enter(2, 1).await.is_none(), "one may wait, not two");
        drop(first);
        assert!(third.await.unwrap());
        crate::testing::until("only the second is inside", || gate.inside() == 1).await;
        assert!(gate.try_enter(1).is_none(), "fewer seats count at once");
    }

    #[tokio::test]
    async fn one_who_gives_up_takes_no_seat_and_wakes_the_next() {
        let gate = Arc::new(Gate::default());
        let seat = gate.enter(1, 9).await.unwrap();
        let waiting: Vec<_> = (0..5)
            .map(|_| {
                let gate = Arc::clone(&gate);
                tokio::spawn(async move { gate.enter(1, 9).await.is_some() })
            })
            .collect();
        crate::testing::until("all wait", || gate.waiting.load(Relaxed) == 5).await;
        waiting.iter().step_by(2).for_each(tokio::task::JoinHandle::abort);
        drop(seat);
        for (i, task) in waiting.into_iter().enumerate() {
            // One that was let in before it was aborted has left again.
            assert!(task.await.unwrap_or(i % 2 == 0));
        }
        assert_eq!((gate.inside(), gate.waiting.load(Relaxed)), (0, 0));
    }
}
