//! The primary is killed and its replica promoted: how long until writes succeed there, and whether all that was acknowledged is there.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::Table;
use super::cluster::Cluster;
use super::connection::USER;
use super::stand::{Way, Who};
use crate::Failure;
use crate::clients::Postgres;
use crate::measure::pause;
use crate::progress::Progress;
use crate::row::Row;

/// Sessions that a server has room for.
const SESSIONS: usize = 100;
/// Clients, and how many operations a second each of them begins.
const CLIENTS: u64 = 16;
const RATE: u64 = 25;
/// What is aimed at, ms.
const AIM: f64 = 2000.0;
/// Each client's numbers begin so far apart.
const APART: u64 = 1_000_000;

/// How long things take.
#[derive(Clone, Copy)]
struct Times {
    rounds: usize,
    before: Duration,
    /// From the end of the primary to the operator's order.
    away: Duration,
    after: Duration,
}

const FULL: Times = Times {
    rounds: 5,
    before: Duration::from_secs(2),
    away: Duration::from_secs(1),
    after: Duration::from_secs(3),
};
const QUICK: Times = Times {
    rounds: 1,
    before: Duration::from_millis(500),
    away: Duration::from_millis(300),
    after: Duration::from_millis(1500),
};

/// A number that was acknowledged, and when.
type Written = (u64, Instant);

/// What became of one round.
struct Seen {
    /// From when the replica said that it is the primary until a write succeeded there, ms.
    until: f64,
    /// The same from the operator's order on, which the server takes its part of.
    from_order: f64,
    acknowledged: usize,
    lost: usize,
}

pub(super) fn rows(table: &Table<'_>) -> Result<Vec<Row>, Failure> {
    if !table.who.contains(&Who::Sidecar) {
        eprintln!("promotion: only the sidecar finds another primary itself, so there is no row of others");
        return Ok(Vec::new());
    }
    if table.who.contains(&Who::Pgbouncer) {
        eprintln!(
            "promotion: pgbouncer leads to the address that it was told until an operator changes its settings, or a name that it resolves, and sends RELOAD; it has no row"
        );
    }
    let times = if table.plan.is_quick() { QUICK } else { FULL };
    let progress = Progress::new("db, promotion", times.rounds as u64);
    let mut seen = Vec::new();
    for _ in 0..times.rounds {
        progress.step(Who::Sidecar.name());
        seen.push(round(table, times)?);
    }
    drop(progress);
    let median = |of: fn(&Seen) -> f64| {
        let mut all: Vec<f64> = seen.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or_default()
    };
    let sum = |of: fn(&Seen) -> usize| seen.iter().map(of).sum::<usize>() as f64;
    let title = |what: &str| format!("db, promotion: {what}");
    Ok(vec![
        Row::alone(title("from the promotion until a write succeeds"), median(|seen| seen.until), "ms")
            .at_most(AIM),
        Row::alone(
            title("from the operator's order until a write succeeds"),
            median(|seen| seen.from_order),
            "ms",
        ),
        Row::alone(title("writes acknowledged"), sum(|seen| seen.acknowledged), ""),
        Row::alone(title("of those, lost"), sum(|seen| seen.lost), "").at_most(0.0),
    ])
}

fn round(table: &Table<'_>, times: Times) -> Result<Seen, Failure> {
    let mut primary = Cluster::start_with(table.stage, SESSIONS, None, &["synchronous_commit=on"])?;
    primary.sql("CREATE TABLE written (x bigint PRIMARY KEY)")?;
    let replica = primary.replica(table.stage)?;
    // What is acknowledged is at the replica then.
    primary.sql("ALTER SYSTEM SET synchronous_standby_names = '*'")?;
    primary.sql("SELECT pg_reload_conf()")?;
    let deadline = Instant::now() + Duration::from_secs(30);
    while primary.sql("SELECT sync_state FROM pg_stat_replication")? != "sync" {
        if Instant::now() > deadline {
            return Err("the replica does not follow".into());
        }
        pause(Duration::from_millis(20));
    }
    let way = Way::with_replica(table.stage, primary.address(), replica.address())?;
    let (start, end) = (Instant::now(), AtomicBool::new(false));
    let (written, ordered, promoted) = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (at, end) = (way.at, &end);
                scope.spawn(move || write(at, client, start, end))
            })
            .collect();
        // This thread started the servers, which end with it.
        let happened = (|| {
            pause(times.before);
            primary.kill();
            pause(times.away);
            let ordered = Instant::now();
            replica.promote(table.stage)?;
            let promoted = Instant::now();
            pause(times.after);
            Ok::<_, Failure>((ordered, promoted))
        })();
        end.store(true, Ordering::Relaxed);
        let mut written = Vec::new();
        for client in clients {
            written.extend(client.join().unwrap_or_default());
        }
        happened.map(|(ordered, promoted)| (written, ordered, promoted))
    })?;
    let first = written.iter().map(|(_, at)| *at).filter(|at| *at > ordered).min();
    let first = first.ok_or_else(|| format!("no write succeeded after the promotion\n{}", way.log()))?;
    let list: Vec<String> = written.iter().map(|(number, _)| format!("({number})")).collect();
    let lost = replica.sql(&format!(
        "SELECT count(*) FROM (VALUES {}) AS said (x) WHERE NOT EXISTS (SELECT FROM written WHERE written.x = said.x)",
        list.join(",")
    ))?;
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    Ok(Seen {
        until: ms(first.saturating_duration_since(promoted)),
        from_order: ms(first.saturating_duration_since(ordered)),
        acknowledged: written.len(),
        lost: lost.parse()?,
    })
}

/// Writes numbers, each when it is due whatever became of those before, but one at a time; those that were acknowledged.
fn write(at: SocketAddr, client: u64, start: Instant, end: &AtomicBool) -> Vec<Written> {
    let mut acknowledged = Vec::new();
    let mut session: Option<Postgres> = None;
    let interval = Duration::from_secs(1) / RATE as u32;
    let shift = interval * client as u32 / CLIENTS as u32;
    let mut turn = 0_u32;
    while !end.load(Ordering::Relaxed) {
        pause((start + shift + interval * turn).saturating_duration_since(Instant::now()));
        turn += 1;
        if session.is_none() {
            session = Postgres::connect(at, USER).ok();
        }
        // A number is used once: of what was not acknowledged nobody knows.
        let number = client * APART + u64::from(turn);
        match session.as_mut().map(|it| it.query(&format!("INSERT INTO written VALUES ({number})"))) {
            Some(Ok(_)) => acknowledged.push((number, Instant::now())),
            _ => session = None,
        }
    }
    acknowledged
}
