//! `retry`: another attempt where that may help and cannot harm.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use metrics::{Counter, counter};
use qudag_core::backoff::Backoff;
use qudag_core::budget::{Budget, Settings};
use qudag_filter_api::{
    BuildError, ConfigError, ConfigPath, Env, FilterError, FilterSpec, Kind, Period, Svc,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt};

use crate::generic::{ForKind, not_longer, range};
use crate::now;

/// Repeats requests that may be repeated ([`Kind::replay`]) after errors of the upstream and after replies that report a failure
/// ([`Kind::failure`]). When there is no attempt left, the last outcome is the answer.
pub type Retry<K> = ForKind<RetrySettings, K>;

/// Settings of `retry`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RetrySettings {
    /// Attempts for a request, the first one included.
    #[schemars(range(min = 1, max = 10))]
    pub attempts: u32,
    /// The limit of the first wait between attempts. Limits double, and waits are drawn between zero and the limit.
    pub backoff: Period,
    /// The limit of every wait.
    pub max_backoff: Period,
    /// How long after the start of the first attempt another one may start. An attempt under way is not cut short.
    pub deadline: Period,
    /// Retries in percent of the requests of the last 10 seconds.
    #[schemars(range(max = 100))]
    pub budget_percent: u32,
    /// Retries a second that there may be besides; those not used within 10 seconds add up.
    #[schemars(range(max = 1000))]
    pub budget_min_per_second: u32,
}

impl Default for RetrySettings {
    fn default() -> Self {
        Self {
            attempts: 3,
            backoff: Period::millis(100),
            max_backoff: Period::secs(10),
            deadline: Period::secs(5),
            budget_percent: 20,
            budget_min_per_second: 3,
        }
    }
}

/// The retry budget of a kind. Knows no settings, so that it outlives every change of them.
#[derive(Debug)]
pub struct RetryState {
    budget: Mutex<Budget>,
}

impl RetryState {
    fn with<T>(&self, work: impl FnOnce(&mut Budget) -> T) -> T {
        work(&mut self.budget.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<K: Kind> FilterSpec for Retry<K> {
    type Kind = K;
    type State = RetryState;
    const NAME: &'static str = "retry";

    fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let RetrySettings { attempts, backoff, max_backoff, deadline, budget_percent, budget_min_per_second } =
            &self.settings;
        let hour = Period::secs(3600);
        let mut errors = Vec::new();
        errors.extend(range(at.key("attempts"), *attempts, 1, 10));
        errors.extend(range(at.key("backoff"), *backoff, Period::millis(1), hour));
        errors.extend(range(at.key("max_backoff"), *max_backoff, Period::millis(1), hour));
        errors.extend(range(at.key("deadline"), *deadline, Period::millis(1), hour));
        errors.extend(range(at.key("budget_percent"), *budget_percent, 0, 100));
        errors.extend(range(at.key("budget_min_per_second"), *budget_min_per_second, 0, 1000));
        errors.extend(not_longer(at, ("backoff", *backoff), ("max_backoff", *max_backoff)));
        errors
    }

    fn state(
        &self,
        _: &Env,
        previous: Option<(&Self, Arc<RetryState>)>,
    ) -> Result<Arc<RetryState>, BuildError> {
        let new = || Arc::new(RetryState { budget: Mutex::new(Budget::new(now())) });
        Ok(previous.map_or_else(new, |(_, state)| state))
    }

    fn wrap(&self, state: Arc<RetryState>, inner: Svc<K>) -> Svc<K> {
        let RetrySettings { attempts, backoff, max_backoff, deadline, budget_percent, budget_min_per_second } =
            self.settings;
        let counted = |result: &'static str| counter!("qudag_sidecar_retries_total", "kind" => K::NAME, "result" => result);
        let policy = Policy {
            attempts,
            backoff: Backoff { min: backoff.0, max: max_backoff.0 },
            deadline: deadline.0,
            budget: Settings { percent: budget_percent, min_per_second: budget_min_per_second },
            state,
            succeeded: counted("success"),
            failed: counted("failure"),
            refused: counted("budget"),
        };
        BoxCloneSyncService::new(Retrying::<K> { policy: Arc::new(policy), inner })
    }
}

/// The settings of one generation over the budget of all.
struct Policy {
    attempts: u32,
    backoff: Backoff,
    deadline: Duration,
    budget: Settings,
    state: Arc<RetryState>,
    succeeded: Counter,
    failed: Counter,
    refused: Counter,
}

impl Policy {
    /// How long to wait before retry number `retry`, counted from 0; `None` when there is to be none.
    fn wait(&self, retry: u32, start: Instant) -> Option<Duration> {
        if retry + 1 >= self.attempts {
            return None;
        }
        let wait = self.backoff.wait(retry, fastrand::u64(..));
        if start.elapsed() + wait > self.deadline {
            return None;
        }
        let granted = self.state.with(|budget| budget.retry(&self.budget, now()));
        if !granted {
            self.refused.increment(1);
        }
        granted.then_some(wait)
    }
}

/// Whether another attempt may have a better outcome.
fn is_failure<K: Kind>(outcome: &Result<K::Rsp, FilterError>) -> bool {
    match outcome {
        Ok(reply) => K::failure(reply).is_some(),
        Err(error) => error.retryable(),
    }
}

struct Retrying<K: Kind> {
    policy: Arc<Policy>,
    inner: Svc<K>,
}

impl<K: Kind> Clone for Retrying<K> {
    fn clone(&self) -> Self {
        Self { policy: Arc::clone(&self.policy), inner: self.inner.clone() }
    }
}

impl<K: Kind> Service<K::Req> for Retrying<K> {
    type Response = K::Rsp;
    type Error = FilterError;
    type Future = BoxFuture<'static, Result<K::Rsp, FilterError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), FilterError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: K::Req) -> Self::Future {
        let policy = Arc::clone(&self.policy);
        policy.state.with(|budget| budget.request(now()));
        let copy = K::replay(&request);
        let first = self.inner.call(request);
        let Some(mut copy) = copy else { return first.boxed() };
        let inner = self.inner.clone();
        let start = Instant::now();
        async move {
            let mut outcome = first.await;
            let mut retry = 0;
            while is_failure::<K>(&outcome) {
                let Some(wait) = policy.wait(retry, start) else { break };
                let Some(next) = K::replay(&copy) else { break };
                // What the failed reply holds, a connection for instance, is free while waiting.
                drop(outcome);
                tokio::time::sleep(wait).await;
                outcome = inner.clone().oneshot(std::mem::replace(&mut copy, next)).await;
                retry += 1;
                if is_failure::<K>(&outcome) {
                    policy.failed.increment(1);
                } else {
                    policy.succeeded.increment(1);
                }
            }
            outcome
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;

    fn filter(change: impl FnOnce(&mut RetrySettings)) -> Retry<Test> {
        let mut settings = RetrySettings::default();
        change(&mut settings);
        settings.into()
    }

    fn series(result: &str) -> String {
        format!(r#"qudag_sidecar_retries_total{{kind="test",result="{result}"}}"#)
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_tried_again_and_the_last_outcome_is_the_answer() {
        let metrics = Metrics::record();
        let upstream = Upstream::default();
        let (service, _) = over(&filter(|_| {}), &upstream);
        upstream.will([down(), Act::Reply("failed")]);
        assert_eq!(call(&service, Req::to("a")).await.unwrap(), "ok");
        assert_eq!(upstream.calls(), 3);
        assert_eq!(
            (metrics.get(&series("success")), metrics.get(&series("failure"))),
            (Some(1.0), Some(1.0))
        );

        upstream.will([down(), down(), Act::Reply("failed last"), Act::Reply("never reached")]);
        assert_eq!(call(&service, Req::to("a")).await.unwrap(), "failed last");
        assert_eq!(upstream.calls(), 6);
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_not_or_need_not_be_repeated_is_called_once() {
        let upstream = Upstream::default();
        let (service, _) = over(&filter(|_| {}), &upstream);
        upstream.will([down()]);
        let unsafe_to_repeat = Req { safe: false, ..Req::to("a") };
        assert!(call(&service, unsafe_to_repeat).await.is_err());
        for error in [FilterError::ClientGone, FilterError::Refused("no".into()), FilterError::Draining] {
            upstream.will([Act::Fail(error)]);
            assert!(call(&service, Req::to("a")).await.is_err());
        }
        assert_eq!(call(&service, Req::to("a")).await.unwrap(), "ok");
        let (once, _) = over(&filter(|settings| settings.attempts = 1), &upstream);
        upstream.will([down()]);
        assert!(call(&once, Req::to("a")).await.is_err());
        assert_eq!(upstream.calls(), 6);
    }

    #[tokio::test(start_paused = true)]
    async fn waits_stay_within_backoff_and_deadline() {
        let upstream = Upstream::default();
        let change = |settings: &mut RetrySettings| {
            settings.attempts = 10;
            settings.budget_percent = 100;
            settings.budget_min_per_second = 1000;
        };
        let (service, _) = over(&filter(change), &upstream);
        for _ in 0..50 {
            upstream.will(std::iter::repeat_n(down(), 10));
            let (start, calls) = (Instant::now(), upstream.calls());
            assert!(call(&service, Req::to("a")).await.is_err());
            assert!(start.elapsed() <= Duration::from_secs(5));
            let made = upstream.calls() - calls;
            // 100, 200 … 1,600 ms add up to 3.1 s, so five retries fit in any case.
            assert!((6..=10).contains(&made), "{made}");
            upstream.forget();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn other_waits_than_the_usual_ones_can_be_chosen() {
        let failing = async |backoff, max_backoff, deadline| {
            let upstream = Upstream::default();
            let (service, _) = over(
                &filter(|settings| {
                    settings.attempts = 10;
                    settings.budget_percent = 100;
                    settings.budget_min_per_second = 1000;
                    settings.backoff = backoff;
                    settings.max_backoff = max_backoff;
                    settings.deadline = deadline;
                }),
                &upstream,
            );
            let start = Instant::now();
            for _ in 0..20 {
                upstream.will(std::iter::repeat_n(down(), 10));
                assert!(call(&service, Req::to("a")).await.is_err());
                upstream.forget();
            }
            (upstream.calls(), start.elapsed())
        };
        let (secs, hour) = (Period::secs, Period::secs(3600));
        // Nine waits each, and none is longer than `max_backoff`.
        let (calls, took) = failing(secs(1), secs(1), hour).await;
        assert_eq!(calls, 200);
        assert!(took <= Duration::from_secs(20 * 9) && took > Duration::from_secs(10), "{took:?}");
        // The longest wait of the usual ones is 10 s.
        let (calls, took) = failing(secs(300), secs(300), hour).await;
        assert_eq!(calls, 200);
        assert!(took > Duration::from_secs(20 * 9 * 10), "{took:?}");
        // No time for any retry, but for the shortest of waits.
        let (calls, _) = failing(secs(10), secs(10), Period::millis(1)).await;
        assert!(calls < 30, "{calls}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_under_way_is_not_cut_short() {
        let upstream = Upstream::default();
        let (service, _) = over(&filter(|_| {}), &upstream);
        upstream.will([down(), Act::Slow(Duration::from_secs(60), "slow")]);
        assert_eq!(call(&service, Req::to("a")).await.unwrap(), "slow");
        // One that fails after the deadline is the last.
        let calls = upstream.calls();
        upstream.will([Act::Slow(Duration::from_secs(6), "failed late")]);
        assert_eq!(call(&service, Req::to("a")).await.unwrap(), "failed late");
        assert_eq!(upstream.calls(), calls + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_upstream_is_not_loaded_beyond_the_budget() {
        let metrics = Metrics::record();
        let upstream = Upstream::default();
        let change = |settings: &mut RetrySettings| {
            settings.backoff = Period::millis(1);
            settings.max_backoff = Period::millis(1);
            settings.budget_min_per_second = 0;
        };
        let old = filter(change);
        let (service, state) = over(&old, &upstream);
        upstream.will(std::iter::repeat_n(down(), 1_000));
        for _ in 0..200 {
            assert!(call(&service, Req::to("a")).await.is_err());
        }
        assert_eq!(upstream.calls(), 240);
        assert_eq!(metrics.get(&series("failure")), Some(40.0));
        assert!(metrics.get(&series("budget")).is_some_and(|refused| refused >= 160.0));

        // New settings look at the same counts.
        let new = filter(|settings| {
            change(settings);
            settings.attempts = 10;
            settings.budget_percent = 21;
        });
        let state = new.state(&env(), Some((&old, state))).unwrap();
        let service = new.wrap(state, upstream.service());
        assert!(call(&service, Req::to("a")).await.is_err());
        assert_eq!(upstream.calls(), 240 + 3);
    }

    #[test]
    fn settings_are_checked() {
        assert_slot_is_flat::<Retry<Test>>(&[
            "attempts",
            "backoff",
            "max_backoff",
            "deadline",
            "budget_percent",
            "budget_min_per_second",
        ]);
        let settings = r#"{"attempts": 11, "backoff": "20s", "deadline": "0s", "budget_percent": 101}"#;
        assert_eq!(
            problems::<Retry<Test>>(settings),
            [
                "attempts: 11 is too large (1 to 10)",
                "deadline: 0s is too small (1ms to 1h)",
                "budget_percent: 101 is too large (0 to 100)",
                "backoff: 20s is longer than `max_backoff`, 10s (at most 10s)",
            ]
        );
    }
}
