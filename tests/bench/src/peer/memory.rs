//! What streams take that nothing comes over.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use qudag_kit::program::footprint;

use super::stand::{HAPROXY, Route, Stand, Way};
use crate::contenders::Stage;
use crate::measure::{Plan, raise_file_limit};
use crate::progress::Progress;
use crate::row::{self, Row};
use crate::{Failure, clients, servers};

/// How many streams, and how many MiB the near process may take then.
const STEPS: [(usize, Option<f64>); 5] =
    [(0, Some(15.0)), (1, None), (100, None), (1_000, Some(21.0)), (4_000, None)];
/// For each stream, in kB.
const MOST_EACH: f64 = 10.0;

/// Waits until a process does not give memory back any more. Buffers of streams over which nothing comes go after a second, and an
/// allocator returns to the system some seconds later what it does not need.
fn settle(pid: u32) {
    let (mut least, mut since) = (u64::MAX, Instant::now());
    while since.elapsed() < Duration::from_secs(12) {
        let now = footprint(pid).0;
        if now < least {
            (least, since) = (now, Instant::now());
        }
        std::thread::park_timeout(Duration::from_millis(200));
    }
}

pub(super) fn rows(stage: &Stage, plan: Plan) -> Result<Vec<Row>, Failure> {
    raise_file_limit()?;
    let stand = Stand::local(stage);
    let echo = stand.server(servers::echo)?;
    // A route has room for 16 × 128 streams; each class has connections of its own.
    let far = stand.far_end("far", echo)?;
    let routes = [Route { to: &far, class: "interactive" }, Route { to: &far, class: "bulk" }];
    let near = stand.near_end(&routes, ", max_connections: 16")?;
    let tunnel: Vec<SocketAddr> = vec![near.at_named("far-0")?, near.at_named("far-1")?];
    let mut ways = vec![("sidecar", near.pid(), tunnel)];
    let haproxy = stand.haproxy(echo)?;
    if let Some((way, pid)) = haproxy.as_ref().and_then(|way: &Way| Some((way, *way.pids().first()?))) {
        ways.push((HAPROXY, pid, vec![way.at]));
    }
    let steps = if plan.is_quick() { &STEPS[..4] } else { &STEPS[..] };
    let progress = Progress::new("peer, memory", (steps.len() * ways.len()) as u64);
    let mut figures = Vec::new();
    for (name, pid, at) in &ways {
        let mut open = Vec::new();
        let mut taken = Vec::new();
        for (streams, _) in steps {
            progress.step(name);
            while open.len() < *streams {
                let Some(to) = at.get(open.len() % at.len()) else { break };
                open.push(
                    clients::opened(*to).map_err(|why| format!("{name}, stream {}: {why}", open.len()))?,
                );
            }
            settle(*pid);
            taken.push(footprint(*pid).0 as f64 / 1024.0);
        }
        figures.push((*name, taken));
    }
    drop(progress);
    let Some((_, ours)) = figures.first() else { return Ok(Vec::new()) };
    let mut rows = Vec::new();
    for (number, (streams, most)) in steps.iter().enumerate() {
        let row = format!("peer, memory of the near process: {streams} idle streams");
        let aim = |row: Row| most.map_or(row.clone(), |most| row.at_most(most));
        let at_step: Vec<_> =
            figures.iter().filter_map(|(name, taken)| Some((*name, *taken.get(number)?))).collect();
        rows.extend(row::beside(&row, "MiB", &at_step).into_iter().map(aim));
    }
    let (Some((most, _)), Some(first), Some(last)) = (steps.last(), ours.first(), ours.last()) else {
        return Ok(rows);
    };
    let each = (last - first) * 1024.0 * 1.024 / *most as f64;
    rows.push(Row::alone("peer, memory of the near process: a stream", each, "kB").at_most(MOST_EACH));
    Ok(rows)
}
