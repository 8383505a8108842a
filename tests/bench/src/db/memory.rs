//! What the server's sessions take, and what is between.

use std::time::Duration;

use qudag_kit::program::footprint;

use super::stand::{Stand, Who};
use super::wire::Operation;
use super::{Table, beside, closed::Crew};
use crate::Failure;
use crate::progress::Progress;
use crate::row::Row;

const CLIENTS: usize = 500;
/// Of what they take directly.
const MOST: f64 = 0.35;

/// What processes take of memory, in MiB; what several of them share counts once (`Pss`, proc_pid_smaps(5)).
fn shares(pids: &[u32]) -> Result<f64, Failure> {
    let mut kib = 0;
    for pid in pids {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
            .map_err(|why| format!("memory of a session: {why}"))?;
        let pss = text.lines().find_map(|line| line.strip_prefix("Pss:"));
        let pss = pss.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        kib += pss.ok_or("no Pss of a session")?;
    }
    Ok(kib as f64 / 1024.0)
}

pub(super) fn rows(table: &Table<'_>) -> Result<Vec<Row>, Failure> {
    let clients = if table.plan.is_quick() { CLIENTS / 5 } else { CLIENTS };
    let progress = Progress::new("db, memory", table.who.len() as u64);
    let (mut server, mut sessions, mut between) = (Vec::new(), Vec::new(), Vec::new());
    let mut stand = Stand::start(table.stage, [], None)?;
    for who in &table.who {
        progress.step(who.name());
        // Nobody else has sessions at the server meanwhile.
        stand.only(table.stage, *who)?;
        let Some(way) = stand.ways.first() else { continue };
        let mut crew = Crew::gather(way.at, &Operation::simple(), clients)?;
        crew.work(Duration::from_millis(500))?;
        let pids = stand.cluster.sessions();
        sessions.push((*who, pids.len() as f64));
        server.push((*who, shares(&pids)?));
        if let Some(pid) = way.pids().first() {
            between.push((*who, footprint(*pid).0 as f64 / 1024.0));
        }
    }
    drop(progress);
    let title = |what: &str| format!("db, {clients} clients: {what}");
    let direct = Some(Who::Direct.name());
    let mut rows = beside(&title("memory of the server's sessions"), "MiB", &server);
    rows =
        rows.into_iter().map(|row| if row.peer == direct { row.ratio_at_most(MOST) } else { row }).collect();
    rows.extend(beside(&title("the server's sessions"), "", &sessions));
    rows.extend(beside(&title("memory of what is between"), "MiB", &between));
    Ok(rows)
}
