//! How many may be inside, and how many may wait.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// A number of seats. How many there are is said at each entry, so that a change of the settings counts at once. Who waits longest is
/// next; nobody overtakes.
#[derive(Debug, Default)]
pub(super) struct Gate(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    inside: usize,
    /// How many seats there were at the last entry.
    seats: usize,
    /// The line. Those who have given up are still in it.
    waiting: VecDeque<oneshot::Sender<Seat>>,
}

/// A seat, until it is dropped.
#[derive(Debug)]
pub(super) struct Seat(Option<Arc<Gate>>);

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(gate) = self.0.take() {
            let mut state = gate.lock();
            state.inside = state.inside.saturating_sub(1);
            gate.let_in(&mut state);
        }
    }
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the free seats to those who wait.
    fn let_in(self: &Arc<Self>, state: &mut State) {
        while state.inside < state.seats {
            let Some(next) = state.waiting.pop_front() else { return };
            match next.send(Seat(Some(Arc::clone(self)))) {
                Ok(()) => state.inside += 1,
                // Who gave up has not been inside: nothing is to be left.
                Err(mut seat) => drop(seat.0.take()),
            }
        }
    }

    /// How many are inside.
    pub(super) fn inside(&self) -> usize {
        self.lock().inside
    }

    /// How many wait.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.lock().waiting.iter().filter(|waiting| !waiting.is_closed()).count()
    }

    fn entered(self: &Arc<Self>, state: &mut State, seats: usize) -> Option<Seat> {
        state.seats = seats;
        self.let_in(state);
        if state.inside >= seats {
            return None;
        }
        state.inside += 1;
        Some(Seat(Some(Arc::clone(self))))
    }

    /// Takes a seat if one is free and nobody waits for it.
    pub(super) fn try_enter(self: &Arc<Self>, seats: usize) -> Option<Seat> {
        self.entered(&mut self.lock(), seats)
    }

    /// Waits for a seat; `None` at once when too many wait already.
    pub(super) async fn enter(self: &Arc<Self>, seats: usize, most_waiting: usize) -> Option<Seat> {
        let turn = {
            let mut state = self.lock();
            if let Some(seat) = self.entered(&mut state, seats) {
                return Some(seat);
            }
            if state.waiting.len() >= most_waiting {
                state.waiting.retain(|waiting| !waiting.is_closed());
            }
            if state.waiting.len() >= most_waiting {
                return None;
            }
            let (tell, turn) = oneshot::channel();
            state.waiting.push_back(tell);
            turn
        };
        turn.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
        crate::testing::until("the third waits", || gate.waiting() == 1).await;
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
        crate::testing::until("all wait", || gate.waiting() == 5).await;
        waiting.iter().step_by(2).for_each(tokio::task::JoinHandle::abort);
        drop(seat);
        for (i, task) in waiting.into_iter().enumerate() {
            // One that was let in before it was aborted has left again.
            assert!(task.await.unwrap_or(i % 2 == 0));
        }
        assert_eq!((gate.inside(), gate.waiting()), (0, 0));
    }

    proptest! {
        /// Steps: 0 comes, 1 the oldest inside leaves, 2 one who waits gives up, 3 the seats change.
        #[test]
        fn who_comes_first_is_first_and_no_seat_is_lost(
            steps in proptest::collection::vec((0_u8..4, 0_usize..5), 0..200), most in 0_usize..6
        ) {
            use futures_util::FutureExt;
            let gate = Arc::new(Gate::default());
            let mut seats = 2;
            let mut inside = Vec::new();
            let mut line: VecDeque<(u32, futures_util::future::BoxFuture<'static, Option<Seat>>)> = VecDeque::new();
            for (number, (step, which)) in (0_u32..).zip(steps) {
                match step {
                    0 => {
                        let gate = Arc::clone(&gate);
                        let mut entering = async move { gate.enter(seats, most).await }.boxed();
                        match (&mut entering).now_or_never() {
                            Some(Some(seat)) => {
                                prop_assert!(line.is_empty(), "overtaken");
                                inside.push(seat);
                            }
                            Some(None) => prop_assert!(line.len() >= most),
                            None => line.push_back((number, entering)),
                        }
                    }
                    1 if !inside.is_empty() => drop(inside.remove(0)),
                    2 if !line.is_empty() => drop(line.remove(which % line.len())),
                    3 => {
                        seats = which;
                        inside.extend(gate.try_enter(seats));
                    }
                    _ => {}
                }
                // Those who were let in are the first ones of the line.
                let mut behind = false;
                let mut rest = VecDeque::new();
                for (number, mut entering) in line {
                    match (&mut entering).now_or_never() {
                        Some(seat) => {
                            prop_assert!(!behind, "overtaken");
                            inside.push(seat.unwrap());
                        }
                        None => {
                            behind = true;
                            rest.push_back((number, entering));
                        }
                    }
                }
                line = rest;
                prop_assert_eq!((gate.inside(), gate.waiting()), (inside.len(), line.len()));
                prop_assert!(line.is_empty() || inside.len() >= seats, "a free seat, and somebody waits");
            }
        }
    }
}
