//! A server says how loaded it is, and the sidecar what is too much.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    dead_code,
    reason = "a test fails by a panic, and not every test file uses all of the server's helpers"
)]

mod cluster;
mod postgres;

use cluster::{Client, Sidecar};
use postgres::Postgres;
use qudag_filter_common::testing::{is_logged, metric, nowhere, until};
use serde_json::{Value, json};

/// The sidecar before a server, at its port or at its Unix socket.
async fn sidecar(server: &str, auth: Value, probe: Value) -> Sidecar {
    let listener = json!({ "bind": "127.0.0.1:0", "server": server, "auth": auth, "probe": probe });
    Sidecar::start(nowhere(), listener, json!({ "db_pool": { "enabled": true, "size": 2 } })).await
}

fn trust() -> Value {
    json!({ "method": "trust", "admins": ["ann"] })
}

/// Whether an indicator is raised.
fn raised(what: &str) -> bool {
    metric("qudag_sidecar_db_indicator", &[&format!("what=\"{what}\"")]) == 1.0
}

fn backends(what: &str) -> f64 {
    metric("qudag_sidecar_db_load_backends", &[&format!("what=\"{what}\"")])
}

fn cpu() -> f64 {
    metric("qudag_sidecar_db_load_cpu_ratio", &[])
}

async fn console(server: &Postgres, sidecar: &Sidecar) -> String {
    let port = sidecar.tcp().port();
    let settings = [("PGDATABASE", "qudag_sidecar"), ("PGOPTIONS", "")];
    server.psql(cluster::HOST, port, &settings, "SHOW LOAD").await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_locks_and_processors_are_seen() {
    let Some(server) = Postgres::start().await else { return };
    let probe = json!({ "load": { "every": "100ms" } });
    let sidecar = sidecar(&format!("127.0.0.1:{}", server.port), trust(), probe).await;
    let mut client = Client::connect(sidecar.tcp(), "").await;
    client.query("CREATE TABLE held (x int); INSERT INTO held VALUES (1)").await;
    let used = || metric("qudag_sidecar_db_load_connections", &["what=\"used\""]);
    until("the server is asked", || used() >= 1.0).await;
    assert_eq!(metric("qudag_sidecar_db_load_connections", &["what=\"most\""]), 30.0);
    assert_eq!(metric("qudag_sidecar_db_load_connections", &["what=\"reserved\""]), 3.0);

    // One holds what another one waits for.
    let (mut one, mut two) = (Client::direct(&server).await, Client::direct(&server).await);
    one.query("BEGIN").await;
    one.query("UPDATE held SET x = 2").await;
    two.send(&["UPDATE held SET x = 3"]).await;
    until("a lock is waited for", || backends("lock_waits") == 1.0).await;
    assert_eq!(backends("active"), 1.0);
    until("a transaction is old", || metric("qudag_sidecar_db_load_oldest_transaction_seconds", &[]) > 0.5)
        .await;
    one.query("ROLLBACK").await;
    two.answer().await;
    until("nobody waits", || backends("lock_waits") == 0.0).await;
    let rolled_back = || metric("qudag_sidecar_db_load_transactions_total", &["outcome=\"rollback\""]);
    until("the rollback is counted", || rolled_back() >= 1.0).await;

    // Connections until there is hardly any left.
    assert!(!raised("connections"));
    let mut many = Vec::new();
    while used() <= 27.0 {
        if many.len() < 25 {
            many.push(Client::direct(&server).await);
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    until("it is told", || raised("connections")).await;
    assert!(is_logged(&["the database is overloaded", "filters.db.db_pool.size"]));
    let shown = console(&server, &sidecar).await;
    assert!(shown.contains("connections") && shown.contains("ann"), "{shown}");
    drop(many);
    until("it is over", || !raised("connections")).await;
}

/// Selects as fast as they go, past the sidecar, until it is dropped.
fn burn(server: &Postgres, clients: u32) -> tokio::process::Child {
    let script = server.folder.path().join("burn.sql");
    std::fs::write(&script, "SELECT sum(x) FROM generate_series(1, 20000) AS x;\n").unwrap();
    let mut pgbench = server.client("pgbench", cluster::HOST, server.port);
    pgbench.args(["-n", "-T", "60", "-c", &clients.to_string(), "-f"]).arg(script);
    pgbench.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    pgbench.kill_on_drop(true).spawn().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn processors_of_a_server_on_this_host_are_seen_by_tcp_and_by_its_socket() {
    let Some(server) = Postgres::start().await else { return };
    for address in [format!("127.0.0.1:{}", server.port), server.unix()] {
        let probe = json!({ "load": { "every": "200ms" } });
        let sidecar = sidecar(&address, trust(), probe).await;
        let mut client = Client::connect(sidecar.tcp(), "").await;
        client.query("SELECT 1").await;
        let share = || {
            let label = format!("server=\"{address}\"");
            metric("qudag_sidecar_db_load_cpu_ratio", &[&label])
        };
        until("it is seen", || share() > 0.0 || share() == 0.0).await;
        until("it rests", || share() < 0.05).await;
        let burning = burn(&server, 4);
        // However busy this machine is otherwise, the server gets some of it.
        until("it is busy", || share() > 0.15).await;
        drop(burning);
        until("it rests again", || share() < 0.05).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_user_may_not_see_is_not_visible_and_a_configured_one_sees_it() {
    let Some(server) = Postgres::start().await else { return };
    let roles = "CREATE ROLE bob LOGIN; CREATE ROLE monitor LOGIN; GRANT pg_monitor TO monitor";
    server.psql(cluster::HOST, server.port, &[], roles).await.unwrap();
    let address = format!("127.0.0.1:{}", server.port);
    let seen = |user: Option<&str>| json!({ "user": user, "load": { "every": "100ms" } });
    let used = || metric("qudag_sidecar_db_load_connections", &["what=\"used\""]);

    let less = sidecar(&address, trust(), seen(None)).await;
    let mut client = Client::login(less.tcp(), "bob", "").await;
    client.query("SELECT 1").await;
    until("the server is asked", || used() >= 2.0).await;
    assert!(backends("active").is_nan() && backends("lock_waits").is_nan());
    assert!(metric("qudag_sidecar_db_load_oldest_transaction_seconds", &[]).is_nan());
    let shown = console(&server, &less).await;
    assert!(
        shown.contains("active lock_waits io_waits oldest_transaction") && shown.contains("bob"),
        "{shown}"
    );
    drop((client, less));

    let all = sidecar(&address, trust(), seen(Some("monitor"))).await;
    let mut client = Client::login(all.tcp(), "bob", "").await;
    client.query("SELECT 1").await;
    until("it is visible", || backends("active") == 0.0).await;
    let shown = console(&server, &all).await;
    assert!(!shown.contains("lock_waits io_waits oldest") && shown.contains("monitor"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_is_said_to_be_and_asked_again() {
    let Some(mut server) = Postgres::start().await else { return };
    let probe = json!({ "load": { "every": "100ms" } });
    let sidecar = sidecar(&format!("127.0.0.1:{}", server.port), trust(), probe).await;
    let mut client = Client::connect(sidecar.tcp(), "").await;
    client.query("SELECT 1").await;
    let used = || metric("qudag_sidecar_db_load_connections", &["what=\"used\""]);
    until("the server is asked", || used() >= 1.0).await;
    until("its processors are seen", || cpu() >= 0.0).await;
    server.stop();
    until("it is not seen", || used().is_nan() && cpu().is_nan()).await;
    server.start_again().await;
    until("it is seen again", || used() >= 1.0 && cpu() >= 0.0).await;
}
