//! How much memory the requests of all programs take, shared fairly.
//!
//! A program that has something already gets more only while as much stays free as it would have then: alone it takes half, and *n* greedy ones
//! leave the part of one more. One that has nothing gets what is free; until there is enough for it nobody else gets anything, so that
//! it waits no longer than the requests under way take.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::{Counter, Gauge, counter, gauge};
use qudag_filter_api::FlowKey;
use tokio::sync::oneshot;

/// The memory of a listener. Clones share it.
#[derive(Clone)]
pub(super) struct Memory(Arc<Inner>);

struct Inner {
    shares: Mutex<Shares<oneshot::Sender<Grant>>>,
    used: Gauge,
    waits: Counter,
}

/// Bytes that a request may take; given back when it is dropped.
pub(super) struct Grant {
    home: Arc<Inner>,
    program: FlowKey,
    bytes: usize,
}

/// The answer to a wish for memory.
pub(super) enum Asked {
    /// It is there.
    Granted(Grant),
    /// It will come; dropping the receiver withdraws the wish.
    Waits(oneshot::Receiver<Grant>),
}

impl Memory {
    pub(super) fn new() -> Self {
        Self(Arc::new(Inner {
            shares: Mutex::default(),
            used: gauge!("qudag_sidecar_crypto_request_bytes"),
            waits: counter!("qudag_sidecar_crypto_memory_waits_total"),
        }))
    }

    /// Asks for `bytes` of at most `limit` for all; what is longer than the limit counts as the limit.
    pub(super) fn ask(&self, program: FlowKey, bytes: usize, limit: usize) -> Asked {
        let bytes = bytes.min(limit);
        let mut shares = self.0.lock();
        shares.limit = limit;
        if shares.is_next(program, bytes) {
            shares.take(program, bytes);
            self.0.used.increment(bytes as f64);
            return Asked::Granted(Grant { home: Arc::clone(&self.0), program, bytes });
        }
        let (sender, receiver) = oneshot::channel();
        shares.waiting.push_back(Wish { program, bytes, tell: sender });
        drop(shares);
        self.0.waits.increment(1);
        Asked::Waits(receiver)
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Shares<oneshot::Sender<Grant>>> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back(self: &Arc<Self>, program: FlowKey, bytes: usize) {
        self.used.decrement(bytes as f64);
        let mut shares = self.lock();
        shares.give_back(program, bytes);
        let mut granted = Vec::new();
        while let Some(wish) = shares.next(|tell| !tell.is_closed()) {
            self.used.increment(wish.bytes as f64);
            let grant = Grant { home: Arc::clone(self), program: wish.program, bytes: wish.bytes };
            granted.push((wish.tell, grant));
        }
        drop(shares);
        for (tell, grant) in granted {
            // Whoever has gone in the meantime gives it back by this.
            let _ = tell.send(grant);
        }
    }
}

impl Grant {
    /// Gives back what is more than `bytes`.
    pub(super) fn shrink(&mut self, bytes: usize) {
        let more = self.bytes.saturating_sub(bytes);
        if more > 0 {
            self.bytes -= more;
            self.home.give_back(self.program, more);
        }
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.home.give_back(self.program, self.bytes);
    }
}

/// Who has how much, and who waits.
struct Shares<T> {
    limit: usize,
    used: usize,
    programs: HashMap<FlowKey, usize>,
    waiting: VecDeque<Wish<T>>,
}

struct Wish<T> {
    program: FlowKey,
    bytes: usize,
    tell: T,
}

impl<T> Default for Shares<T> {
    fn default() -> Self {
        Self { limit: 0, used: 0, programs: HashMap::new(), waiting: VecDeque::new() }
    }
}

impl<T> Shares<T> {
    fn of(&self, program: FlowKey) -> usize {
        self.programs.get(&program).copied().unwrap_or_default()
    }

    /// Whether a program may have so much more now. With nothing in use it may: the limit may have fallen after the wish.
    fn fits(&self, program: FlowKey, bytes: usize) -> bool {
        let (own, used) = (self.of(program), self.used.saturating_add(bytes));
        self.used == 0 || (used <= self.limit && (own == 0 || own + bytes <= self.limit - used))
    }

    /// Whether a wish that comes now is not behind one that waits.
    fn is_next(&self, program: FlowKey, bytes: usize) -> bool {
        let mut waiting = self.waiting.iter();
        self.fits(program, bytes)
            && !waiting.any(|wish| wish.program == program || self.of(wish.program) == 0)
    }

    fn take(&mut self, program: FlowKey, bytes: usize) {
        self.used += bytes;
        *self.programs.entry(program).or_default() += bytes;
    }

    fn give_back(&mut self, program: FlowKey, bytes: usize) {
        self.used = self.used.saturating_sub(bytes);
        if let Some(own) = self.programs.get_mut(&program) {
            *own = own.saturating_sub(bytes);
            if *own == 0 {
                self.programs.remove(&program);
            }
        }
    }

    /// Takes out the next wish that can be fulfilled, and fulfils it. Those that are not `wanted` any more are forgotten.
    fn next(&mut self, wanted: impl Fn(&T) -> bool) -> Option<Wish<T>> {
        self.waiting.retain(|wish| wanted(&wish.tell));
        let found = self.waiting.iter().position(|wish| {
            let first_of_all = self.of(wish.program) == 0;
            first_of_all || self.fits(wish.program, wish.bytes)
        })?;
        // One that has nothing holds up all behind it.
        let wish = self.waiting.get(found)?;
        if !self.fits(wish.program, wish.bytes) {
            return None;
        }
        let wish = self.waiting.remove(found)?;
        self.take(wish.program, wish.bytes);
        Some(wish)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn program(number: u8) -> FlowKey {
        FlowKey::of(&[number])
    }

    #[test]
    fn one_program_leaves_room_for_another() {
        let mut shares = Shares::<()> { limit: 100, ..Shares::default() };
        for _ in 0..5 {
            assert!(shares.is_next(program(1), 10));
            shares.take(program(1), 10);
        }
        assert!(!shares.is_next(program(1), 1), "it has half");
        assert!(shares.is_next(program(2), 50), "the other half is the next one's");
        shares.take(program(2), 25);
        assert!(!shares.is_next(program(2), 1));
        assert!(shares.is_next(program(3), 25));
        assert!(!shares.is_next(program(3), 26));
    }

    #[test]
    fn who_has_nothing_is_not_overtaken() {
        let mut shares = Shares { limit: 100, ..Shares::default() };
        shares.take(program(1), 30);
        shares.take(program(2), 20);
        shares.waiting.push_back(Wish { program: program(3), bytes: 90, tell: () });
        assert!(!shares.is_next(program(1), 1) && !shares.is_next(program(4), 1));
        shares.give_back(program(1), 30);
        assert!(shares.next(|()| true).is_none());
        shares.give_back(program(2), 20);
        assert_eq!(shares.next(|()| true).map(|wish| wish.bytes), Some(90));
        assert_eq!(shares.used, 90);
    }

    #[tokio::test]
    async fn what_is_given_back_goes_to_who_waits() {
        let memory = Memory::new();
        let Asked::Granted(mut first) = memory.ask(program(1), 200, 100) else { panic!("it is free") };
        let Asked::Waits(gone) = memory.ask(program(2), 10, 100) else { panic!("it is not free") };
        let Asked::Waits(second) = memory.ask(program(3), 20, 100) else { panic!("it is not free") };
        drop(gone);
        first.shrink(70);
        let second = second.await.unwrap();
        assert_eq!(memory.0.lock().used, 90);
        drop((first, second));
        let shares = memory.0.lock();
        assert!(shares.used == 0 && shares.programs.is_empty() && shares.waiting.is_empty());
    }

    proptest! {
        /// Whatever comes and goes: the limit holds, and everybody gets it in the end.
        #[test]
        fn nobody_waits_for_ever(wishes in proptest::collection::vec((0_u8..4, 1_usize..=100), 1..60)) {
            let mut shares = Shares { limit: 100, ..Shares::default() };
            let mut held = VecDeque::new();
            for (number, bytes) in wishes {
                if shares.is_next(program(number), bytes) {
                    shares.take(program(number), bytes);
                    held.push_back((program(number), bytes));
                } else {
                    shares.waiting.push_back(Wish { program: program(number), bytes, tell: () });
                }
                prop_assert!(shares.used <= 100);
            }
            while let Some((who, bytes)) = held.pop_front() {
                shares.give_back(who, bytes);
                while let Some(wish) = shares.next(|()| true) {
                    held.push_back((wish.program, wish.bytes));
                }
                prop_assert!(shares.used <= 100);
            }
            prop_assert!(shares.waiting.is_empty());
            prop_assert_eq!(shares.used, 0);
        }
    }
}
