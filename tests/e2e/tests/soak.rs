//! A minute of look-ups with trouble all the time, and hours of it under `tests/run --soak`: nothing grows, nothing fails.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use qudag_e2e::open_loop::look_up;
use qudag_e2e::questions::Dice;
use qudag_e2e::soak::{Meter, Soak, Strictness};
use qudag_e2e::soak_time;
use qudag_kit::dns_wire::{Ask, Edns, View, rtype};
use qudag_kit::faulty_dns::{address_of, address_v6_of};
use qudag_kit::{Behaviour, FaultyDns, Pipe, TestSidecar, dns};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// Look-ups a second by UDP; one in fifty more goes by TCP.
const RATE: u32 = 400;
/// How many names there are. Some are asked for all the time, most now and then.
const NAMES: u64 = 5_000;
const SHORT: Duration = Duration::from_secs(75);

fn folder() -> PathBuf {
    std::env::var_os("QUDAG_SOAK_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from)
}

/// A question, and whether a reply is right.
fn any_question(dice: &mut Dice) -> (Ask, impl Fn(&View) -> Result<(), String> + Send + use<>) {
    // Squared, so that a hundredth of the names gets a tenth of the questions.
    let number = dice.below(NAMES) * dice.below(NAMES) / NAMES;
    let (name, record_type) = match number % 16 {
        0 => (format!("nx-{number}.test."), rtype::A),
        1 => (format!("nodata-{number}.test."), rtype::AAAA),
        2 => (format!("many30-{number}.test."), rtype::A),
        3 => (format!("chain8-{number}.test."), rtype::A),
        4 => (format!("n{number}.test."), rtype::TXT),
        5..=7 => (format!("n{number}.test."), rtype::AAAA),
        _ => (format!("n{number}.test."), rtype::A),
    };
    let mut ask = Ask::new(&name, record_type);
    if number.is_multiple_of(2) {
        ask = ask.edns(Edns::size(1232));
    }
    let right = move |view: &View| {
        let right = match number % 16 {
            0 => view.rcode() == 3,
            1 => view.rcode() == 0 && view.answers.is_empty(),
            // 30 addresses fit into 512 bytes just so, eight aliases too.
            2 => view.data(rtype::A).len() == 30 || view.has(qudag_kit::dns_wire::flag::TC),
            3 => view.data(rtype::CNAME).len() == 8,
            4 => view.data(rtype::TXT) == [b"\x04text"],
            5..=7 => view.data(rtype::AAAA) == [address_v6_of(&name, 0).octets()],
            _ => view.data(rtype::A) == [address_of(&name, 0).octets()],
        };
        let old = view.answers.iter().any(|record| record.ttl > 300);
        if right && !old { Ok(()) } else { Err(format!("{name}: {view:?}")) }
    };
    (ask, right)
}

/// Look-ups by UDP at a steady rate, whether or not earlier ones were answered.
async fn names(door: SocketAddr, meter: Arc<Meter>) {
    let mut dice = Dice::new(1);
    let mut pipes = Vec::new();
    for _ in 0..4 {
        pipes.push(Arc::new(Pipe::to(door).await));
    }
    let mut running = JoinSet::new();
    let start = Instant::now();
    for number in 0_u64.. {
        let due = start + Duration::from_secs_f64(number as f64 / f64::from(RATE));
        tokio::time::sleep_until(due).await;
        let (pipe, meter) = (Arc::clone(&pipes[number as usize % pipes.len()]), Arc::clone(&meter));
        let (ask, right) = any_question(&mut dice);
        running.spawn(async move {
            let (result, took) = look_up(&pipe, &ask, due, dns::TIMEOUT, right).await;
            meter.note(result, took.unwrap_or(dns::TIMEOUT));
        });
        while let Some(ended) = running.try_join_next() {
            ended.unwrap();
        }
    }
}

/// Look-ups by TCP, each on a connection of its own.
async fn names_by_tcp(door: SocketAddr, meter: Arc<Meter>) {
    let mut dice = Dice::new(2);
    let mut pace = tokio::time::interval(Duration::from_secs(1) / (RATE / 50));
    loop {
        let due = pace.tick().await;
        let (ask, right) = any_question(&mut dice);
        let reply = dns::exchange_tcp(door, &ask.bytes()).await;
        let result = reply.and_then(|reply| View::read(&reply)).and_then(|view| right(&view));
        meter.note(result, due.elapsed());
    }
}

/// One server after the other is in trouble, never both.
async fn faults(servers: &[FaultyDns; 2]) {
    let second = Duration::from_secs(1);
    let all = [
        Behaviour::ServFail,
        Behaviour::Refused,
        Behaviour::FormErr,
        Behaviour::BlackHole,
        Behaviour::Loss(30),
        Behaviour::Flap { period: second },
        Behaviour::Delay(Duration::from_millis(80)),
        Behaviour::Truncate,
        Behaviour::WrongId,
        Behaviour::Garbage,
    ];
    for (number, fault) in all.iter().enumerate().cycle() {
        let server = &servers[number % 2];
        server.behave(*fault);
        sleep(2 * second).await;
        server.behave(Behaviour::Good);
        server.drop_connections();
        sleep(second).await;
    }
}

async fn flushes(sidecar: &TestSidecar) {
    for number in 0_u64.. {
        sleep(Duration::from_millis(700)).await;
        let what = match number % 8 {
            0 => json!({}),
            1..=3 => json!({ "name": format!("n{}.test", number * 7 % NAMES) }),
            4..=5 => json!({ "suffix": format!("n{}.test", number * 11 % NAMES) }),
            _ => json!({ "type": "AAAA" }),
        };
        sidecar.post("/cache/flush", what).await;
    }
}

async fn toggles(sidecar: &TestSidecar) {
    for filter in ["dns.hosts", "dns.rate_limit", "dns.dns_cache"].iter().cycle() {
        for on in [false, true] {
            sleep(Duration::from_millis(900)).await;
            sidecar.toggle(filter, on).await;
        }
    }
}

async fn reloads(sidecar: &TestSidecar, yaml: impl Fn(u64) -> String) {
    for number in 0.. {
        sleep(Duration::from_millis(1100)).await;
        sidecar.reload_with(&yaml(number)).await.ok();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn look_ups_go_on_through_trouble_of_every_kind() {
    let servers = [FaultyDns::start(), FaultyDns::start()];
    servers.iter().for_each(|server| server.set_ttl(20));
    let dir = tempfile::tempdir().unwrap();
    let hosts = dir.path().join("hosts");
    std::fs::write(&hosts, "192.0.2.50 pinned.test\n").unwrap();
    let [one, two] = [servers[0].addr(), servers[1].addr()];
    let yaml = |number: u64| {
        format!(
            "listeners: {{ dns: {{ bind: \"127.0.0.1:0\" }} }}\nfilters:\n  dns:\n    hosts: {{ enabled: true, file: \
             \"{}\" }}\n    rate_limit: {{ enabled: true, per_client: {{ rate: {}, burst: 1000000 }} }}\n    dns_cache: {{ \
             enabled: true, max_ttl: {}s, max_size: {}MiB }}\n    dns_upstream: {{ servers: [\"{one}\", \"{two}\"], timeout: \
             {}ms }}\n",
            hosts.display(),
            999_999 + number % 2,
            299 + number % 2,
            if number % 30 < 15 { 4 } else { 3 },
            1500 + number % 3,
        )
    };
    let sidecar = TestSidecar::start(&yaml(0)).await;
    let door = sidecar.listener("dns").await;
    let mut soak = Soak::of(sidecar.pid());
    let mut loads = JoinSet::new();
    loads.spawn(names(door, soak.meter("dns")));
    loads.spawn(names_by_tcp(door, soak.meter("dns by TCP")));
    let (duration, strictness, name) = match soak_time() {
        Some(duration) => (duration, Strictness::Full, "soak"),
        None => (SHORT, Strictness::Short, "soak-short"),
    };
    let trouble = async {
        tokio::join!(faults(&servers), flushes(&sidecar), toggles(&sidecar), reloads(&sidecar, yaml));
    };
    let outcome = Box::pin(soak.run(duration, trouble)).await;
    assert!(loads.try_join_next().is_none(), "a load ended");
    loads.abort_all();
    outcome.write(&folder(), name);
    let generation = sidecar.generation().await;
    println!("soak: {duration:?}, generation {generation}");
    outcome.judge(strictness);
    let gone = async || (sidecar.status().await["draining_generations"] == 0).then_some(());
    qudag_kit::eventually(Duration::from_secs(40), "old generations are gone", gone).await;
}
