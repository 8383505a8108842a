//! Loss, duplication, corruption and order.

use qudag_wan::Settings;

use crate::pair::{Ip, Pair, numbers, send_numbers};

/// Whether `count` of `of` is within five standard deviations of the share.
fn near(count: u64, of: u64, share: f64) -> bool {
    let (count, of) = (count as f64, of as f64);
    (count - of * share).abs() <= 5.0 * (of * share * (1.0 - share)).sqrt()
}

#[test]
fn nothing_is_lost_doubled_or_reordered_unasked() {
    qudag_wan::needs_wan!();
    for ip in [Ip::V4, Ip::V6] {
        let pair = Pair::new("delay=2ms,jitter=1ms");
        let (left, right) = pair.udp(ip);
        send_numbers(&pair, &left, 20_000, 100);
        pair.wait_for(20_000);
        let came = numbers(&right);
        assert_eq!(came.len(), 20_000);
        assert!(came.iter().enumerate().all(|(index, number)| *number == u32::try_from(index).unwrap()));
        assert_eq!(pair.to_left().received.packets, 0, "nobody asked for anything on the way back");
    }
}

#[test]
fn loss_is_within_binomial_bounds() {
    qudag_wan::needs_wan!();
    for (text, share) in [("loss=1%", 0.01), ("loss=20%", 0.2)] {
        let pair = Pair::new(text);
        let (left, right) = pair.udp(Ip::V4);
        send_numbers(&pair, &left, 20_000, 100);
        let counters = pair.wait_for(20_000);
        let came = numbers(&right);
        assert_eq!(came.len() as u64 + counters.lost, 20_000);
        assert!(near(counters.lost, 20_000, share), "{text}: {} of 20,000", counters.lost);
        assert!(came.is_sorted(), "loss reorders nothing");
    }
}

#[test]
fn bursts_have_their_length() {
    qudag_wan::needs_wan!();
    let pair = Pair::new("loss=5%/10");
    let (left, right) = pair.udp(Ip::V4);
    send_numbers(&pair, &left, 40_000, 100);
    let lost = pair.wait_for(40_000).lost as f64;
    let came = numbers(&right);
    let bursts = came.windows(2).filter(|two| two[1] != two[0] + 1).count() as f64;
    // 200 bursts with a geometric length: the mean length has a deviation of 7 %, the share one of 10 %.
    assert!((lost / 2000.0 - 1.0).abs() < 0.5, "{lost} lost");
    assert!((lost / bursts / 10.0 - 1.0).abs() < 0.35, "{bursts} bursts of {} on average", lost / bursts);
}

#[test]
fn packets_come_twice() {
    qudag_wan::needs_wan!();
    let pair = Pair::new("duplicate=10%");
    let (left, right) = pair.udp(Ip::V4);
    send_numbers(&pair, &left, 10_000, 100);
    let counters = pair.wait_for(10_000);
    let came = numbers(&right);
    assert_eq!(came.len() as u64, 10_000 + counters.duplicated);
    assert!(near(counters.duplicated, 10_000, 0.1), "{} doubled", counters.duplicated);
}

#[test]
fn corrupt_packets_do_not_pass_the_checksum() {
    qudag_wan::needs_wan!();
    let pair = Pair::new("corrupt=10%");
    let (left, right) = pair.udp(Ip::V6);
    send_numbers(&pair, &left, 10_000, 100);
    let counters = pair.wait_for(10_000);
    assert!(near(counters.corrupted, 10_000, 0.1), "{} corrupted", counters.corrupted);
    assert_eq!(numbers(&right).len() as u64, 10_000 - counters.corrupted);
}

#[test]
fn order_changes_when_it_may() {
    qudag_wan::needs_wan!();
    for text in ["delay=10ms,reorder=10%/3ms", "delay=10ms,jitter=5ms,reorder=jitter"] {
        let pair = Pair::new(text);
        let (left, right) = pair.udp(Ip::V4);
        send_numbers(&pair, &left, 5000, 100);
        let counters = pair.wait_for(5000);
        let came = numbers(&right);
        assert_eq!(came.len(), 5000, "reordering loses nothing");
        let mut newest = 0;
        let late = came.iter().filter(|number| {
            newest = newest.max(**number);
            **number < newest
        });
        assert_eq!(late.count() as u64, counters.reordered, "{text}");
        assert!(counters.reordered > 50, "{text}: {counters:?}");
    }
}

#[test]
fn the_same_seed_loses_the_same_packets() {
    qudag_wan::needs_wan!();
    let run = |seed| {
        let pair = Pair::with(Settings { seed, ..Settings::both("loss=10%".parse().unwrap()) });
        let (left, right) = pair.udp(Ip::V4);
        send_numbers(&pair, &left, 1000, 100);
        pair.wait_for(1000);
        numbers(&right)
    };
    let first = run(42);
    assert_eq!(run(42), first);
    assert_ne!(run(43), first);
}
