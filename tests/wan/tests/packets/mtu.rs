//! A path whose MTU the hosts must find out.

use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use crate::pair::{Ip, PATIENCE, Pair, comes};

/// What no MTU of 1300 lets pass in one piece.
const LARGE: [u8; 1380] = [1; 1380];

#[test]
fn hosts_that_are_told_adapt() {
    qudag_wan::needs_wan!();
    for ip in [Ip::V4, Ip::V6] {
        let pair = Pair::new("mtu=1300");
        let (left, right) = pair.udp(ip);
        // The first is dropped and answered; the host then cuts the next ones itself.
        let start = Instant::now();
        left.send(&LARGE).unwrap();
        while !comes(&right, Duration::from_millis(50)) {
            assert!(start.elapsed() < PATIENCE, "{ip:?}: the sender does not learn the MTU");
            // The answer is an error of the socket, once.
            assert!(left.send(&LARGE).is_ok_and(|_| true) || pair.to_right().icmp > 0);
        }
        let counters = pair.to_right();
        assert!(counters.icmp >= 1 && counters.dropped.mtu >= 1, "{ip:?}: {counters:?}");
        assert_eq!(counters.icmp, counters.dropped.mtu, "{ip:?}: each was answered");
    }
}

#[test]
fn tcp_passes_with_smaller_segments() {
    qudag_wan::needs_wan!();
    for ip in [Ip::V4, Ip::V6] {
        let pair = Pair::new("mtu=1300");
        let (mut left, mut right) = pair.tcp(ip);
        let sender = thread::spawn(move || left.write_all(&vec![3; 500_000]).unwrap());
        let mut received = Vec::new();
        right.read_to_end(&mut received).unwrap();
        sender.join().unwrap();
        assert_eq!(received.len(), 500_000, "{ip:?}");
        let counters = pair.to_right();
        assert!(counters.icmp >= 1, "{ip:?}: {counters:?}");
        assert!(counters.delivered.bytes / counters.delivered.packets <= 1300, "{ip:?}");
    }
}

#[test]
fn a_black_hole_tells_nobody() {
    qudag_wan::needs_wan!();
    for ip in [Ip::V4, Ip::V6] {
        let pair = Pair::new("mtu=1300/silent");
        let (left, right) = pair.udp(ip);
        for _ in 0..20 {
            left.send(&LARGE).unwrap();
        }
        let header = if ip == Ip::V4 { 28 } else { 48 };
        // Exactly as large as may be, and one byte more.
        left.send(&LARGE[..1301 - header]).unwrap();
        left.send(&LARGE[..1300 - header]).unwrap();
        let mut buffer = [0; 2048];
        assert_eq!(right.recv(&mut buffer).unwrap(), 1300 - header, "{ip:?}");
        let counters = pair.wait_for(22);
        assert_eq!((counters.dropped.mtu, counters.icmp, counters.delivered.packets), (21, 0, 1), "{ip:?}");
    }
}
