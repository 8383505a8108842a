//! A new connection, and one byte there and back.

use std::time::{Duration, Instant};

use super::stand::Stand;
use crate::contenders::Stage;
use crate::measure::{Plan, median};
use crate::progress::Progress;
use crate::row::{self, Row};
use crate::suites::group;
use crate::{Failure, clients, servers};

const ROUND_TRIP: Duration = Duration::from_millis(40);
/// In round trips.
const MOST: f64 = 1.2;

pub(super) fn rows(stage: &Stage, plan: Plan) -> Result<Vec<Row>, Failure> {
    let stand = Stand::local(stage);
    let ways = stand.ways(stand.server(servers::echo)?)?;
    let contenders: Vec<_> = ways.iter().map(|way| way.contender(clients::Connect::connect)).collect();
    let mut rows = group("peer, connect and 1 B", &contenders, plan)?;
    rows.extend(far(stage, plan)?);
    Ok(rows)
}

/// Over a link, where only round trips count.
fn far(stage: &Stage, plan: Plan) -> Result<Vec<Row>, Failure> {
    let Some(stand) = Stand::linked(stage, "delay=20ms")? else { return Ok(Vec::new()) };
    let ways = stand.ways(stand.server(servers::echo)?)?;
    let rounds = if plan.is_quick() { 10 } else { 50 };
    let progress = Progress::new("peer, connect over 40 ms", (rounds * ways.len()) as u64);
    let mut times = vec![Vec::new(); ways.len()];
    // The first of each makes what later ones find.
    for round in 0..=rounds {
        for (way, times) in ways.iter().zip(&mut times) {
            progress.step(way.name);
            let once = stand.near(|| {
                let start = Instant::now();
                clients::Connect::connect(way.at)?.call().map(|()| start.elapsed())
            })?;
            if round > 0 {
                times.push(once?.as_secs_f64() / ROUND_TRIP.as_secs_f64());
            }
        }
    }
    drop(progress);
    let figures: Vec<_> = ways.iter().map(|way| way.name).zip(times.into_iter().map(median)).collect();
    let rows = row::beside("peer, connect and 1 B over 40 ms: in round trips", "RTT", &figures);
    Ok(rows.into_iter().map(|row| row.at_most(MOST)).collect())
}
