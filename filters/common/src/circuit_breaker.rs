//! `circuit_breaker`: leaves an upstream alone that fails again and again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt, ready};
use metrics::{Counter, counter, gauge};
use qudag_core::breaker::{Breaker, Decision, Pass, Settings, Status};
use qudag_filter_api::{
    Address, BuildError, ConfigError, ConfigPath, Env, FilterError, FilterSpec, Flow, Kind, Origin, Period,
    Svc,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tower::Service;
use tower::util::BoxCloneSyncService;

use crate::LiveGauge;
use crate::generic::{ForKind, not_longer, range};
use crate::now;

/// How many targets have a breaker of their own; the configuration is far below that.
const TARGETS: usize = 4096;
/// The breaker that all further targets share.
const OTHERS: &str = "(others)";
/// A target that was not called for so long is not shown as a metric until it is called again: it may have left the
/// configuration.
const IDLE: Duration = Duration::from_secs(15 * 60);

/// A breaker for each target: errors of the upstream and replies that report a failure ([`Kind::failure`]) open it; errors of
/// clients do not count. It starts anew when its target leads elsewhere ([`Flow::target_address`]). While it is open, calls fail with [`FilterError::BreakerOpen`].
pub type CircuitBreaker<K> = ForKind<CircuitBreakerSettings, K>;

/// Settings of `circuit_breaker`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CircuitBreakerSettings {
    /// Failures in a row that open the breaker of an upstream.
    #[schemars(range(min = 1, max = 1000))]
    pub failures: u32,
    /// How long it is open at first; doubles while probes fail, with a jitter of 50 % either way.
    pub open: Period,
    /// The longest time that it is open, before jitter.
    pub max_open: Period,
}

impl Default for CircuitBreakerSettings {
    fn default() -> Self {
        Self { failures: 5, open: Period::secs(1), max_open: Period::secs(60) }
    }
}

/// The breakers of a kind, by target. Knows no settings, so that it outlives every change of them.
#[derive(Debug)]
pub struct CircuitBreakerState {
    kind: &'static str,
    breakers: RwLock<HashMap<String, Arc<Target>>>,
}

impl CircuitBreakerState {
    fn new(kind: &'static str) -> Self {
        Self { kind, breakers: RwLock::default() }
    }

    /// The targets that were called and the states of their breakers, by name.
    pub fn statuses(&self) -> Vec<(String, Status)> {
        let breakers = self.breakers.read().unwrap_or_else(PoisonError::into_inner);
        let mut statuses: Vec<_> = breakers
            .iter()
            .map(|(name, target)| (name.clone(), target.with(|known| known.breaker.status())))
            .collect();
        statuses.sort_by(|(a, _), (b, _)| a.cmp(b));
        statuses
    }

    fn target(&self, name: &str) -> Arc<Target> {
        if let Some(target) = self.breakers.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return Arc::clone(target);
        }
        let mut breakers = self.breakers.write().unwrap_or_else(PoisonError::into_inner);
        let name = if breakers.len() < TARGETS || breakers.contains_key(name) { name } else { OTHERS };
        let target =
            breakers.entry(name.to_owned()).or_insert_with(|| Arc::new(Target::new(self.kind, name)));
        Arc::clone(target)
    }
}

/// What is known of a target.
#[derive(Debug, Default)]
struct Known {
    /// Where it leads.
    address: Option<Address>,
    breaker: Breaker,
}

/// One breaker and its figures.
#[derive(Debug)]
struct Target {
    name: String,
    known: Mutex<Known>,
    open: LiveGauge,
    opened: Counter,
}

impl Target {
    fn new(kind: &'static str, name: &str) -> Self {
        let open = gauge!("qudag_sidecar_breaker_open", "kind" => kind, "target" => name.to_owned());
        let open = LiveGauge::expiring(open, 0.0, IDLE);
        let opened =
            counter!("qudag_sidecar_breaker_opened_total", "kind" => kind, "target" => name.to_owned());
        Self { name: name.to_owned(), known: Mutex::default(), open, opened }
    }

    fn with<T>(&self, work: impl FnOnce(&mut Known) -> T) -> T {
        work(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Decides on a call that leads to `address`.
    fn admit(&self, address: Option<&Address>, settings: &Settings) -> Decision {
        self.open.touch();
        let (decision, closed) = self.with(|Known { address: before, breaker }| {
            // Those that share a breaker lead to several addresses.
            let moved = before.as_ref() != address && self.name != OTHERS;
            let closed = moved && breaker.status() != Status::Closed;
            if moved {
                *before = address.cloned();
                breaker.forget();
                self.open.set(0.0);
            }
            (breaker.admit(settings, now()), closed)
        });
        if closed {
            tracing::info!(upstream = self.name, "circuit breaker closed: the upstream has another address");
        }
        decision
    }
}

/// A call under way. Dropped without an outcome, it was cancelled.
struct Call {
    target: Arc<Target>,
    settings: Settings,
    pass: Option<Pass>,
}

impl Call {
    fn succeeded(mut self) {
        let Some(pass) = self.pass.take() else { return };
        let closed = self.target.with(|Known { breaker, .. }| {
            let before = breaker.status();
            breaker.success(pass);
            let closed = before != Status::Closed && breaker.status() == Status::Closed;
            if closed {
                // Under the lock, so that the gauge ends where the breaker does.
                self.target.open.set(0.0);
            }
            closed
        });
        if closed {
            tracing::info!(upstream = self.target.name, "circuit breaker closed");
        }
    }

    fn failed(mut self, why: &'static str) {
        let Some(pass) = self.pass.take() else { return };
        let opened = self.target.with(|Known { breaker, .. }| {
            let opened = breaker.failure(pass, &self.settings, now(), fastrand::u64(..));
            if opened {
                self.target.open.set(1.0);
            }
            opened
        });
        if opened {
            self.target.opened.increment(1);
            tracing::warn!(upstream = self.target.name, why, "circuit breaker opened");
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(pass) = self.pass.take() {
            self.target.with(|known| known.breaker.cancel(pass, now()));
        }
    }
}

impl<K: Kind> FilterSpec for CircuitBreaker<K> {
    type Kind = K;
    type State = CircuitBreakerState;
    const NAME: &'static str = "circuit_breaker";

    fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let CircuitBreakerSettings { failures, open, max_open } = &self.settings;
        let mut errors = Vec::new();
        errors.extend(range(at.key("failures"), *failures, 1, 1000));
        errors.extend(range(at.key("open"), *open, Period::millis(1), Period::secs(24 * 3600)));
        errors.extend(range(at.key("max_open"), *max_open, Period::millis(1), Period::secs(24 * 3600)));
        errors.extend(not_longer(at, ("open", *open), ("max_open", *max_open)));
        errors
    }

    fn state(
        &self,
        _: &Env,
        previous: Option<(&Self, Arc<CircuitBreakerState>)>,
    ) -> Result<Arc<CircuitBreakerState>, BuildError> {
        Ok(previous.map_or_else(|| Arc::new(CircuitBreakerState::new(K::NAME)), |(_, state)| state))
    }

    fn wrap(&self, state: Arc<CircuitBreakerState>, inner: Svc<K>) -> Svc<K> {
        let CircuitBreakerSettings { failures, open, max_open } = self.settings;
        let settings = Settings { failures, open: open.0, max_open: max_open.0 };
        BoxCloneSyncService::new(Broken::<K> { settings, state, inner })
    }
}

struct Broken<K: Kind> {
    settings: Settings,
    state: Arc<CircuitBreakerState>,
    inner: Svc<K>,
}

impl<K: Kind> Clone for Broken<K> {
    fn clone(&self) -> Self {
        Self { settings: self.settings, state: Arc::clone(&self.state), inner: self.inner.clone() }
    }
}

impl<K: Kind> Service<K::Req> for Broken<K> {
    type Response = K::Rsp;
    type Error = FilterError;
    type Future = BoxFuture<'static, Result<K::Rsp, FilterError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), FilterError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: K::Req) -> Self::Future {
        let target = self.state.target(request.target());
        let pass = match target.admit(request.target_address(), &self.settings) {
            Decision::Admit(pass) => pass,
            Decision::Reject { retry_after } => {
                return ready(Err(FilterError::BreakerOpen { retry_after })).boxed();
            }
        };
        let call = Call { target, settings: self.settings, pass: Some(pass) };
        let answer = self.inner.call(request);
        async move {
            let answer = answer.await;
            match &answer {
                Ok(reply) => match K::failure(reply) {
                    None => call.succeeded(),
                    Some(why) => call.failed(why),
                },
                Err(error) if error.origin() == Origin::Upstream => call.failed(error.label()),
                // Says nothing about the upstream.
                Err(_) => drop(call),
            }
            answer
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;

    fn filter(failures: u32) -> CircuitBreaker<Test> {
        CircuitBreakerSettings { failures, ..CircuitBreakerSettings::default() }.into()
    }

    fn is_open(outcome: &Result<&'static str, FilterError>) -> bool {
        matches!(outcome, Err(FilterError::BreakerOpen { .. }))
    }

    const OPEN: &str = r#"qudag_sidecar_breaker_open{kind="test",target="a"}"#;
    const OPENED: &str = r#"qudag_sidecar_breaker_opened_total{kind="test",target="a"}"#;

    #[tokio::test(start_paused = true)]
    async fn failures_open_it_for_their_target_only_and_a_probe_closes_it() {
        let metrics = Metrics::record();
        let upstream = Upstream::default();
        let (service, state) = over(&filter(3), &upstream);
        upstream.will([down(), Act::Reply("failed"), down()]);
        for _ in 0..3 {
            assert!(!is_open(&call(&service, Req::to("a")).await));
        }
        assert!(is_open(&call(&service, Req::to("a")).await));
        assert!(call(&service, Req::to("b")).await.is_ok());
        assert_eq!(state.statuses(), [("a".to_owned(), Status::Open), ("b".to_owned(), Status::Closed)]);
        assert_eq!((metrics.get(OPEN), metrics.get(OPENED)), (Some(1.0), Some(1.0)));
        assert_eq!(metrics.get(&OPEN.replace(r#""a""#, r#""b""#)), Some(0.0));

        // Longer than 1 s and its jitter. The probe hangs, so everybody else is refused.
        tokio::time::advance(Duration::from_secs(2)).await;
        upstream.will([Act::Slow(Duration::from_secs(1), "ok")]);
        let probe = tokio::spawn({
            let service = service.clone();
            async move { call(&service, Req::to("a")).await }
        });
        tokio::task::yield_now().await;
        let calls = upstream.calls();
        for _ in 0..10 {
            assert!(is_open(&call(&service, Req::to("a")).await));
        }
        assert_eq!(upstream.calls(), calls);
        assert_eq!(metrics.get(OPEN), Some(1.0));
        assert!(probe.await.unwrap().is_ok());
        assert!(call(&service, Req::to("a")).await.is_ok());
        assert_eq!((metrics.get(OPEN), metrics.get(OPENED)), (Some(0.0), Some(1.0)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_that_nobody_calls_any_more_is_not_shown() {
        let metrics = Metrics::record();
        let upstream = Upstream::default();
        let (service, _) = over(&filter(1), &upstream);
        let shown = || {
            crate::live::upkeep();
            metrics.get(OPEN).filter(|value| !value.is_nan())
        };
        upstream.will([down()]);
        let _ = call(&service, Req::to("a")).await;
        assert_eq!(shown(), Some(1.0));
        tokio::time::advance(IDLE).await;
        assert_eq!(shown(), None);
        assert!(call(&service, Req::to("a")).await.is_ok());
        assert_eq!((shown(), metrics.get(OPENED)), (Some(0.0), Some(1.0)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_upstream_sees_one_probe_a_window() {
        let upstream = Upstream::default();
        let (service, _) = over(&filter(1), &upstream);
        upstream.will(std::iter::repeat_n(down(), 10_000));
        // 10 minutes at 10 calls a second: 1, 2, 4 … 60 s, less the jitter.
        for _ in 0..6_000 {
            let _ = call(&service, Req::to("a")).await;
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        assert!((10..=28).contains(&upstream.calls()), "{}", upstream.calls());
    }

    #[tokio::test(start_paused = true)]
    async fn other_windows_than_the_usual_ones_can_be_chosen() {
        // A quarter of an hour at a call a second.
        let probes = async |open, max_open| {
            let upstream = Upstream::default();
            let filter: CircuitBreaker<Test> = CircuitBreakerSettings { failures: 1, open, max_open }.into();
            let (service, _) = over(&filter, &upstream);
            upstream.will(std::iter::repeat_n(down(), 10_000));
            for _ in 0..900 {
                let _ = call(&service, Req::to("a")).await;
                tokio::time::advance(Duration::from_secs(1)).await;
            }
            upstream.calls()
        };
        let secs = Period::secs;
        let (usual, long, short) = (
            probes(secs(1), secs(60)).await,
            probes(secs(600), secs(600)).await,
            probes(secs(1), secs(5)).await,
        );
        assert!(long <= 4, "{long} with `open` of 10 minutes");
        assert!(short >= 110, "{short} with `max_open` of 5 s");
        assert!((12..80).contains(&usual), "{usual}");
    }

    #[tokio::test(start_paused = true)]
    async fn clients_do_not_open_it() {
        let upstream = Upstream::default();
        let (service, _) = over(&filter(1), &upstream);
        for error in [FilterError::ClientGone, FilterError::Malformed("x".into()), FilterError::Draining] {
            upstream.will([Act::Fail(error)]);
            assert!(!is_open(&call(&service, Req::to("a")).await));
        }
        // Nor do clients that go away while they wait.
        upstream.will([Act::Hang]);
        let gone = tokio::time::timeout(Duration::from_secs(1), call(&service, Req::to("a"))).await;
        assert!(gone.is_err());
        assert!(call(&service, Req::to("a")).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_cancelled_or_says_nothing_makes_room_for_the_next() {
        let upstream = Upstream::default();
        let (service, state) = over(&filter(1), &upstream);
        upstream.will([down(), Act::Hang, Act::Fail(FilterError::ClientGone)]);
        assert!(call(&service, Req::to("a")).await.is_err());
        assert!(is_open(&call(&service, Req::to("a")).await));
        tokio::time::advance(Duration::from_secs(2)).await;
        let probe = tokio::time::timeout(Duration::from_millis(10), call(&service, Req::to("a"))).await;
        assert!(probe.is_err());
        assert!(matches!(call(&service, Req::to("a")).await, Err(FilterError::ClientGone)));
        // A call that is made and never polled.
        let mut unpolled = service.clone();
        std::future::poll_fn(|cx| unpolled.poll_ready(cx)).await.unwrap();
        drop(unpolled.call(Req::to("a")));
        assert!(call(&service, Req::to("a")).await.is_ok());
        assert_eq!(state.statuses(), [("a".to_owned(), Status::Closed)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_of_settings_keeps_the_count() {
        let upstream = Upstream::default();
        let old = filter(5);
        let (service, state) = over(&old, &upstream);
        upstream.will(std::iter::repeat_n(down(), 4));
        for _ in 0..3 {
            let _ = call(&service, Req::to("a")).await;
        }
        let new = filter(4);
        let state = new.state(&env(), Some((&old, state))).unwrap();
        let service = new.wrap(state, upstream.service());
        assert!(!is_open(&call(&service, Req::to("a")).await));
        assert!(is_open(&call(&service, Req::to("a")).await));
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_that_leads_elsewhere_starts_anew_and_calls_under_way_say_nothing_of_it() {
        let metrics = Metrics::record();
        let upstream = Upstream::default();
        let (service, state) = over(&filter(2), &upstream);
        let leads = |to: &str| Req { address: Some(to.parse().unwrap()), ..Req::to("a") };
        upstream.will([down(), down()]);
        for _ in 0..2 {
            assert!(!is_open(&call(&service, leads("wrong.test:1")).await));
        }
        assert!(is_open(&call(&service, leads("wrong.test:1")).await));
        assert_eq!((metrics.get(OPEN), metrics.get(OPENED)), (Some(1.0), Some(1.0)));
        assert!(call(&service, leads("right.test:1")).await.is_ok());
        assert_eq!(metrics.get(OPEN), Some(0.0));

        let late = Act::Slow(Duration::from_secs(1), "failed late");
        upstream.will([late.clone(), late]);
        let under_way: Vec<_> = (0..2)
            .map(|_| {
                let (service, request) = (service.clone(), leads("right.test:1"));
                tokio::spawn(async move { call(&service, request).await })
            })
            .collect();
        tokio::task::yield_now().await;
        assert_eq!(call(&service, leads("other.test:1")).await.unwrap(), "ok");
        for call in under_way {
            assert_eq!(call.await.unwrap().unwrap(), "failed late");
        }
        assert!(call(&service, leads("other.test:1")).await.is_ok());
        assert_eq!(state.statuses(), [("a".to_owned(), Status::Closed)]);
        assert_eq!((metrics.get(OPEN), metrics.get(OPENED)), (Some(0.0), Some(1.0)));
    }

    #[test]
    fn targets_are_bounded() {
        let state = CircuitBreakerState::new("test");
        for target in 0..2 * TARGETS {
            state.target(&target.to_string());
        }
        assert_eq!(state.statuses().len(), TARGETS + 1);
        assert!(Arc::ptr_eq(&state.target("x"), &state.target(OTHERS)));
        assert!(!Arc::ptr_eq(&state.target("0"), &state.target(OTHERS)));
    }

    #[test]
    fn settings_are_checked() {
        assert_slot_is_flat::<CircuitBreaker<Test>>(&["failures", "open", "max_open"]);
        assert_eq!(
            problems::<CircuitBreaker<Test>>(r#"{"failures": 0, "open": "2s", "max_open": "1s"}"#),
            ["failures: 0 is too small (1 to 1000)", "open: 2s is longer than `max_open`, 1s (at most 1s)",]
        );
        assert_eq!(problems::<CircuitBreaker<Test>>(r#"{"open": "0s", "max_open": "1000years"}"#).len(), 2);
    }
}
