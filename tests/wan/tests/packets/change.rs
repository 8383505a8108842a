//! A link that changes while it runs.

use std::io::{Read, Write};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use qudag_kit::Namespace;
use qudag_wan::{Direction, LinkSettings, Settings, Wan, WanError};

use crate::pair::{Ip, PATIENCE, Pair, comes, numbers, send_numbers};

/// How long nothing may come before it is believed that nothing comes.
const SILENCE: Duration = Duration::from_millis(100);

#[test]
fn a_change_holds_for_the_next_packet() {
    qudag_wan::needs_wan!();
    let pair = Pair::new("loss=100%");
    let (left, right) = pair.udp(Ip::V4);
    send_numbers(&pair, &left, 100, 100);
    pair.wait_for(100);
    pair.wan.set(Direction::ToRight, "delay=1ms".parse().unwrap()).unwrap();
    send_numbers(&pair, &left, 100, 100);
    pair.wait_for(200);
    assert_eq!(numbers(&right).len(), 100);
    assert_eq!(pair.wan.settings(Direction::ToRight).unwrap().to_string(), "delay=1ms");
    assert_eq!(pair.wan.settings(Direction::ToLeft).unwrap().to_string(), "loss=100%");
}

#[test]
fn a_cut_link_passes_nothing_until_it_is_mended() {
    qudag_wan::needs_wan!();
    let pair = Pair::new("delay=1ms");
    let (left, right) = pair.udp(Ip::V6);
    let (mut out, mut back) = pair.tcp(Ip::V4);
    pair.wan.cut().unwrap();
    left.send(&[1]).unwrap();
    out.write_all(b"late").unwrap();
    assert!(!comes(&right, SILENCE));
    assert!(pair.to_right().dropped.cut >= 2);
    pair.wan.mend().unwrap();
    left.send(&[2]).unwrap();
    assert!(comes(&right, PATIENCE));
    // TCP repeats what the cut link lost.
    let mut buffer = [0; 4];
    back.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"late");
}

#[test]
fn udp_is_blocked_while_tcp_passes() {
    qudag_wan::needs_wan!();
    for ip in [Ip::V4, Ip::V6] {
        let pair = Pair::new("delay=1ms");
        let (left, right) = pair.udp(ip);
        pair.wan.block_udp(true).unwrap();
        left.send(&[1]).unwrap();
        right.send(&[1]).unwrap();
        let (mut out, mut back) = pair.tcp(ip);
        out.write_all(b"tcp").unwrap();
        back.read_exact(&mut [0; 3]).unwrap();
        // The datagrams were sent before.
        assert!(!comes(&right, SILENCE) && !comes(&left, SILENCE));
        assert_eq!((pair.to_right().dropped.udp, pair.to_left().dropped.udp), (1, 1));
        pair.wan.block_udp(false).unwrap();
        left.send(&[2]).unwrap();
        assert!(comes(&right, PATIENCE));
    }
}

#[test]
fn a_namespace_between_two_links_is_a_router() {
    qudag_wan::needs_wan!();
    let [left, middle, right] = [(); 3].map(|()| Namespace::new());
    let settings = |text: &str| Settings::both(text.parse().unwrap());
    let one = Wan::connect(&left, "10.91.0.1/24", &middle, "10.91.0.2/24", settings("delay=5ms")).unwrap();
    let two = Wan::connect(&middle, "10.92.0.1/24", &right, "10.92.0.2/24", settings("delay=7ms")).unwrap();
    middle.inside(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")).unwrap().unwrap();
    left.ip(&["route", "add", "default", "via", "10.91.0.2"]);
    right.ip(&["route", "add", "default", "via", "10.92.0.1"]);
    let bind = |namespace: &Namespace, address| {
        namespace.inside(|| std::net::UdpSocket::bind(address)).unwrap().unwrap()
    };
    let (out, end) = (bind(&left, "10.91.0.1:0"), bind(&right, "10.92.0.2:0"));
    end.set_read_timeout(Some(PATIENCE)).unwrap();
    let sent = Instant::now();
    out.send_to(&[1], end.local_addr().unwrap()).unwrap();
    end.recv(&mut [0; 10]).unwrap();
    assert!(sent.elapsed() >= Duration::from_millis(12));
    for wan in [&one, &two] {
        assert_eq!(wan.counters(Direction::ToRight).unwrap().delivered.packets, 1);
    }
}

#[test]
fn a_device_that_is_down_ends_nothing() {
    qudag_wan::needs_wan!();
    let pair = Pair::new("delay=1ms");
    let (left, right) = pair.udp(Ip::V4);
    let [device, far] = pair.wan.devices();
    pair.right.ip(&["link", "set", far, "down"]);
    left.send(&[1]).unwrap();
    let start = Instant::now();
    while pair.to_right().dropped.refused == 0 {
        assert!(start.elapsed() < PATIENCE, "{:?}", pair.to_right());
        thread::yield_now();
    }
    pair.right.ip(&["link", "set", far, "up"]);
    pair.left.ip(&["link", "set", device, "down"]);
    pair.left.ip(&["link", "set", device, "up"]);
    let used = pair.wan.cpu_time().unwrap();
    let start = Instant::now();
    while !comes(&right, SILENCE) {
        assert!(start.elapsed() < PATIENCE);
        left.send(&[2]).unwrap();
    }
    let used = pair.wan.cpu_time().unwrap() - used;
    assert!(used < start.elapsed() / 2, "the link keeps a CPU busy: {used:?}");
}

#[test]
fn a_link_ends_with_its_device_and_says_so() {
    qudag_wan::needs_wan!();
    let pair = Pair::new("delay=1ms");
    let [device, _] = pair.wan.devices();
    pair.left.ip(&["link", "del", device]);
    let start = Instant::now();
    loop {
        match pair.wan.counters(Direction::ToRight) {
            Err(WanError::Ended) => break,
            Ok(_) => assert!(start.elapsed() < PATIENCE, "it goes on"),
            Err(error) => panic!("{error}"),
        }
        thread::yield_now();
    }
}

#[test]
fn what_a_busy_link_could_not_take_is_told() {
    qudag_wan::needs_wan!();
    let pair = Pair::new("delay=1ms");
    let (left, right) = pair.udp(Ip::V4);
    let (entered, inside) = mpsc::channel();
    let (done, wait) = mpsc::channel();
    thread::scope(|scope| {
        // The thread of the link does nothing else while it changes the settings.
        scope.spawn(|| {
            let busy = move |_: &mut LinkSettings| {
                entered.send(()).unwrap();
                wait.recv().unwrap();
            };
            pair.wan.change(Direction::ToRight, busy).unwrap();
        });
        inside.recv().unwrap();
        (0..10_100).for_each(|_| assert_eq!(left.send(&[0; 100]).unwrap(), 100));
        done.send(()).unwrap();
    });
    let counters = pair.wait_for(10_000);
    assert_eq!(counters.received.packets, 10_000);
    assert_eq!(pair.wan.overruns(Direction::ToRight).unwrap(), 100);
    assert_eq!(pair.wan.overruns(Direction::ToLeft).unwrap(), 0);
    assert_eq!(numbers(&right).len(), 10_000);
}

#[test]
fn devices_are_gone_with_the_link() {
    qudag_wan::needs_wan!();
    let Pair { wan, left, right: _right } = Pair::new("delay=1ms");
    let names = || {
        let devices = left.inside(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap()).unwrap();
        devices.lines().filter(|line| line.trim_start().starts_with("qw")).count()
    };
    assert_eq!(names(), 1);
    drop(wan);
    assert_eq!(names(), 0);
}
