//! Every answer is the one to the client's own question, however many clients share what leads to the server, cancel, time out and leave.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests report by panicking")]

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use qudag_e2e::postgres::{Stand, Way};
use qudag_e2e::{soak_time, token_echo};
use qudag_kit::postgres::psql;
use qudag_kit::{Postgres, eventually, skip};

/// More than there are places in a pool.
const CLIENTS: u64 = 48;

/// What is asked: seconds in each run, hours in a soak. Who is refused most of the time asks less.
fn questions(way: Way) -> u64 {
    match (soak_time(), way) {
        (Some(_), _) => 10_000_000,
        (None, Way::Shedding(_)) => 10_000,
        (None, _) => 50_000,
    }
}

async fn echo(way: Way) {
    if let Err(reason) = Postgres::available() {
        skip!("{reason}");
    }
    let stand = Stand::start_with(way, token_echo::SETUP, "").await;
    let start = Instant::now();
    let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().subsec_micros().into();
    println!("seed {seed}");
    let seen = token_echo::run(stand.door, CLIENTS, questions(way), seed).await;
    let took = start.elapsed();
    let figure = |figure: &std::sync::atomic::AtomicU64| figure.load(Ordering::Relaxed);
    println!(
        "{way:?}: {} answers in {took:.1?}, {} refused, {} cancelled, {} connections left",
        figure(&seen.right),
        figure(&seen.refused),
        figure(&seen.cancelled),
        figure(&seen.left)
    );
    let told = seen.told.lock().unwrap().join("\n");
    assert_eq!((figure(&seen.wrong), figure(&seen.lost)), (0, 0), "{told}");
    assert!(figure(&seen.right) >= questions(way) && figure(&seen.cancelled) > 0, "{seen:?}");
    // What clients left behind is ended.
    let busy = "select count(*) from pg_stat_activity where backend_type = 'client backend' and state <> 'idle' and pid <> \
                pg_backend_pid()";
    let idle = async || (psql(stand.postgres.addr(), &["-Atc", busy]).await.ok().trim() == "0").then_some(());
    eventually(Duration::from_secs(30), "nothing goes on at the server", idle).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_of_their_own_see_their_own_tokens() {
    echo(Way::PassThrough).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pooled_sessions_see_their_own_tokens() {
    echo(Way::Pooled(4)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pooled_and_shed_sessions_see_their_own_tokens() {
    echo(Way::Shedding(1)).await;
}
