//! What emulated links reach on this machine: how late they deliver, how much they pass, and what CPU time it costs.
//!
//! `cargo run --release -p qudag-wan --example measure`; with `-- delay`, the first part only. Figures of a benchmark through a link are only as good as these.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a tool for developers"
)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use qudag_kit::Namespace;
use qudag_wan::{Direction, Settings, Wan};

const LEFT: &str = "10.90.0.1";
const RIGHT: &str = "10.90.0.2";

fn main() -> ExitCode {
    if let Err(error) = Wan::available() {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    for (settings, gap) in
        [("delay=0ms", 1), ("delay=1ms", 1), ("delay=20ms", 1), ("delay=20ms,rate=100mbit", 5)]
    {
        lateness(settings, Duration::from_millis(gap));
    }
    if std::env::args().nth(1).is_some_and(|word| word == "delay") {
        return ExitCode::SUCCESS;
    }
    let rates = ["rate=100mbit", "rate=500mbit", "rate=1gbit", "rate=2gbit"];
    for settings in
        rates.iter().map(|rate| format!("{rate},delay=5ms,queue=50ms")).chain(["delay=5ms".to_owned()])
    {
        udp(&settings);
    }
    for settings in rates.iter().map(|rate| format!("{rate},delay=5ms,queue=50ms")) {
        tcp(&settings);
    }
    ExitCode::SUCCESS
}

fn pair(settings: &str) -> (Namespace, Namespace, Wan) {
    let (left, right) = (Namespace::new(), Namespace::new());
    let settings = Settings::both(settings.parse().unwrap());
    let wan = Wan::connect(&left, &format!("{LEFT}/24"), &right, &format!("{RIGHT}/24"), settings).unwrap();
    (left, right, wan)
}

fn sockets(left: &Namespace, right: &Namespace) -> (UdpSocket, UdpSocket) {
    let bind = |namespace: &Namespace, address| {
        let socket = namespace.inside(|| UdpSocket::bind((address, 0))).unwrap().unwrap();
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 256 << 20).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        socket
    };
    let (left, right) = (bind(left, LEFT), bind(right, RIGHT));
    left.connect(right.local_addr().unwrap()).unwrap();
    right.connect(left.local_addr().unwrap()).unwrap();
    (left, right)
}

/// How much later than its settings say a round trip is, with what sockets and threads of this program add.
fn lateness(settings: &str, gap: Duration) {
    let (left, right, wan) = pair(settings);
    let (left, right) = sockets(&left, &right);
    let echo = thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok(length) = right.recv(&mut buffer) {
            right.send(&buffer[..length]).unwrap();
        }
    });
    let link = wan.settings(Direction::ToRight).unwrap();
    let should = (link.delay + link.rate.map_or(Duration::ZERO, |rate| rate.time(84))) * 2;
    let mut late: Vec<Duration> = (0..500)
        .map(|_| {
            thread::park_timeout(gap);
            let sent = Instant::now();
            left.send(&[0; 56]).unwrap();
            left.recv(&mut [0; 64]).unwrap();
            sent.elapsed().saturating_sub(should)
        })
        .collect();
    late.sort();
    let at = |part: f64| late[((late.len() - 1) as f64 * part) as usize].as_micros();
    println!(
        "{settings:<24} round trip late by {} µs at least, {} µs in the median, {} µs at 99 %; of this the link's own {} µs on average",
        at(0.0),
        at(0.5),
        at(0.99),
        [Direction::ToRight, Direction::ToLeft]
            .map(|way| wan.counters(way).unwrap().mean_late().as_micros())
            .iter()
            .sum::<u128>(),
    );
    drop(left);
    echo.join().unwrap();
}

/// As many datagrams of 1372 bytes (1400 of IP) as a sender can send for two seconds.
fn udp(settings: &str) {
    let (left, right, wan) = pair(settings);
    let (left, right) = sockets(&left, &right);
    let receiver = thread::spawn(move || {
        let mut buffer = [0; 2048];
        let (mut first, mut last, mut count) = (None, Instant::now(), 0_u64);
        while right.recv(&mut buffer).is_ok() {
            last = Instant::now();
            first.get_or_insert(last);
            count += 1;
        }
        count.saturating_sub(1) as f64 / (last - first.unwrap()).as_secs_f64()
    });
    let start = Instant::now();
    let mut sent = 0_u64;
    while start.elapsed() < Duration::from_secs(2) {
        for _ in 0..16 {
            left.send(&[0; 1372]).unwrap();
            sent += 1;
        }
    }
    let rate = receiver.join().unwrap();
    let counters = wan.counters(Direction::ToRight).unwrap();
    let cpu = wan.cpu_time().unwrap();
    println!(
        "{settings:<36} UDP {:>7.1} Mbit/s of IP, {:>6.0} packets/s; {:.2} µs of CPU a packet; of {sent} sent the device dropped {}, the queue {}",
        rate * 1400.0 * 8.0 / 1e6,
        rate,
        cpu.as_secs_f64() * 1e6 / counters.received.packets as f64,
        wan.overruns(Direction::ToRight).unwrap(),
        counters.dropped.queue + counters.dropped.overflow,
    );
}

/// One TCP connection for three seconds.
fn tcp(settings: &str) {
    let (left, right, wan) = pair(settings);
    let listener = right.inside(|| TcpListener::bind((RIGHT, 0))).unwrap().unwrap();
    let address = listener.local_addr().unwrap();
    let mut out = left.inside(|| TcpStream::connect(address)).unwrap().unwrap();
    let (mut end, _) = listener.accept().unwrap();
    let writer = thread::spawn(move || {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(3) {
            out.write_all(&[0; 65_536]).unwrap();
        }
    });
    let mut buffer = vec![0; 262_144];
    let (start, mut received) = (Instant::now(), 0);
    loop {
        match end.read(&mut buffer).unwrap() {
            0 => break,
            length => received += length,
        }
    }
    let time = start.elapsed().as_secs_f64();
    writer.join().unwrap();
    let cpu = wan.cpu_time().unwrap().as_secs_f64();
    let packets =
        [Direction::ToRight, Direction::ToLeft].map(|way| wan.counters(way).unwrap().received.packets);
    println!(
        "{settings:<36} TCP {:>7.1} Mbit/s of payload; link {:.0} % of a CPU, {:.2} µs a packet",
        received as f64 * 8.0 / time / 1e6,
        cpu / time * 100.0,
        cpu * 1e6 / (packets[0] + packets[1]) as f64,
    );
}
