//! The contract as a filter's author and an operator see it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use qudag_filter_api::{
    BuildError, ChainSpec, ConfigError, ConfigPath, Env, FilterError, FilterSpec, Flow, FlowKey, Held, Kind,
    Node, Percent, Resolve, Slot, Svc, chain, service_fn,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tower::ServiceExt;

/// Numbers, answered with the list of what they passed through.
struct Numbers;

struct Number(u64);

impl Kind for Numbers {
    const NAME: &'static str = "numbers";
    type Req = Number;
    type Rsp = Vec<String>;
    type Settings = ();
    fn failure(reply: &Self::Rsp) -> Option<&'static str> {
        reply.is_empty().then_some("empty")
    }
}

impl Flow for Number {
    fn key(&self) -> FlowKey {
        FlowKey::of(&self.0.to_le_bytes())
    }
    fn client(&self) -> Option<IpAddr> {
        None
    }
}

macro_rules! marker {
    ($type:ident, $name:literal) => {
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(default, deny_unknown_fields)]
        struct $type {
            delay_ms: u64,
            broken: bool,
        }

        impl FilterSpec for $type {
            type Kind = Numbers;
            type State = AtomicU64;
            const NAME: &'static str = $name;

            fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
                let too_long = (self.delay_ms > 1000).then(|| at.key("delay_ms").error("more than 1000"));
                too_long.into_iter().collect()
            }

            fn state(
                &self,
                _: &Env,
                previous: Option<(&Self, Arc<AtomicU64>)>,
            ) -> Result<Arc<AtomicU64>, BuildError> {
                if self.broken {
                    return Err(BuildError::new($name, "broken"));
                }
                Ok(previous.map_or_else(Arc::default, |(_, state)| state))
            }

            fn wrap(&self, state: Arc<AtomicU64>, inner: Svc<Numbers>) -> Svc<Numbers> {
                let delay = Duration::from_millis(self.delay_ms);
                service_fn::<Numbers, _, _>(move |number: Number| {
                    let (state, inner) = (Arc::clone(&state), inner.clone());
                    async move {
                        state.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(delay).await;
                        let mut seen = inner.oneshot(number).await?;
                        seen.insert(0, $name.to_owned());
                        Ok(seen)
                    }
                })
            }
        }
    };
}

marker!(First, "first");
marker!(Second, "second");

chain! {
    /// Two filters in their order.
    struct NumberFilters for Numbers, states NumberStates {
        /// Outermost.
        first: First,
        /// Inside.
        second: Second,
    }
}

struct NoNames;

impl Resolve for NoNames {
    fn resolve(&self, _: &str) -> BoxFuture<'static, std::io::Result<Vec<IpAddr>>> {
        Box::pin(async { Err(std::io::Error::other("no names here")) })
    }
}

fn env() -> Env {
    let node = Node {
        name: "n".into(),
        p2p: "127.0.0.1:1".parse().unwrap(),
        rpc: "127.0.0.1:2".parse().unwrap(),
        http: "127.0.0.1:3".parse().unwrap(),
    };
    Env { node: Arc::new(node), resolve: Arc::new(NoNames), service: Arc::default() }
}

fn terminal() -> Svc<Numbers> {
    service_fn::<Numbers, _, _>(|number: Number| async move {
        tokio::time::sleep(Duration::from_millis(20)).await;
        match number.0 {
            u64::MAX => Err(FilterError::Upstream("the end".into())),
            number => Ok(vec![number.to_string()]),
        }
    })
}

fn filters(json: &str) -> NumberFilters {
    serde_json::from_str(json).unwrap()
}

fn build(filters: &NumberFilters, previous: &NumberStates) -> (Svc<Numbers>, NumberStates) {
    filters.build(&env(), &(), previous, terminal()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn filters_run_in_the_order_of_the_source_and_off_means_absent() {
    let both = filters(r#"{"second": {"enabled": true}, "first": {"enabled": true}}"#);
    let (chain, states) = build(&both, &NumberStates::default());
    assert_eq!(chain.oneshot(Number(7)).await.unwrap(), ["first", "second", "7"]);
    assert!(states.first.is_some() && states.second.is_some());

    let none = filters("{}");
    let (chain, states) = build(&none, &NumberStates::default());
    assert_eq!(chain.oneshot(Number(7)).await.unwrap(), ["7"]);
    assert!(states.first.is_none(), "a filter that was never on has no state");
}

#[tokio::test(start_paused = true)]
async fn state_survives_new_settings_and_a_time_off() {
    let count = |states: &NumberStates| states.first.as_ref().unwrap().state.load(Ordering::Relaxed);
    let (chain, states) = build(&filters(r#"{"first": {"enabled": true}}"#), &NumberStates::default());
    chain.oneshot(Number(1)).await.unwrap();
    let (chain, states) = build(&filters(r#"{"first": {"enabled": true, "delay_ms": 5}}"#), &states);
    chain.oneshot(Number(1)).await.unwrap();
    assert_eq!(count(&states), 2);
    let (chain, states) = build(&filters("{}"), &states);
    chain.oneshot(Number(1)).await.unwrap();
    let (chain, states) = build(&filters(r#"{"first": {"enabled": true}}"#), &states);
    chain.oneshot(Number(1)).await.unwrap();
    assert_eq!(count(&states), 3);
    assert!(matches!(&states.first, Some(Held { settings: First { delay_ms: 0, .. }, .. })));
}

#[tokio::test(start_paused = true)]
async fn a_share_of_flows_takes_the_filter_and_keeps_taking_it() {
    let through = |percent: f64| async move {
        let mut slots = filters(r#"{"first": {"enabled": true}}"#);
        slots.first.rollout = Percent::new(percent).unwrap();
        let (chain, _) = build(&slots, &NumberStates::default());
        let mut chosen = Vec::new();
        for number in 0..2000 {
            if chain.clone().oneshot(Number(number)).await.unwrap().len() == 2 {
                chosen.push(number);
            }
        }
        chosen
    };
    let (none, ten, again, half) =
        (through(0.0).await, through(10.0).await, through(10.0).await, through(50.0).await);
    assert!(none.is_empty());
    assert_eq!(ten, again, "the choice is sticky");
    assert!((150..250).contains(&ten.len()), "{} of 2000 at 10 %", ten.len());
    assert!((900..1100).contains(&half.len()), "{} of 2000 at 50 %", half.len());
    assert!(ten.iter().all(|number| half.contains(number)), "nobody moves when the share grows");
}

#[test]
fn a_filter_that_cannot_be_built_names_itself() {
    let error = filters(r#"{"first": {"enabled": true}, "second": {"enabled": true, "broken": true}}"#)
        .build(&env(), &(), &NumberStates::default(), terminal())
        .map(|_| ())
        .unwrap_err();
    assert_eq!(error.to_string(), "cannot build second: broken");
}

#[test]
fn problems_have_their_place_also_in_filters_that_are_off() {
    let at = ConfigPath::root().key("filters").key("numbers");
    let errors = filters(r#"{"second": {"delay_ms": 5000}}"#).check(&at);
    let places: Vec<_> = errors.iter().map(|error| error.at.to_string()).collect();
    assert_eq!(places, ["filters.numbers.second.delay_ms"]);
    assert!(serde_json::from_str::<NumberFilters>(r#"{"third": {}}"#).is_err());
    assert!(serde_json::from_str::<Slot<First>>(r#"{"delay": 1}"#).is_err());
}

#[test]
fn each_arm_is_metered_with_the_filters_own_time() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    metrics::with_local_recorder(&recorder, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut slots = filters(r#"{"first": {"enabled": true, "delay_ms": 30}}"#);
            let (chain, _) = build(&slots, &NumberStates::default());
            chain.oneshot(Number(1)).await.unwrap();
            slots.first.rollout = Percent::NONE;
            let (chain, _) = build(&slots, &NumberStates::default());
            chain.oneshot(Number(u64::MAX)).await.unwrap_err();
        });
    });
    let mut found = Vec::new();
    let mut times = std::collections::HashMap::new();
    for (key, _, _, value) in snapshotter.snapshot().into_vec() {
        let key = key.key();
        let labels: Vec<_> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        let arm = labels.iter().find_map(|label| label.strip_prefix("arm=").map(str::to_owned)).unwrap();
        match (key.name(), value) {
            (name, DebugValue::Histogram(values)) if !values.is_empty() => {
                times.insert((name.to_owned(), arm), values[0].into_inner());
            }
            ("qudag_sidecar_filter_errors_total", DebugValue::Counter(1)) => {
                assert!(labels.contains(&"error=upstream".to_owned()), "{labels:?}");
                found.push(format!("{arm} error"));
            }
            ("qudag_sidecar_filter_calls_total", DebugValue::Counter(1)) => found.push(format!("{arm} call")),
            _ => {}
        }
    }
    // The terminal takes 20 ms at least, and the filter 30 ms of its own around it.
    for (arm, own_at_least) in [("with", 0.030), ("without", 0.0)] {
        let time = |name: &str| times[&(format!("qudag_sidecar_filter_{name}_seconds"), arm.to_owned())];
        let (own, total) = (time("self"), time("duration"));
        assert!(own >= own_at_least && own <= total - 0.020, "{arm}: own {own}, total {total}");
    }
    found.sort();
    assert_eq!(found, ["with call", "without call", "without error"]);
}
