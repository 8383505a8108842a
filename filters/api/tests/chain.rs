//! The contract as a filter's author and an operator see it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use qudag_filter_api::{
    BuildError, Chain, ChainSpec, ConfigError, ConfigPath, Env, FilterError, FilterSpec, Flow, FlowKey, Held,
    Kind, Lanes, Look, Looked, Node, Percent, Quick, Resolve, Slot, Svc, Tally, chain, service_fn,
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
    type Glance<'a> = NumberGlance;
    type Settings = ();
    fn failure(reply: &Self::Rsp) -> Option<&'static str> {
        reply.is_empty().then_some("empty")
    }
}

/// A number that is shown to the filters, and what they answered.
struct NumberGlance {
    number: u64,
    answer: Option<&'static str>,
}

impl Flow for NumberGlance {
    fn key(&self) -> FlowKey {
        Number(self.number).key()
    }
    fn client(&self) -> Option<IpAddr> {
        None
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

/// What a marker does with glances: nothing, or something for each remainder of the number.
struct Shown(&'static str);

impl Quick<Numbers> for Shown {
    fn look(&self, glance: &mut NumberGlance) -> Look {
        match (self.0, glance.number % 4) {
            (_, 0) => Look::Wait,
            ("first", 1) => Look::Refused(FilterError::Refused("odd".into())),
            ("second", 2) => {
                glance.answer = Some(self.0);
                Look::Answered(None)
            }
            _ => Look::Pass,
        }
    }
}

macro_rules! marker {
    ($type:ident, $name:literal) => {
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(default, deny_unknown_fields)]
        struct $type {
            delay_ms: u64,
            broken: bool,
            quick: bool,
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

            fn quick(&self, _: &Arc<AtomicU64>) -> Option<Box<dyn Quick<Numbers>>> {
                self.quick.then(|| Box::new(Shown($name)) as _)
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
    Env { node: Arc::new(node), resolve: Arc::new(NoNames), service: Arc::default(), lanes: Lanes::default() }
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

fn build(filters: &NumberFilters, previous: &NumberStates) -> (Chain<Numbers>, NumberStates) {
    filters.build(&env(), &(), previous, terminal()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn filters_run_in_the_order_of_the_source_and_off_means_absent() {
    let both = filters(r#"{"second": {"enabled": true}, "first": {"enabled": true}}"#);
    let (chain, states) = build(&both, &NumberStates::default());
    assert_eq!(chain.call(Number(7)).await.unwrap(), ["first", "second", "7"]);
    assert!(states.first.is_some() && states.second.is_some());

    let none = filters("{}");
    let (chain, states) = build(&none, &NumberStates::default());
    assert_eq!(chain.call(Number(7)).await.unwrap(), ["7"]);
    assert!(states.first.is_none(), "a filter that was never on has no state");
}

#[tokio::test(start_paused = true)]
async fn state_survives_new_settings_and_a_time_off() {
    let count = |states: &NumberStates| states.first.as_ref().unwrap().state.load(Ordering::Relaxed);
    let (chain, states) = build(&filters(r#"{"first": {"enabled": true}}"#), &NumberStates::default());
    chain.call(Number(1)).await.unwrap();
    let (chain, states) = build(&filters(r#"{"first": {"enabled": true, "delay_ms": 5}}"#), &states);
    chain.call(Number(1)).await.unwrap();
    assert_eq!(count(&states), 2);
    let (chain, states) = build(&filters("{}"), &states);
    chain.call(Number(1)).await.unwrap();
    let (chain, states) = build(&filters(r#"{"first": {"enabled": true}}"#), &states);
    chain.call(Number(1)).await.unwrap();
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
            if chain.call(Number(number)).await.unwrap().len() == 2 {
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

/// What becomes of a number that is shown to a chain: the answer, the label of a refusal, or what the rest of the chain says.
async fn show(chain: &Chain<Numbers>, number: u64, tally: &mut Tally) -> Vec<String> {
    let mut glance = NumberGlance { number, answer: None };
    match chain.look(&mut glance, tally) {
        Looked::Answered => vec![format!("{} at once", glance.answer.unwrap())],
        Looked::Refused(error) => vec![error.label().to_owned()],
        Looked::Wait(rest) => rest.call(Number(number)).await.unwrap(),
    }
}

#[tokio::test(start_paused = true)]
async fn what_need_not_wait_is_answered_and_the_rest_goes_on_from_where_it_was() {
    let mut tally = Tally::default();
    let (chain, states) = build(
        &filters(
            r#"{"first": {"enabled": true, "quick": true}, "second": {"enabled": true, "quick": true}}"#,
        ),
        &NumberStates::default(),
    );
    assert_eq!(show(&chain, 4, &mut tally).await, ["first", "second", "4"]);
    assert_eq!(show(&chain, 5, &mut tally).await, ["refused"]);
    assert_eq!(show(&chain, 6, &mut tally).await, ["second at once"]);
    assert_eq!(show(&chain, 7, &mut tally).await, ["7"], "both have passed it on");
    let asked = |states: &NumberStates| states.second.as_ref().unwrap().state.load(Ordering::Relaxed);
    assert_eq!(asked(&states), 1, "none is asked after it was shown");

    // A filter that cannot be shown anything is asked, also behind one that passes.
    let (chain, _) = build(
        &filters(r#"{"first": {"enabled": true, "quick": true}, "second": {"enabled": true}}"#),
        &NumberStates::default(),
    );
    assert_eq!(show(&chain, 6, &mut tally).await, ["second", "6"]);
    let (chain, _) = build(&filters("{}"), &NumberStates::default());
    assert_eq!(show(&chain, 6, &mut tally).await, ["6"]);
}

#[tokio::test(start_paused = true)]
async fn a_share_of_flows_is_the_same_at_a_glance() {
    let mut slots = filters(r#"{"second": {"enabled": true, "quick": true}}"#);
    slots.second.rollout = Percent::new(30.0).unwrap();
    let (chain, _) = build(&slots, &NumberStates::default());
    let mut tally = Tally::default();
    for number in (2..800).step_by(4) {
        let asked = chain.call(Number(number)).await.unwrap().len() == 2;
        let shown = show(&chain, number, &mut tally).await == ["second at once"];
        assert_eq!(asked, shown, "{number}");
    }
}

#[test]
fn answers_at_a_glance_are_metered_too() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    metrics::with_local_recorder(&recorder, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut slots = filters(
                r#"{"first": {"enabled": true, "quick": true}, "second": {"enabled": true, "quick": true}}"#,
            );
            slots.first.rollout = Percent::NONE;
            let (chain, _) = build(&slots, &NumberStates::default());
            let mut tally = Tally::default();
            for number in 0..64 {
                // 16 answers, and 48 that come to the end of the chain.
                show(&chain, number, &mut tally).await;
            }
            chain.settle(&mut tally);
            chain.settle(&mut tally);
        });
    });
    let mut found = Vec::new();
    for (key, _, _, value) in snapshotter.snapshot().into_vec() {
        let key = key.key();
        let label = |name| key.labels().find(|label| label.key() == name).unwrap().value().to_owned();
        match value {
            DebugValue::Counter(calls) => found.push((label("filter"), label("arm"), calls)),
            // All that waited, and one of 16 answers for all of them.
            DebugValue::Histogram(times) if key.name().ends_with("duration_seconds") && !times.is_empty() => {
                assert_eq!(times.len(), 64, "{key}")
            }
            DebugValue::Histogram(_) => {}
            DebugValue::Gauge(_) => unreachable!(),
        }
    }
    found.retain(|(.., calls)| *calls > 0);
    found.sort();
    let of = |filter: &str, arm: &str, calls| (filter.to_owned(), arm.to_owned(), calls);
    assert_eq!(found, [of("first", "without", 64), of("second", "with", 64)]);
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
            chain.call(Number(1)).await.unwrap();
            slots.first.rollout = Percent::NONE;
            let (chain, _) = build(&slots, &NumberStates::default());
            chain.call(Number(u64::MAX)).await.unwrap_err();
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
