//! What a TCP connection keeps of a narrow link that it shares.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::goodput::{Flow, arrived, send_until};
use super::stand::Stand;
use crate::contenders::Stage;
use crate::measure::{Plan, median};
use crate::progress::Progress;
use crate::row::{self, Row};
use crate::{Failure, servers};

const LINK: &str = "delay=20ms,rate=20mbit";

pub(super) fn rows(stage: &Stage, plan: Plan) -> Result<Vec<Row>, Failure> {
    let (rounds, time) = if plan.is_quick() { (1, 4) } else { (3, 10) };
    let time = Duration::from_secs(time);
    let sharers = ["sidecar", "a second TCP", "sidecar, bbr"];
    let mut kept = vec![Vec::new(); sharers.len()];
    let progress = Progress::new("peer, fairness", (rounds * sharers.len()) as u64);
    for _ in 0..rounds {
        for (number, (sharer, kept)) in sharers.iter().zip(&mut kept).enumerate() {
            progress.step(sharer);
            let Some(stand) = Stand::linked(stage, LINK)? else { return Ok(Vec::new()) };
            let (sink, taken) = stand.server(servers::sink)?;
            let (other_sink, _) = stand.server(servers::sink)?;
            let beside = match number {
                0 => stand.tunnel(other_sink, "")?,
                1 => stand.direct(other_sink),
                _ => stand.tunnel(other_sink, ", congestion: bbr")?,
            };
            let flow = Flow { stand: &stand, to: sink, taken: &taken, congestion: Some("cubic") };
            let stop = AtomicBool::new(false);
            let rate = std::thread::scope(|scope| {
                let sharing = scope.spawn(|| stand.near(|| send_until(beside.at, Some("cubic"), &stop))?);
                let rate = arrived(&flow, time);
                stop.store(true, Ordering::Relaxed);
                sharing.join().unwrap_or_else(|_| Err(std::io::Error::other("a sender panicked")))?;
                rate
            })?;
            kept.push(rate);
        }
    }
    drop(progress);
    let figures: Vec<_> = sharers.into_iter().zip(kept.into_iter().map(median)).collect();
    Ok(row::beside("peer, fairness: what TCP keeps of 20 Mbit/s beside", "Mbit/s", &figures))
}
