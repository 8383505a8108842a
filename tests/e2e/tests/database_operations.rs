//! Pooled database sessions as an operator sees and steers them while they are used.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests report by panicking"
)]

use std::net::SocketAddr;
use std::time::Duration;

use qudag_kit::postgres::{PASSWORD, client, pgbench, psql};
use qudag_kit::{Postgres, TestSidecar, eventually, skip};
use serde_json::{Value, json};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(20);
/// A value that must not be seen anywhere.
const SECRET: &str = "4711471147";

struct Stand {
    dir: TempDir,
    _postgres: Postgres,
    sidecar: TestSidecar,
    door: SocketAddr,
}

async fn stand(filters: &str) -> Stand {
    let dir = tempfile::tempdir().unwrap();
    let users = dir.path().join("users.txt");
    std::fs::write(&users, format!("\"qudag\" \"{PASSWORD}\"\n")).unwrap();
    let postgres = Postgres::start().await;
    let yaml = format!(
        "listeners:\n  postgres: {{ bind: \"127.0.0.1:0\", server: \"{}\", auth: {{ users: \"{}\" }} }}\nfilters:\n  db:\n    \
         db_pool: {{ enabled: true, size: 4 }}\n{filters}",
        postgres.addr(),
        users.display()
    );
    let sidecar = TestSidecar::start(&yaml).await;
    let door = sidecar.listener("db").await;
    Stand { dir, _postgres: postgres, sidecar, door }
}

macro_rules! needs_postgres {
    () => {
        if let Err(reason) = Postgres::available() {
            skip!("{reason}");
        }
    };
}

impl Stand {
    /// The only pool, once it fulfils a condition.
    async fn pool(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        eventually(SOON, what, async || {
            let told = self.sidecar.admin("GET", "/db", Value::Null).await.ok();
            let pool = told["pools"].get(0)?.clone();
            condition(&pool).then_some(pool)
        })
        .await
    }

    async fn query(&self, text: &str) -> String {
        psql(self.door, &["-Atc", text]).await.ok().trim().to_owned()
    }
}

#[tokio::test]
async fn pools_are_shown_and_held_back() {
    needs_postgres!();
    let it = stand("").await;
    let none = it.sidecar.cli(&["db"]).await.ok();
    assert_eq!(none, "no session has been pooled\n");
    assert_eq!(it.query(&format!("select {SECRET}")).await, SECRET);
    let pool = it.pool("the session has ended", |pool| pool["sessions"] == 0 && pool["idle"] == 1).await;
    assert_eq!(
        (&pool["size"], &pool["user"], &pool["database"]),
        (&json!(4), &json!("qudag"), &json!("qudag"))
    );
    let statements = it.sidecar.cli(&["db", "statements"]).await.ok();
    assert!(statements.contains("select ?") && !statements.contains(SECRET), "{statements}");
    let servers = it.sidecar.cli(&["db", "servers"]).await.ok();
    assert!(servers.contains("idle") && servers.contains("1 of 100"), "{servers}");

    let nobody = it.sidecar.cli(&["db", "pause", "nothing"]).await;
    assert!(nobody.code != 0 && nobody.stderr.contains("has no pool"), "{nobody:?}");
    assert_eq!(it.sidecar.cli(&["db", "pause", "qudag"]).await.ok(), "paused: 1 pool of qudag\n");
    let select = client("psql", it.door, "qudag").env("PGAPPNAME", "held-back").args(["-XAtc", "select 1"]);
    let mut held = select.spawn(it.dir.path());
    let waiting = it.pool("the transaction waits", |pool| pool["waiting"] == 1).await;
    assert_eq!(waiting["paused"], true);
    let clients = it.sidecar.cli(&["db", "clients"]).await.ok();
    assert!(clients.contains("held-back") && clients.contains("waiting"), "{clients}");
    let sample = it.sidecar.cli_json(&["top", "db", "--once", "--interval", "100ms"]).await;
    assert_eq!(
        (&sample["waiting"][0]["application"], &sample["pools"][0]["waiting"]),
        (&json!("held-back"), &json!(1))
    );
    let page = it.sidecar.cli(&["top", "db", "--once", "--interval", "100ms"]).await.ok();
    assert!(page.contains("WAITS S") && page.contains("held-back") && page.contains("paused"), "{page}");
    assert!(held.ended().is_none());
    assert_eq!(it.sidecar.cli(&["db", "resume"]).await.ok(), "resumed: 1 pool\n");
    assert!(held.wait_for_end(SOON).await.success(), "{}", held.log());
    let answer = it.sidecar.admin("POST", "/db/pause", json!({"databse": "x"})).await;
    assert_eq!(answer.status, 400);
}

#[tokio::test]
async fn the_query_cache_is_shown_and_flushed() {
    needs_postgres!();
    let rules = "{ name: sums, pattern: 'select ? + ?*' }, { name: empty, reads: [nothing] }";
    let it = stand(&format!("    db_query_cache: {{ enabled: true, rules: [{rules}] }}\n")).await;
    let show = async || it.sidecar.cli_json(&["db", "cache"]).await;
    // The first transaction makes the cache known to sessions.
    it.query("select 1").await;
    for _ in 0..3 {
        assert_eq!(it.query(&format!("select {SECRET} + 1")).await, "4711471148");
    }
    let shown = show().await;
    let sums = &shown["rules"][0];
    assert_eq!((&sums["rule"], &sums["entries"], &sums["misses"]), (&json!("sums"), &json!(1), &json!(1)));
    assert_eq!(
        (&sums["hits"], &shown["hits"], &shown["max_bytes"]),
        (&json!(2), &json!(2), &json!(32 << 20))
    );
    let page = it.sidecar.cli(&["db", "cache"]).await.ok();
    assert!(page.contains("sums") && page.contains("66.7% of 3 from the cache"), "{page}");
    assert!(!page.contains(SECRET) && !shown.to_string().contains(SECRET), "{page}");

    for (args, said) in [
        (&["--rule", "empty"][..], "0 entries dropped\n"),
        (&["--table", "nothing"], "0 entries dropped\n"),
        (&["--rule", "sums"], "1 entry dropped\n"),
    ] {
        assert_eq!(it.sidecar.cli(&[&["db", "cache", "flush"], args].concat()).await.ok(), said);
    }
    it.query("select 1 + 1").await;
    it.query("select 2 + 1").await;
    assert_eq!(it.sidecar.cli(&["db", "cache", "flush"]).await.ok(), "2 entries dropped\n");
    assert_eq!(show().await["bytes"], 0);
    let nobody = it.sidecar.cli(&["db", "cache", "flush", "--rule", "nobody"]).await;
    assert!(nobody.code != 0 && nobody.stderr.contains("no rule"), "{nobody:?}");
    for (body, status) in [(json!({"rule": "sums", "table": "t"}), 400), (json!({"rule": 1}), 400)] {
        assert_eq!(it.sidecar.admin("POST", "/db/cache/flush", body).await.status, status);
    }
}

#[tokio::test]
async fn without_pools_there_is_nothing_to_show() {
    let sidecar = TestSidecar::start("listeners:\n  postgres: { bind: \"127.0.0.1:0\" }\n").await;
    let told = sidecar.cli(&["db"]).await;
    assert!(told.code != 0 && told.stderr.contains("db_pool has not been on"), "{told:?}");
    let told = sidecar.cli(&["db", "cache"]).await;
    assert!(told.code != 0 && told.stderr.contains("db_query_cache has not been on"), "{told:?}");
}

#[tokio::test]
async fn transactions_are_tapped_without_their_values() {
    needs_postgres!();
    let it = stand("").await;
    let tap = |args: &[&str], name| {
        it.sidecar.command(&[&["tap", "db", "--json"], args].concat()).named(name).spawn(it.dir.path())
    };
    let mut sessions = tap(&["--limit", "1"], "sessions");
    let mut transactions = tap(&["--transactions", "--limit", "2"], "transactions");
    for tap in [&mut sessions, &mut transactions] {
        tap.wait_for_log("the tap is open", |line| line.contains("live; Ctrl-C ends").then_some(())).await;
    }
    let script = ["-Atc", &format!("select {SECRET} where false"), "-c", "listen somebody"];
    psql(it.door, &script).await.ok();
    for tap in [&mut sessions, &mut transactions] {
        assert!(tap.wait_for_end(SOON).await.success(), "{}", tap.log());
        assert!(!tap.log().contains(SECRET), "{}", tap.log());
    }
    let flows = |text: String| -> Vec<Value> {
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    let session = flows(sessions.log()).remove(0);
    assert_eq!(
        (&session["outcome"], &session["detail"]["pins"]),
        (&json!("ok"), &json!("listen")),
        "{session}"
    );
    assert_eq!(session["detail"]["database"], "qudag");
    let seen = flows(transactions.log());
    assert_eq!(
        (&seen[0]["kind"], &seen[0]["outcome"]),
        (&json!("db_transactions"), &json!("ok")),
        "{seen:?}"
    );
    assert_eq!(seen[0]["detail"]["text"], "select ? where false");
    assert_eq!(seen[1]["detail"]["text"], "listen somebody");
    assert_eq!(seen[0]["detail"]["statement"].as_str().unwrap().len(), 16);
    assert!(seen[0]["bytes_up"].as_u64().unwrap() > 0 && seen[0]["bytes_down"].as_u64().unwrap() > 0);
}

#[tokio::test]
async fn the_size_is_changed_under_load_and_comes_back_by_itself() {
    needs_postgres!();
    let mut it = stand("").await;
    let script = it.dir.path().join("script.sql");
    std::fs::write(&script, "select pg_sleep(0.002);\n").unwrap();
    let door = it.door;
    let load = tokio::spawn(async move {
        let script = script.to_str().unwrap();
        pgbench(door, &["-n", "-f", script, "-c", "8", "-j", "1", "-t", "400"]).await
    });
    it.pool("all servers are in use", |pool| pool["active"] == 4).await;
    let set = it.sidecar.cli(&["set", "filters.db.db_pool.size=1", "--for", "2s"]).await.ok();
    assert!(set.contains("filters.db.db_pool.size") && set.contains("left"), "{set}");
    it.pool("one server is left", |pool| pool["size"] == 1 && pool["active"] == 1 && pool["idle"] == 0).await;
    let shown = it.sidecar.cli(&["config", "show", "--origin"]).await.ok();
    assert!(shown.lines().any(|line| line.contains("size: 1") && line.ends_with("# set")), "{shown}");
    let status = it.sidecar.cli(&["status"]).await.ok();
    assert!(status.contains("LIVE SETTING"), "{status}");
    it.pool("the size comes back", |pool| pool["size"] == 4 && pool["active"] == 4).await;
    assert_eq!(it.sidecar.status().await["settings"], json!([]));
    let printed = load.await.unwrap().ok();
    assert!(printed.contains("number of transactions actually processed: 3200/3200"), "{printed}");
    assert!(printed.contains("number of failed transactions: 0"), "{printed}");

    // It survives a restart, with its end.
    it.sidecar.cli(&["set", "filters.db.db_pool.size=3", "--for", "3s"]).await.ok();
    it.sidecar.cli(&["set", "filters.db.db_pool.wait=7s"]).await.ok();
    it.sidecar.start_again().await;
    it.door = it.sidecar.listener("db").await;
    let settings = it.sidecar.admin("GET", "/settings", Value::Null).await.ok();
    assert_eq!(settings["settings"].as_array().unwrap().len(), 2, "{settings}");
    assert!(settings["settings"].as_array().unwrap().iter().all(|one| one["in_force"] == true), "{settings}");
    let left = async || {
        let settings = it.sidecar.admin("GET", "/settings", Value::Null).await.ok();
        (settings["settings"].as_array().unwrap().len() == 1).then_some(())
    };
    eventually(SOON, "the setting ends", left).await;
    it.query("select 1").await;
    let size = |pool: &Value| pool["size"] == 4;
    it.pool("the size of the file", size).await;
    it.sidecar.cli(&["unset", "--all"]).await.ok();
    assert_eq!(it.sidecar.status().await["settings"], json!([]));
}

#[tokio::test]
async fn wrong_settings_change_nothing() {
    let sidecar = TestSidecar::start("listeners:\n  dns: { bind: \"127.0.0.1:0\" }\n").await;
    let before = sidecar.generation().await;
    for (assignment, said) in [
        ("filters.db.db_pool.size=0", "live setting: filters.db.db_pool.size: 0 is out of range"),
        ("filters.db.db_pool.sise=5", "did you mean `size`"),
        ("filters.dns.dns_cache.max_ttl=10m", "longer than 300s"),
        ("runtime.workers=1", "cannot be changed while the sidecar runs"),
        ("version=2", "not a version that this program knows"),
        ("admin.token=hunter2", "a secret is given by reference"),
        ("a..b=1", "is no key"),
    ] {
        let refused = sidecar.cli(&["set", assignment]).await;
        assert!(refused.code != 0 && refused.stderr.contains(said), "{assignment}: {refused:?}");
    }
    assert!(!sidecar.log().contains("hunter2"), "{}", sidecar.log());
    assert_eq!(sidecar.generation().await, before);
    assert_eq!(sidecar.status().await["settings"], json!([]));
    let unknown = sidecar.cli(&["unset", "filters.db.db_pool.size"]).await;
    assert!(unknown.stderr.contains("no live setting"), "{unknown:?}");
    // A reload keeps what was set, and a file that does not fit to it is refused.
    sidecar.cli(&["set", "filters.db.db_pool.size=50"]).await.ok();
    sidecar.admin("POST", "/reload", Value::Null).await.ok();
    assert_eq!(sidecar.status().await["settings"][0]["in_force"], true);
    let yaml = "listeners:\n  dns: { bind: \"127.0.0.1:0\" }\nfilters:\n  db:\n    db_pool: { size: 5, max_servers: 30 }\n";
    let refused = sidecar.reload_with(yaml).await;
    assert_eq!(refused.status, 422, "{}", refused.body);
    sidecar.cli(&["unset", "filters.db.db_pool.size"]).await.ok();
    sidecar.admin("POST", "/reload", Value::Null).await.ok();
}

#[tokio::test]
async fn transactions_over_a_rate_are_refused_and_the_session_goes_on() {
    needs_postgres!();
    let limits = "    rate_limit: { enabled: true, transactions: { per_user: { rate: 1, burst: 2 } } }\n";
    let it = stand(limits).await;
    // More than could be refilled in between on a slow machine.
    let mut script = vec!["-X", "-v", "VERBOSITY=verbose", "-At"];
    script.extend(["-c", "select 1"].repeat(20));
    let printed = client("psql", it.door, "qudag").args(script).output().await;
    let done = printed.stdout.lines().count();
    assert!((2..20).contains(&done), "{printed:?}");
    assert!(printed.stderr.contains("53400") && printed.stderr.contains("HINT:"), "{printed:?}");
    let limited = [("kind", "db"), ("scope", "user")];
    assert!(it.sidecar.metric("qudag_sidecar_rate_limited_total", &limited).await >= 1.0);
    // A limit of a statement, set live.
    it.sidecar.cli(&["set", "filters.db.rate_limit.transactions.per_user=null"]).await.ok();
    it.query("select 1 as limited").await;
    let statements = it.sidecar.admin("GET", "/db", Value::Null).await.ok();
    let statements = statements["pools"][0]["statements"].as_array().unwrap().clone();
    let found = statements.iter().find(|one| one["text"].as_str().unwrap().contains("limited")).unwrap();
    let key = format!(
        "filters.db.rate_limit.transactions.statements.{}={{rate: 1, burst: 1}}",
        found["fingerprint"].as_str().unwrap()
    );
    it.sidecar.cli(&["set", &key, "--for", "10m"]).await.ok();
    let mut both = vec!["-X", "-At"];
    both.extend(["-c", "select 2 as limited", "-c", "select 'free'"].repeat(10));
    let printed = client("psql", it.door, "qudag").args(both).output().await;
    let count = |what| printed.stdout.lines().filter(|line| *line == what).count();
    assert!(count("free") == 10 && (1..10).contains(&count("2")), "{printed:?}");
    let refused = it.sidecar.metric("qudag_sidecar_rate_limited_total", &[("scope", "statement")]).await;
    assert_eq!(refused, (10 - count("2")) as f64);
}
