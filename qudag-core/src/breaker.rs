//! A circuit breaker: after repeated failures an upstream is left alone, and then probed by one call at a time.
//!
//! ```text
//!            N failures in a row                 time is up, next call
//!  CLOSED ─────────────────────────▶ OPEN ─────────────────────────────▶ HALF-OPEN
//!    ▲                                ▲ ▲       the probe was cancelled     │  │ │
//!    │                                │ └───────(the next call probes)──────┘  │ │
//!    │                                └───────────the probe failed─────────────┘ │
//!    └────────────────────────────────────────────the probe succeeded────────────┘
//! ```

use std::time::{Duration, Instant};

/// When a breaker opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Failures in a row that open it; at least 1.
    pub failures: u32,
    /// How long it is open the first time. Doubles with every failed probe; jitter of ± 50 % is added.
    pub open: Duration,
    /// The longest time that it is open, before jitter.
    pub max_open: Duration,
}

/// What becomes of a call.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    /// The call goes through; its outcome is to be reported with the pass.
    Admit(Pass),
    /// The call is refused.
    Reject {
        /// When a call may be admitted at the earliest, as far as that is known.
        retry_after: Duration,
    },
}

/// An admitted call. It is handed back with one of [`Breaker::success`], [`Breaker::failure`] and [`Breaker::cancel`]; a probe's pass that
/// is lost blocks the breaker for ever.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the breaker waits for the outcome"]
pub struct Pass {
    /// The state's number at the time of admission. Outcomes of calls from before the last change of state say nothing.
    epoch: u64,
}

/// The state of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Calls go through.
    Closed,
    /// Calls are refused.
    Open,
    /// One call is on its way to see whether the upstream is back; others are refused.
    HalfOpen,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Closed { failures: u32 },
    Open { since: Instant, until: Instant, length: Duration },
    HalfOpen { length: Duration },
}

/// A circuit breaker. Its settings are given at every use, so that a change of them keeps its state.
#[derive(Clone, Debug)]
pub struct Breaker {
    state: State,
    epoch: u64,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { state: State::Closed { failures: 0 }, epoch: 0 }
    }
}

impl Breaker {
    /// The state.
    pub fn status(&self) -> Status {
        match self.state {
            State::Closed { .. } => Status::Closed,
            State::Open { .. } => Status::Open,
            State::HalfOpen { .. } => Status::HalfOpen,
        }
    }

    /// Decides on a call.
    pub fn admit(&mut self, settings: &Settings, now: Instant) -> Decision {
        match self.state {
            State::Closed { .. } => {}
            State::Open { since, until, length } => {
                // A maximum that became shorter counts at once.
                let until = until.min(since + settings.max_open.saturating_mul(3) / 2);
                if now < until {
                    return Decision::Reject { retry_after: until - now };
                }
                self.enter(State::HalfOpen { length });
            }
            State::HalfOpen { .. } => return Decision::Reject { retry_after: settings.open },
        }
        Decision::Admit(Pass { epoch: self.epoch })
    }

    /// An admitted call has succeeded.
    pub fn success(&mut self, pass: Pass) {
        if pass.epoch != self.epoch {
            return;
        }
        match &mut self.state {
            State::Closed { failures } => *failures = 0,
            State::HalfOpen { .. } => self.enter(State::Closed { failures: 0 }),
            State::Open { .. } => {}
        }
    }

    /// An admitted call has failed. Returns whether that opened the breaker, for the first time or again.
    pub fn failure(&mut self, pass: Pass, settings: &Settings, now: Instant, random: u64) -> bool {
        if pass.epoch != self.epoch {
            return false;
        }
        let length = match &mut self.state {
            State::Closed { failures } => {
                *failures = failures.saturating_add(1);
                if *failures < settings.failures {
                    return false;
                }
                settings.open
            }
            State::HalfOpen { length } => length.saturating_mul(2),
            State::Open { .. } => return false,
        };
        let length = length.min(settings.max_open);
        let until = now + length / 2 + crate::share(length, random);
        self.enter(State::Open { since: now, until, length });
        true
    }

    /// An admitted call has ended without saying anything about the upstream: the client went away, or was at fault. If it was the
    /// probe, the next call is.
    pub fn cancel(&mut self, pass: Pass, now: Instant) {
        if pass.epoch != self.epoch {
            return;
        }
        if let State::HalfOpen { length } = self.state {
            self.enter(State::Open { since: now, until: now, length });
        }
    }

    /// Starts anew: the calls go to another upstream from now on. Outcomes of calls under way say nothing of that one.
    pub fn forget(&mut self) {
        self.enter(State::Closed { failures: 0 });
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.epoch = self.epoch.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SETTINGS: Settings =
        Settings { failures: 3, open: Duration::from_secs(1), max_open: Duration::from_secs(8) };

    fn pass(breaker: &mut Breaker, now: Instant) -> Pass {
        match breaker.admit(&SETTINGS, now) {
            Decision::Admit(pass) => pass,
            Decision::Reject { retry_after } => panic!("rejected for {retry_after:?}"),
        }
    }

    fn retry_after(breaker: &mut Breaker, now: Instant) -> Duration {
        match breaker.admit(&SETTINGS, now) {
            Decision::Admit(_) => panic!("admitted"),
            Decision::Reject { retry_after } => retry_after,
        }
    }

    /// A breaker that has just opened, without jitter.
    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::default();
        for _ in 0..3 {
            let pass = pass(&mut breaker, now);
            breaker.failure(pass, &SETTINGS, now, 1 << 63);
        }
        assert_eq!(breaker.status(), Status::Open);
        breaker
    }

    #[test]
    fn only_failures_in_a_row_open_it() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        for outcome in [false, false, true, false, false] {
            let pass = pass(&mut breaker, now);
            if outcome {
                breaker.success(pass);
            } else {
                assert!(!breaker.failure(pass, &SETTINGS, now, 0));
            }
        }
        // A call that says nothing about the upstream does not break the row.
        let cancelled = pass(&mut breaker, now);
        breaker.cancel(cancelled, now);
        let last = pass(&mut breaker, now);
        assert!(breaker.failure(last, &SETTINGS, now, 0));
        assert_eq!(breaker.status(), Status::Open);
    }

    #[test]
    fn the_time_doubles_up_to_the_maximum_and_starts_over_after_a_success() {
        let mut now = Instant::now();
        let mut breaker = opened(now);
        for seconds in [1, 2, 4, 8, 8] {
            let wait = retry_after(&mut breaker, now);
            assert_eq!(wait, Duration::from_secs(seconds));
            assert_eq!(retry_after(&mut breaker, now + wait - Duration::from_nanos(1)).as_nanos(), 1);
            now += wait;
            let probe = pass(&mut breaker, now);
            assert_eq!(breaker.status(), Status::HalfOpen);
            assert!(breaker.failure(probe, &SETTINGS, now, 1 << 63));
        }
        now += Duration::from_secs(8);
        let probe = pass(&mut breaker, now);
        breaker.success(probe);
        assert_eq!(breaker.status(), Status::Closed);
        for _ in 0..3 {
            let pass = pass(&mut breaker, now);
            breaker.failure(pass, &SETTINGS, now, 1 << 63);
        }
        assert_eq!(retry_after(&mut breaker, now), Duration::from_secs(1));
    }

    #[test]
    fn a_cancelled_probe_makes_room_for_the_next() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let later = now + Duration::from_secs(1);
        let probe = pass(&mut breaker, later);
        assert!(matches!(breaker.admit(&SETTINGS, later), Decision::Reject { .. }));
        breaker.cancel(probe, later);
        let probe = pass(&mut breaker, later);
        breaker.success(probe);
        assert_eq!(breaker.status(), Status::Closed);
    }

    #[test]
    fn outcomes_from_before_do_not_count() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        let old: Vec<_> = (0..4).map(|_| pass(&mut breaker, now)).collect();
        for _ in 0..3 {
            let pass = pass(&mut breaker, now);
            breaker.failure(pass, &SETTINGS, now, 1 << 63);
        }
        let probe = pass(&mut breaker, now + Duration::from_secs(1));
        for (i, pass) in old.into_iter().enumerate() {
            match i {
                0 => breaker.success(pass),
                1 => breaker.cancel(pass, now),
                _ => assert!(!breaker.failure(pass, &SETTINGS, now, 0)),
            }
            assert_eq!(breaker.status(), Status::HalfOpen);
        }
        breaker.success(probe);
        assert_eq!(breaker.status(), Status::Closed);
    }

    #[test]
    fn what_is_forgotten_is_forgotten_with_the_calls_under_way() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        let old: Vec<_> = (0..5).map(|_| pass(&mut breaker, now)).collect();
        breaker.forget();
        for pass in old {
            assert!(!breaker.failure(pass, &SETTINGS, now, 0));
        }
        let mut breaker = opened(now);
        breaker.forget();
        assert_eq!(breaker.status(), Status::Closed);
        for opens in [false, false, true] {
            let pass = pass(&mut breaker, now);
            assert_eq!(breaker.failure(pass, &SETTINGS, now, 1 << 63), opens);
        }
        assert_eq!(retry_after(&mut breaker, now), SETTINGS.open);
    }

    #[test]
    fn new_settings_keep_the_state_and_shorten_the_wait() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 0..2 {
            let pass = pass(&mut breaker, now);
            breaker.failure(pass, &SETTINGS, now, 0);
        }
        let more = Settings { failures: 5, ..SETTINGS };
        for opens in [false, false, true] {
            let pass = pass(&mut breaker, now);
            assert_eq!(breaker.failure(pass, &more, now, u64::MAX), opens);
        }
        let short = Settings { max_open: Duration::from_millis(100), ..SETTINGS };
        let later = now + Duration::from_millis(50);
        assert_eq!(
            breaker.admit(&short, later),
            Decision::Reject { retry_after: Duration::from_millis(100) }
        );
    }

    #[derive(Clone, Debug)]
    enum Step {
        Admit,
        Wait(u64),
        End { which: usize, outcome: u8, random: u64 },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => Just(Step::Admit),
            1 => (0_u64..3_000).prop_map(Step::Wait),
            3 => (any::<usize>(), 0_u8..6, any::<u64>())
                .prop_map(|(which, outcome, random)| Step::End { which, outcome, random }),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn there_is_never_more_than_one_probe_and_never_a_call_while_open(steps in steps()) {
            let mut now = Instant::now();
            let mut breaker = Breaker::default();
            // Passes under way, and whether each is the probe.
            let mut calls: Vec<(Pass, bool)> = Vec::new();
            let mut open_until = None;
            for step in steps {
                match step {
                    Step::Wait(millis) => now += Duration::from_millis(millis),
                    Step::Admit => {
                        let before = breaker.status();
                        match breaker.admit(&SETTINGS, now) {
                            Decision::Admit(pass) => {
                                let probe = breaker.status() == Status::HalfOpen;
                                prop_assert!(open_until.is_none_or(|until| until <= now));
                                prop_assert_eq!(probe, before == Status::Open);
                                calls.push((pass, probe));
                            }
                            Decision::Reject { retry_after } => {
                                prop_assert_ne!(before, Status::Closed);
                                prop_assert!(retry_after <= SETTINGS.max_open * 3 / 2);
                            }
                        }
                    }
                    Step::End { which, outcome, random } => {
                        if calls.is_empty() {
                            continue;
                        }
                        let (pass, probe) = calls.swap_remove(which % calls.len());
                        let before = breaker.status();
                        match outcome {
                            0..=3 => {
                                if breaker.failure(pass, &SETTINGS, now, random) {
                                    let Decision::Reject { retry_after } = breaker.clone().admit(&SETTINGS, now) else {
                                        panic!("open and admitting");
                                    };
                                    prop_assert!(retry_after >= SETTINGS.open / 2);
                                    open_until = Some(now + retry_after);
                                }
                            }
                            4 => breaker.success(pass),
                            _ => breaker.cancel(pass, now),
                        }
                        if before == Status::HalfOpen {
                            prop_assert_eq!(probe, breaker.status() != Status::HalfOpen);
                        }
                    }
                }
                let probes = calls.iter().filter(|(_, probe)| *probe).count();
                prop_assert_eq!(probes, usize::from(breaker.status() == Status::HalfOpen));
            }
        }
    }
}
