//! Twenty seconds of mixed load on a tunnel with trouble all the time, and an hour of it or more under `tests/run --soak`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qudag_e2e::soak::{Meter, Soak, Strictness};
use qudag_e2e::soak_time;
use qudag_e2e::tunnels::{Changes, DOOR, Pair, connect, echo, greeted, half_close, noise, pause};
use qudag_kit::{Namespace, eventually};
use qudag_wan::needs_wan;
use tokio::time::sleep;

const SHORT: Duration = Duration::from_secs(20);
/// Streams that stay open.
const STEADY: usize = 20;

fn folder() -> PathBuf {
    std::env::var_os("QUDAG_SOAK_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from)
}

/// Connections that come, say something and go.
async fn short(place: &Namespace, meter: &Meter) {
    loop {
        let start = Instant::now();
        let talk = async {
            let (mut tcp, _) = greeted(connect(place, DOOR)).await?;
            echo(&mut tcp, &noise(1500)).await
        };
        meter.note(talk.await.map_err(|why| why.to_string()), start.elapsed());
        sleep(Duration::from_millis(20)).await;
    }
}

/// One transfer after the other.
async fn bulk(place: &Namespace, meter: &Meter) {
    loop {
        let start = Instant::now();
        half_close(connect(place, DOOR), 300_000).await;
        meter.note(Ok(()), start.elapsed());
        sleep(Duration::from_millis(500)).await;
    }
}

/// Streams that stay open and talk now and then, for less time than a listener that is taken out lets them finish.
async fn steady(place: &Namespace, meter: &Meter) {
    loop {
        let start = Instant::now();
        let talk = async {
            let (mut tcp, _) = greeted(connect(place, DOOR)).await?;
            for _ in 0..10 {
                let start = Instant::now();
                echo(&mut tcp, &noise(200)).await?;
                meter.note(Ok(()), start.elapsed());
                sleep(Duration::from_millis(500)).await;
            }
            std::io::Result::Ok(())
        };
        if let Err(why) = talk.await {
            meter.note(Err(why.to_string()), start.elapsed());
        }
    }
}

async fn trouble(pair: &Pair) {
    let second = Duration::from_secs(1);
    for round in 0_u64.. {
        match round % 7 {
            0 => pair.pki.renew(if round % 2 == 0 { &pair.id_a } else { &pair.id_b }, &[]).await,
            1 => {
                let more = format!("max_connections: {}, ", 1 + round % 4);
                pair.change(&Changes { more, ..Changes::default() }).await;
            }
            2 => {
                pair.a.toggle("peer.connection_pooling", false).await;
                sleep(second / 2).await;
                pair.a.toggle("peer.connection_pooling", true).await;
            }
            3 => {
                pair.wan.block_udp(true).unwrap();
                sleep(2 * second).await;
                pair.wan.block_udp(false).unwrap();
            }
            4 => {
                pause(&pair.b, true).await;
                sleep(second).await;
                pause(&pair.b, false).await;
            }
            5 => {
                pair.listen(false).await;
                sleep(second / 2).await;
                pair.listen(true).await;
            }
            _ => {
                pair.wan
                    .change_both(|settings| *settings = "delay=10ms,jitter=2ms,loss=2%".parse().unwrap())
                    .unwrap();
                sleep(2 * second).await;
                pair.wan.change_both(|settings| *settings = "delay=5ms".parse().unwrap()).unwrap();
            }
        }
        sleep(second).await;
    }
}

/// Lost: none. Nothing grows on either side.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_goes_on_through_trouble_of_every_kind() {
    needs_wan!();
    let pair = Pair::start("delay=5ms").await;
    pair.up().await;
    let mut soak = Soak::of(pair.a.pid());
    let meters = ["short", "bulk", "steady"].map(|name| soak.meter(name));
    let (duration, strictness, name) = match soak_time() {
        Some(duration) => (duration, Strictness::Full, "soak-tunnel"),
        None => (SHORT, Strictness::Short, "soak-tunnel-short"),
    };
    let loads = {
        let [short_meter, bulk_meter, steady_meter] = meters.each_ref().map(Arc::clone);
        let place = &pair.left;
        async move {
            let steadies = (0..STEADY).map(|_| steady(place, &steady_meter));
            tokio::join!(
                short(place, &short_meter),
                short(place, &short_meter),
                bulk(place, &bulk_meter),
                futures_util::future::join_all(steadies)
            );
        }
    };
    let outcome = Box::pin(soak.run(duration, async {
        tokio::join!(loads, trouble(&pair));
    }))
    .await;
    outcome.write(&folder(), name);
    outcome.judge(strictness);
    assert_eq!(outcome.failed, 0, "operations lost; 0 allowed: {:?}", outcome.failures);
    // The trouble may have ended in the middle of something.
    pause(&pair.b, false).await;
    pair.wan.change_both(|settings| *settings = "delay=5ms".parse().unwrap()).unwrap();
    pair.listen(true).await;
    let none = async || {
        let told = pair.a.cli_json(&["peers"]).await;
        let all = told["pools"].as_array()?.iter().flat_map(|pool| pool["connections"].as_array().unwrap());
        all.map(|connection| connection["streams"].as_u64().unwrap()).sum::<u64>().eq(&0).then_some(())
    };
    eventually(Duration::from_secs(20), "no stream is left", none).await;
}
