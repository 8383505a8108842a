//! Peer connections, beside HAProxy in TCP mode.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use super::{DIRECT, OURS, contender, group};
use crate::contenders::Stage;
use crate::measure::{Client, Plan, median};
use crate::progress::Progress;
use crate::row::Row;
use crate::{Failure, clients, cpu, servers};

pub(super) fn rows(stage: &Stage, plan: Plan) -> Result<Vec<Row>, Failure> {
    let (echo, sink) = (servers::echo()?, servers::sink()?);
    let ours = |to: SocketAddr| {
        stage.sidecar(&format!(
            "listeners: {{ peer: {{ outbound: [{{ bind: \"127.0.0.1:0\", to: \"{to}\" }}] }} }}\n"
        ))
    };
    let sidecar = ours(echo)?;
    let haproxy = stage.haproxy("tcp", echo);
    let at = sidecar.at("peer")?;

    let ways = |connect: fn(SocketAddr) -> io::Result<Box<dyn Client>>| {
        let mut ways = vec![
            contender(OURS, Some(sidecar.pid()), move || connect(at)),
            contender(DIRECT, None, move || connect(echo)),
        ];
        if let Some(haproxy) = &haproxy {
            let at = haproxy.addr();
            ways.push(contender("haproxy", Some(haproxy.pid()), move || connect(at)));
        }
        ways
    };
    let mut rows = group("peer, 64 B there and back", &ways(clients::Echo::connect), plan)?;
    rows.extend(group("peer, connect and 1 B", &ways(clients::Connect::connect), plan)?);

    let sidecar = ours(sink)?;
    let haproxy = stage.haproxy("tcp", sink);
    let mut ways = vec![(OURS, Some(sidecar.pid()), sidecar.at("peer")?), (DIRECT, None, sink)];
    ways.extend(haproxy.as_ref().map(|haproxy| ("haproxy", Some(haproxy.pid()), haproxy.addr())));
    rows.extend(bulk(&ways, plan)?);
    Ok(rows)
}

/// One long stream in one direction: throughput, and CPU time of the process between.
fn bulk(ways: &[(&'static str, Option<u32>, SocketAddr)], plan: Plan) -> Result<Vec<Row>, Failure> {
    let bytes: u64 = if plan.rounds == Plan::QUICK.rounds { 64 << 20 } else { 512 << 20 };
    let gigabytes = bytes as f64 / 1e9;
    let progress = Progress::new("peer, bulk", (plan.rounds * ways.len()) as u64);
    let mut samples: Vec<(Vec<f64>, Vec<f64>)> = vec![Default::default(); ways.len()];
    for _ in 0..plan.rounds {
        for ((name, pid, to), (speed, cost)) in ways.iter().zip(&mut samples) {
            progress.step(name);
            let before = pid.map(cpu::of).transpose()?;
            let start = Instant::now();
            clients::send_bulk(*to, bytes)?;
            speed.push(gigabytes / start.elapsed().as_secs_f64());
            if let (Some(pid), Some(before)) = (pid, before) {
                cost.push(cpu::of(*pid)?.saturating_sub(before).as_secs_f64() / gigabytes);
            }
        }
    }
    let figures: Vec<_> = samples.into_iter().map(|(speed, cost)| (median(speed), median(cost))).collect();
    let Some(((our_speed, our_cost), others)) = figures.split_first() else { return Ok(Vec::new()) };
    let mut rows = Vec::new();
    for ((name, pid, _), (speed, cost)) in ways.iter().skip(1).zip(others) {
        rows.push(Row::beside("peer, bulk: throughput", *our_speed, "GB/s", name, *speed));
        if pid.is_some() {
            rows.push(Row::beside("peer, bulk: CPU per GB", *our_cost, "s", name, *cost));
        }
    }
    Ok(rows)
}
