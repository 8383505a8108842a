//! What becomes of streams when a sidecar, or the way between two of them, fails. Each test says how many may be lost.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::time::{Duration, Instant};

use qudag_e2e::tunnels::{DIRECT, DOOR, Pair, TUNNEL, connect, echo, greeted, pause};
use qudag_kit::eventually;
use qudag_wan::needs_wan;
use tokio::io::AsyncReadExt;
use tokio::time::{sleep, timeout};

const STEADY: usize = 10;
const ROWS: usize = 2;
const LINK: &str = "delay=10ms";
const SECOND: Duration = Duration::from_secs(1);

/// Of all that were made, but for those that succeeded.
async fn failed_dials(pair: &Pair) -> f64 {
    let all = pair.metric("qudag_sidecar_peer_dials_total", &[]).await;
    all - pair.metric("qudag_sidecar_peer_dials_total", &[("outcome", "ok")]).await
}

async fn is_open(pair: &Pair) -> Option<()> {
    (pair.pool().await["breaker"] != "closed").then_some(())
}

/// Lost: the streams that the killed process carried, and nothing that comes after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_peer_costs_its_streams_and_no_other() {
    needs_wan!();
    let mut pair = Pair::start(LINK).await;
    pair.up().await;
    let load = pair.under_load(STEADY, ROWS).await;
    load.goes(TUNNEL, Instant::now()).await;
    let killed = Instant::now();
    pair.b.kill();
    let direct = load.goes(DIRECT, killed).await;
    let open = async {
        eventually(10 * SECOND, "the breaker is open", async || is_open(&pair).await).await;
        killed.elapsed()
    };
    let lost = async {
        let all = async || (load.lost() == STEADY).then_some(());
        eventually(20 * SECOND, "the streams are reset", all).await;
        killed.elapsed()
    };
    let (open, lost) = tokio::join!(open, lost);
    sleep((killed + 6 * SECOND).saturating_duration_since(Instant::now())).await;
    let (dials, down) = (failed_dials(&pair).await, killed.elapsed().as_secs_f64());
    println!(
        "killed: the first goes directly after {direct:?}, streams are reset after {lost:?}, the breaker is open after {open:?}, \
         {dials} dials in {down:.1} s"
    );
    let restarted = Instant::now();
    pair.b.start_again().await;
    let back = load.goes(TUNNEL, restarted).await;
    println!("killed: back {back:?} after the restart began");
    let report = load.stop().await;
    assert_eq!(report.lost.len(), STEADY);
    assert!(
        report.failed() <= 5 * ROWS,
        "{} short ones lost; what was open at that moment may be",
        report.failed()
    );
    assert!(direct < 2 * SECOND, "the first one goes directly after {direct:?}");
    // Hosts send few errors, and the probes want some too; without any it would be 30 s.
    assert!(open < 5 * SECOND && lost < 12 * SECOND, "open after {open:?}, reset after {lost:?}");
    let slowest = report.slowest(killed + 2 * SECOND, restarted);
    assert!(slowest < SECOND, "while it is down a connection waited {slowest:?}");
    // One opens the breaker, and then one goes out each time: after 0.5 s at the earliest, 1 s, 2 s.
    assert!((1.0..=5.0).contains(&dials), "{dials} dials in {down} s");
}

/// Lost: idle streams of the killed process. They are told within the time of a keep-alive, not after the 30 s of an idle connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_a_sidecar_that_was_killed_and_restarted_end_soon_on_both_sides() {
    needs_wan!();
    let mut pair = Pair::start(LINK).await;
    pair.up().await;
    for kill_b in [true, false] {
        let (mut stream, way) = pair.greeted().await.unwrap();
        echo(&mut stream, b"ping").await.unwrap();
        assert_eq!(way, TUNNEL);
        let killed = Instant::now();
        if kill_b {
            pair.b.kill();
            pair.b.start_again().await;
        } else {
            pair.a.kill();
            pair.a.start_again().await;
        }
        let ended = timeout(20 * SECOND, stream.read_u8()).await.expect("the end of the stream");
        assert!(ended.is_err(), "an end that was none");
        let took = killed.elapsed();
        if kill_b {
            let gone = pair.metric("qudag_sidecar_peer_gone_total", &[]).await;
            println!("restarted: an idle stream was reset after {took:?}, given up {gone}");
        } else {
            // The client's own connection ended with its sidecar; what is left is at the other one.
            let ends = async || {
                let gone = pair.b.metric("qudag_sidecar_peer_gone_total", &[]).await;
                (gone >= 1.0).then_some(())
            };
            eventually(20 * SECOND, "the other side gives the connection up", ends).await;
            let took = killed.elapsed();
            println!("restarted: the far side gave its connection up after {took:?}");
        }
        assert!(killed.elapsed() < 12 * SECOND, "{took:?}");
        pair.returns().await;
    }
}

/// Lost: none. A process that stands still answers nobody, but nobody says that it is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_peer_loses_nothing() {
    needs_wan!();
    let pair = Pair::start(LINK).await;
    pair.up().await;
    let load = pair.under_load(STEADY, ROWS).await;
    let paused = Instant::now();
    pause(&pair.b, true).await;
    let direct = load.goes(DIRECT, paused).await;
    sleep((paused + 4 * SECOND).saturating_duration_since(Instant::now())).await;
    pause(&pair.b, false).await;
    let continued = Instant::now();
    let back = load.goes(TUNNEL, continued).await;
    println!("paused: the first goes directly after {direct:?}, back after {back:?}");
    let report = load.stop().await;
    report.assert_nothing_lost();
    assert!(direct < 2 * SECOND, "{direct:?}");
    let slowest = report.slowest(paused + 2 * SECOND, continued);
    assert!(slowest < SECOND, "while it is paused a connection waited {slowest:?}");
}

/// Lost: none. New connections go directly, with the reason, and come back by themselves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocked_udp_loses_nothing_and_says_why() {
    needs_wan!();
    let pair = Pair::start(LINK).await;
    pair.up().await;
    let load = pair.under_load(STEADY, ROWS).await;
    let blocked = Instant::now();
    pair.wan.block_udp(true).unwrap();
    let direct = load.goes(DIRECT, blocked).await;
    sleep((blocked + 4 * SECOND).saturating_duration_since(Instant::now())).await;
    pair.wan.block_udp(false).unwrap();
    let mended = Instant::now();
    let back = load.goes(TUNNEL, mended).await;
    println!("blocked: the first goes directly after {direct:?}, back after {back:?}");
    let report = load.stop().await;
    report.assert_nothing_lost();
    assert!(direct < 2 * SECOND, "{direct:?}");
    let reasons = ["silent", "down", "dial", "pending_timeout", "answer_timeout", "lost", "open_timeout"];
    let mut counted = 0.0;
    for reason in reasons {
        let name = "qudag_sidecar_peer_fallbacks_total";
        let count = pair.metric(name, &[("target", "there"), ("reason", reason)]).await;
        println!("blocked: {count} directly, {reason}");
        counted += count;
    }
    assert_eq!(counted, report.by(DIRECT) as f64, "each one that went directly is counted");
    assert!(report.by(DIRECT) > 20);
}

/// Nothing was ever open: the first connections wait a second at most, and all later ones not at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn udp_that_is_blocked_from_the_start_costs_the_first_connections_a_second_at_most() {
    needs_wan!();
    let mut pair = Pair::start("udp=block").await;
    pair.a.kill();
    pair.a.start_again().await;
    let start = Instant::now();
    let mut waits = Vec::new();
    while start.elapsed() < 8 * SECOND {
        let began = Instant::now();
        let (_tcp, way) = greeted(connect(&pair.left, DOOR)).await.unwrap();
        assert_eq!(way, DIRECT);
        waits.push((began - start, began.elapsed()));
        sleep(Duration::from_millis(20)).await;
    }
    let took = |early: bool| {
        let of = waits.iter().filter(move |(at, _)| (*at < SECOND) == early);
        of.map(|(_, took)| *took).collect::<Vec<_>>()
    };
    let (first, later) = (took(true), took(false));
    println!("blocked from the start: {:?} at first, {:?} later", first.iter().max(), later.iter().max());
    assert!(first.iter().all(|took| *took < Duration::from_millis(1500)), "{first:?}");
    // A busy machine may hold up one or another.
    let waited = later.iter().filter(|took| **took > Duration::from_millis(250)).count();
    assert!(waited * 20 < later.len(), "{waited} of {} waited", later.len());
    let name = "qudag_sidecar_peer_fallbacks_total";
    assert!(pair.metric(name, &[("target", "there")]).await >= waits.len() as f64, "each is counted");
}
