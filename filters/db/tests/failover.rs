//! A primary fails or is replaced, and replicas fall behind.

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

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use cluster::{Client, HOST, Sidecar, WHERE, sidecar};
use postgres::Postgres;
use qudag_filter_common::testing::{PATIENCE, metric, until};
use serde_json::json;
use tokio::time::{sleep, timeout};

const REPLICA: &str = "/* qudag: replica */ SELECT pg_is_in_recovery()";

fn usable(server: &Postgres) -> f64 {
    metric("qudag_sidecar_db_replica_usable", &[&format!("server=\"{HOST}:{}\"", server.port)])
}

/// Waits until a replica has replayed all that the primary has.
async fn follows(primary: &Postgres, replica: &Postgres) {
    let at = Client::direct(primary).await.query("SELECT pg_current_wal_insert_lsn()").await.remove(0);
    let reached = format!("SELECT pg_last_wal_replay_lsn() >= '{at}'");
    Client::direct(replica).await.until(&reached, &["t"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_primaries_only_the_later_one_is_written_to_and_sessions_of_the_other_one_end() {
    let Some(primary) = Postgres::start().await else { return };
    let replica = primary.replica().await;
    let sidecar = sidecar(&primary, &[&replica], json!({})).await;
    let mut client = Client::connect(sidecar.tcp(), "").await;
    client.query("CREATE TABLE written (x int)").await;
    client.until(REPLICA, &["t"]).await;
    follows(&primary, &replica).await;
    // One that is pinned to the primary, one that is within a transaction there, and one that waits for a lock.
    let mut pinned = Client::connect(sidecar.tcp(), "").await;
    assert_eq!(pinned.query("LISTEN news").await, [""; 0]);
    let mut open = Client::connect(sidecar.tcp(), "").await;
    open.query("BEGIN").await;
    open.query("INSERT INTO written VALUES (0)").await;

    // The primary goes on as one: nobody has told it.
    replica.promote().await;
    let promoted = Instant::now();
    assert_eq!(open.end().await, "57P01");
    assert_eq!(pinned.end().await, "57P01");
    client.until(REPLICA, &["f"]).await;
    assert_eq!(client.query("INSERT INTO written VALUES (1) RETURNING x").await, ["1"]);
    assert!(promoted.elapsed() < Duration::from_secs(2), "{:?}", promoted.elapsed());
    for _ in 0..20 {
        assert_eq!(client.query("INSERT INTO written VALUES (1) RETURNING x").await, ["1"]);
    }
    let count = "SELECT count(*) FROM written";
    assert_eq!(Client::direct(&replica).await.query(count).await, ["21"]);
    assert_eq!(Client::direct(&primary).await.query(count).await, ["0"], "the old primary");
    // A new session is pinned at the new one.
    let mut again = Client::connect(sidecar.tcp(), "").await;
    again.query("LISTEN news").await;
    assert_eq!(again.query("INSERT INTO written VALUES (2) RETURNING x").await, ["2"]);
    assert_eq!(usable(&primary), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_lag_answer_nothing_until_they_have_caught_up() {
    let Some(primary) = Postgres::start().await else { return };
    let (one, two) = (primary.replica().await, primary.replica().await);
    let settings = json!({ "max_lag": "500ms" });
    let sidecar = sidecar(&primary, &[&one, &two], settings).await;
    let mut writer = Client::connect(sidecar.tcp(), "").await;
    writer.query("CREATE TABLE written (x int)").await;
    let mut reader = Client::connect(sidecar.tcps()[1], "").await;
    reader.until(WHERE, &["t"]).await;
    until("both are usable", || usable(&one) + usable(&two) == 2.0).await;
    // Sessions are spread over both.
    let mut seen = std::collections::HashSet::new();
    let deadline = Instant::now() + Duration::from_secs(20);
    while seen.len() < 2 {
        assert!(Instant::now() < deadline, "{seen:?}");
        let mut other = Client::connect(sidecar.tcps()[1], "").await;
        seen.extend(other.query("SELECT current_setting('port')").await);
    }

    for (replica, other) in [(&one, Some(&two)), (&two, None)] {
        let mut direct = Client::direct(replica).await;
        direct.query("SELECT pg_wal_replay_pause()").await;
        direct.until("SELECT pg_get_wal_replay_pause_state()", &["paused"]).await;
        writer.query("INSERT INTO written VALUES (1)").await;
        until("it is behind", || usable(replica) == 0.0).await;
        let expected = match other {
            Some(other) => other.port,
            // Neither of the two: the primary.
            None => primary.port,
        };
        for _ in 0..20 {
            let mut reader = Client::connect(sidecar.tcps()[1], "").await;
            assert_eq!(reader.query("SELECT current_setting('port')").await, [expected.to_string()]);
        }
    }
    let lag = metric("qudag_sidecar_db_replica_lag_seconds", &[&format!("server=\"{HOST}:{}\"", two.port)]);
    assert!(lag > 0.5, "{lag}");
    assert!(metric("qudag_sidecar_db_reads_total", &["to=\"primary\"", "why=\"lag\""]) >= 20.0);
    Client::direct(&one).await.query("SELECT pg_wal_replay_resume()").await;
    until("it has caught up", || usable(&one) == 1.0).await;
    reader.until("SELECT current_setting('port')", &[&one.port.to_string()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_too_many_bytes_behind_answers_nothing() {
    let Some(primary) = Postgres::start().await else { return };
    let replica = primary.replica().await;
    let settings = json!({ "max_lag": "10m", "probe": "200ms", "max_lag_bytes": "64KiB" });
    let sidecar = sidecar(&primary, &[&replica], settings).await;
    let mut client = Client::connect(sidecar.tcp(), "").await;
    client.query("CREATE TABLE written (x text)").await;
    client.until(REPLICA, &["t"]).await;
    let mut direct = Client::direct(&replica).await;
    direct.query("SELECT pg_wal_replay_pause()").await;
    direct.until("SELECT pg_get_wal_replay_pause_state()", &["paused"]).await;
    // Of a session that has not written, so that its floor is no reason.
    let mut other = Client::connect(sidecar.tcps()[1], "").await;
    client.query("INSERT INTO written VALUES ('a')").await;
    assert_eq!(other.query(WHERE).await, ["t"]);
    client.query("INSERT INTO written SELECT repeat('a', 1000) FROM generate_series(1, 100)").await;
    other.until(WHERE, &["f"]).await;
    direct.query("SELECT pg_wal_replay_resume()").await;
    other.until(WHERE, &["t"]).await;
}

/// Inserts numbers, one after the other, on connections that are made again when they end; counts what was acknowledged.
async fn write(
    sidecar: &Sidecar,
    first: u64,
    end: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
) -> Vec<u64> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let address = sidecar.tcp();
    let mut done = Vec::new();
    let mut number = first;
    'connections: while !end.load(Relaxed) {
        let Ok(mut stream) = tokio::net::TcpStream::connect(address).await else { continue };
        let hello = b"\0\0\0\x27\0\x03\0\0user\0ann\0database\0postgres\0\0";
        let mut ask = hello.to_vec();
        ask[3] = u8::try_from(hello.len()).unwrap();
        // A server that stops may say so behind an answer.
        let mut inbox = bytes::BytesMut::new();
        loop {
            if stream.write_all(&ask).await.is_err() {
                continue 'connections;
            }
            let mut ok = false;
            let is_insert = ask[0] == b'Q';
            // Through ReadyForQuery.
            'answer: loop {
                while inbox.len() >= 5 {
                    let length = u32::from_be_bytes(inbox[1..5].try_into().unwrap()) as usize;
                    if inbox.len() <= length {
                        break;
                    }
                    let message = inbox.split_to(length + 1);
                    match message[0] {
                        b'C' => ok = true,
                        b'Z' => break 'answer,
                        _ => {}
                    }
                }
                let read = timeout(PATIENCE, stream.read_buf(&mut inbox)).await;
                match read.unwrap_or_else(|_| {
                    panic!("no answer to {:?} but {inbox:?}", String::from_utf8_lossy(&ask))
                }) {
                    Ok(0) | Err(_) => continue 'connections,
                    Ok(_) => {}
                }
            }
            if is_insert && ok {
                done.push(number);
                acknowledged.fetch_add(1, Relaxed);
            }
            if end.load(Relaxed) {
                break 'connections;
            }
            if is_insert && !ok {
                sleep(Duration::from_millis(5)).await;
            }
            // A number is used once: of what was not acknowledged nobody knows.
            number += 1;
            let sql = format!("INSERT INTO written VALUES ({number})\0");
            ask =
                [&[b'Q'][..], &u32::try_from(sql.len() + 4).unwrap().to_be_bytes(), sql.as_bytes()].concat();
        }
    }
    done
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_under_load_loses_nothing_that_was_acknowledged() {
    let Some(mut primary) = Postgres::start().await else { return };
    let replica = primary.replica().await;
    let settings = "ALTER SYSTEM SET synchronous_standby_names = '*'";
    let mut direct = Client::direct(&primary).await;
    direct.query("CREATE TABLE written (x bigint PRIMARY KEY)").await;
    direct.query(settings).await;
    direct.query("SELECT pg_reload_conf()").await;
    direct.until("SELECT sync_state FROM pg_stat_replication", &["sync"]).await;
    let sidecar = Arc::new(sidecar(&primary, &[&replica], json!({})).await);
    let (end, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let (sidecar, end, acknowledged) =
                (Arc::clone(&sidecar), Arc::clone(&end), Arc::clone(&acknowledged));
            tokio::spawn(async move { write(&sidecar, writer * 1_000_000, end, acknowledged).await })
        })
        .collect();
    until("there is a load", || acknowledged.load(Relaxed) > 200).await;
    drop(direct);
    primary.stop();
    let before = acknowledged.load(Relaxed);
    // Meanwhile everybody waits at a server that is not there.
    sleep(Duration::from_millis(300)).await;
    replica.promote().await;
    let promoted = Instant::now();
    Client::direct(&replica).await.query("ALTER SYSTEM SET synchronous_standby_names = ''").await;
    Client::direct(&replica).await.query("SELECT pg_reload_conf()").await;
    let before = before.max(acknowledged.load(Relaxed));
    until("writes go on", || acknowledged.load(Relaxed) > before).await;
    let took = promoted.elapsed();
    until("all of them", || acknowledged.load(Relaxed) > before + 200).await;
    end.store(true, Relaxed);
    let mut all = Vec::new();
    for writer in writers {
        all.extend(writer.await.unwrap());
    }
    println!("writes go on {took:?} after the promotion");
    assert!(took < Duration::from_secs(2), "{took:?}");
    let values: Vec<String> = all.iter().map(|number| format!("({number})")).collect();
    let missing = format!(
        "SELECT count(*) FROM (VALUES {}) AS said (x) WHERE NOT EXISTS (SELECT FROM written WHERE written.x = said.x)",
        values.join(",")
    );
    assert_eq!(Client::direct(&replica).await.query(&missing).await, ["0"], "of {} acknowledged", all.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_of_a_replica_that_dies_are_answered_by_others() {
    let Some(primary) = Postgres::start().await else { return };
    let mut replica = primary.replica().await;
    // So that it is not a probe by which it is found out.
    let settings = json!({ "probe": "20s", "max_lag": "1m", "route": { "parser": true } });
    let sidecar = sidecar(&primary, &[&replica], settings).await;
    let mut client = Client::connect(sidecar.tcps()[1], "").await;
    assert_eq!(client.query(WHERE).await, ["t"]);

    // What would write is refused once, and known then.
    let mut other = Client::connect(sidecar.tcp(), "").await;
    assert_eq!(other.query("SELECT 1").await, ["1"]);
    let mut direct = Client::direct(&primary).await;
    direct.query("CREATE TABLE written (x int); CREATE FUNCTION writes() RETURNS int LANGUAGE SQL AS 'INSERT INTO written VALUES (1) RETURNING x'").await;
    direct.query("CREATE VIEW sneaky AS SELECT writes()").await;
    follows(&primary, &replica).await;
    assert_eq!(other.query("SELECT * FROM sneaky").await, ["25006"]);
    assert_eq!(other.query("SELECT * FROM sneaky").await, ["1"]);

    // A transaction under way is lost with its server, and the next ones are not.
    let mut open = Client::connect(sidecar.tcps()[1], "").await;
    open.query("BEGIN READ ONLY").await;
    assert_eq!(open.query(WHERE).await, ["t"]);
    replica.stop();
    assert!(["08006", "57P01", "57P02"].contains(&open.end().await.as_str()));
    assert_eq!(client.query(WHERE).await, ["f"]);
}
