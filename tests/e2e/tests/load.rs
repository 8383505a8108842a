//! A thousand reloads and a thousand toggles under load of every kind.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::net::IpAddr;
use std::time::{Duration, Instant};

use qudag_e2e::loads::Loads;
use qudag_e2e::world::Doors;
use qudag_e2e::{Filters, World, rounds};
use qudag_kit::dns::{self, hickory_proto::rr::RecordType};
use qudag_kit::{TestSidecar, needs_node, needs_program};

async fn warm(doors: &Doors) {
    dns::ask(doors.dns, "kept.test.", RecordType::A).await.unwrap();
}

/// A sidecar with every filter on and a warm cache, under load of every kind.
struct UnderLoad {
    world: World,
    sidecar: TestSidecar,
    doors: Doors,
    start: Instant,
    loads: Loads,
}

impl UnderLoad {
    async fn start() -> Self {
        let world = World::start().await;
        let sidecar = world.sidecar(&Filters::all()).await;
        let doors = Doors::of(&sidecar).await;
        let start = Instant::now();
        warm(&doors).await;
        let loads = Loads::start(&doors);
        loads.under_way().await;
        Self { world, sidecar, doors, start, loads }
    }
}

/// The name with a TTL of 300 s may be asked for upstream once in that time, and no more often.
fn assert_cache_kept(world: &World, start: Instant) {
    let allowed = 1 + start.elapsed().as_secs() as usize / 300;
    let asked = world.unbound.queries("kept.test.");
    assert!(asked <= allowed, "kept.test was asked for upstream {asked} times, {allowed} allowed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reloads_under_load_drop_nothing() {
    needs_node!();
    needs_program!("unbound");
    let UnderLoad { world, sidecar, start, loads, .. } = UnderLoad::start().await;
    let first = sidecar.generation().await;
    let mut slowest = Duration::ZERO;
    for round in 0..rounds() {
        let ttl = if round % 2 == 0 { 299 } else { 300 };
        let asked = Instant::now();
        sidecar.reload_with(&world.yaml(&Filters::all().max_ttl(ttl))).await.ok();
        slowest = slowest.max(asked.elapsed());
    }
    println!("{} reloads in {:?}, slowest {slowest:?}", rounds(), start.elapsed());
    loads.stop_clean().await;
    assert!(sidecar.generation().await >= first + rounds() as u64, "a reload was lost");
    assert_cache_kept(&world, start);
    assert_small(&sidecar).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn toggles_under_load_drop_nothing() {
    needs_node!();
    needs_program!("unbound");
    let UnderLoad { world, sidecar, doors, start, loads } = UnderLoad::start().await;
    // The load asks for names all the time, so the cache is left on; the others take turns.
    let others = [
        "dns.rate_limit",
        "peer.peer_discovery",
        "peer.route_table",
        "peer.circuit_breaker",
        "peer.memory_pooling",
        "peer.retry",
        "rpc.rate_limit",
        "rpc.circuit_breaker",
        "rpc.retry",
        "http.rate_limit",
        "http.circuit_breaker",
        "http.retry",
        "http.connection_pooling",
    ];
    let mut effects = Vec::new();
    for round in 0..rounds() {
        if round % 2 == 0 {
            let on = round % 4 == 2;
            effects.push(toggle_hosts(&sidecar, &doors, on).await);
        } else {
            let at = round / 2;
            sidecar.toggle(others[at % others.len()], (at / others.len()) % 2 == 1).await;
        }
    }
    effects.sort();
    let at = |share: f64| effects[((effects.len() - 1) as f64 * share) as usize];
    println!(
        "{} toggles in {:?}; toggle to effect p50 {:?}, p99 {:?}, slowest {:?}",
        rounds(),
        start.elapsed(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
    loads.stop_clean().await;
    assert_cache_kept(&world, start);
    assert_small(&sidecar).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cache_survives_being_off() {
    needs_node!();
    needs_program!("unbound");
    let world = World::start().await;
    let sidecar = world.sidecar(&Filters::all()).await;
    let doors = Doors::of(&sidecar).await;
    warm(&doors).await;
    for _ in 0..10 {
        sidecar.toggle("dns_cache", false).await;
        sidecar.toggle("dns_cache", true).await;
    }
    warm(&doors).await;
    assert_eq!(world.unbound.queries("kept.test."), 1);
}

/// Toggles the hosts file and asks for a name in it until the answer has changed; how long that took.
async fn toggle_hosts(sidecar: &TestSidecar, doors: &Doors, on: bool) -> Duration {
    let wanted: IpAddr = if on { "192.0.2.50" } else { "192.0.2.99" }.parse().unwrap();
    let start = Instant::now();
    let toggled = sidecar.toggle("dns.hosts", on);
    let seen = async {
        loop {
            let answer = dns::ask(doors.dns, "pinned.test.", RecordType::A).await.unwrap();
            if dns::addresses(&answer) == [wanted] {
                return start.elapsed();
            }
            assert!(start.elapsed() < Duration::from_secs(10), "hosts={on} has no effect: {answer:?}");
        }
    };
    tokio::join!(toggled, seen).1
}

/// Old generations are gone, and neither memory nor descriptors pile up.
async fn assert_small(sidecar: &TestSidecar) {
    let gone = async || (sidecar.status().await["draining_generations"] == 0).then_some(());
    qudag_kit::eventually(Duration::from_secs(40), "old generations are gone", gone).await;
    let memory = sidecar.metric("process_resident_memory_bytes", &[]).await;
    let files = sidecar.metric("process_open_fds", &[]).await;
    println!("{:.1} MB resident, {files} open files", memory / 1e6);
    assert!(files < 200.0, "{files} open files");
    assert!(memory < 300e6, "{memory} bytes resident");
}
