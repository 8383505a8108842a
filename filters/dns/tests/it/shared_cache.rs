//! `dns_shared_cache` on a real server.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use hickory_proto::op::{Message, MessageType, Query};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use qudag_filter_api::{FilterError, FilterSpec, Period, Secret, Svc, service_fn};
use qudag_filter_common::testing::{PATIENCE, metric, until};
use qudag_filter_dns::shared_cache::Reach;
use qudag_filter_dns::{
    Dns, DnsQuery, DnsReply, DnsSharedCache, FlushSelector, SharedCacheState, Source, Trace, Transport,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tower::ServiceExt;
use xxhash_rust::xxh3::xxh3_64;

use crate::redis::Redis;
use crate::support::env;

/// Much longer than any query here may take, and much shorter than the servers' own limits.
const GENEROUS: Duration = Duration::from_millis(500);
const FLUSH: Duration = Duration::from_secs(5);

/// The servers behind a sidecar.
#[derive(Clone)]
struct Servers {
    asked: Arc<AtomicUsize>,
    gate: Arc<Semaphore>,
    fail: Arc<std::sync::atomic::AtomicBool>,
    ttl: u32,
    ip: u8,
}

impl Servers {
    fn service(&self) -> Svc<Dns> {
        let this = self.clone();
        service_fn::<Dns, _, _>(move |query: DnsQuery| {
            let this = this.clone();
            async move {
                this.asked.fetch_add(1, Ordering::SeqCst);
                let _permit = this.gate.acquire().await;
                if this.fail.load(Ordering::SeqCst) {
                    return Err(FilterError::Timeout { after: Duration::from_secs(1) });
                }
                let query = Message::from_vec(query.wire()).unwrap();
                let question = query.queries[0].clone();
                let mut reply = query.clone();
                reply.metadata.message_type = MessageType::Response;
                let data = RData::A(A::new(192, 0, 2, this.ip));
                reply.add_answer(Record::from_rdata(question.name().clone(), this.ttl, data));
                Ok(DnsReply::new(reply.to_vec().unwrap().into(), Source::Upstream("test".into())))
            }
        })
    }
}

/// A sidecar as far as it concerns this filter.
struct Sidecar {
    state: Arc<SharedCacheState>,
    chain: Option<Svc<Dns>>,
    servers: Servers,
    /// What others have flushed.
    flushed: Arc<Mutex<Vec<FlushSelector>>>,
}

/// What came of a question.
#[derive(Debug, PartialEq)]
struct Got {
    ip: IpAddr,
    ttl: u32,
    source: Source,
}

impl Sidecar {
    fn new(settings: &DnsSharedCache, ip: u8) -> Self {
        // Before anything is counted.
        metric("none", &[]);
        let state = settings.state(&env(), None).unwrap();
        let flushed = Arc::new(Mutex::new(Vec::new()));
        let servers = Servers {
            asked: Arc::default(),
            gate: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
            fail: Arc::default(),
            ttl: 300,
            ip,
        };
        let seen = Arc::clone(&flushed);
        state.attach(Arc::new(move |selector: &FlushSelector| seen.lock().unwrap().push(selector.clone())));
        let chain = Some(settings.wrap(Arc::clone(&state), servers.service()));
        Self { state, chain, servers, flushed }
    }

    async fn ready(settings: &DnsSharedCache, ip: u8) -> Self {
        let sidecar = Self::new(settings, ip);
        sidecar.connected().await;
        sidecar
    }

    /// Waits until the filter reads from Redis.
    async fn connected(&self) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let (_, steps) = self.traced("probe.example").await;
            if !steps.iter().any(|step| {
                ["disconnected", "paused", "failed", "behind"].iter().any(|why| step.contains(why))
            }) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "not connected: {steps:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn traced(&self, name: &str) -> (Result<Got, FilterError>, Vec<String>) {
        let trace = Trace::default();
        let query = query(name).traced(trace.clone());
        let reply = self.chain.clone().unwrap().oneshot(query).await.map(|reply| got(&reply));
        (reply, trace.steps().into_iter().map(|step| step.what).collect())
    }

    async fn ask(&self, name: &str) -> Got {
        self.traced(name).await.0.unwrap()
    }

    fn asked(&self) -> usize {
        self.servers.asked.load(Ordering::SeqCst)
    }

    /// What became of a question, and the remark on it.
    async fn remark(&self, name: &str) -> String {
        self.traced(name).await.1.remove(0)
    }
}

fn query(name: &str) -> DnsQuery {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    let client = SocketAddr::from(([127, 0, 0, 1], 1));
    DnsQuery::parse(message.to_vec().unwrap().into(), client, Transport::Udp).unwrap()
}

fn got(reply: &DnsReply) -> Got {
    let message = Message::from_vec(&reply.wire).unwrap();
    let record = &message.answers[0];
    let RData::A(ip) = &record.data else { panic!("{record:?}") };
    Got { ip: ip.0.into(), ttl: record.ttl, source: reply.source.clone() }
}

fn ip(last: u8) -> IpAddr {
    [192, 0, 2, last].into()
}

fn settings(redis: &Redis) -> DnsSharedCache {
    // The machine may be busy; the tests of the limit say what it is.
    let timeout = Period(GENEROUS);
    DnsSharedCache { url: redis.url().parse().unwrap(), timeout, ..DnsSharedCache::default() }
}

/// Waits until the entry of a name is in Redis; its key.
async fn stored(redis: &Redis, name: &str) -> String {
    let find = || redis.entries().into_iter().find(|key| key.ends_with(&format!(":{name}")));
    until(&format!("{name} is in Redis"), || find().is_some()).await;
    find().unwrap()
}

/// An entry with other numbers in its header and a good seal: `at` and bytes.
fn changed(value: &[u8], key: &str, changes: &[(usize, Vec<u8>)]) -> Vec<u8> {
    let mut value = value.to_vec();
    for (at, bytes) in changes {
        value[*at..*at + bytes.len()].copy_from_slice(bytes);
    }
    let mut sealed = (key.len() as u64).to_be_bytes().to_vec();
    sealed.extend(key.as_bytes());
    sealed.extend(&value[..33]);
    sealed.extend(&value[41..]);
    value[33..41].copy_from_slice(&xxh3_64(&sealed).to_be_bytes());
    value
}

fn millis_since_1970() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64
}

#[tokio::test]
async fn what_one_sidecar_has_asked_the_other_need_not() {
    let Some(redis) = Redis::start(&[]).await else { return };
    let (a, b) = (Sidecar::ready(&settings(&redis), 1).await, Sidecar::ready(&settings(&redis), 2).await);
    let fresh = a.ask("WWW.example").await;
    assert_eq!(fresh, Got { ip: ip(1), ttl: 300, source: Source::Upstream("test".into()) });
    let key = stored(&redis, "www.example").await;
    let before = b.asked();
    let shared = b.ask("www.example").await;
    assert_eq!((shared.ip, shared.source), (ip(1), Source::SharedCache));
    assert!((290..=300).contains(&shared.ttl), "{}", shared.ttl);
    assert_eq!(b.asked(), before);
    let left: u64 = redis.ask(&["TTL", &key]).parse().unwrap();
    assert!((290..=300).contains(&left), "Redis forgets it as well: {left}");
    assert!(b.remark("www.example").await.starts_with("hit, 0 s old"));
    assert!(metric("qudag_sidecar_dns_shared_cache_hits_total", &[]) >= 2.0);
    assert!(metric("qudag_sidecar_dns_shared_cache_writes_total", &["stored"]) >= 1.0);
    assert_eq!(metric("qudag_sidecar_dns_shared_cache_connected", &[]), 2.0);

    // Another prefix is another fleet, and so is another secret.
    let elsewhere = DnsSharedCache { prefix: "other".into(), ..settings(&redis) };
    let other = Sidecar::ready(&elsewhere, 3).await;
    assert_eq!(other.ask("www.example").await.ip, ip(3));
    let secret = redis.folder().join("key");
    std::fs::write(&secret, "a secret of the fleet").unwrap();
    let sealed = DnsSharedCache { key: Some(Secret::File(secret)), ..settings(&redis) };
    let (c, d) = (Sidecar::ready(&sealed, 4).await, Sidecar::ready(&sealed, 5).await);
    assert_eq!(c.ask("www.example").await.ip, ip(4));
    until("it is stored beside the other", || {
        redis.entries().iter().filter(|key| key.ends_with(":www.example")).count() == 3
    })
    .await;
    assert_eq!(d.ask("www.example").await.ip, ip(4));
    assert_eq!(b.ask("www.example").await.ip, ip(1));
}

#[tokio::test]
async fn after_a_flush_nobody_gets_an_answer_from_before() {
    let Some(redis) = Redis::start(&[]).await else { return };
    let (a, b) = (Sidecar::ready(&settings(&redis), 1).await, Sidecar::ready(&settings(&redis), 2).await);
    for (selector, text, goes) in [
        (FlushSelector::name("www.example").unwrap(), "name www.example", [true, false]),
        (FlushSelector::suffix("test").unwrap(), "suffix test", [false, true]),
        (FlushSelector::rtype("AAAA").unwrap(), "type 28", [false, false]),
        (FlushSelector::rtype("A").unwrap(), "type 1", [true, true]),
        (FlushSelector::All, "all", [true, true]),
    ] {
        for name in ["www.example", "www.test"] {
            a.ask(name).await;
            stored(&redis, name).await;
            // Until the last flush is known to both and the entry is from after it.
            until_shared(&b, &a, name).await;
        }
        let flushed = b.flushed.lock().unwrap().len();
        assert_eq!(a.state.flush(&selector, FLUSH).await, Reach::Fleet, "{text}");
        for (name, gone) in ["www.example", "www.test"].into_iter().zip(goes) {
            let source = b.ask(name).await.source;
            assert_eq!(source != Source::SharedCache, gone, "{text}: {name}");
        }
        until("the other's own cache is flushed", || b.flushed.lock().unwrap().len() > flushed).await;
        assert_eq!(b.flushed.lock().unwrap()[flushed..], [selector], "{text}");
        assert!(redis.ask(&["XREVRANGE", "qudag:dns:flushes", "+", "-", "COUNT", "1"]).contains(text));
    }
    assert!(a.flushed.lock().unwrap().is_empty(), "one's own flushes do not come back");
}

/// Waits until `reader` gets a name from Redis; `writer` asks for it until it does.
async fn until_shared(reader: &Sidecar, writer: &Sidecar, name: &str) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while reader.ask(name).await.source != Source::SharedCache {
        writer.ask(name).await;
        assert!(
            tokio::time::Instant::now() < deadline,
            "{name} is not shared: {:?}",
            reader.traced(name).await
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_reply_that_was_asked_for_before_a_flush_is_of_no_use_when_it_comes_after_it() {
    let Some(redis) = Redis::start(&[]).await else { return };
    let (mut a, b) = (Sidecar::ready(&settings(&redis), 1).await, Sidecar::ready(&settings(&redis), 2).await);
    a.servers.gate = Arc::new(Semaphore::new(0));
    a.chain = Some(settings(&redis).wrap(Arc::clone(&a.state), a.servers.service()));
    let before = a.asked();
    let late = tokio::spawn(a.chain.clone().unwrap().oneshot(query("late.example")));
    until("the server is asked", || a.asked() == before + 1).await;
    assert_eq!(b.state.flush(&FlushSelector::All, FLUSH).await, Reach::Fleet);
    a.servers.gate.add_permits(1);
    late.await.unwrap().unwrap();
    stored(&redis, "late.example").await;
    assert_eq!(b.remark("late.example").await, "miss: flushed");
    assert_eq!(metric("qudag_sidecar_dns_shared_cache_misses_total", &["flushed"]), 1.0);
}

#[tokio::test]
async fn flushes_are_not_missed_by_who_was_away() {
    let Some(mut redis) = Redis::start(&[]).await else { return };
    let (mut a, b) = (Sidecar::ready(&settings(&redis), 1).await, Sidecar::ready(&settings(&redis), 2).await);
    // Off, and on again.
    a.chain = None;
    let name = FlushSelector::name("www.example").unwrap();
    assert_eq!(b.state.flush(&name, FLUSH).await, Reach::Fleet);
    a.chain = Some(settings(&redis).wrap(Arc::clone(&a.state), a.servers.service()));
    a.connected().await;
    assert_eq!(a.flushed.lock().unwrap().as_slice(), std::slice::from_ref(&name));
    // A sidecar that starts learns of flushes of the last minutes.
    let c = Sidecar::ready(&settings(&redis), 3).await;
    assert_eq!(c.flushed.lock().unwrap().as_slice(), std::slice::from_ref(&name));
    // Connections that are cut.
    let types = FlushSelector::rtype("MX").unwrap();
    redis.ask(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    assert_ne!(b.state.flush(&types, FLUSH).await, Reach::Off);
    until("everybody hears of it", || {
        [&a, &c].iter().all(|sidecar| sidecar.flushed.lock().unwrap().contains(&types))
    })
    .await;
    assert!(!a.flushed.lock().unwrap().contains(&FlushSelector::All));
    // A flush while Redis is down counts here at once, and elsewhere when it is back.
    redis.kill();
    let suffix = FlushSelector::suffix("example").unwrap();
    assert_eq!(a.state.flush(&suffix, Duration::from_millis(50)).await, Reach::Later);
    redis.start_again().await;
    until("the flush arrives", || {
        let flushed = b.flushed.lock().unwrap();
        // What came first depends on who was back first.
        flushed.contains(&suffix) || flushed.contains(&FlushSelector::All)
    })
    .await;
    a.connected().await;
    let stream = redis.ask(&["XRANGE", "qudag:dns:flushes", "-", "+"]);
    assert!(stream.contains("suffix example"), "{stream}");
}

#[tokio::test]
async fn a_redis_that_lost_its_data_is_not_believed() {
    let Some(redis) = Redis::start(&[]).await else { return };
    let (a, b) = (Sidecar::ready(&settings(&redis), 1).await, Sidecar::ready(&settings(&redis), 2).await);
    a.ask("www.example").await;
    let key = stored(&redis, "www.example").await;
    let value = redis.raw(&["GET", &key]);
    let stream = redis.ask(&["XINFO", "STREAM", "qudag:dns:flushes"]);
    assert!(!stream.is_empty());
    assert_eq!(a.state.flush(&FlushSelector::All, FLUSH).await, Reach::Fleet);
    // As from a copy: the entry is back, the flush is not.
    redis.ask(&["DEL", "qudag:dns:flushes"]);
    redis.put(&key, &value, 250_000);
    assert_ne!(b.ask("www.example").await.source, Source::SharedCache);
    until("both flush what they hold", || {
        [&a, &b].iter().all(|sidecar| sidecar.flushed.lock().unwrap().contains(&FlushSelector::All))
    })
    .await;
    redis.put(&key, &value, 250_000);
    for sidecar in [&a, &b] {
        let (got, steps) = sidecar.traced("www.example").await;
        assert_ne!(got.unwrap().source, Source::SharedCache, "{steps:?}");
    }
    assert!(metric("qudag_sidecar_dns_shared_cache_flushes_total", &["lost"]) >= 1.0);
}

#[tokio::test]
async fn values_that_are_no_good_entries_are_misses() {
    let Some(redis) = Redis::start(&[]).await else { return };
    let sidecar = Sidecar::ready(&settings(&redis), 1).await;
    sidecar.ask("www.example").await;
    let key = stored(&redis, "www.example").await;
    let good = redis.raw(&["GET", &key]);
    let now = millis_since_1970();
    let numbers = |at: usize, value: u64| (at, value.to_be_bytes().to_vec());
    let mut damaged = good.clone();
    *damaged.last_mut().unwrap() ^= 1;
    let mut version = good.clone();
    version[3] = 2;
    // The reply to another question, under this key with a good seal.
    sidecar.ask("xxx.example").await;
    let other = redis.raw(&["GET", &stored(&redis, "xxx.example").await]);
    let cases: HashMap<&str, (Vec<u8>, u64, &str)> = HashMap::from([
        ("damaged", (damaged, 200_000, "damaged")),
        ("cut", (good[..60].to_vec(), 200_000, "damaged")),
        ("another key's", (other.clone(), 200_000, "damaged")),
        ("another question's", (changed(&other, &key, &[]), 200_000, "foreign")),
        ("another version", (version, 200_000, "foreign")),
        ("text", (b"hello".to_vec(), 200_000, "foreign")),
        ("oversize", (vec![b'Q'; 1 << 20], 200_000, "foreign")),
        ("prolonged", (good.clone(), 400_000, "foreign")),
        ("from the future", (changed(&good, &key, &[numbers(5, now + 60_000)]), 200_000, "future")),
        ("too old by its clock", (changed(&good, &key, &[numbers(5, now - 301_000)]), 200_000, "expired")),
        ("not flushed yet", (changed(&good, &key, &[numbers(17, now + 60_000)]), 200_000, "flushed")),
    ]);
    for (what, (value, millis, reason)) in &cases {
        redis.put(&key, value, *millis);
        assert_eq!(sidecar.remark("www.example").await, format!("miss: {reason}"), "{what}");
    }
    redis.put(&key, &good, 200_000);
    redis.ask(&["PERSIST", &key]);
    assert_eq!(sidecar.remark("www.example").await, "miss: foreign", "without an end");
    redis.ask(&["DEL", &key]);
    redis.ask(&["LPUSH", &key, "a"]);
    assert_eq!(sidecar.remark("www.example").await, "miss: foreign", "a list");
    until("the new reply takes its place", || redis.ask(&["TYPE", &key]) == "string").await;
    assert_eq!(metric("qudag_sidecar_dns_shared_cache_checksum_failures_total", &[]), 3.0);

    // The life that is left in Redis makes an entry older than its writer's clock says.
    let slow = changed(&good, &key, &[numbers(5, now)]);
    redis.put(&key, &slow, 200_000);
    let got = sidecar.ask("www.example").await;
    assert!(got.source == Source::SharedCache && (195..=200).contains(&got.ttl), "{got:?}");
}

#[tokio::test]
async fn what_grows_old_is_asked_for_anew_and_kept_for_the_worst() {
    let Some(redis) = Redis::start(&[]).await else { return };
    let sidecar = Sidecar::ready(&settings(&redis), 1).await;
    sidecar.ask("www.example").await;
    let key = stored(&redis, "www.example").await;
    let good = redis.raw(&["GET", &key]);
    let old = |seconds: u64| {
        let fetched = millis_since_1970() - seconds * 1000;
        redis.put(
            &key,
            &changed(&good, &key, &[(5, fetched.to_be_bytes().to_vec())]),
            (300 - seconds) * 1000,
        );
    };
    old(160);
    assert_eq!(sidecar.ask("www.example").await.source, Source::SharedCache);
    old(170);
    assert_eq!(sidecar.ask("www.example").await.ttl, 300, "a new one");
    until("the new one is stored", || redis.ask(&["TTL", &key]).parse::<u64>().unwrap() > 290).await;
    sidecar.servers.fail.store(true, Ordering::SeqCst);
    old(250);
    let got = sidecar.ask("www.example").await;
    assert!(got.source == Source::SharedCache && (45..=50).contains(&got.ttl), "{got:?}");
    old(300 - 1);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!(sidecar.traced("www.example").await.0.is_err());
}

#[tokio::test]
async fn what_is_to_come_from_the_servers_comes_from_them_and_is_shared() {
    let Some(redis) = Redis::start(&[]).await else { return };
    let (a, b) = (Sidecar::ready(&settings(&redis), 1).await, Sidecar::ready(&settings(&redis), 2).await);
    a.ask("www.example").await;
    let key = stored(&redis, "www.example").await;
    let old = redis.raw(&["GET", &key]);
    let reply = b.chain.clone().unwrap().oneshot(query("www.example").from_servers()).await.unwrap();
    assert_eq!(got(&reply).ip, ip(2));
    until("the new one is in Redis", || redis.raw(&["GET", &key]) != old).await;
    let shared = a.ask("www.example").await;
    assert_eq!((shared.ip, shared.source), (ip(2), Source::SharedCache));
}

/// Asks for new names for so long; the longest that one took. None may fail.
async fn load(sidecar: &Sidecar, label: &str, length: Duration) -> Duration {
    let (start, mut longest, mut number) = (tokio::time::Instant::now(), Duration::ZERO, 0);
    while start.elapsed() < length {
        let asked = tokio::time::Instant::now();
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..8 {
            number += 1;
            let query = query(&format!("{label}{number}.example"));
            all.spawn(sidecar.chain.clone().unwrap().oneshot(query));
        }
        for reply in all.join_all().await {
            assert_eq!(got(&reply.unwrap()).ip, ip(sidecar.servers.ip));
        }
        longest = longest.max(asked.elapsed());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    longest
}

#[tokio::test]
async fn a_redis_that_is_killed_and_started_again_fails_no_query() {
    let Some(mut redis) = Redis::start(&[]).await else { return };
    let fast = DnsSharedCache { timeout: Period::millis(20), ..settings(&redis) };
    let sidecar = Sidecar::ready(&fast, 1).await;
    load(&sidecar, "a", Duration::from_millis(200)).await;
    redis.kill();
    let longest = load(&sidecar, "b", Duration::from_millis(500)).await;
    assert!(longest < GENEROUS, "{longest:?}");
    assert_eq!(metric("qudag_sidecar_dns_shared_cache_connected", &[]), 0.0);
    redis.start_again().await;
    load(&sidecar, "c", Duration::from_millis(200)).await;
    sidecar.connected().await;
    sidecar.ask("again.example").await;
    stored(&redis, "again.example").await;
}

#[tokio::test]
async fn a_redis_that_is_frozen_costs_its_limit_and_is_left_alone() {
    let Some(redis) = Redis::start(&[]).await else { return };
    let fast = DnsSharedCache { timeout: Period::millis(20), ..settings(&redis) };
    let sidecar = Sidecar::ready(&fast, 1).await;
    let slow = DnsSharedCache { timeout: Period::millis(200), ..settings(&redis) };
    let patient = Sidecar::ready(&slow, 2).await;
    redis.freeze(true);
    let asked = tokio::time::Instant::now();
    assert_eq!(patient.remark("www.example").await, "miss: failed");
    assert!(asked.elapsed() >= slow.timeout.0, "{:?}", asked.elapsed());
    let longest = load(&sidecar, "a", Duration::from_secs(1)).await;
    assert!(longest < GENEROUS, "{longest:?}");
    let errors = metric("qudag_sidecar_dns_shared_cache_errors_total", &["timeout"]);
    let paused = metric("qudag_sidecar_dns_shared_cache_misses_total", &["paused"]);
    assert!(errors >= 3.0, "{errors}");
    assert!(paused > 5.0 * errors, "paused {paused}, timeouts {errors}");
    redis.freeze(false);
    sidecar.connected().await;
    sidecar.ask("again.example").await;
    stored(&redis, "again.example").await;
}

#[tokio::test]
async fn replies_that_nobody_writes_are_dropped() {
    let Some(redis) = Redis::start(&[]).await else { return };
    let small = DnsSharedCache { max_queue: 1, timeout: Period::millis(20), ..settings(&redis) };
    let sidecar = Sidecar::ready(&small, 1).await;
    redis.freeze(true);
    load(&sidecar, "a", Duration::from_millis(300)).await;
    assert!(metric("qudag_sidecar_dns_shared_cache_writes_total", &["overflow"]) > 0.0);
    redis.freeze(false);
    sidecar.connected().await;
}

#[tokio::test]
async fn a_full_redis_is_read_and_can_be_flushed() {
    let Some(redis) = Redis::start(&["--maxmemory-policy", "noeviction"]).await else { return };
    let (a, b) = (Sidecar::ready(&settings(&redis), 1).await, Sidecar::ready(&settings(&redis), 2).await);
    a.ask("www.example").await;
    stored(&redis, "www.example").await;
    redis.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    assert_eq!(b.ask("www.example").await.source, Source::SharedCache);
    b.ask("more.example").await;
    until("the refusal is counted", || {
        metric("qudag_sidecar_dns_shared_cache_errors_total", &["full"]) > 0.0
    })
    .await;
    assert!(metric("qudag_sidecar_dns_shared_cache_writes_total", &["failed"]) > 0.0);
    assert_eq!(a.state.flush(&FlushSelector::name("other.example").unwrap(), FLUSH).await, Reach::Fleet);
    assert_ne!(b.ask("www.example").await.source, Source::SharedCache, "more is gone than asked for");
    redis.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    a.connected().await;
    b.connected().await;
    until_shared(&b, &a, "www.example").await;
}

#[tokio::test]
async fn who_has_the_wrong_password_goes_without_and_who_has_the_right_one_with() {
    let Some(redis) = Redis::start(&["--requirepass", "sesame"]).await else { return };
    let file = redis.folder().join("password");
    std::fs::write(&file, "wrong").unwrap();
    let with = DnsSharedCache { password: Some(Secret::File(file.clone())), ..settings(&redis) };
    let sidecar = Sidecar::new(&with, 1);
    let refused = || metric("qudag_sidecar_dns_shared_cache_errors_total", &["auth"]);
    until("it is refused", || refused() > 0.0).await;
    assert_eq!(sidecar.remark("www.example").await, "miss: disconnected");
    // It is read again at the next attempt.
    std::fs::write(&file, "sesame").unwrap();
    sidecar.connected().await;
    let before = refused();
    let _without = Sidecar::new(&settings(&redis), 2);
    until("no password is refused as well", || refused() > before).await;
    let named = DnsSharedCache { username: Some("default".into()), ..with };
    Sidecar::ready(&named, 3).await;
}

#[tokio::test]
async fn connections_end_with_the_filter_and_with_its_settings() {
    let Some(redis) = Redis::start(&[]).await else { return };
    let mut sidecar = Sidecar::ready(&settings(&redis), 1).await;
    let clients =
        || redis.ask(&["CLIENT", "LIST"]).lines().filter(|line| !line.contains("cmd=client")).count();
    assert_eq!(clients(), 2);
    // A reload with another time limit keeps them; so does the old chain while it is in use.
    let slower = DnsSharedCache { timeout: Period::millis(30), ..settings(&redis) };
    let same = slower.state(&env(), Some((&settings(&redis), Arc::clone(&sidecar.state)))).unwrap();
    assert!(Arc::ptr_eq(&same, &sidecar.state));
    let old = sidecar.chain.replace(slower.wrap(same, sidecar.servers.service()));
    sidecar.ask("www.example").await;
    assert_eq!(clients(), 2);
    drop(old);
    sidecar.ask("www.example").await;
    assert_eq!(clients(), 2);
    sidecar.chain = None;
    until("they are closed", || clients() == 0).await;
    assert_eq!(metric("qudag_sidecar_dns_shared_cache_connected", &[]), 0.0);
    assert_eq!(sidecar.state.flush(&FlushSelector::All, FLUSH).await, Reach::Off);
    // Another server is another state, which knows what the fleet has to be told.
    let other = DnsSharedCache { prefix: "other".into(), ..settings(&redis) };
    let state = other.state(&env(), Some((&settings(&redis), Arc::clone(&sidecar.state)))).unwrap();
    assert!(!Arc::ptr_eq(&state, &sidecar.state));
    let _chain = other.wrap(state, sidecar.servers.service());
    until("the flush is told", || redis.ask(&["XRANGE", "other:flushes", "-", "+"]).contains("all")).await;
}

#[tokio::test]
async fn names_ports_databases_and_tls_work() {
    let Some(redis) = Redis::start(&[]).await else { return };
    let cert = |name: &str| redis.folder().join(name);
    let openssl = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(cert("key.pem"))
        .arg("-out")
        .arg(cert("cert.pem"))
        .output();
    assert!(openssl.unwrap().status.success());
    // A port cannot be chosen by the server itself; a taken one is refused.
    let port = || {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().port().to_string()
    };
    let mut server = None;
    for _ in 0..20 {
        let (plain, tls) = (port(), port());
        let path = |name: &str| cert(name).display().to_string();
        for (key, value) in [
            ("tls-cert-file", path("cert.pem")),
            ("tls-key-file", path("key.pem")),
            ("tls-ca-cert-file", path("cert.pem")),
            ("tls-auth-clients", "no".to_owned()),
            ("bind", "127.0.0.1".to_owned()),
        ] {
            redis.ask(&["CONFIG", "SET", key, &value]);
        }
        if redis.ask(&["CONFIG", "SET", "port", &plain]) == "OK"
            && redis.ask(&["CONFIG", "SET", "tls-port", &tls]) == "OK"
        {
            server = Some((plain, tls));
            break;
        }
    }
    let Some((plain, tls)) = server else { panic!("no port, or a Redis without TLS") };
    let at = |url: String| DnsSharedCache { url: url.parse().unwrap(), ..settings(&redis) };
    let a = Sidecar::ready(&at(format!("redis://localhost:{plain}/3")), 1).await;
    a.ask("www.example").await;
    until("it is in database 3", || redis.ask(&["-n", "3", "DBSIZE"]).parse::<u64>().unwrap() >= 2).await;
    assert!(redis.entries().is_empty());

    let trusting = DnsSharedCache { ca: Some(cert("cert.pem")), ..at(format!("rediss://localhost:{tls}/3")) };
    assert_eq!(Sidecar::ready(&trusting, 2).await.ask("www.example").await.ip, ip(1));
    let _doubting = Sidecar::new(&at(format!("rediss://localhost:{tls}/3")), 3);
    until("an unknown authority is refused", || {
        metric("qudag_sidecar_dns_shared_cache_errors_total", &["tls"]) > 0.0
    })
    .await;
}

/// A server that is none: sends `first` to whoever connects, and then `rest` for ever. How many bytes it could send.
async fn impostor(first: &'static [u8], rest: &'static [u8]) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    drop(tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let counted = Arc::clone(&counted);
            drop(tokio::spawn(async move {
                let mut command = [0; 4096];
                if stream.read(&mut command).await.is_err() || stream.write_all(first).await.is_err() {
                    return;
                }
                let mut total = 0;
                while !rest.is_empty() && stream.write_all(rest).await.is_ok() {
                    total += rest.len();
                    counted.fetch_max(total, Ordering::SeqCst);
                }
                // Open until the other side closes it.
                while stream.read(&mut command).await.is_ok_and(|length| length > 0) {}
            }));
        }
    }));
    (address, sent)
}

#[tokio::test]
async fn servers_that_talk_nonsense_cost_nothing() {
    for (first, rest) in [
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], &b""[..]),
        (b"+OK\r\n+OK\r\n+OK\r\n+OK\r\n+OK\r\n+OK\r\n", b"+OK\r\n"),
        (b"$9223372036854775807\r\n", &[b'a'; 65_536]),
        (b"*9223372036854775807\r\n", b":1\r\n:1\r\n:1\r\n:1\r\n:1\r\n:1\r\n:1\r\n:1\r\n"),
        (b"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n", b"*1\r\n*1\r\n*1\r\n*1\r\n"),
        (b"-ERR no\r\n-ERR no\r\n-ERR no\r\n-ERR no\r\n", b""),
        (b"", b""),
    ] {
        let (address, sent) = impostor(first, rest).await;
        let url = format!("redis://{address}/0").parse().unwrap();
        let nonsense = DnsSharedCache { url, timeout: Period::millis(20), ..DnsSharedCache::default() };
        let sidecar = Sidecar::new(&nonsense, 1);
        let errors = || {
            ["protocol", "closed", "server", "timeout"]
                .map(|reason| metric("qudag_sidecar_dns_shared_cache_errors_total", &[reason]))
                .iter()
                .sum::<f64>()
        };
        let before = errors();
        let longest = load(&sidecar, "a", Duration::from_millis(200)).await;
        assert!(longest < GENEROUS, "{first:?}: {longest:?}");
        until("it is given up", || errors() > before).await;
        // What the kernel holds for both sides comes on top.
        assert!(sent.load(Ordering::SeqCst) < 32 << 20, "{first:?}: {sent:?}");
    }
}
