//! A hit at a glance is, byte for byte, what the service answers.

use std::net::SocketAddr;
use std::time::Duration;

use qudag_filter_api::{FilterSpec, Svc, service_fn};
use tokio::time::Instant;
use tower::ServiceExt;

use super::*;
use crate::dns_cache::DnsCache;
use crate::testing::{env, query_wire, reply_wire};
use crate::wire::{parse_query, rcode, rtype};
use crate::{DnsQuery, DnsReply, Transport};

fn upstream() -> Svc<Dns> {
    service_fn::<Dns, _, _>(|query: DnsQuery| async move {
        let records: Vec<(u16, u32, &[u8])> = vec![(rtype::A, 300, &[192, 0, 2, 1]); 40];
        let mut wire = reply_wire(query.wire(), rcode::NOERROR, &records);
        wire[3] |= 0x20;
        Ok(DnsReply::new(wire.into(), Source::Upstream("test".into())))
    })
}

fn client() -> SocketAddr {
    ([127, 0, 0, 1], 1).into()
}

/// What the quick part says to a message, and the reply.
fn look(quick: &dyn Quick<Dns>, message: &[u8], limit: usize) -> (Look, Vec<u8>, Source) {
    let parsed = parse_query(message).unwrap();
    let mut out = vec![1, 2];
    let mut glance = DnsGlance {
        message,
        parsed: &parsed,
        client: client(),
        transport: Transport::Udp,
        now: Instant::now(),
        limit,
        out: &mut out,
        source: Source::Sidecar,
    };
    let look = quick.look(&mut glance);
    let source = glance.source;
    assert_eq!(out[..2], [1, 2]);
    (look, out[2..].to_vec(), source)
}

#[tokio::test(start_paused = true)]
async fn a_hit_at_a_glance_is_what_the_service_answers() {
    let settings = DnsCache { prefetch: false, ..DnsCache::default() };
    let state = settings.state(&env(), None).unwrap();
    let quick = settings.quick(&state).unwrap();
    let service = settings.wrap(Arc::clone(&state), upstream());
    let mut hits = 0;
    for (name, edns) in [("www.example", None), ("WwW.Example", Some(4096)), ("www.EXAMPLE", Some(512))] {
        for (bits2, bits3, dnssec) in [(1, 0, false), (1, 0x10, false), (1, 0x20, true)] {
            let mut message = query_wire(name, rtype::A, edns);
            (message[2], message[3]) = (bits2, bits3);
            if dnssec && edns.is_some() {
                let at = message.len() - 4;
                message[at] |= 0x80;
            }
            for (age, limit) in [(0, 512), (7, 4096), (11, 1232)] {
                let query = DnsQuery::parse(message.clone().into(), client(), Transport::Udp).unwrap();
                let mut served = service.clone().oneshot(query.clone()).await.unwrap();
                if served.source != Source::Cache {
                    served = service.clone().oneshot(query.clone()).await.unwrap();
                    hits += 1;
                }
                hits += 1;
                tokio::time::advance(Duration::from_secs(age)).await;
                let reply = service.clone().oneshot(query.clone()).await.unwrap();
                assert!(reply.age >= served.age);
                let (look, out, source) = look(&*quick, &message, limit);
                assert!(matches!(look, Look::Answered(None)), "{look:?}");
                assert_eq!(source, Source::Cache);
                assert_eq!(out, reply.finish(&query, limit), "{name} {edns:?} {bits3:x} {age} {limit}");
            }
        }
    }
    assert!(hits > 0 && state.stats().hits > hits);
}

#[tokio::test(start_paused = true)]
async fn everything_else_waits_and_counts_nothing() {
    let settings = DnsCache { prefetch: false, ..DnsCache::default() };
    let state = settings.state(&env(), None).unwrap();
    let quick = settings.quick(&state).unwrap();
    let message = query_wire("www.example", rtype::A, None);
    let waits = |message: &[u8]| {
        let (look, out, source) = look(&*quick, message, 512);
        assert!(matches!(look, Look::Wait) && out.is_empty() && source == Source::Sidecar);
    };
    waits(&message);
    let query = DnsQuery::parse(message.clone().into(), client(), Transport::Udp).unwrap();
    settings.wrap(Arc::clone(&state), upstream()).oneshot(query).await.unwrap();
    let mut without_rd = message.clone();
    without_rd[2] = 0;
    waits(&without_rd);
    waits(&query_wire("www.example", rtype::ANY, None));
    tokio::time::advance(Duration::from_secs(240)).await;
    // Its time is over; the service decides whether it may be served all the same.
    waits(&message);
    let stats = state.stats();
    assert_eq!((stats.hits, stats.misses, stats.expired), (0, 1, 0));
}

/// The processor time of this thread in nanoseconds; the machine may be busy with other things.
fn cpu_time() -> usize {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse().unwrap()
}

/// What a hit costs. Prints; run in release.
#[tokio::test]
#[ignore = "a measurement"]
async fn measure_hits() {
    let settings = DnsCache::default();
    let state = settings.state(&env(), None).unwrap();
    let quick = settings.quick(&state).unwrap();
    let one = service_fn::<Dns, _, _>(|query: DnsQuery| async move {
        let wire = reply_wire(query.wire(), rcode::NOERROR, &[(rtype::A, 3600, &[192, 0, 2, 1])]);
        Ok(DnsReply::new(wire.into(), Source::Upstream("test".into())))
    });
    let service = settings.wrap(Arc::clone(&state), one);
    for names in [1_usize, 1_000, 10_000] {
        let messages: Vec<_> =
            (0..names).map(|i| query_wire(&format!("name{i}.example.com"), rtype::A, Some(1232))).collect();
        for message in &messages {
            let query = DnsQuery::parse(message.clone().into(), client(), Transport::Udp).unwrap();
            service.clone().oneshot(query).await.unwrap();
        }
        let mut out = Vec::with_capacity(4096);
        let mut buffer = Vec::with_capacity(512);
        let now = Instant::now();
        let mut run = |rounds: usize, looks: bool| {
            let start = cpu_time();
            for i in 0..rounds {
                // In no order that a prefetcher knows; read as a listener does, which is then taken off again.
                buffer.clear();
                buffer.extend_from_slice(&messages[i * 7_919 % names]);
                let parsed = parse_query(&buffer).unwrap();
                out.clear();
                let mut glance = DnsGlance {
                    message: &buffer,
                    parsed: &parsed,
                    client: client(),
                    transport: Transport::Udp,
                    now,
                    limit: 1232,
                    out: &mut out,
                    source: Source::Sidecar,
                };
                if looks {
                    assert!(matches!(quick.look(&mut glance), Look::Answered(None)));
                }
                std::hint::black_box(&glance);
            }
            (cpu_time() - start) / rounds
        };
        run(200_000, true);
        let mut times: Vec<_> =
            (0..9).map(|_| run(500_000, true).saturating_sub(run(500_000, false))).collect();
        times.sort_unstable();
        println!("{names} names: {} ns a hit, median of 9; best {} ns", times[4], times[0]);
    }
}
