//! A kind of traffic, an upstream and a recorder for the tests of this crate's layers.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use qudag_filter_api::{
    Address, ConfigPath, FilterError, FilterSpec, Flow, FlowKey, Kind, Slot, Svc, service_fn,
};
use tower::ServiceExt;

use super::env;

#[derive(Debug)]
pub(crate) struct Test;

impl crate::RateLimited for Test {}

impl Kind for Test {
    const NAME: &'static str = "test";
    type Req = Req;
    type Rsp = &'static str;
    type Glance<'a> = std::convert::Infallible;
    type Settings = ();

    fn failure(reply: &&'static str) -> Option<&'static str> {
        reply.starts_with("failed").then_some("failed")
    }

    fn replay(request: &Req) -> Option<Req> {
        request.safe.then(|| request.clone())
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Req {
    pub(crate) client: Option<IpAddr>,
    pub(crate) target: String,
    pub(crate) address: Option<Address>,
    pub(crate) safe: bool,
    pub(crate) buffers: Arc<Mutex<crate::Buffers>>,
}

impl crate::Buffered for Req {
    fn take_buffers_from(&self, buffers: &crate::Buffers) {
        *self.buffers.lock().unwrap() = buffers.clone();
    }
}

impl Req {
    pub(crate) fn to(target: &str) -> Self {
        Self { client: None, target: target.into(), address: None, safe: true, buffers: Arc::default() }
    }

    pub(crate) fn from(client: &str) -> Self {
        Self { client: Some(client.parse().unwrap()), ..Self::to("a") }
    }
}

impl Flow for Req {
    fn key(&self) -> FlowKey {
        FlowKey::of(self.target.as_bytes())
    }
    fn client(&self) -> Option<IpAddr> {
        self.client
    }
    fn target(&self) -> &str {
        &self.target
    }
    fn target_address(&self) -> Option<&Address> {
        self.address.as_ref()
    }
}

/// One thing that an upstream does.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    Reply(&'static str),
    Fail(FilterError),
    Hang,
    Slow(Duration, &'static str),
}

pub(crate) fn down() -> Act {
    Act::Fail(FilterError::Upstream("down".into()))
}

/// An upstream that does what it is told, in turn, and then replies `ok`; it counts its calls.
#[derive(Clone, Default)]
pub(crate) struct Upstream {
    acts: Arc<Mutex<VecDeque<Act>>>,
    calls: Arc<AtomicUsize>,
}

impl Upstream {
    pub(crate) fn will(&self, acts: impl IntoIterator<Item = Act>) {
        self.acts.lock().unwrap().extend(acts);
    }

    pub(crate) fn forget(&self) {
        self.acts.lock().unwrap().clear();
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    pub(crate) fn service(&self) -> Svc<Test> {
        let this = self.clone();
        service_fn::<Test, _, _>(move |_| {
            this.calls.fetch_add(1, Ordering::Relaxed);
            let act = this.acts.lock().unwrap().pop_front().unwrap_or(Act::Reply("ok"));
            async move {
                match act {
                    Act::Reply(reply) => Ok(reply),
                    Act::Fail(error) => Err(error),
                    Act::Hang => std::future::pending().await,
                    Act::Slow(time, reply) => {
                        tokio::time::sleep(time).await;
                        Ok(reply)
                    }
                }
            }
        })
    }
}

pub(crate) async fn call(service: &Svc<Test>, request: Req) -> Result<&'static str, FilterError> {
    service.clone().oneshot(request).await
}

/// The filter over the upstream, with a state of its own.
pub(crate) fn over<F: FilterSpec<Kind = Test>>(
    filter: &F,
    upstream: &Upstream,
) -> (Svc<Test>, Arc<F::State>) {
    let state = filter.state(&env(), None).unwrap();
    (filter.wrap(Arc::clone(&state), upstream.service()), state)
}

/// What `check` says of settings written as JSON: `place: problem (hint)` each.
pub(crate) fn problems<F: FilterSpec>(json: &str) -> Vec<String> {
    let slot: Slot<F> = serde_json::from_str(json).unwrap();
    let errors = slot.settings.check(&ConfigPath::root());
    errors.iter().map(|error| format!("{error} ({})", error.hint.as_deref().unwrap_or("-"))).collect()
}

/// Asserts that a slot of the filter is one flat object in the schema, refuses unknown keys, and can be read as it is printed.
pub(crate) fn assert_slot_is_flat<F: FilterSpec + std::fmt::Debug>(keys: &[&str]) {
    let schema = schemars::schema_for!(Slot<F>).to_value();
    assert_eq!(schema["additionalProperties"], false, "{schema:#}");
    let properties = schema["properties"].as_object().unwrap();
    let mut expected: Vec<_> = keys.iter().copied().chain(["enabled", "rollout"]).collect();
    expected.sort_unstable();
    let mut found: Vec<_> = properties.keys().map(String::as_str).collect();
    found.sort_unstable();
    assert_eq!(found, expected);
    assert!(properties.values().all(|property| property["description"].is_string()), "{schema:#}");

    let error = serde_json::from_str::<Slot<F>>(r#"{"enabled": true, "x": 1}"#).unwrap_err().to_string();
    assert!(error.contains("unknown field `x`"), "{error}");
    let default = Slot::<F>::default();
    assert!(default.settings.check(&ConfigPath::root()).is_empty());
    let printed = serde_json::to_string(&default).unwrap();
    assert_eq!(serde_json::from_str::<Slot<F>>(&printed).unwrap(), default);
    assert_eq!(serde_json::from_str::<Slot<F>>("{}").unwrap(), default);
}

/// Records the metrics of this thread until it is dropped.
pub(crate) struct Metrics<'a> {
    handle: PrometheusHandle,
    _guard: metrics::LocalRecorderGuard<'a>,
}

impl Metrics<'_> {
    /// The recorder lives as long as the test program.
    pub(crate) fn record() -> Metrics<'static> {
        let recorder: &'static _ = Box::leak(Box::new(PrometheusBuilder::new().build_recorder()));
        Metrics { handle: recorder.handle(), _guard: metrics::set_default_local_recorder(recorder) }
    }

    /// The value of a series, written as it is exposed; `None` when there is no such series.
    pub(crate) fn get(&self, series: &str) -> Option<f64> {
        let text = self.handle.render();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
        line.parse().ok()
    }
}
