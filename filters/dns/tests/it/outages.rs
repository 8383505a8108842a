//! The only server is gone for a moment, while queries come at a steady rate, whether or not earlier ones were answered.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use qudag_filter_dns::{DnsQuery, Transport};
use tokio::task::JoinSet;
use tower::ServiceExt;

use crate::support::{Does, Server, Sidecar, addresses, extended_error, query, until, with_edns};

fn settings(server: &Server, more: &str) -> String {
    format!(r#"{{"dns_upstream": {{"servers": ["{}"]{more}}}}}"#, server.addr)
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Asks for so many names straight through the chain, one each time, and returns why those failed that did.
async fn load(sidecar: &Sidecar, count: u32, every: Duration) -> Vec<String> {
    let mut asks = JoinSet::new();
    let start = tokio::time::Instant::now();
    for number in 0..count {
        tokio::time::sleep_until(start + every * number).await;
        let wire = query(&format!("name{number}.example."), RecordType::A).to_vec().unwrap();
        let ask = DnsQuery::parse(wire.into(), ([127, 0, 0, 1], 1).into(), Transport::Udp).unwrap();
        let chain = sidecar.chain();
        asks.spawn(async move {
            match chain.oneshot(ask).await {
                Ok(reply) if reply.rcode() == 0 && reply.wire[7] == 1 => None,
                Ok(reply) => Some(format!("code {}", reply.rcode())),
                Err(why) => Some(why.to_string()),
            }
        });
    }
    asks.join_all().await.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_server_may_be_silent_for_a_second() {
    let server = Server::start(Does::Flapping(ms(1000))).await;
    // Less time than two silences, more than one, and few places: most queries of a silence have to wait for one.
    let sidecar =
        Sidecar::with(&settings(&server, r#", "timeout": "1800ms", "max_in_flight_per_server": 64"#)).await;
    let failed = load(&sidecar, 1500, ms(2)).await;
    assert!(failed.is_empty(), "{} failed: {:?}", failed.len(), &failed[..1]);
    let asked = server.names().iter().filter(|name| *name != ".").count();
    assert!(asked < 1500 * 4, "asked {asked} times");
    assert_eq!(sidecar.servers()[0].in_flight, 0, "every place was given back");
}

#[tokio::test]
async fn an_open_breaker_of_the_only_server_fails_no_query() {
    let server = Server::start(Does::Nothing).await;
    let more = r#", "attempt_timeout": "100ms", "timeout": "4s", "probe": {"interval": "1h"}"#;
    let sidecar = Sidecar::with(&settings(&server, more)).await;
    let ask = query("www.example.", RecordType::A);
    let mut asks: Vec<_> = (0..3).map(|_| Box::pin(sidecar.udp(&ask))).collect();
    let failing = futures_util::future::join_all(&mut asks);
    let open = until("its breaker opens", || sidecar.servers()[0].breaker == "open");
    let (_, ()) = tokio::join!(failing, open);
    let asked = server.asked().0;
    let back = async {
        until("it is asked, and asked again", || server.asked().0 >= asked + 3).await;
        server.now(Does::Answer(1));
    };
    let (reply, ()) = tokio::join!(sidecar.udp(&ask), back);
    assert_eq!(addresses(&reply).len(), 1);
}

#[tokio::test]
async fn one_query_asks_a_silent_server_a_few_times_from_a_few_ports() {
    let server = Server::start(Does::Nothing).await;
    let sidecar = Sidecar::with(&settings(&server, r#", "probe": {"interval": "1h"}"#)).await;
    let start = Instant::now();
    let reply = sidecar.udp(&with_edns(query("www.example.", RecordType::A), 1232)).await;
    let took = start.elapsed();
    assert_eq!((reply.metadata.response_code, extended_error(&reply)), (ResponseCode::ServFail, Some(22)));
    assert!(took >= ms(1400), "not before its time is over: {took:?}");
    let ids = server.ids();
    assert!((6..=17).contains(&ids.len()), "asked {} times", ids.len());
    let distinct: HashSet<_> = ids.iter().collect();
    assert!((2..=3).contains(&distinct.len()), "{ids:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_finds_no_place_waits_for_one_and_those_beyond_fail_at_once() {
    let server = Server::start(Does::Late(ms(30))).await;
    let more = r#", "max_in_flight_per_server": 4, "max_queued": 40, "timeout": "8s"}, "dns_cache": {"enabled": false"#;
    let sidecar = Sidecar::with(&settings(&server, more)).await;
    let most = AtomicUsize::new(0);
    let watch = until("all are answered", || {
        let status = &sidecar.servers()[0];
        most.fetch_max(status.in_flight, Relaxed);
        status.answers >= 44
    });
    let (failed, ()) = tokio::join!(load(&sidecar, 44, Duration::ZERO), watch);
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!(most.into_inner(), 4);
    // One place, one who waits.
    server.now(Does::Nothing);
    let more = r#", "max_in_flight_per_server": 1, "max_queued": 1, "timeout": "1s""#;
    sidecar.refilter(&settings(&server, more));
    let failed = load(&sidecar, 10, Duration::ZERO).await;
    let overloaded = failed.iter().filter(|why| why.contains("too many queries")).count();
    assert_eq!((failed.len(), overloaded), (10, 8), "{failed:?}");
}
