//! Servers that fail under load.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use qudag_filter_dns::{DnsQuery, Trace, Transport};
use tower::ServiceExt;

use crate::support::{Does, Server, Sidecar, addresses, extended_error, query, until, with_edns};

/// The default settings but for these keys.
fn settings(servers: &[&Server], more: &str) -> String {
    let servers: Vec<_> = servers.iter().map(|server| server.addr.to_string()).collect();
    format!(r#"{{"dns_upstream": {{"servers": {servers:?}{more}}}}}"#)
}

/// How many queries are under way at once: few enough for a machine that is busy with other things.
const AT_ONCE: usize = 32;
/// A query's time: long enough for such a machine.
const PATIENT: &str = r#", "timeout": "8s""#;

/// Asks for so many names straight through the chain, not faster than one at a time each. Returns how many had no answer.
async fn load(sidecar: &Sidecar, count: usize, every: Duration) -> usize {
    let mut failed = 0;
    let mut asks = FuturesUnordered::new();
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut asked = 0;
    while asked < count || !asks.is_empty() {
        tokio::select! {
            _ = tick.tick(), if asked < count && asks.len() < AT_ONCE => {
                let wire = query(&format!("name{asked}.example."), RecordType::A).to_vec().unwrap();
                let ask = DnsQuery::parse(wire.into(), ([127, 0, 0, 1], 1).into(), Transport::Udp).unwrap();
                let chain = sidecar.chain();
                asked += 1;
                asks.push(tokio::spawn(async move {
                    let reply = chain.oneshot(ask).await;
                    reply.is_ok_and(|reply| reply.rcode() == 0 && reply.wire[7] == 1)
                }));
            }
            Some(ended) = asks.next(), if !asks.is_empty() => {
                failed += usize::from(!ended.unwrap());
            }
        }
    }
    failed
}

#[tokio::test]
async fn one_bad_server_of_two_fails_no_query_and_slows_few() {
    for does in [
        Does::Code(ResponseCode::ServFail),
        Does::Code(ResponseCode::Refused),
        Does::Code(ResponseCode::FormErr),
        Does::Nothing,
        Does::Lossy(70),
        Does::WrongId,
        Does::WrongName,
        Does::LowerCase,
        Does::TruncatedAlways,
        Does::HalfReply,
        Does::Forged,
    ] {
        for bad_first in [true, false] {
            let (bad, good) = (Server::start(does).await, Server::start(Does::Answer(1)).await);
            let order = if bad_first { [&bad, &good] } else { [&good, &bad] };
            let sidecar = Sidecar::with(&settings(&order, PATIENT)).await;
            assert_eq!(load(&sidecar, 300, Duration::from_millis(2)).await, 0, "{does:?} first: {bad_first}");
            // Others answer most queries, or all of them.
            let well = matches!(does, Does::Lossy(_) | Does::LowerCase | Does::Forged);
            let asked = bad.names().iter().filter(|name| *name != ".").count();
            assert!(well || asked < 200, "{does:?} first: {bad_first}: asked {asked} times");
        }
    }
}

#[tokio::test]
async fn losses_everywhere_fail_next_to_nothing() {
    let servers = (Server::start(Does::Lossy(70)).await, Server::start(Does::Lossy(70)).await);
    let sidecar = Sidecar::with(&settings(&[&servers.0, &servers.1], PATIENT)).await;
    assert_eq!(load(&sidecar, 1000, Duration::from_millis(2)).await, 0);
    let alone = Sidecar::with(&settings(&[&servers.0], PATIENT)).await;
    assert_eq!(load(&alone, 300, Duration::from_millis(2)).await, 0, "one server that loses three of ten");
}

#[tokio::test]
async fn a_server_that_flaps_fails_no_query() {
    for period in [200, 1000] {
        let flapping = Server::start(Does::Flapping(Duration::from_millis(period))).await;
        let good = Server::start(Does::Answer(1)).await;
        let sidecar = Sidecar::with(&settings(&[&flapping, &good], PATIENT)).await;
        assert_eq!(load(&sidecar, 1500, Duration::from_millis(2)).await, 0, "every {period} ms");
    }
}

#[tokio::test]
async fn a_server_that_is_back_is_used_again() {
    let (first, second) = (Server::start(Does::Nothing).await, Server::start(Does::Answer(1)).await);
    // Patient with the good one, so that nobody has to ask the bad one for want of a better one.
    let more = r#", "probe": {"interval": "200ms"}, "attempt_timeout": "1500ms", "timeout": "8s""#;
    let sidecar = Sidecar::with(&settings(&[&first, &second], more)).await;
    load(&sidecar, 20, Duration::from_millis(2)).await;
    let breaker = |sidecar: &Sidecar| sidecar.servers()[0].breaker;
    until("its breaker opens", || breaker(&sidecar) == "open").await;
    assert!(!sidecar.servers()[0].healthy);
    // Left alone: only probes are sent to it.
    let names = first.names().len();
    assert_eq!(load(&sidecar, 50, Duration::from_millis(1)).await, 0);
    assert!(first.names()[names..].iter().all(|name| name == "."));
    first.now(Does::Answer(1));
    until("its breaker closes", || breaker(&sidecar) == "closed").await;
    let asked = || first.names().iter().filter(|name| *name != ".").count();
    let (before, deadline) = (asked(), Instant::now() + Duration::from_secs(10));
    while asked() == before {
        assert!(Instant::now() < deadline, "it is asked first again");
        assert_eq!(load(&sidecar, 5, Duration::from_millis(1)).await, 0);
    }
}

#[tokio::test]
async fn what_probes_ask_and_when_a_breaker_opens_is_configured() {
    let server = Server::start(Does::Answer(1)).await;
    let more = r#", "probe": {"name": "probe.example", "type": "TXT", "interval": "100ms"},
        "breaker": {"failures": 1, "successes": 1}, "attempt_timeout": "100ms""#;
    let sidecar = Sidecar::with(&settings(&[&server], more)).await;
    until("it is probed although nobody asks", || server.asked().0 > 0).await;
    let question = server.last().queries[0].clone();
    assert_eq!(
        (question.name().to_ascii().to_lowercase().as_str(), question.query_type()),
        ("probe.example.", RecordType::TXT)
    );
    server.now(Does::Nothing);
    let state = || (sidecar.servers()[0].breaker, sidecar.servers()[0].healthy);
    until("one failure opens it", || state() == ("open", false)).await;
    server.now(Does::Answer(1));
    until("one success closes it", || state() == ("closed", true)).await;
}

#[tokio::test]
async fn names_are_sent_in_random_case_until_a_server_does_not_repeat_it() {
    let server = Server::start(Does::Answer(1)).await;
    let long = format!("{}.example.", "a".repeat(60));
    let ask = query(&long, RecordType::A);
    let sidecar = Sidecar::with(&settings(&[&server], "")).await;
    assert_eq!(addresses(&sidecar.udp(&ask).await).len(), 1);
    let sent = |server: &Server| server.names().into_iter().rfind(|name| name != ".").unwrap();
    assert_ne!(sent(&server), long);
    assert!(sent(&server).eq_ignore_ascii_case(&long));

    // It is asked over TCP, where nobody else can answer, and from then on in lower case.
    let lower = Server::start(Does::LowerCase).await;
    sidecar.refilter(&settings(&[&lower], ""));
    assert_eq!(addresses(&sidecar.udp(&ask).await).len(), 1);
    assert!(lower.asked().1 > 0);
    assert!(!sidecar.servers()[0].repeats_case);
    assert_eq!(addresses(&sidecar.udp(&ask).await).len(), 1);
    assert_eq!(sent(&lower), long);

    sidecar.refilter(&settings(&[&server], r#", "case_randomization": false"#));
    assert_eq!(addresses(&sidecar.udp(&ask).await).len(), 1);
    assert_eq!(sent(&server), long);
}

#[tokio::test]
async fn a_forged_reply_is_never_believed() {
    let server = Server::start(Does::Forged).await;
    let sidecar = Sidecar::with(&settings(&[&server], "")).await;
    for _ in 0..50 {
        // The forged ones have nine addresses.
        let reply = sidecar.udp(&query("www.example.", RecordType::A)).await;
        assert_eq!(addresses(&reply).len(), 1);
    }
}

#[tokio::test]
async fn the_other_lists_are_asked_when_the_first_is_of_no_use() {
    let (first, second) = (Server::start(Does::Answer(1)).await, Server::start(Does::Answer(1)).await);
    let (third, probes) = (Server::start(Does::Answer(1)).await, r#""probe": {"interval": "1h"}"#);
    let lists = format!(
        r#", "alternative": ["{}"], "direct": ["{}"], "attempt_timeout": "200ms", "timeout": "9s", {probes}"#,
        second.addr, third.addr
    );
    let sidecar = Sidecar::with(&settings(&[&first], &lists)).await;
    let works = async || {
        let reply = sidecar.udp(&query("www.example.", RecordType::A)).await;
        assert_eq!(addresses(&reply).len(), 1);
    };
    let asked = || (first.asked().0, second.asked().0, third.asked().0);
    works().await;
    assert_eq!(asked(), (1, 0, 0));
    // An error is a reason at once.
    first.now(Does::Code(ResponseCode::ServFail));
    works().await;
    assert_eq!(asked(), (2, 1, 0));
    second.now(Does::Code(ResponseCode::ServFail));
    works().await;
    assert_eq!(asked(), (3, 2, 1));
    // Silence is one after its time, until it is known.
    first.now(Does::Nothing);
    second.now(Does::Answer(1));
    let start = Instant::now();
    works().await;
    assert!(start.elapsed() >= Duration::from_millis(200));
    until("the first is left alone", || {
        let status = sidecar.servers();
        status.iter().map(|server| server.list).collect::<Vec<_>>() == ["servers", "alternative", "direct"]
            && !status[0].healthy
    })
    .await;
}

#[tokio::test]
async fn servers_are_exchanged_under_load_without_a_failure() {
    let servers = [
        Server::start(Does::Answer(1)).await,
        Server::start(Does::Answer(1)).await,
        Server::start(Does::Answer(1)).await,
    ];
    let sidecar = Sidecar::with(&settings(&[&servers[0]], PATIENT)).await;
    let edits = async {
        for i in 1..60 {
            let (one, two) = (&servers[i % 3], &servers[(i + 1) % 3]);
            let hedge = format!(r#", "hedge": {{"min": "{}ms"}}{PATIENT}"#, 20 + i % 5);
            let tcp = format!(
                r#"{{"dns_upstream": {{"servers": ["tcp://{}", "{}"]{PATIENT}}}}}"#,
                one.addr, two.addr
            );
            sidecar.refilter(&if i % 2 == 0 { settings(&[one, two], &hedge) } else { tcp });
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (failed, ()) = tokio::join!(load(&sidecar, 600, Duration::from_millis(2)), edits);
    assert_eq!(failed, 0);
    assert!(servers.iter().all(|server| server.asked().0 > 0 && server.asked().1 > 0));
}

#[tokio::test]
async fn what_is_too_much_for_the_servers_waits_or_fails_at_once() {
    let server = Server::start(Does::Nothing).await;
    let sidecar =
        Sidecar::with(&settings(&[&server], r#", "max_in_flight": 1, "max_queued": 1, "timeout": "800ms""#))
            .await;
    let ask = with_edns(query("www.example.", RecordType::A), 1232);
    let timed = async || {
        let start = Instant::now();
        let reply = sidecar.udp(&ask).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
        (extended_error(&reply), start.elapsed())
    };
    let all = tokio::join!(timed(), timed(), timed());
    let mut all = [all.0, all.1, all.2];
    all.sort_by_key(|(_, took)| *took);
    assert_eq!(all.map(|(code, _)| code), [Some(0), Some(22), Some(22)]);
    assert!(all[0].1 < Duration::from_millis(700) && all[1].1 >= Duration::from_millis(700), "{all:?}");
}

#[tokio::test]
async fn a_server_with_its_hands_full_is_passed_over() {
    let (full, free) = (Server::start(Does::Nothing).await, Server::start(Does::Answer(1)).await);
    let more = r#", "max_in_flight_per_server": 1, "hedge": {"min": "300ms", "max": "300ms"}, "probe": {"interval": "1h"}"#;
    let sidecar = Sidecar::with(&settings(&[&full, &free], more)).await;
    let ask = query("www.example.", RecordType::A);
    let start = Instant::now();
    let second = async {
        until("the first one is asked", || full.asked().0 == 1).await;
        assert_eq!(addresses(&sidecar.udp(&ask).await).len(), 1);
        start.elapsed()
    };
    let (_, took) = tokio::join!(sidecar.udp(&ask), second);
    assert!(took < Duration::from_millis(300), "{took:?}");
}

#[tokio::test]
async fn a_query_can_tell_its_way() {
    let bad = Server::start(Does::Code(ResponseCode::Refused)).await;
    let good = Server::start(Does::Answer(1)).await;
    let sidecar = Sidecar::with(&settings(&[&bad, &good], "")).await;
    let wire = query("www.example.", RecordType::A).to_vec().unwrap();
    let trace = Trace::default();
    let ask = DnsQuery::parse(wire.into(), ([127, 0, 0, 1], 1).into(), Transport::Udp).unwrap();
    sidecar.chain().oneshot(ask.traced(trace.clone())).await.unwrap();
    let steps: Vec<_> = trace.steps().into_iter().map(|step| step.what).collect();
    let told = |what: &str| steps.iter().any(|step| step.contains(what));
    assert!(told(&format!("asking {}, of servers (first)", bad.addr)), "{steps:?}");
    assert!(told(&format!("{}: REFUSED", bad.addr)), "{steps:?}");
    assert!(told(&format!("asking {}, of servers (the one before failed)", good.addr)), "{steps:?}");
    assert!(told(&format!("{} answered after", good.addr)), "{steps:?}");
}
