//! How many may be there at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A count of what is there: connections, sessions, queries. Clones share it. The limit is given at each [`Seats::take`], so that a
/// change of it holds at once; who has a seat keeps it when the limit falls.
#[derive(Clone, Debug, Default)]
pub struct Seats(Arc<AtomicUsize>);

impl Seats {
    /// A seat, unless `most` are taken.
    pub fn take(&self, most: usize) -> Option<Seat> {
        let free = |taken| (taken < most).then_some(taken + 1);
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, free);
        taken.is_ok().then(|| Seat(Arc::clone(&self.0)))
    }

    /// How many are taken.
    pub fn taken(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// One of [`Seats`], given back when it is dropped.
#[derive(Debug)]
#[must_use = "a seat is given back when it is dropped"]
pub struct Seat(Arc<AtomicUsize>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_are_given_back_and_the_limit_changes_at_once() {
        let seats = Seats::default();
        assert!(seats.take(0).is_none());
        let (one, two) = (seats.take(2).unwrap(), seats.clone().take(2).unwrap());
        assert!(seats.take(2).is_none() && seats.taken() == 2, "a clone counts with the others");
        let three = seats.take(3).unwrap();
        drop((one, two));
        assert!(seats.take(1).is_none(), "the third is there still");
        drop(three);
        assert!(seats.take(1).is_some());
    }

    #[test]
    fn no_more_than_the_limit_get_a_seat_at_once() {
        let (seats, together) = (Seats::default(), std::sync::Barrier::new(8));
        let found = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        together.wait();
                        let taken: Vec<_> = (0..100).filter_map(|_| seats.take(99)).collect();
                        together.wait();
                        taken.len()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
        });
        assert_eq!(found, 99);
    }
}
