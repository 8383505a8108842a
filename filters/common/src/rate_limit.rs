//! `rate_limit`: token buckets for each client and for all clients together.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use futures_util::future::{Either, Ready, ready};
use metrics::{Counter, counter};
use qudag_core::bucket::{Bucket, Buckets, Rate};
use qudag_filter_api::{
    BuildError, ConfigError, ConfigPath, Env, FilterError, FilterSpec, Flow, Kind, Look, Quick, Svc,
};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use tower::Service;
use tower::util::BoxCloneSyncService;

use crate::generic::{ForKind, range};
use crate::now;

/// How many clients are remembered. The bucket of a client that was not seen for long may be forgotten, which fills it.
const CLIENTS: usize = 65_536;
/// The largest rate and burst.
const MOST: u32 = 1_000_000;

/// Limits the rate of requests, or of connections where the unit of traffic is one; a request over it is refused
/// with [`FilterError::RateLimited`].
pub type RateLimit<K> = ForKind<RateLimitSettings, K>;

/// A kind of traffic whose rate can be limited.
pub trait RateLimited: Kind {
    /// The limit of each client where the configuration says nothing.
    const PER_CLIENT: Limit = Limit { rate: 100, burst: 200 };

    /// For how many tokens a request counts, where one may ask for much.
    fn weight(_request: &Self::Req) -> u32 {
        1
    }

    /// Whether a request counts.
    fn counts(_request: &Self::Req) -> bool {
        true
    }
}

/// Settings of `rate_limit`. What they are by default depends on the kind: see [`RateLimited`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RateLimitSettings {
    /// The limit of each client: an IPv4 address, the /64 network of an IPv6 address, or all clients of Unix sockets
    /// together; null for none.
    pub per_client: Option<Limit>,
    /// The limit of all clients together; null for none.
    pub total: Option<Limit>,
}

/// Settings of `rate_limit`.
#[derive(Deserialize, JsonSchema)]
#[serde(rename = "RateLimitSettings", deny_unknown_fields)]
struct Given {
    // `Some(None)` is a null, which is not the same as nothing.
    /// The limit of each client: an IPv4 address, the /64 network of an IPv6 address, or all clients of Unix sockets
    /// together; null for none.
    #[serde(default, deserialize_with = "given")]
    #[schemars(with = "Option<Limit>")]
    per_client: Option<Option<Limit>>,
    /// The limit of all clients together; null for none.
    #[serde(default)]
    total: Option<Limit>,
}

#[allow(clippy::option_option, reason = "a null is not the same as nothing")]
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<Limit>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

impl<K: RateLimited> Default for RateLimit<K> {
    fn default() -> Self {
        RateLimitSettings { per_client: Some(K::PER_CLIENT), total: None }.into()
    }
}

impl<'de, K: RateLimited> Deserialize<'de> for RateLimit<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Given { per_client, total } = Given::deserialize(deserializer)?;
        Ok(RateLimitSettings { per_client: per_client.unwrap_or(Some(K::PER_CLIENT)), total }.into())
    }
}

impl<K: RateLimited> JsonSchema for RateLimit<K> {
    fn schema_name() -> Cow<'static, str> {
        format!("RateLimitSettings_{}", K::NAME).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = Given::json_schema(generator);
        let properties = schema.ensure_object().get_mut("properties").and_then(Value::as_object_mut);
        let defaults = serde_json::to_value(Self::default());
        if let (Some(properties), Ok(Value::Object(defaults))) = (properties, defaults) {
            for (key, default) in defaults {
                if let Some(property) = properties.get_mut(&key).and_then(Value::as_object_mut) {
                    property.insert("default".to_owned(), default);
                }
            }
        }
        schema
    }
}

/// A rate, and what may come at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limit {
    /// Requests a second.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub rate: u32,
    /// Requests at once after a pause.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub burst: u32,
}

impl Default for Limit {
    fn default() -> Self {
        Self { rate: 100, burst: 200 }
    }
}

impl Limit {
    /// Every problem of the limit at its place.
    pub fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let rate = range(at.key("rate"), self.rate, 1, MOST);
        rate.into_iter().chain(range(at.key("burst"), self.burst, 1, MOST)).collect()
    }

    /// As buckets take it.
    pub fn rate(&self) -> Rate {
        Rate::new(self.rate, self.burst)
    }
}

/// What is left in the buckets. Knows no settings, so that it outlives every change of them.
#[derive(Debug)]
pub struct RateLimitState {
    clients: Mutex<Buckets<Client>>,
    total: Mutex<Bucket>,
}

/// Who shares a bucket; `None` for Unix sockets.
type Client = Option<IpAddr>;

/// An IPv6 client has a /64 network to choose addresses from (RFC 4291 section 2.5.4), and so many buckets it shall not have.
fn client(ip: Option<IpAddr>) -> Client {
    ip.map(|ip| match ip.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip) & !u128::from(u64::MAX)).into(),
        ip => ip,
    })
}

impl RateLimitState {
    fn new(now: Instant) -> Self {
        Self { clients: Mutex::new(Buckets::new(CLIENTS)), total: Mutex::new(Bucket::full(now)) }
    }
}

impl<K: RateLimited> FilterSpec for RateLimit<K> {
    type Kind = K;
    type State = RateLimitState;
    const NAME: &'static str = "rate_limit";

    fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let RateLimitSettings { per_client, total } = &self.settings;
        if per_client.is_none() && total.is_none() {
            let hint = "set `per_client` or `total`, or `enabled: false`";
            return vec![at.error("neither `per_client` nor `total` limits anything").hint(hint)];
        }
        let per_client = per_client.iter().flat_map(|limit| limit.check(&at.key("per_client")));
        per_client.chain(total.iter().flat_map(|limit| limit.check(&at.key("total")))).collect()
    }

    fn state(
        &self,
        _: &Env,
        previous: Option<(&Self, Arc<RateLimitState>)>,
    ) -> Result<Arc<RateLimitState>, BuildError> {
        Ok(previous.map_or_else(|| Arc::new(RateLimitState::new(now())), |(_, state)| state))
    }

    fn wrap(&self, state: Arc<RateLimitState>, inner: Svc<K>) -> Svc<K> {
        let gate = Arc::new(Gate::new::<K>(&self.settings, state));
        BoxCloneSyncService::new(Limited::<K> { gate, inner })
    }

    fn quick(&self, state: &Arc<RateLimitState>) -> Option<Box<dyn Quick<K>>> {
        Some(Box::new(Gate::new::<K>(&self.settings, Arc::clone(state))))
    }
}

impl<K: Kind> Quick<K> for Gate {
    fn look(&self, glance: &mut K::Glance<'_>) -> Look {
        self.admit(glance.client(), 1).map_or_else(Look::Refused, |()| Look::Pass)
    }
}

/// The limits of one generation over the buckets of all.
struct Gate {
    per_client: Option<(Rate, Counter)>,
    total: Option<(Rate, Counter)>,
    state: Arc<RateLimitState>,
}

impl Gate {
    fn new<K: Kind>(settings: &RateLimitSettings, state: Arc<RateLimitState>) -> Self {
        let limited = |scope: &'static str| counter!("qudag_sidecar_rate_limited_total", "kind" => K::NAME, "scope" => scope);
        Self {
            per_client: settings.per_client.map(|limit| (limit.rate(), limited("client"))),
            total: settings.total.map(|limit| (limit.rate(), limited("total"))),
            state,
        }
    }

    fn admit(&self, ip: Option<IpAddr>, weight: u32) -> Result<(), FilterError> {
        let now = now();
        let limited = |counter: &Counter, retry_after| {
            counter.increment(1);
            Err(FilterError::RateLimited { retry_after })
        };
        let mut clients;
        let mut own = None;
        if let Some((rate, counter)) = &self.per_client {
            clients = self.state.clients.lock().unwrap_or_else(PoisonError::into_inner);
            let bucket = clients.of(client(ip), now);
            if let Err(retry_after) = bucket.take_many(rate, weight, now) {
                return limited(counter, retry_after);
            }
            own = Some((bucket, rate));
        }
        if let Some((rate, counter)) = &self.total {
            let taken =
                self.state.total.lock().unwrap_or_else(PoisonError::into_inner).take_many(rate, weight, now);
            if let Err(retry_after) = taken {
                // What others used up is not held against this client.
                if let Some((bucket, rate)) = own {
                    bucket.give_back(rate, weight);
                }
                return limited(counter, retry_after);
            }
        }
        Ok(())
    }
}

struct Limited<K: RateLimited> {
    gate: Arc<Gate>,
    inner: Svc<K>,
}

impl<K: RateLimited> Clone for Limited<K> {
    fn clone(&self) -> Self {
        Self { gate: Arc::clone(&self.gate), inner: self.inner.clone() }
    }
}

impl<K: RateLimited> Service<K::Req> for Limited<K> {
    type Response = K::Rsp;
    type Error = FilterError;
    type Future = Either<Ready<Result<K::Rsp, FilterError>>, <Svc<K> as Service<K::Req>>::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), FilterError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: K::Req) -> Self::Future {
        if !K::counts(&request) {
            return Either::Right(self.inner.call(request));
        }
        match self.gate.admit(request.client(), K::weight(&request)) {
            Ok(()) => {
                request.note("rate_limit", || "within the rate".to_owned());
                Either::Right(self.inner.call(request))
            }
            Err(error) => {
                request.note("rate_limit", || format!("refused: {error}"));
                Either::Left(ready(Err(error)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::*;

    fn limit(rate: u32, burst: u32) -> Option<Limit> {
        Some(Limit { rate, burst })
    }

    fn filter(per_client: Option<Limit>, total: Option<Limit>) -> RateLimit<Test> {
        RateLimitSettings { per_client, total }.into()
    }

    async fn retry_after(service: &Svc<Test>, request: Req) -> Option<u128> {
        match call(service, request).await {
            Ok(_) => None,
            Err(FilterError::RateLimited { retry_after }) => Some(retry_after.as_millis()),
            Err(other) => panic!("{other}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_client_has_its_own_rate() {
        let metrics = Metrics::record();
        let upstream = Upstream::default();
        let (service, _) = over(&filter(limit(10, 2), None), &upstream);
        for client in ["10.0.0.1", "10.0.0.2", "2001:db8::1", "2001:db8:0:1::1"] {
            assert_eq!(retry_after(&service, Req::from(client)).await, None);
            assert_eq!(retry_after(&service, Req::from(client)).await, None);
            assert_eq!(retry_after(&service, Req::from(client)).await, Some(100), "{client}");
        }
        // The same clients by other addresses.
        assert_eq!(retry_after(&service, Req::from("::ffff:10.0.0.1")).await, Some(100));
        assert_eq!(retry_after(&service, Req::from("2001:db8::2")).await, Some(100));
        // Unix sockets.
        for expected in [None, None, Some(100)] {
            assert_eq!(retry_after(&service, Req::to("a")).await, expected);
        }
        tokio::time::advance(Duration::from_millis(100)).await;
        assert_eq!(retry_after(&service, Req::from("10.0.0.1")).await, None);
        assert_eq!(upstream.calls(), 11);
        let series = r#"qudag_sidecar_rate_limited_total{kind="test",scope="client"}"#;
        assert_eq!(metrics.get(series), Some(7.0));
    }

    #[tokio::test(start_paused = true)]
    async fn the_total_is_shared_and_costs_the_refused_client_nothing() {
        let metrics = Metrics::record();
        let upstream = Upstream::default();
        let (service, _) = over(&filter(limit(1, 2), limit(10, 1)), &upstream);
        assert_eq!(retry_after(&service, Req::from("10.0.0.1")).await, None);
        for _ in 0..5 {
            assert_eq!(retry_after(&service, Req::from("10.0.0.2")).await, Some(100));
        }
        tokio::time::advance(Duration::from_millis(100)).await;
        assert_eq!(retry_after(&service, Req::from("10.0.0.2")).await, None);
        tokio::time::advance(Duration::from_millis(100)).await;
        assert_eq!(retry_after(&service, Req::from("10.0.0.2")).await, None);
        let series = r#"qudag_sidecar_rate_limited_total{kind="test",scope="total"}"#;
        assert_eq!(metrics.get(series), Some(5.0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_of_settings_keeps_what_was_used() {
        let upstream = Upstream::default();
        let old = filter(limit(10, 2), None);
        let (service, state) = over(&old, &upstream);
        for _ in 0..2 {
            assert_eq!(retry_after(&service, Req::from("10.0.0.1")).await, None);
        }
        let new = filter(limit(1, 1), None);
        let state = new.state(&env(), Some((&old, state))).unwrap();
        let service = new.wrap(state, upstream.service());
        assert!(retry_after(&service, Req::from("10.0.0.1")).await.is_some());
        assert_eq!(retry_after(&service, Req::from("10.0.0.2")).await, None);
    }

    #[test]
    fn settings_are_checked() {
        let default = |text: &str| serde_json::from_str::<RateLimit<Test>>(text).unwrap().settings;
        let usual = RateLimitSettings { per_client: Some(Test::PER_CLIENT), total: None };
        assert_eq!((default("{}"), RateLimit::<Test>::default().settings), (usual.clone(), usual));
        assert_eq!(default(r#"{"per_client": null}"#).per_client, None);
        assert_eq!(default(r#"{"per_client": {"rate": 7}}"#).per_client, limit(7, 200));
        assert_slot_is_flat::<RateLimit<Test>>(&["per_client", "total"]);
        assert_eq!(
            problems::<RateLimit<Test>>(r#"{"per_client": {"rate": 0}, "total": {"burst": 2000000}}"#),
            [
                "per_client.rate: 0 is too small (1 to 1000000)",
                "total.burst: 2000000 is too large (1 to 1000000)",
            ]
        );
        assert_eq!(problems::<RateLimit<Test>>(r#"{"per_client": null}"#).len(), 1);
        assert!(problems::<RateLimit<Test>>(r#"{"per_client": null, "total": {"rate": 5}}"#).is_empty());
    }
}
