//! What arrives of one long stream over links with delay and loss.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::stand::Stand;
use crate::contenders::Stage;
use crate::measure::{Plan, median, pause};
use crate::progress::Progress;
use crate::row::{self, Row};
use crate::suites::DIRECT;
use crate::{Failure, clients, servers};

/// The rate of the links in Mbit/s.
const RATE: u32 = 100;
/// One way, ms.
const DELAYS: [u32; 3] = [0, 20, 75];
/// In each direction, percent.
const LOSSES: [u32; 3] = [0, 1, 3];
/// Nothing between, and a sender with BBR.
pub(super) const DIRECT_BBR: &str = "direct, bbr";
/// Ours, direct, HAProxy, and ours and direct with the other congestion control.
const WAYS: usize = 5;
/// The aim at a round trip of 40 ms and 1 % loss, as a ratio to direct TCP.
const AIM: f64 = 5.0;

pub(super) fn rows(stage: &Stage, plan: Plan) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    let (rounds, time) = if plan.is_quick() { (1, 4) } else { (3, 6) };
    let cells = DELAYS.iter().flat_map(|delay| LOSSES.map(|loss| (*delay, loss)));
    for (delay, loss) in cells {
        // Each way has a link of its own, so that all can be measured at the same time.
        let mut stands = Vec::new();
        for number in 0..WAYS {
            let link = format!("delay={delay}ms,loss={loss}%,rate={RATE}mbit");
            let Some(stand) = Stand::linked(stage, &link)? else { return Ok(rows) };
            let (sink, taken) = stand.server(servers::sink)?;
            let way = match number {
                0 => Some(stand.tunnel(sink, "")?),
                1 => Some(stand.direct(sink)),
                2 => stand.haproxy(sink)?,
                3 => Some(stand.tunnel(sink, ", congestion: bbr")?.named("sidecar, bbr")),
                _ => Some(stand.direct(sink).named(DIRECT_BBR)),
            };
            stands.extend(way.map(|way| (stand, way, taken)));
        }
        let progress = Progress::new("peer, goodput", rounds);
        let mut figures = vec![Vec::new(); stands.len()];
        for _ in 0..rounds {
            progress.step("all at once");
            let round: Vec<Result<f64, Failure>> = std::thread::scope(|scope| {
                let threads: Vec<_> = stands
                    .iter()
                    .map(|(stand, way, taken)| {
                        let congestion = match way.name {
                            DIRECT => Some("cubic"),
                            DIRECT_BBR => Some("bbr"),
                            // The kernel's, which matters to HAProxy.
                            _ => None,
                        };
                        let flow = Flow { stand, to: way.at, taken, congestion };
                        scope.spawn(move || arrived(&flow, Duration::from_secs(time)))
                    })
                    .collect();
                let panicked = |_| Err("a client panicked".into());
                threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
            });
            for ((figures, (_, way, _)), rate) in figures.iter_mut().zip(&stands).zip(round) {
                figures.push(rate.map_err(|why| way.failed(&why))?);
            }
        }
        drop(progress);
        let medians: Vec<_> =
            stands.iter().zip(figures).map(|((_, way, _), rates)| (way.name, median(rates))).collect();
        let figures =
            row::beside(&format!("peer, goodput at {} ms and {loss} %", delay * 2), "Mbit/s", &medians);
        rows.extend(figures.into_iter().map(|row| {
            let aimed = row.peer == Some(DIRECT) && (delay, loss) == (20, 1);
            if aimed { row.ratio_at_least(AIM) } else { row }
        }));
    }
    Ok(rows)
}

/// A long stream to a server in the far place.
pub(super) struct Flow<'a> {
    pub(super) stand: &'a Stand<'a>,
    /// The server, or the way to it.
    pub(super) to: SocketAddr,
    /// What the server has taken.
    pub(super) taken: &'a AtomicU64,
    /// The sender's congestion control, one of the kernel's; its default where it is left open.
    pub(super) congestion: Option<&'static str>,
}

/// Mbit/s that arrive in the far place, after as much time again in which the sender finds its pace.
pub(super) fn arrived(flow: &Flow<'_>, time: Duration) -> Result<f64, Failure> {
    let (stop, taken) = (AtomicBool::new(false), flow.taken);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| flow.stand.near(|| send_until(flow.to, flow.congestion, &stop))?);
        pause(time);
        let (before, start) = (taken.load(Ordering::Relaxed), Instant::now());
        pause(time);
        let (after, elapsed) = (taken.load(Ordering::Relaxed), start.elapsed());
        stop.store(true, Ordering::Relaxed);
        sender.join().unwrap_or_else(|_| Err(std::io::Error::other("the sender panicked")))?;
        Ok((after - before) as f64 * 8e-6 / elapsed.as_secs_f64())
    })
}

/// Sends as much as is taken.
pub(super) fn send_until(to: SocketAddr, congestion: Option<&str>, stop: &AtomicBool) -> std::io::Result<()> {
    let mut stream = clients::tcp(to)?;
    if let Some(congestion) = congestion {
        rustix::net::sockopt::set_tcp_congestion(&stream, congestion)?;
    }
    stream.set_write_timeout(Some(Duration::from_millis(100)))?;
    let chunk = vec![7; 16 << 10];
    while !stop.load(Ordering::Relaxed) {
        match stream.write(&chunk) {
            Err(why) if why.kind() != std::io::ErrorKind::WouldBlock => return Err(why),
            _ => {}
        }
    }
    // What is still on its way is of no interest.
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
    Ok(())
}
