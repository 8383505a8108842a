//! Clients transfer money while clients, server and sidecar are killed and filters change: nothing that was acknowledged is lost,
//! nothing is carried out twice, and the sum stays the same.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests report by panicking")]

use std::path::Path;
use std::time::{Duration, Instant};

use qudag_e2e::ledger::{self, Audit, Journal};
use qudag_e2e::postgres::{Link, Stand, Way};
use qudag_e2e::questions::Dice;
use qudag_e2e::soak_time;
use qudag_kit::postgres::psql;
use qudag_kit::program::{Program, Signal, Start};
use qudag_kit::{Postgres, eventually, skip};

/// Client processes, and the sessions of each.
const CLIENTS: usize = 3;
const SESSIONS: u64 = 6;
/// How many transfers must be acknowledged between two troubles.
const PROGRESS: u64 = 150;
const PATIENCE: Duration = Duration::from_secs(60);

struct Clients {
    running: Vec<Program>,
    journals: Vec<Journal>,
    dir: tempfile::TempDir,
}

impl Clients {
    fn start(stand: &Stand) -> Self {
        let mut clients =
            Self { running: Vec::new(), journals: Vec::new(), dir: tempfile::tempdir().unwrap() };
        for _ in 0..CLIENTS {
            clients.one_more(stand);
        }
        clients
    }

    fn one_more(&mut self, stand: &Stand) {
        let number = self.journals.len() as u64 + 1;
        let path = self.dir.path().join(format!("journal-{number}"));
        let client = Start::new(Path::new(env!("CARGO_BIN_EXE_qudag-ledger-client")));
        let client = client.named(format!("client-{number}")).arg(stand.door.to_string());
        let client = client.args([number.to_string(), SESSIONS.to_string()]).arg(&path);
        self.running.push(client.spawn(self.dir.path()));
        self.journals.push(Journal::new(number, path));
    }

    fn acknowledged(&mut self) -> u64 {
        for client in &mut self.running {
            if let Some(status) = client.ended() {
                panic!("a client ended: {status}\n{}", client.log());
            }
        }
        self.journals.iter_mut().for_each(Journal::catch_up);
        self.journals.iter().map(|journal| journal.acknowledged).sum()
    }

    async fn progress(&mut self, after: &str) {
        let wanted = self.acknowledged() + PROGRESS;
        let more = async || (self.acknowledged() >= wanted).then_some(());
        eventually(PATIENCE, &format!("transfers go on after {after}"), more).await;
    }
}

/// One sort of trouble; what it was.
async fn trouble(
    stand: &mut Stand,
    clients: &mut Clients,
    way: Way,
    number: u64,
    dice: &mut Dice,
) -> &'static str {
    match number {
        0 => {
            clients.running.remove(0);
            clients.one_more(stand);
            "a client is killed"
        }
        1 => {
            stand.sidecar.kill();
            stand.sidecar.start_again().await;
            "the sidecar is killed"
        }
        2 => {
            stand.postgres.kill();
            stand.postgres.start_again().await;
            "the server is killed"
        }
        3 => {
            for limited in [false, true] {
                stand.reload(way, limited).await;
            }
            "reloads"
        }
        4 => {
            let filters: &[_] = match way {
                Way::PassThrough => &["db.rate_limit", "db.circuit_breaker"],
                Way::Pooled(_) | Way::Shedding(_) => {
                    &["db.rate_limit", "db.circuit_breaker", "db.db_backpressure", "db.db_pool"]
                }
            };
            for on in [false, true] {
                for filter in filters {
                    stand.sidecar.toggle(filter, on).await;
                }
            }
            "toggles"
        }
        5 => {
            stand.sidecar.program().signal(Signal::STOP);
            tokio::time::sleep(Duration::from_millis(100 + dice.below(300))).await;
            stand.sidecar.program().signal(Signal::CONT);
            "the sidecar is stopped for a moment"
        }
        6 => {
            for _ in 0..CLIENTS {
                clients.one_more(stand);
            }
            clients.progress("more clients come").await;
            clients.running.truncate(CLIENTS);
            "clients came and were killed"
        }
        _ => {
            let small = match way {
                Way::PassThrough => way,
                Way::Pooled(size) => Way::Pooled((size / 4).max(1)),
                Way::Shedding(size) => Way::Shedding((size / 4).max(1)),
            };
            stand.reload(small, true).await;
            clients.progress("the pool shrinks").await;
            stand.reload(way, true).await;
            "the pool shrinks and grows"
        }
    }
}

const TROUBLES: u64 = 8;

async fn ledger(way: Way) {
    if let Err(reason) = Postgres::available() {
        skip!("{reason}");
    }
    let mut stand = Stand::start_with(way, ledger::SETUP, "").await;
    let mut clients = Clients::start(&stand);
    let (start, mut dice) = (Instant::now(), Dice::new(1));
    clients.progress("the start").await;
    let mut round = 0;
    while round < TROUBLES || soak_time().is_some_and(|time| start.elapsed() < time) {
        // Each once, and then as it comes.
        let number = if round < TROUBLES { round } else { dice.below(TROUBLES) };
        let what = trouble(&mut stand, &mut clients, way, number, &mut dice).await;
        clients.progress(what).await;
        round += 1;
    }
    // Clients go while transfers are under way, and the sidecar goes with what is on its way through it.
    clients.running.clear();
    stand.sidecar.kill();
    let sessions = "select count(*) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()";
    let gone =
        async || (psql(stand.postgres.addr(), &["-Atc", sessions]).await.ok().trim() == "0").then_some(());
    eventually(PATIENCE, "the server is left alone", gone).await;

    let mut link = Link::to(stand.postgres.addr()).await.unwrap();
    let audit = Audit::of(&mut link, &mut clients.journals).await.unwrap();
    println!(
        "{way:?}: {round} troubles in {:.1?}; {} acknowledged, {} not committed, {} unknown of which {} were committed",
        start.elapsed(),
        audit.acknowledged,
        audit.not_committed,
        audit.unknown,
        audit.unknown_committed
    );
    audit.judge();
    assert!(audit.acknowledged > PROGRESS * round && audit.unknown > 0, "{audit:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_of_their_own_lose_no_money() {
    ledger(Way::PassThrough).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pooled_sessions_lose_no_money() {
    ledger(Way::Pooled(4)).await;
}
