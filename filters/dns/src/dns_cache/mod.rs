//! Replies from earlier queries.

mod flight;
mod rules;
mod state;

use std::sync::Arc;
use std::time::Duration;

use qudag_filter_api::{
    BuildError, ByteSize, ConfigError, ConfigPath, Env, FilterSpec, Period, Svc, service_fn,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tower::ServiceExt;

use flight::Flights;
pub use rules::{Entry, HARD_LIMIT, Key, Limits, NEGATIVE_LIMIT};
pub(crate) use state::parse_type;
pub use state::{CacheState, CacheStats, FlushSelector};

use crate::{Dns, DnsQuery, DnsReply, Source};

/// The smallest cache: the largest reply fits.
const LEAST_SIZE: ByteSize = ByteSize::kib(128);

/// Replies from earlier queries, never older than 300 seconds. The same query at the same time goes upstream once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DnsCache {
    /// The memory that the replies may take, at least 128KiB.
    pub max_size: ByteSize,
    /// The longest time to live, at most 300s. Longer ones are shortened.
    pub max_ttl: Period,
    /// The shortest time to live of positive answers. Shorter ones are lengthened.
    pub min_ttl: Period,
    /// The longest time to live of negative answers, at most 30s.
    pub negative_ttl: Period,
}

impl Default for DnsCache {
    fn default() -> Self {
        Self {
            max_size: ByteSize::mib(32),
            max_ttl: Period::secs(300),
            min_ttl: Period::secs(0),
            negative_ttl: Period::secs(30),
        }
    }
}

impl DnsCache {
    fn limits(&self) -> Limits {
        Limits { max_ttl: self.max_ttl.0, min_ttl: self.min_ttl.0, negative_ttl: self.negative_ttl.0 }
    }
}

impl FilterSpec for DnsCache {
    type Kind = Dns;
    type State = CacheState;
    const NAME: &'static str = "dns_cache";

    fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        if self.max_size < LEAST_SIZE {
            errors.push(at.key("max_size").error("too small for one reply").hint("128KiB or more"));
        }
        if self.max_ttl.0 > HARD_LIMIT {
            errors.push(
                at.key("max_ttl")
                    .error("longer than 300s, the most that an entry may live")
                    .hint("1s to 300s"),
            );
        } else if self.max_ttl.0 < Duration::from_secs(1) {
            errors.push(
                at.key("max_ttl")
                    .error("shorter than 1s, so nothing would be kept")
                    .hint("1s to 300s; to switch the cache off write `enabled: false`"),
            );
        }
        if self.min_ttl > self.max_ttl {
            errors.push(at.key("min_ttl").error("longer than `max_ttl`").hint("0s to `max_ttl`"));
        }
        if self.negative_ttl.0 > NEGATIVE_LIMIT {
            errors.push(
                at.key("negative_ttl")
                    .error("longer than 30s, the most that a negative answer may live")
                    .hint("0s to 30s"),
            );
        }
        errors
    }

    fn state(
        &self,
        _env: &Env,
        previous: Option<(&Self, Arc<CacheState>)>,
    ) -> Result<Arc<CacheState>, BuildError> {
        // Times to live are applied when an entry is read, so only the size concerns the state.
        Ok(match previous {
            Some((_, state)) if state.max_bytes() == self.max_size.0 => state,
            Some((_, state)) => Arc::new(state.resized(self.max_size.0)),
            None => Arc::new(CacheState::new(self.max_size.0)),
        })
    }

    fn wrap(&self, state: Arc<CacheState>, inner: Svc<Dns>) -> Svc<Dns> {
        let limits = self.limits();
        let flights = Flights::new(Arc::clone(&state), limits, inner.clone());
        service_fn::<Dns, _, _>(move |query: DnsQuery| {
            let key = Key::of(&query);
            let now = tokio::time::Instant::now();
            let hit = key.as_ref().and_then(|key| state.get(key, &limits, now));
            let (flights, inner) = (flights.clone(), inner.clone());
            async move {
                match (hit, key) {
                    (Some(wire), _) => Ok(DnsReply { wire, source: Source::Cache, ede: None }),
                    (None, Some(key)) => flights.ask(key, query).await,
                    (None, None) => inner.oneshot(query).await,
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use qudag_filter_api::FilterError;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::testing::{env, query, reply_wire, until};
    use crate::wire::{parse_reply, rcode, rtype};

    /// An upstream server that counts what it is asked and answers when it may.
    #[derive(Clone)]
    struct Upstream {
        asked: Arc<AtomicUsize>,
        gate: Arc<Semaphore>,
        code: u8,
        ttl: u32,
    }

    impl Upstream {
        fn new(code: u8, ttl: u32) -> Self {
            let gate = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
            Self { asked: Arc::default(), gate, code, ttl }
        }

        fn closed(self) -> Self {
            Self { gate: Arc::new(Semaphore::new(0)), ..self }
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::SeqCst)
        }

        fn service(&self) -> Svc<Dns> {
            let this = self.clone();
            service_fn::<Dns, _, _>(move |query: DnsQuery| {
                let this = this.clone();
                async move {
                    let number = this.asked.fetch_add(1, Ordering::SeqCst) as u8;
                    let _permit = this.gate.acquire().await;
                    let data = [192, 0, 2, number];
                    let wire = reply_wire(query.wire(), this.code, &[(rtype::A, this.ttl, &data)]).into();
                    Ok(DnsReply { wire, source: Source::Upstream("test".into()), ede: None })
                }
            })
        }
    }

    fn chain(settings: &DnsCache, upstream: &Upstream) -> (Svc<Dns>, Arc<CacheState>) {
        let state = settings.state(&env(), None).unwrap();
        (settings.wrap(Arc::clone(&state), upstream.service()), state)
    }

    /// The last byte of the address, the time to live, and the source.
    async fn ask(chain: &Svc<Dns>, name: &str) -> (u8, u32, Source) {
        let reply = chain.clone().oneshot(query(name, rtype::A)).await.unwrap();
        let parsed = parse_reply(&reply.wire).unwrap();
        (reply.wire[parsed.records[0].data.end - 1], parsed.records[0].ttl, reply.source)
    }

    fn upstream() -> Source {
        Source::Upstream("test".into())
    }

    #[tokio::test(start_paused = true)]
    async fn a_reply_is_kept_until_its_time_is_over_and_grows_older_meanwhile() {
        let server = Upstream::new(rcode::NOERROR, 3600);
        let (chain, state) = chain(&DnsCache::default(), &server);
        assert_eq!(ask(&chain, "www.example").await, (0, 300, upstream()));
        assert_eq!(ask(&chain, "WWW.example").await, (0, 300, Source::Cache));
        tokio::time::advance(Duration::from_secs(299)).await;
        assert_eq!(ask(&chain, "www.example").await, (0, 1, Source::Cache));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(ask(&chain, "www.example").await, (1, 300, upstream()));
        let stats = state.stats();
        assert_eq!((stats.hits, stats.misses, stats.inserts, stats.expired), (2, 2, 2, 1));
        assert!((stats.hit_ratio - 0.5).abs() < 1e-9);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_not_kept() {
        let server = Upstream::new(rcode::SERVFAIL, 60);
        let (chain, _) = chain(&DnsCache::default(), &server);
        ask(&chain, "www.example").await;
        ask(&chain, "www.example").await;
        assert_eq!(server.asked(), 2);
    }

    #[tokio::test]
    async fn ten_thousand_that_ask_the_same_at_once_are_one_query() {
        let server = Upstream::new(rcode::NOERROR, 60).closed();
        let (chain, state) = chain(&DnsCache::default(), &server);
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..10_000 {
            let chain = chain.clone();
            all.spawn(async move { ask(&chain, "www.example").await });
        }
        until("all have asked", || state.stats().misses == 10_000).await;
        server.gate.add_permits(1);
        while let Some(reply) = all.join_next().await {
            assert_eq!(reply.unwrap().0, 0);
        }
        assert_eq!(server.asked(), 1);
        assert_eq!(state.stats().inserts, 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn queries_that_come_while_others_end_are_no_second_query() {
        let server = Upstream::new(rcode::NOERROR, 60);
        let (chain, _) = chain(&DnsCache::default(), &server);
        for round in 0..50 {
            let mut all = tokio::task::JoinSet::new();
            for _ in 0..50 {
                let chain = chain.clone();
                all.spawn(async move { ask(&chain, &format!("n{round}.example")).await });
            }
            all.join_all().await;
            assert_eq!(server.asked(), round + 1);
        }
    }

    #[tokio::test]
    async fn the_first_to_ask_may_go_away() {
        let server = Upstream::new(rcode::NOERROR, 60).closed();
        let (chain, state) = chain(&DnsCache::default(), &server);
        let first = tokio::spawn({
            let chain = chain.clone();
            async move { ask(&chain, "www.example").await }
        });
        until("the server is asked", || server.asked() == 1).await;
        let second = tokio::spawn({
            let chain = chain.clone();
            async move { ask(&chain, "www.example").await }
        });
        until("both wait", || state.stats().misses == 2).await;
        first.abort();
        server.gate.add_permits(1);
        assert_eq!(second.await.unwrap(), (0, 60, upstream()));
        assert_eq!(server.asked(), 1);
    }

    #[tokio::test]
    async fn after_a_flush_nobody_gets_an_answer_from_before() {
        let server = Upstream::new(rcode::NOERROR, 60).closed();
        let (chain, state) = chain(&DnsCache::default(), &server);
        let spawn = || {
            let chain = chain.clone();
            tokio::spawn(async move { ask(&chain, "www.example").await })
        };
        let before = spawn();
        until("the server is asked", || server.asked() == 1).await;
        state.flush(&FlushSelector::name("other.example").unwrap());
        let after = spawn();
        until("the server is asked again", || server.asked() == 2).await;
        server.gate.add_permits(2);
        assert_eq!((before.await.unwrap().0, after.await.unwrap().0), (0, 1));
        assert_eq!(ask(&chain, "www.example").await, (1, 60, Source::Cache));
        assert_eq!(state.flush(&FlushSelector::All), 1);
        assert_eq!(ask(&chain, "www.example").await.0, 2);
    }

    #[tokio::test]
    async fn errors_reach_everybody_and_a_panic_is_one() {
        let settings = DnsCache::default();
        let state = settings.state(&env(), None).unwrap();
        let inner = service_fn::<Dns, _, _>(|query: DnsQuery| async move {
            assert!(query.parsed().qtype == rtype::A, "an accident");
            Err(FilterError::Upstream("down".into()))
        });
        let chain = settings.wrap(state, inner);
        let error = |qtype| {
            let chain = chain.clone();
            async move { chain.oneshot(query("www.example", qtype)).await.unwrap_err().label() }
        };
        assert_eq!(error(rtype::A).await, "upstream");
        assert_eq!(error(rtype::AAAA).await, "internal");
        assert_eq!(error(rtype::AAAA).await, "internal", "what panicked does not block those who come later");
    }

    #[test]
    fn settings_out_of_range_are_refused_with_a_hint() {
        let check = |text: &str| {
            let settings: DnsCache = serde_json::from_str(text).unwrap();
            let errors = settings.check(&ConfigPath::root());
            assert!(errors.iter().all(|error| error.hint.is_some()));
            errors.into_iter().map(|error| error.at.to_string()).collect::<Vec<_>>()
        };
        assert!(check("{}").is_empty());
        assert_eq!(check(r#"{"max_ttl": "301s"}"#), ["max_ttl"]);
        assert_eq!(check(r#"{"max_ttl": "0s", "min_ttl": "1s"}"#), ["max_ttl", "min_ttl"]);
        assert_eq!(check(r#"{"negative_ttl": "31s", "max_size": "1KiB"}"#), ["max_size", "negative_ttl"]);
        assert!(serde_json::from_str::<DnsCache>(r#"{"ttl": "1s"}"#).is_err());
    }

    #[tokio::test]
    async fn a_reload_keeps_the_entries_and_a_shorter_limit_applies_to_them() {
        let server = Upstream::new(rcode::NOERROR, 300);
        let settings = DnsCache::default();
        let (chain, state) = chain(&settings, &server);
        ask(&chain, "www.example").await;
        let shorter = DnsCache { max_ttl: Period::secs(10), ..settings.clone() };
        let kept = shorter.state(&env(), Some((&settings, Arc::clone(&state)))).unwrap();
        assert!(Arc::ptr_eq(&kept, &state));
        let chain = shorter.wrap(kept, server.service());
        assert_eq!(ask(&chain, "www.example").await, (0, 10, Source::Cache));
        let larger = DnsCache { max_size: ByteSize::mib(64), ..settings.clone() };
        let kept = larger.state(&env(), Some((&settings, state))).unwrap();
        assert_eq!(ask(&larger.wrap(kept, server.service()), "www.example").await.2, Source::Cache);
        assert_eq!(server.asked(), 1);
    }
}
