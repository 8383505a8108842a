//! Servers in trouble while a thousand look-ups a second go on: nobody who asks the sidecar notices.
//!
//! Times are printed and not judged, but for what a client waits at most.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use qudag_e2e::open_loop::{Judge, OpenLoop, Report};
use qudag_e2e::resolver::{ask, sidecar};
use qudag_e2e::soak_time;
use qudag_kit::dns_wire::{View, rtype};
use qudag_kit::faulty_dns::address_of;
use qudag_kit::{Behaviour, FaultyDns, dns};

const RATE: u32 = 1000;
const SECOND: Duration = Duration::from_secs(1);

/// What a stub resolver waits before it asks again (resolv.conf(5)): longer is a failure that somebody sees.
const PATIENCE: Duration = dns::TIMEOUT;

/// Seconds of load for one fault: 10,000 names under `tests/run --soak`.
fn seconds() -> u64 {
    if soak_time().is_some() { 10 } else { 2 }
}

/// Expects the address that [`FaultyDns`] gives the name.
fn expecting(name: impl Fn(u64) -> String + Send + Sync + 'static) -> Arc<Judge> {
    Arc::new(move |number, view: &View| {
        let right = address_of(&name(number), 0).octets();
        if view.data(rtype::A) == [right] { Ok(()) } else { Err(format!("{:?}", view.answers)) }
    })
}

/// Asks for `name(0)`, `name(1)` … at the rate of the table.
async fn load(
    door: SocketAddr,
    seconds: u64,
    name: impl Fn(u64) -> String + Clone + Send + Sync + 'static,
) -> Report {
    let load = OpenLoop { server: door, rate: RATE, count: u64::from(RATE) * seconds, patience: PATIENCE };
    let asked = name.clone();
    load.run(|number| ask(&asked(number)), expecting(name)).await
}

fn assert_below_a_thousandth(what: &str, report: &Report) {
    println!("{what:<44} {report}");
    assert!(report.failed() * 1000 < report.asked, "{what}: {report}");
}

fn assert_none_failed(what: &str, report: &Report) {
    println!("{what:<44} {report}");
    assert_eq!(report.failed(), 0, "{what}: {report}");
}

/// One bad server of two, whichever of them it is: fewer than one look-up of a thousand fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_bad_server_of_two_is_not_noticed() {
    for (what, fault) in [
        ("SERVFAIL", Behaviour::ServFail),
        ("REFUSED", Behaviour::Refused),
        ("FORMERR", Behaviour::FormErr),
        ("black hole", Behaviour::BlackHole),
        ("30 % loss", Behaviour::Loss(30)),
    ] {
        let (bad, good) = (FaultyDns::start(), FaultyDns::start());
        bad.behave(fault);
        for (place, servers) in [("first", [bad.addr(), good.addr()]), ("second", [good.addr(), bad.addr()])]
        {
            let (_sidecar, door) = sidecar(&servers).await;
            // The bad server in the second place is asked little; the table is about the first.
            let time = if place == "first" { seconds() } else { 1 };
            let report = load(door, time, move |number| format!("n{number}.{place}.test.")).await;
            assert_below_a_thousandth(&format!("{what}, the {place} of two servers"), &report);
        }
        assert!(bad.total() > 0, "{what}: the bad server was never asked");
    }
}

/// Replies that belong to nobody are as good as none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_replies_are_wrong_is_not_noticed() {
    for fault in
        [Behaviour::WrongId, Behaviour::WrongName, Behaviour::Garbage, Behaviour::NotImp, Behaviour::Truncate]
    {
        let (bad, good) = (FaultyDns::start(), FaultyDns::start());
        bad.behave(fault);
        let (_sidecar, door) = sidecar(&[bad.addr(), good.addr()]).await;
        let report = load(door, 1, |number| format!("n{number}.test.")).await;
        assert_below_a_thousandth(&format!("{fault:?}"), &report);
    }
}

/// A server that comes and goes every second, beside one that stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_flaps_every_second_causes_no_failure() {
    for fault in [Behaviour::Flap { period: SECOND }, Behaviour::FlapServFail { period: SECOND }] {
        let (flapping, steady) = (FaultyDns::start(), FaultyDns::start());
        let (_sidecar, door) = sidecar(&[flapping.addr(), steady.addr()]).await;
        flapping.behave(fault);
        let report = load(door, seconds().max(4), |number| format!("n{number}.test.")).await;
        assert_none_failed(&format!("{fault:?} beside a steady server"), &report);
    }
}

/// Two servers of which always one is there, and never the same one for longer than a second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_that_take_turns_are_as_good_as_one() {
    for fault in [Behaviour::Flap { period: SECOND }, Behaviour::FlapServFail { period: SECOND }] {
        let (one, two) = (FaultyDns::start(), FaultyDns::start());
        let (_sidecar, door) = sidecar(&[one.addr(), two.addr()]).await;
        one.behave(fault);
        let shifted = async {
            tokio::time::sleep(SECOND).await;
            two.behave(fault);
        };
        let loaded = load(door, seconds().max(4), |number| format!("n{number}.test."));
        let (report, ()) = tokio::join!(loaded, shifted);
        assert_below_a_thousandth(&format!("{fault:?} in turns"), &report);
    }
}
