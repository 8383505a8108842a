//! A primary and a replica that streams from it, with the sidecar before them.

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

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use cluster::{Client, HOST, WHERE, prepared, sidecar};
use postgres::Postgres;
use qudag_filter_common::testing::{metric, until};
use serde_json::json;
use tokio::time::sleep;

#[tokio::test(flavor = "multi_thread")]
async fn reads_go_where_they_ask_to_and_a_session_reads_what_it_has_written() {
    let Some(primary) = Postgres::start().await else { return };
    let replica = primary.replica().await;
    let sidecar = sidecar(&primary, &[&replica], json!({ "route": { "parser": true } })).await;
    let (main, read_only) = (sidecar.tcps()[0], sidecar.tcps()[1]);
    let mut client = Client::connect(main, "").await;

    // Before the session writes, only what it asks for matters.
    let hinted = format!("/* qudag: replica */ {WHERE}");
    client.until(&hinted, &["t"]).await;
    assert_eq!(client.query(WHERE).await, ["f"]);
    for options in ["-c qudag.target=replica", "-c geqo=on -c qudag.target=replica"] {
        let mut reader = Client::connect(main, options).await;
        assert_eq!(reader.query(WHERE).await, ["t"]);
        assert_eq!(reader.query("CREATE TABLE no (x int)").await, ["25006"]);
        assert_eq!(reader.query(&format!("/* qudag: primary */ {WHERE}")).await, ["f"]);
    }
    assert_eq!(Client::connect(read_only, "").await.query(WHERE).await, ["t"]);
    let mut writer = Client::connect(read_only, "-c qudag.target=primary").await;
    assert_eq!(writer.query(WHERE).await, ["f"]);

    // A transaction stays where it began, and the next batch of a pipeline goes where it has to.
    let mut client = Client::connect(main, "").await;
    client.send(&["BEGIN READ ONLY", WHERE, "COMMIT", WHERE, &hinted]).await;
    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.extend(client.answer().await);
    }
    // The SELECT outside was at the primary, after which the session may have written.
    assert_eq!(seen[..2], ["t", "f"]);
    client.until(&hinted, &["t"]).await;

    // A prepared statement is known at both.
    client.wire.send(&prepared("s", Some(WHERE))).await;
    assert_eq!(client.answer().await, ["f"]);
    client.until("BEGIN READ ONLY", &[]).await;
    client.wire.send(&prepared("s", None)).await;
    client.answer().await;
    client.query("COMMIT").await;
    let mut reader = Client::connect(read_only, "").await;
    reader.wire.send(&prepared("s", Some(WHERE))).await;
    assert_eq!(reader.answer().await, ["t"]);

    // What the replica has not replayed is read from the primary.
    let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    client.query("CREATE TABLE written (x int)").await;
    let mut direct = Client::connect(at(replica.port), "").await;
    direct.until("SELECT count(*) FROM pg_class WHERE relname = 'written'", &["1"]).await;
    direct.query("SELECT pg_wal_replay_pause()").await;
    direct.until("SELECT pg_get_wal_replay_pause_state()", &["paused"]).await;
    let count = "/* qudag: replica */ SELECT count(*) FROM written";
    for rows in 1..=10 {
        client.query("INSERT INTO written VALUES (1)").await;
        assert_eq!(client.query(count).await, [rows.to_string()]);
        assert_eq!(client.query("SELECT count(*) FROM written").await, [rows.to_string()], "by the parser");
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(client.query(&hinted).await, ["f"]);
    // Also what a session has written that only wanted to read.
    let mut reader = Client::connect(read_only, "").await;
    reader.until(WHERE, &["t"]).await;
    reader.query("/* qudag: primary */ SELECT 1").await;
    assert_eq!(reader.query(WHERE).await, ["f"]);
    reader.query("CREATE TABLE other ()").await;
    sleep(Duration::from_millis(300)).await;
    assert_eq!(reader.query("SELECT FROM other").await, Vec::<String>::new());
    // A session that has not written may see less.
    let mut other = Client::connect(main, "").await;
    other.until(count, &["0"]).await;
    direct.query("SELECT pg_wal_replay_resume()").await;
    client.until(&hinted, &["t"]).await;
    assert_eq!(client.query(count).await, ["10"]);
    assert!(metric("qudag_sidecar_db_reads_total", &["to=\"replica\""]) > 0.0);
    assert!(metric("qudag_sidecar_db_reads_total", &["why=\"behind\""]) > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_follow_a_promotion_and_never_go_back() {
    let Some(mut primary) = Postgres::start().await else { return };
    let replica = primary.replica().await;
    // Any user may ask servers what they are.
    let grant = "CREATE ROLE bob LOGIN; GRANT ALL ON SCHEMA public TO bob";
    primary.psql(HOST, primary.port, &[], grant).await.unwrap();
    let mut direct = Client::connect(SocketAddr::from(([127, 0, 0, 1], replica.port)), "").await;
    direct.until("SELECT count(*) FROM pg_roles WHERE rolname = 'bob'", &["1"]).await;
    let sidecar = sidecar(&primary, &[&replica], json!({})).await;
    let mut client = Client::login(sidecar.tcp(), "bob", "").await;
    client.query("CREATE TABLE written (x int)").await;
    // The replica has it.
    client.until(&format!("/* qudag: replica */ {WHERE}"), &["t"]).await;

    // Reads go on while there is no primary.
    primary.stop();
    let mut reader = Client::login(sidecar.tcp(), "bob", "-c qudag.target=replica").await;
    reader.until(WHERE, &["t"]).await;

    replica.promote().await;
    let promoted = Instant::now();
    client.until("INSERT INTO written VALUES (1) RETURNING x", &["1"]).await;
    let took = promoted.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(metric("qudag_sidecar_db_failovers_total", &[]), 1.0);

    // The old primary comes back, with all it had, and is asked for nothing.
    primary.start_again().await;
    let answers =
        || metric("qudag_sidecar_db_replica_usable", &[&format!("server=\"{HOST}:{}\"", primary.port)]);
    until("the old primary is judged", || answers() == 0.0).await;
    for _ in 0..20 {
        assert_eq!(client.query("INSERT INTO written VALUES (1) RETURNING x").await, ["1"]);
        assert_eq!(client.query("/* qudag: replica */ SELECT pg_is_in_recovery()").await, ["f"]);
        sleep(Duration::from_millis(20)).await;
    }
    let mut new = Client::login(sidecar.tcp(), "bob", "").await;
    assert_eq!(new.query("SELECT count(*) FROM written").await, ["21"]);
    let mut old = Client::connect(SocketAddr::from(([127, 0, 0, 1], primary.port)), "").await;
    assert_eq!(old.query("SELECT count(*) FROM written").await, ["0"]);
}
