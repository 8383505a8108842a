//! New connections beside 100 streams that nobody reads.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::stand::{HAPROXY, Stand, Way};
use crate::contenders::Stage;
use crate::measure::Plan;
use crate::progress::Progress;
use crate::row::Row;
use crate::suites::OURS;
use crate::{Failure, clients, servers};

const STALLED: usize = 100;
const NEW: usize = 8;
/// For the slowest of the new ones, ms.
const MOST: f64 = 500.0;
/// Until nothing is left of the others, ms.
const MOST_AFTER: f64 = 2_000.0;

/// Fills everything that lies between, until nothing has been taken for a while.
fn stall(to: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = clients::tcp(to)?;
    stream.write_all(servers::DEAF)?;
    stream.set_write_timeout(Some(Duration::from_millis(20)))?;
    let chunk = vec![7; 64 << 10];
    loop {
        match stream.write(&chunk) {
            Err(why) if why.kind() == io::ErrorKind::WouldBlock => return Ok(stream),
            Err(why) => return Err(why),
            Ok(_) => {}
        }
    }
}

/// How long a byte takes there and back on a new connection.
fn fresh(to: SocketAddr) -> io::Result<Duration> {
    let start = Instant::now();
    clients::opened(to)?;
    Ok(start.elapsed())
}

pub(super) fn rows(stage: &Stage, _: Plan) -> Result<Vec<Row>, Failure> {
    let stand = Stand::local(stage);
    let server = stand.server(servers::moody)?;
    let mut ways = vec![stand.tunnel(server, "")?];
    ways.extend(stand.haproxy(server)?);
    let progress = Progress::new("peer, stalled", ways.len() as u64);
    let (mut slowest, mut after) = (Vec::new(), None);
    for way in &ways {
        progress.step(way.name);
        fresh(way.at)?;
        let open: Vec<_> = (0..STALLED).map(|_| stall(way.at)).collect::<io::Result<_>>()?;
        let mut worst = Duration::ZERO;
        for _ in 0..NEW {
            worst = worst.max(fresh(way.at)?);
        }
        slowest.push((way.name, worst.as_secs_f64() * 1e3));
        for stream in open {
            // A client that gives up, rather than one that waits for what it has sent to be read.
            rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
        }
        if way.name == OURS {
            after = Some(emptied(way)?.as_secs_f64() * 1e3);
        }
    }
    let row = format!("peer, {STALLED} streams that nobody reads: slowest of {NEW} new connections");
    let ours = slowest.first().map_or(0.0, |(_, ours)| *ours);
    let theirs = slowest.iter().find(|(name, _)| *name == HAPROXY);
    let first = match theirs {
        Some((name, theirs)) => Row::beside(&row, ours, "ms", name, *theirs),
        None => Row::alone(&row, ours, "ms"),
    };
    let mut rows = vec![first.at_most(MOST)];
    let row = format!("peer, {STALLED} streams that nobody reads: until they are gone after their end");
    rows.extend(after.map(|after| Row::alone(row, after, "ms").at_most(MOST_AFTER)));
    Ok(rows)
}

/// How long it takes until the near sidecar has no streams any more.
fn emptied(way: &Way) -> Result<Duration, Failure> {
    let start = Instant::now();
    let near = way.near().ok_or("no sidecar")?;
    loop {
        let told = near.get("/peers")?;
        let connections = told.pointer("/pools/0/connections").and_then(Value::as_array);
        let streams =
            connections.into_iter().flatten().filter_map(|connection| connection["streams"].as_u64());
        if streams.sum::<u64>() == 0 {
            return Ok(start.elapsed());
        }
        if start.elapsed() > Duration::from_secs(30) {
            return Err("streams do not go away".into());
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
}
