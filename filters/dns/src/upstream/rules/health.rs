//! Whether a server is to be relied on.
//!
//! ```text
//!             N failures in a row                first success
//!  CLOSED ───────────────────────────▶ OPEN ───────────────────▶ HALF-OPEN
//!    ▲                                  ▲         a failure         │  │
//!    │                                  └───────────────────────────┘  │
//!    └───────────────────────── M successes in a row ──────────────────┘
//! ```
//!
//! An open server is not refused: it is asked when there is nobody better. Successes come from probes, and from queries that found nobody
//! better.

use std::time::Duration;

use tokio::time::Instant;

/// Weight of one query in the share of lost ones.
const LOSS_WEIGHT: f32 = 1.0 / 16.0;
/// With more lost queries than this, a server is asked behind those that lose fewer.
const LOSSY: f32 = 0.15;
/// With fewer than this, it no longer is.
const LOSSLESS: f32 = 0.05;
/// A server that answered with errors is tried with a query when probes do not tell whether it is well: first after this time.
const TRIAL: Duration = Duration::from_secs(1);
/// And when its breaker is open.
const OPEN_TRIAL: Duration = Duration::from_secs(5);
/// So many good answers after the breaker closed make up for how often it opened.
const PROVEN: u32 = 16;
/// The longest time for which good probes do not count.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// When the breaker changes its state, as configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct BreakerLimits {
    /// Failures in a row that open it.
    pub(in super::super) failures: u32,
    /// Successes in a row that close it.
    pub(in super::super) successes: u32,
}

/// What was wrong with a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Fault {
    /// It said nothing.
    Silence,
    /// It cannot be reached, or broke off.
    Network,
    /// It answered with an error where another one had an answer.
    Code,
}

/// The state of a server's breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum BreakerState {
    /// In use.
    Closed,
    /// The first successes are there.
    HalfOpen,
    /// Asked only where there is nobody better.
    Open,
}

impl BreakerState {
    /// The name in logs and status.
    pub(in super::super) fn label(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }

    /// The value of the gauge.
    pub(in super::super) fn gauge(self) -> f64 {
        match self {
            Self::Closed => 0.0,
            Self::HalfOpen => 1.0,
            Self::Open => 2.0,
        }
    }
}

/// In which order servers are asked; those of one rank in the configured one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) enum Rank {
    /// Nothing is wrong.
    Clean,
    /// It failed lately, is silent at the moment, or loses queries.
    Doubtful,
    /// Its breaker is open.
    Open,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Closed { failures: u32, proven: u32 },
    Open { since: Instant, successes: u32 },
}

/// The health of one server.
#[derive(Clone, Debug)]
pub(in super::super) struct Health {
    state: State,
    /// What was wrong last.
    fault: Option<Fault>,
    /// The last query failed, and nothing has shown since that the server is well.
    doubted: bool,
    /// The time of the earliest query since which nothing at all was heard.
    unheard: Option<Instant>,
    heard: Option<Instant>,
    /// For how long it may say nothing at all, as it was said last.
    patience: Duration,
    /// When its last silence ended that was longer than that.
    back: Option<Instant>,
    loss: f32,
    lossy: bool,
    /// How often it opened because of errors without having proved itself in between.
    relapses: u32,
    /// When it failed or was tried last.
    tried: Option<Instant>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            state: State::Closed { failures: 0, proven: 0 },
            fault: None,
            doubted: false,
            unheard: None,
            heard: None,
            patience: Duration::MAX,
            back: None,
            loss: 0.0,
            lossy: false,
            relapses: 0,
            tried: None,
        }
    }
}

impl Health {
    /// The breaker's state.
    pub(in super::super) fn breaker(&self) -> BreakerState {
        match self.state {
            State::Closed { .. } => BreakerState::Closed,
            State::Open { successes: 0, .. } => BreakerState::Open,
            State::Open { .. } => BreakerState::HalfOpen,
        }
    }

    /// Where the server stands in the order. `doubt` is for how long it may say nothing at all.
    pub(in super::super) fn rank(&self, now: Instant, doubt: Duration) -> Rank {
        match self.state {
            State::Open { .. } => Rank::Open,
            State::Closed { .. } => {
                let silent = self.unheard.is_some_and(|since| now.saturating_duration_since(since) > doubt);
                if self.doubted || self.lossy || silent { Rank::Doubtful } else { Rank::Clean }
            }
        }
    }

    /// The rank for a query that is about to be asked. Now and then a query is let through to a server that answered with errors: a
    /// probe of another name does not always tell.
    pub(in super::super) fn admit(&mut self, now: Instant, doubt: Duration) -> Rank {
        self.patience = doubt;
        let rank = self.rank(now, doubt);
        let pause = match rank {
            Rank::Clean => return rank,
            Rank::Doubtful => TRIAL,
            Rank::Open => OPEN_TRIAL,
        };
        let due = self.tried.is_none_or(|tried| now.saturating_duration_since(tried) >= pause);
        if self.fault != Some(Fault::Code) || !due {
            return rank;
        }
        self.tried = Some(now);
        Rank::Clean
    }

    /// A query was sent.
    pub(in super::super) fn sent(&mut self, now: Instant) {
        self.unheard.get_or_insert(now);
    }

    /// Anything came from the server.
    pub(in super::super) fn heard(&mut self, now: Instant) {
        if self.is_silent(now) {
            self.back = Some(now);
        }
        self.unheard = None;
        self.heard = Some(now);
    }

    /// Whether the server says nothing at all, to nobody.
    fn is_silent(&self, now: Instant) -> bool {
        self.unheard.is_some_and(|since| now.saturating_duration_since(since) > self.patience)
    }

    /// Whether a query that was sent at a time went into a silence, which lasts or has ended since. To ask again then is no more than the
    /// server would have been asked without the silence.
    pub(in super::super) fn missed(&self, sent: Instant, now: Instant) -> bool {
        self.is_silent(now) || self.back.is_some_and(|back| back >= sent)
    }

    /// Something came from the server's address that was no reply.
    pub(in super::super) fn doubt(&mut self) {
        self.doubted = true;
    }

    /// A query had a good answer.
    pub(in super::super) fn succeeded(&mut self, now: Instant, limits: &BreakerLimits) {
        self.heard(now);
        self.lose(false);
        self.doubted = false;
        match &mut self.state {
            State::Closed { failures, proven } => {
                *failures = 0;
                *proven = proven.saturating_add(1);
                if *proven >= PROVEN {
                    self.relapses = 0;
                }
            }
            State::Open { .. } => self.recover(limits),
        }
    }

    /// A query or probe failed. Whether that opened the breaker.
    pub(in super::super) fn failed(&mut self, fault: Fault, now: Instant, limits: &BreakerLimits) -> bool {
        self.fault = Some(fault);
        self.doubted = true;
        self.tried = Some(now);
        if fault == Fault::Code {
            self.heard(now);
        }
        match &mut self.state {
            State::Closed { failures, .. } => {
                *failures = failures.saturating_add(1);
                if *failures < limits.failures {
                    return false;
                }
                if fault == Fault::Code {
                    self.relapses = self.relapses.saturating_add(1);
                }
                self.state = State::Open { since: now, successes: 0 };
                true
            }
            State::Open { successes, .. } => {
                *successes = 0;
                false
            }
        }
    }

    /// A query that was sent at a time has had no answer for as long as a server may take. Whether that opened the breaker.
    pub(in super::super) fn silent(&mut self, sent: Instant, now: Instant, limits: &BreakerLimits) -> bool {
        self.lose(true);
        // A server that answers others has lost this one; that is another thing than to be dead.
        let alive = self.heard.is_some_and(|heard| heard >= sent);
        !alive && self.failed(Fault::Silence, now, limits)
    }

    /// A probe was answered: well, or with an error, which shows only that the server is there. Whether that closed the breaker.
    pub(in super::super) fn probed(&mut self, well: bool, now: Instant, limits: &BreakerLimits) -> bool {
        self.heard(now);
        self.lose(false);
        let errors = self.fault == Some(Fault::Code);
        if errors && !well {
            return false;
        }
        match &mut self.state {
            State::Closed { failures, .. } => {
                self.doubted = false;
                // Errors in a row stay so when the probe's name is one that the server happens to know.
                if !errors {
                    *failures = 0;
                }
                false
            }
            State::Open { since, .. } => {
                if errors && now.saturating_duration_since(*since) < pause(self.relapses) {
                    return false;
                }
                self.recover(limits);
                matches!(self.state, State::Closed { .. })
            }
        }
    }

    /// Whether it should be probed soon: something is wrong that a probe can clear.
    pub(in super::super) fn is_troubled(&self, now: Instant, doubt: Duration) -> bool {
        self.rank(now, doubt) != Rank::Clean
    }

    fn recover(&mut self, limits: &BreakerLimits) {
        if let State::Open { successes, .. } = &mut self.state {
            *successes = successes.saturating_add(1);
            if *successes >= limits.successes {
                self.state = State::Closed { failures: 0, proven: 0 };
                self.doubted = false;
                // What was lost while it was down says nothing of now.
                (self.loss, self.lossy) = (0.0, false);
            }
        }
    }

    fn lose(&mut self, lost: bool) {
        let sample = if lost { 1.0 } else { 0.0 };
        self.loss += (sample - self.loss) * LOSS_WEIGHT;
        self.lossy = self.loss > if self.lossy { LOSSLESS } else { LOSSY };
    }
}

/// For how long good probes of a server do not count that opened so many times because of errors.
fn pause(relapses: u32) -> Duration {
    match relapses {
        0 | 1 => Duration::ZERO,
        n => Duration::from_secs(1_u64.checked_shl(n - 1).unwrap_or(u64::MAX)).min(MAX_PAUSE),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: BreakerLimits = BreakerLimits { failures: 3, successes: 2 };
    const DOUBT: Duration = Duration::from_millis(50);

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn three_failures_in_a_row_open_it_and_two_successes_close_it() {
        let now = Instant::now();
        let mut health = Health::default();
        for failure in [true, true, false, true, true] {
            if failure {
                assert!(!health.failed(Fault::Network, now, &LIMITS));
                assert_eq!(health.rank(now, DOUBT), Rank::Doubtful);
            } else {
                health.succeeded(now, &LIMITS);
                assert_eq!(health.rank(now, DOUBT), Rank::Clean);
            }
        }
        assert!(health.failed(Fault::Network, now, &LIMITS));
        assert_eq!((health.breaker(), health.rank(now, DOUBT)), (BreakerState::Open, Rank::Open));
        assert!(!health.probed(true, now, &LIMITS));
        assert_eq!(health.breaker(), BreakerState::HalfOpen);
        health.failed(Fault::Silence, now, &LIMITS);
        assert_eq!(health.breaker(), BreakerState::Open);
        health.succeeded(now, &LIMITS);
        assert!(health.probed(true, now, &LIMITS));
        assert_eq!((health.breaker(), health.rank(now, DOUBT)), (BreakerState::Closed, Rank::Clean));
    }

    #[test]
    fn a_server_that_says_nothing_is_doubted_before_it_has_failed() {
        let now = Instant::now();
        let mut health = Health::default();
        health.sent(now);
        health.sent(now + ms(40));
        assert_eq!(health.rank(now + ms(50), DOUBT), Rank::Clean);
        assert_eq!(health.rank(now + ms(51), DOUBT), Rank::Doubtful);
        health.heard(now + ms(52));
        assert_eq!(health.rank(now + ms(500), DOUBT), Rank::Clean);
    }

    #[test]
    fn what_was_sent_into_a_silence_was_missed() {
        let now = Instant::now();
        let mut health = Health::default();
        let at = |millis| now + ms(millis);
        health.admit(now, DOUBT);
        health.sent(now);
        assert!(!health.missed(now, at(50)), "it may still answer");
        assert!(health.missed(now, at(51)));
        assert!(health.missed(at(40), at(51)));
        health.heard(at(1000));
        assert!(health.missed(at(999), at(1001)), "it is back, and this one was lost");
        assert!(!health.missed(at(1001), at(1300)), "it answers others");
        // A short one changes nothing.
        health.sent(at(1400));
        health.heard(at(1410));
        assert!(health.missed(at(999), at(1411)));
        assert!(!health.missed(at(1405), at(1411)));
    }

    #[test]
    fn one_that_is_lost_among_others_is_no_silence() {
        let now = Instant::now();
        let mut health = Health::default();
        for i in 0..10 {
            let sent = now + ms(i);
            health.sent(sent);
            health.succeeded(sent + ms(1), &LIMITS);
        }
        assert!(!health.silent(now, now + ms(400), &LIMITS));
        assert_eq!(health.rank(now + ms(400), DOUBT), Rank::Clean);
        // Nothing since: that is silence.
        for (i, opens) in [(20, false), (21, false), (22, true)] {
            assert_eq!(health.silent(now + ms(i), now + ms(400 + i), &LIMITS), opens);
        }
    }

    #[test]
    fn a_server_that_loses_many_queries_comes_behind_one_that_loses_few() {
        let now = Instant::now();
        let mut health = Health::default();
        let mut queries = |count: u32, lost: fn(u32) -> bool| {
            for i in 0..count {
                health.heard(now);
                match lost(i) {
                    true => assert!(!health.silent(now, now, &LIMITS)),
                    false => health.succeeded(now, &LIMITS),
                }
            }
            health.rank(now, DOUBT)
        };
        assert_eq!(queries(100, |i| i % 33 == 0), Rank::Clean);
        assert_eq!(queries(100, |i| i % 3 == 0), Rank::Doubtful);
        assert_eq!(queries(60, |_| false), Rank::Clean);
    }

    #[test]
    fn errors_are_not_forgiven_for_a_probe_that_happens_to_be_answered() {
        let start = Instant::now();
        let mut health = Health::default();
        for opens in [false, false, true] {
            assert_eq!(health.failed(Fault::Code, start, &LIMITS), opens);
            health.probed(true, start, &LIMITS);
        }
        // The first time the second probe closes it, later only after a pause.
        health.probed(true, start, &LIMITS);
        assert_eq!(health.breaker(), BreakerState::Closed);
        for _ in 0..3 {
            health.failed(Fault::Code, start, &LIMITS);
        }
        for (after, state) in
            [(0, BreakerState::Open), (1999, BreakerState::Open), (2000, BreakerState::HalfOpen)]
        {
            health.probed(true, start + ms(after), &LIMITS);
            assert_eq!(health.breaker(), state, "after {after} ms");
        }
        health.probed(true, start + ms(2001), &LIMITS);
        (0..PROVEN).for_each(|_| health.succeeded(start, &LIMITS));
        assert_eq!(health.relapses, 0);
    }

    #[test]
    fn where_probes_are_refused_a_query_finds_out_now_and_then() {
        let start = Instant::now();
        let mut health = Health::default();
        let at = |millis| start + ms(millis);
        health.failed(Fault::Code, start, &LIMITS);
        assert!(!health.probed(false, at(1), &LIMITS));
        assert_eq!(health.admit(at(999), DOUBT), Rank::Doubtful);
        assert_eq!(health.admit(at(1000), DOUBT), Rank::Clean, "the trial");
        assert_eq!(health.admit(at(1000), DOUBT), Rank::Doubtful, "nobody else");
        health.failed(Fault::Code, at(1001), &LIMITS);
        health.failed(Fault::Code, at(1001), &LIMITS);
        assert_eq!(health.admit(at(6000), DOUBT), Rank::Open);
        assert_eq!(health.admit(at(6001), DOUBT), Rank::Clean);
        // Silence is another matter: probes tell.
        health.failed(Fault::Silence, at(7000), &LIMITS);
        assert_eq!(health.admit(at(60_000), DOUBT), Rank::Open);
        assert!(!health.probed(false, at(60_000), &LIMITS));
        assert!(health.probed(false, at(60_000), &LIMITS), "it is there again");
    }

    proptest! {
        #[test]
        fn the_breaker_changes_only_as_it_should(
            failures in 1_u32..6, successes in 1_u32..6,
            steps in proptest::collection::vec((0_u8..8, 0_u64..3000), 0..300)
        ) {
            let limits = BreakerLimits { failures, successes };
            let mut now = Instant::now();
            let mut health = Health::default();
            // Failures and successes of queries in a row.
            let (mut bad, mut good) = (0, 0);
            for (step, wait) in steps {
                now += ms(wait);
                let before = health.breaker();
                match step {
                    0 => health.sent(now),
                    1 => health.heard(now),
                    2 | 3 => {
                        health.succeeded(now, &limits);
                        (bad, good) = (0, good + 1);
                    }
                    4 | 5 => {
                        let fault = if step == 4 { Fault::Network } else { Fault::Silence };
                        let opened = health.failed(fault, now, &limits);
                        (bad, good) = (bad + 1, 0);
                        prop_assert_eq!(opened, before == BreakerState::Closed && health.breaker() == BreakerState::Open);
                    }
                    6 => {
                        // A server that has been heard since lost a query; it did not fail.
                        let alive = health.heard == Some(now);
                        health.silent(now, now, &limits);
                        if !alive {
                            (bad, good) = (bad + 1, 0);
                        }
                    }
                    _ => {
                        let closed = health.probed(true, now, &limits);
                        (bad, good) = (0, good + 1);
                        prop_assert_eq!(closed, before != BreakerState::Closed && health.breaker() == BreakerState::Closed);
                    }
                }
                if before == BreakerState::Closed && health.breaker() != BreakerState::Closed {
                    prop_assert!(bad >= failures, "{bad}");
                    good = 0;
                }
                if before != BreakerState::Closed && health.breaker() == BreakerState::Closed {
                    prop_assert!(good >= successes, "{good}");
                    bad = 0;
                    prop_assert_eq!(health.rank(now, DOUBT), Rank::Clean);
                }
                prop_assert_eq!(health.rank(now, DOUBT) == Rank::Open, health.breaker() != BreakerState::Closed);
                prop_assert!((0.0..=1.0).contains(&health.loss));
            }
        }
    }
}
