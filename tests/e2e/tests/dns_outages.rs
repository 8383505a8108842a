//! Nobody can be asked: what was known is used (RFC 8767), the rest fails in time and with a reason (RFC 8914), and failures are
//! remembered for a moment (RFC 9520), but never preferred to an answer.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qudag_e2e::open_loop::{OpenLoop, Report};
use qudag_e2e::resolver::{ask, sidecar};
use qudag_kit::dns::hickory_proto::rr::RecordType;
use qudag_kit::dns_wire::{Ask, View, flag, rcode, rtype};
use qudag_kit::faulty_dns::address_of;
use qudag_kit::{Behaviour, FaultyDns, TestSidecar, dns, eventually};

const NAMES: u64 = 200;
const DEADLINE: Duration = Duration::from_secs(20);
/// RFC 8914 section 4.4.
const STALE: u16 = 3;

fn name(number: u64) -> String {
    format!("warm{}.test.", number % NAMES)
}

async fn look_up(door: SocketAddr, name: &str) -> View {
    View::read(&dns::exchange_udp(door, &ask(name).bytes()).await.unwrap()).unwrap()
}

struct Warm {
    servers: Vec<FaultyDns>,
    _sidecar: TestSidecar,
    door: SocketAddr,
}

/// A sidecar that knows [`NAMES`] names, each for a second.
async fn warm(servers: usize) -> Warm {
    let servers: Vec<_> = (0..servers).map(|_| FaultyDns::start()).collect();
    servers.iter().for_each(|server| server.set_ttl(1));
    let addrs: Vec<_> = servers.iter().map(FaultyDns::addr).collect();
    let (sidecar, door) = sidecar(&addrs).await;
    let report = load(door, NAMES, 0, name).await;
    assert_eq!(report.failed(), 0, "{report}");
    Warm { servers, _sidecar: sidecar, door }
}

/// Asks for names at 1,000 a second; their addresses have to be those of an epoch.
async fn load(
    door: SocketAddr,
    count: u64,
    epoch: u8,
    name: impl Fn(u64) -> String + Clone + Send + Sync + 'static,
) -> Report {
    load_at(1000, door, count, epoch, name).await
}

async fn load_at(
    rate: u32,
    door: SocketAddr,
    count: u64,
    epoch: u8,
    name: impl Fn(u64) -> String + Clone + Send + Sync + 'static,
) -> Report {
    let load = OpenLoop { server: door, rate, count, patience: dns::TIMEOUT };
    let named = name.clone();
    let right = move |number, view: &View| {
        let right = address_of(&named(number), epoch).octets();
        let stale = view.explanations().iter().any(|(code, _)| *code == STALE);
        let ttl = view.answers.iter().map(|record| record.ttl).max().unwrap_or(0);
        match view.data(rtype::A)[..] {
            [address] if address == right && (!stale || ttl <= 5) => Ok(()),
            _ => Err(format!("stale {stale}: {:?}", view.answers)),
        }
    };
    load.run(|number| ask(&name(number)), Arc::new(right)).await
}

/// Waits until the names' second is over: one of them is answered with what is stale.
async fn stale(door: SocketAddr) -> View {
    eventually(DEADLINE, "a stale answer", async || {
        let reply = look_up(door, &name(0)).await;
        reply.explanations().iter().any(|(code, _)| *code == STALE).then_some(reply)
    })
    .await
}

/// RFC 8767 sections 4 and 5, RFC 8914 section 4.4.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_every_server_down_warm_names_are_answered_stale() {
    for fault in [
        Some(Behaviour::BlackHole),
        Some(Behaviour::ServFail),
        Some(Behaviour::Refused),
        Some(Behaviour::Garbage),
        None,
    ] {
        let mut world = warm(2).await;
        match fault {
            Some(fault) => world.servers.iter().for_each(|server| server.behave(fault)),
            None => world.servers.clear(),
        }
        let reply = stale(world.door).await;
        assert_eq!(reply.rcode(), rcode::NOERROR);
        assert_eq!(reply.data(rtype::A), [address_of(&name(0), 0).octets()]);
        assert!(reply.answers[0].ttl <= 5, "a stale answer is for a short time: {reply:?}");
        let report = load(world.door, 1500, 0, name).await;
        println!("{fault:?}, warm names: {report}");
        assert_eq!(report.failed(), 0, "{fault:?}: {report}");
        // What was never known is not made up.
        let cold = look_up(world.door, "cold.test.").await;
        assert!(matches!(cold.rcode(), rcode::SERVFAIL | rcode::REFUSED), "{cold:?}");
        assert!(!cold.explanations().is_empty(), "{cold:?}");
    }
}

/// RFC 8767 section 5: as soon as somebody answers again, what is new is used.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stale_answers_end_when_a_server_is_back() {
    let world = warm(2).await;
    world.servers.iter().for_each(|server| server.behave(Behaviour::BlackHole));
    stale(world.door).await;
    for server in &world.servers {
        server.set_epoch(1);
        server.behave(Behaviour::Good);
    }
    let new = address_of(&name(0), 1).octets();
    eventually(DEADLINE, "the new address", async || {
        let reply = look_up(world.door, &name(0)).await;
        (reply.data(rtype::A) == [new] && reply.explanations().is_empty()).then_some(())
    })
    .await;
}

/// The only server comes and goes every second; every name is known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_server_may_flap_when_names_are_warm() {
    let second = Duration::from_secs(1);
    for fault in [Behaviour::Flap { period: second }, Behaviour::FlapServFail { period: second }] {
        let world = warm(1).await;
        world.servers[0].behave(fault);
        let report = load(world.door, 4000, 0, name).await;
        println!("{fault:?}, the only server, warm names: {report}");
        assert_eq!(report.failed(), 0, "{fault:?}: {report}");
    }
}

/// RFC 9520 sections 3.1 and 3.2: a failure is remembered, so that those who ask again and again do not add to the trouble, for
/// at most five minutes by the standard and five seconds here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_are_remembered_for_a_moment() {
    let world = warm(1).await;
    let server = &world.servers[0];
    server.behave(Behaviour::ServFail);
    let start = Instant::now();
    for _ in 0..200 {
        assert_eq!(look_up(world.door, "broken.test.").await.rcode(), rcode::SERVFAIL);
    }
    let asked = server.queries("broken.test.", RecordType::A);
    // One look-up a second, each of a few attempts.
    let allowed = 3 * (start.elapsed().as_secs() + 1);
    println!("200 failures in {:?}: the server was asked {asked} times", start.elapsed());
    assert!((1..=allowed).contains(&asked), "asked {asked} times in {:?}", start.elapsed());
    // The trouble is over: that is noticed within the five seconds and the sidecar's own circuit breaker.
    server.behave(Behaviour::Good);
    eventually(DEADLINE, "the failure is forgotten", async || {
        (look_up(world.door, "broken.test.").await.rcode() == rcode::NOERROR).then_some(())
    })
    .await;
}

/// The names that a bypass moves in a zone of other servers are the exception: where they led before is where they must not lead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_a_bypass_moves_is_never_stale() {
    let (server, dir) = (FaultyDns::start(), tempfile::tempdir().unwrap());
    server.set_ttl(1);
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "c2VjcmV0").unwrap();
    let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let yaml = format!(
        "listeners: {{ dns: {{ bind: \"127.0.0.1:0\" }} }}\nfilters:\n  dns:\n    dns_cache: {{ enabled: true }}\n    \
         dns_upstream: {{ servers: [\"{}\"] }}\nbypass:\n  names: [{{ name: moved.zone.test, sidecar: [192.0.2.1], node: \
         [192.0.2.2] }}]\n  update:\n    zone: zone.test\n    servers: [\"{closed}\"]\n    key: {{ name: k, secret: {{ file: {} }} }}\n",
        server.addr(),
        secret.display()
    );
    let sidecar = TestSidecar::start(&yaml).await;
    let door = sidecar.listener("dns").await;
    for name in ["moved.zone.test.", "other.zone.test."] {
        assert_eq!(look_up(door, name).await.data(rtype::A), [address_of(name, 0).octets()]);
    }
    server.behave(Behaviour::BlackHole);
    eventually(DEADLINE, "a stale answer", async || {
        let reply = look_up(door, "other.zone.test.").await;
        reply.explanations().iter().any(|(code, _)| *code == STALE).then_some(())
    })
    .await;
    assert_eq!(look_up(door, "moved.zone.test.").await.rcode(), rcode::SERVFAIL);
}

/// A failure is never given while there is an answer, stale or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_never_hides_an_answer() {
    let world = warm(1).await;
    world.servers[0].behave(Behaviour::ServFail);
    stale(world.door).await;
    for number in 0..NAMES {
        let reply = look_up(world.door, &name(number)).await;
        assert_eq!(reply.data(rtype::A), [address_of(&name(number), 0).octets()], "{reply:?}");
    }
}

/// The only server is silent every other second, which is less than a query may take: none of a thousand cold names a second fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_server_may_be_silent_for_a_second() {
    let only = FaultyDns::start();
    let (_sidecar, door) = sidecar(&[only.addr()]).await;
    only.behave(Behaviour::Flap { period: Duration::from_secs(1) });
    // After each silence there are two seconds' work to do in one, so a busy machine could not keep up with more.
    let report = load_at(400, door, 1600, 0, |number| format!("cold{number}.test.")).await;
    println!("the only server flaps, cold names: {report}, asked {} times", only.total());
    assert_eq!(report.failed(), 0, "{report}");
    // Repetitions are few: the server was asked no more than a few times for each name.
    assert!(only.total() < 5 * report.asked, "asked {} times", only.total());
}

/// RFC 8914: a client that reads explanations gets one, within its patience; without EDNS it gets the code.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_every_server_down_a_cold_name_fails_with_a_reason() {
    for (fault, codes) in [
        (Some(Behaviour::BlackHole), &[22, 23][..]),
        (Some(Behaviour::ServFail), &[0, 22, 23]),
        (Some(Behaviour::Refused), &[0, 18, 20, 22, 23]),
        (None, &[22, 23]),
    ] {
        let servers = [FaultyDns::start(), FaultyDns::start()];
        let addrs = [servers[0].addr(), servers[1].addr()];
        let (_sidecar, door) = sidecar(&addrs).await;
        match fault {
            Some(fault) => servers.iter().for_each(|server| server.behave(fault)),
            // Nobody listens there any more.
            None => drop(servers),
        }
        for number in 0..3 {
            let start = std::time::Instant::now();
            let asked = ask(&format!("cold{number}.test."));
            let reply = dns::exchange_udp(door, &asked.bytes()).await.unwrap();
            let reply = View::read(&reply).unwrap();
            println!(
                "{fault:?}: code {} {:?} after {:?}",
                reply.rcode(),
                reply.explanations(),
                start.elapsed()
            );
            assert!(matches!(reply.rcode(), rcode::SERVFAIL | rcode::REFUSED), "{reply:?}");
            let why = reply.explanations();
            assert!(why.iter().any(|(code, _)| codes.contains(code)), "{fault:?}: {why:?}");
            assert!(start.elapsed() < dns::TIMEOUT);
        }
        let reply = dns::exchange_udp(door, &Ask::new("bare.test.", rtype::A).bytes()).await.unwrap();
        let reply = View::read(&reply).unwrap();
        assert_eq!((reply.edns.is_none(), reply.answers.len(), reply.has(flag::TC)), (true, 0, false));
    }
}
