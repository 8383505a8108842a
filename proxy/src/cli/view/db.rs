//! `db`: pools, their sessions, connections, queues and statements.

use serde_json::Value;

use super::cache::{grouped, size};
use super::{is, list, number, text};
use crate::cli::output::{Cell, Tone, cell, plain, table};

/// `db pools`
pub(in crate::cli) fn db_pools(answer: &Value, colour: bool) -> String {
    let rows: Vec<_> = list(answer, "pools").map(pool).collect();
    let redis: Vec<_> = answer.get("redis").iter().flat_map(|redis| list(redis, "pools")).collect();
    if rows.is_empty() && redis.is_empty() {
        return "no session has been pooled\n".to_owned();
    }
    let headings = [
        "DATABASE",
        "USER",
        "SERVER",
        "SIZE",
        "ACTIVE",
        "IDLE",
        "CONNECTING",
        "CLIENTS",
        "PINNED",
        "WAITING",
        "",
    ];
    let mut page = String::new();
    if !rows.is_empty() {
        page = table(&headings, rows, colour) + &servers_in_use(answer);
        page += &too_much(answer, colour);
        if list(answer, "cluster").next().is_some() {
            page.push('\n');
            page += &db_replicas(answer, colour);
        }
    }
    if !redis.is_empty() {
        let gap = if page.is_empty() { "" } else { "\n" };
        let rows = redis.into_iter().map(redis_pool).collect();
        page += &format!("{gap}{}{}", table(&REDIS, rows, colour), redis_in_use(answer));
    }
    page
}

/// `db replicas`
pub(in crate::cli) fn db_replicas(answer: &Value, colour: bool) -> String {
    let rows: Vec<_> = list(answer, "cluster")
        .map(|server| {
            let role = text(server, "role");
            let tone = match role {
                "primary" => Tone::Good,
                "replica" => Tone::Plain,
                _ => Tone::Bad,
            };
            let usable = match server.get("why").and_then(Value::as_str) {
                Some(why) => cell(why, Tone::Warn),
                None => plain(""),
            };
            vec![
                plain(text(server, "server")),
                cell(role, tone),
                plain(whole(server, "timeline")),
                plain(server.get("position").and_then(Value::as_str).unwrap_or("-")),
                plain(fixed(server, "lag", 1)),
                plain(whole(server, "reads")),
                plain(percent(server, "share")),
                usable,
            ]
        })
        .collect();
    if rows.is_empty() {
        return "read_replicas is off, or no session has come\n".to_owned();
    }
    table(&["SERVER", "ROLE", "TIMELINE", "POSITION", "LAG S", "READS", "SHARE", ""], rows, colour)
}

/// `db load`
pub(in crate::cli) fn db_load(answer: &Value, colour: bool) -> String {
    let rows: Vec<_> = list(answer, "load")
        .map(|server| {
            let state = match server.get("error").and_then(Value::as_str) {
                Some(error) => cell(error, Tone::Bad),
                None => raised(server).map_or_else(|| plain(""), |raised| cell(raised, Tone::Warn)),
            };
            vec![
                plain(text(server, "server")),
                plain(format!("{} of {}", whole(server, "connections"), whole(server, "max_connections"))),
                plain(whole(server, "active")),
                plain(whole(server, "lock_waits")),
                plain(whole(server, "io_waits")),
                plain(fixed(server, "oldest_transaction", 1)),
                plain(fixed(server, "commits", 1)),
                plain(fixed(server, "rollbacks", 1)),
                plain(percent(server, "cpu")),
                waiting(server),
                state,
            ]
        })
        .collect();
    if rows.is_empty() {
        return "no server is asked: probe.load is off, or no session has come\n".to_owned();
    }
    let headings = [
        "SERVER",
        "CONNECTIONS",
        "ACTIVE",
        "LOCK WAITS",
        "IO WAITS",
        "OLDEST S",
        "COMMITS/S",
        "ROLLBACKS/S",
        "CPU",
        "WAITING",
        "",
    ];
    table(&headings, rows, colour)
}

/// What a server has too much of.
fn raised(server: &Value) -> Option<String> {
    let raised: Vec<_> = list(server, "indicators").filter_map(Value::as_str).collect();
    (!raised.is_empty()).then(|| format!("too much: {}", raised.join(", ")))
}

/// A line for each server that has too much to do.
pub(super) fn too_much(answer: &Value, colour: bool) -> String {
    let line = |server: &Value| {
        let said = format!("{}: {}", plain(text(server, "server")).paint(false), raised(server)?);
        Some(cell(said, Tone::Warn).paint(colour) + "\n")
    };
    list(answer, "load").filter_map(line).collect()
}

/// A share in percent, or that it is not known.
fn percent(of: &Value, key: &str) -> String {
    of.get(key)
        .and_then(Value::as_f64)
        .map_or_else(|| "-".to_owned(), |share| format!("{:.0} %", 1e2 * share))
}

const REDIS: [&str; 10] =
    ["REDIS DATABASE", "USER", "SERVER", "PROTOCOL", "SIZE", "ACTIVE", "IDLE", "CONNECTING", "WAITING", ""];

fn redis_pool(pool: &Value) -> Vec<Cell> {
    let count = |key| plain(number(pool, key).to_string());
    vec![
        count("database"),
        plain(text(pool, "user")),
        plain(text(pool, "server")),
        count("protocol"),
        count("size"),
        count("active"),
        count("idle"),
        count("connecting"),
        waiting(pool),
        state(pool),
    ]
}

/// How many connections to Redis there are, in a line.
pub(super) fn redis_in_use(answer: &Value) -> String {
    let redis = answer.get("redis").unwrap_or(&Value::Null);
    let count = |key| number(redis, key);
    format!(
        "{} of {} connections to Redis; {} of {} sessions with one of their own\n",
        count("servers"),
        count("max_servers"),
        count("own"),
        count("max_own")
    )
}

/// How many connections there are, in a line.
pub(super) fn servers_in_use(answer: &Value) -> String {
    format!("{} of {} connections to servers\n", number(answer, "servers"), number(answer, "max_servers"))
}

/// What is wrong with a pool.
fn state(pool: &Value) -> Cell {
    match (is(pool, "paused"), pool.get("error").and_then(Value::as_str)) {
        (true, _) => cell("paused", Tone::Warn),
        (false, Some(error)) => cell(error, Tone::Bad),
        (false, None) => plain(""),
    }
}

fn pool(pool: &Value) -> Vec<Cell> {
    let count = |key| plain(number(pool, key).to_string());
    vec![
        plain(text(pool, "database")),
        plain(text(pool, "user")),
        plain(text(pool, "server")),
        count("size"),
        count("active"),
        count("idle"),
        count("connecting"),
        count("sessions"),
        count("pinned"),
        waiting(pool),
        state(pool),
    ]
}

/// How many wait, which is worth a look.
pub(super) fn waiting(pool: &Value) -> Cell {
    let waiting = number(pool, "waiting");
    cell(waiting.to_string(), if waiting > 0 { Tone::Warn } else { Tone::Plain })
}

/// A row for each thing in a list of each pool, after the names of the pool.
fn of_pools(answer: &Value, key: &str, row: impl Fn(&Value) -> Vec<Cell>) -> Vec<Vec<Cell>> {
    let pools = list(answer, "pools");
    pools
        .flat_map(|pool| {
            list(pool, key).map(|one| {
                let mut cells = vec![plain(text(pool, "database")), plain(text(pool, "user"))];
                cells.extend(row(one));
                cells
            })
        })
        .collect()
}

/// `db clients`
pub(in crate::cli) fn db_clients(answer: &Value, colour: bool) -> String {
    let rows = of_pools(answer, "clients", |client| {
        vec![
            plain(client.get("client").and_then(Value::as_str).unwrap_or("unix")),
            plain(text(client, "application")),
            doing(client),
            plain(fixed(client, "since", 1)),
            plain(fixed(client, "age", 0)),
            plain(grouped(number(client, "transactions"))),
            cell(if is(client, "pinned") { "pinned" } else { "" }, Tone::Warn),
            cell(if is(client, "tls") { "tls" } else { "" }, Tone::Faint),
        ]
    });
    let headings =
        ["DATABASE", "USER", "CLIENT", "APPLICATION", "STATE", "FOR S", "AGE S", "TRANSACTIONS", "", ""];
    table(&headings, rows, colour)
}

/// `db servers`
pub(in crate::cli) fn db_servers(answer: &Value, colour: bool) -> String {
    let rows = of_pools(answer, "connections", |server| {
        vec![
            plain(number(server, "process").to_string()),
            doing(server),
            plain(fixed(server, "since", 1)),
            plain(fixed(server, "age", 0)),
            plain(grouped(number(server, "transactions"))),
            cell(if is(server, "tls") { "tls" } else { "" }, Tone::Faint),
        ]
    });
    let headings = ["DATABASE", "USER", "PROCESS", "STATE", "FOR S", "AGE S", "TRANSACTIONS", ""];
    table(&headings, rows, colour) + &servers_in_use(answer)
}

/// `db queue`
pub(in crate::cli) fn db_queue(answer: &Value, colour: bool) -> String {
    let row = |pool: &Value, database: Cell| {
        let count = |key| plain(number(pool, key).to_string());
        vec![
            database,
            plain(text(pool, "user")),
            waiting(pool),
            plain(fixed(pool, "oldest_wait", 3)),
            count("active"),
            count("limit"),
            count("adaptive_limit"),
            count("size"),
        ]
    };
    let rows = list(answer, "pools").map(|pool| row(pool, plain(text(pool, "database"))));
    let redis = answer.get("redis").into_iter().flat_map(|redis| list(redis, "pools"));
    let redis = redis.map(|pool| {
        let name = format!("redis {} RESP{}", number(pool, "database"), number(pool, "protocol"));
        row(pool, plain(name))
    });
    let headings = ["DATABASE", "USER", "WAITING", "OLDEST S", "ACTIVE", "LIMIT", "ADAPTIVE LIMIT", "SIZE"];
    table(&headings, rows.chain(redis).collect(), colour)
}

/// `db statements`
pub(in crate::cli) fn db_statements(answer: &Value, colour: bool) -> String {
    let rows = of_pools(answer, "statements", |statement| {
        let busy = statement.get("busy").and_then(Value::as_f64).unwrap_or_default();
        let calls = number(statement, "calls");
        let done = number(statement, "done");
        let mean = if done == 0 { 0.0 } else { 1e3 * busy / done as f64 };
        vec![
            cell(text(statement, "fingerprint"), Tone::Faint),
            plain(grouped(calls)),
            plain(format!("{busy:.1}")),
            plain(format!("{mean:.2}")),
            plain(text(statement, "text")),
        ]
    });
    let headings = ["DATABASE", "USER", "FINGERPRINT", "TRANSACTIONS", "BUSY S", "MEAN MS", "STATEMENT"];
    table(&headings, rows, colour)
}

/// `db cache`
pub(in crate::cli) fn db_cache(answer: &Value, colour: bool) -> String {
    let rows = list(answer, "rules").map(|rule| {
        let count = |key| plain(grouped(number(rule, key)));
        vec![
            plain(text(rule, "rule")),
            plain(text(rule, "ttl")),
            count("entries"),
            plain(size(number(rule, "bytes") as f64)),
            count("hits"),
            count("misses"),
            count("stored"),
        ]
    });
    let headings = ["RULE", "TTL S", "ENTRIES", "BYTES", "HITS", "MISSES", "STORED"];
    let (hits, misses) = (number(answer, "hits"), number(answer, "misses"));
    let share = 100.0 * hits as f64 / (hits + misses).max(1) as f64;
    let sum = format!(
        "{} entries, {} of {}; {share:.1}% of {} from the cache\n",
        grouped(number(answer, "entries")),
        size(number(answer, "bytes") as f64),
        size(number(answer, "max_bytes") as f64),
        grouped(hits + misses),
    );
    table(&headings, rows.collect(), colour) + &sum
}

/// `db pause` and `db resume`
pub(in crate::cli) fn db_paused(answer: &Value, _: bool) -> String {
    let what = if is(answer, "paused") { "paused" } else { "resumed" };
    let of = match answer.get("database").and_then(Value::as_str) {
        Some(name) => format!(" of {}", plain(name).paint(false)),
        None => String::new(),
    };
    match number(answer, "pools") {
        1 => format!("{what}: 1 pool{of}\n"),
        pools => format!("{what}: {pools} pools{of}\n"),
    }
}

fn doing(of: &Value) -> Cell {
    let tone = match text(of, "doing") {
        "active" => Tone::Good,
        "waiting" => Tone::Warn,
        _ => Tone::Faint,
    };
    cell(text(of, "doing"), tone)
}

/// A whole number, or that it is not known.
fn whole(of: &Value, key: &str) -> String {
    of.get(key).and_then(Value::as_u64).map_or("-".to_owned(), grouped)
}

/// A number with so many digits behind the point.
pub(super) fn fixed(of: &Value, key: &str, digits: usize) -> String {
    let value = of.get(key).and_then(Value::as_f64);
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer() -> Value {
        json!({ "servers": 3, "max_servers": 100, "pools": [{
            "server": "127.0.0.1:5432", "user": "ann", "database": "accounts", "size": 20, "limit": 20, "adaptive_limit": 7,
            "active": 2, "idle": 1, "connecting": 0, "sessions": 50, "pinned": 1, "waiting": 4, "oldest_wait": 0.0125,
            "paused": true, "error": null,
            "clients": [{ "client": null, "application": "a\u{1b}[31m", "doing": "waiting", "since": 0.25, "age": 61.4,
                          "transactions": 1234, "pinned": true, "tls": false }],
            "connections": [{ "process": 77, "doing": "active", "since": 0.04, "age": 9.0, "transactions": 5, "tls": true }],
            "statements": [{ "fingerprint": "00ff", "calls": 2500, "done": 2000, "busy": 3.0, "text": "select ? from t" }],
        }] })
    }

    #[test]
    fn every_table_shows_the_pools() {
        let expected = "\
DATABASE  USER  SERVER          SIZE  ACTIVE  IDLE  CONNECTING  CLIENTS  PINNED  WAITING
accounts  ann   127.0.0.1:5432  20    2       1     0           50       1       4        paused
3 of 100 connections to servers
";
        assert_eq!(db_pools(&answer(), false), expected);
        let expected = "\
DATABASE  USER  CLIENT  APPLICATION  STATE    FOR S  AGE S  TRANSACTIONS
accounts  ann   unix    a\u{fffd}[31m       waiting  0.2    61     1,234         pinned
";
        assert_eq!(db_clients(&answer(), false), expected);
        let expected = "\
DATABASE  USER  PROCESS  STATE   FOR S  AGE S  TRANSACTIONS
accounts  ann   77       active  0.0    9      5             tls
3 of 100 connections to servers
";
        assert_eq!(db_servers(&answer(), false), expected);
        let expected = "\
DATABASE  USER  WAITING  OLDEST S  ACTIVE  LIMIT  ADAPTIVE LIMIT  SIZE
accounts  ann   4        0.013     2       20     7               20
";
        assert_eq!(db_queue(&answer(), false), expected);
        let expected = "\
DATABASE  USER  FINGERPRINT  TRANSACTIONS  BUSY S  MEAN MS  STATEMENT
accounts  ann   00ff         2,500         3.0     1.50     select ? from t
";
        assert_eq!(db_statements(&answer(), false), expected);
    }

    #[test]
    fn the_cluster_and_its_load_are_shown() {
        let mut answer = answer();
        answer["cluster"] = json!([
            { "server": "a:1", "role": "primary", "timeline": 3, "position": "0/16", "lag": null, "usable": false, "why": null,
              "reads": 1, "share": 0.01 },
            { "server": "b:1", "role": "replica", "timeline": 3, "position": "0/14", "lag": 12.25, "usable": false, "why": "lag",
              "reads": 1234, "share": 0.99 },
            { "server": "c:1", "role": "unknown", "timeline": null, "position": null, "lag": null, "usable": false,
              "why": "silent", "reads": 0, "share": 0.0 },
        ]);
        answer["load"] = json!([{
            "server": "a:1", "connections": 95, "max_connections": 100, "active": 12, "lock_waits": 3, "io_waits": 0,
            "oldest_transaction": 2.5, "commits": 1000.0, "rollbacks": 0.5, "cpu": 0.914, "waiting": 7,
            "indicators": ["connections", "cpu"], "error": null,
        }, { "server": "b:1", "connections": 3, "max_connections": 100, "active": null, "waiting": 0, "cpu": null,
            "indicators": [] }]);
        let expected = "\
SERVER  ROLE     TIMELINE  POSITION  LAG S  READS  SHARE
a:1     primary  3         0/16      -      1      1 %
b:1     replica  3         0/14      12.2   1,234  99 %   lag
c:1     unknown  -         -         -      0      0 %    silent
";
        assert_eq!(db_replicas(&answer, false), expected);
        let pools = db_pools(&answer, false);
        assert!(
            pools.ends_with(&format!("servers\na:1: too much: connections, cpu\n\n{expected}")),
            "{pools}"
        );
        let expected = "\
SERVER  CONNECTIONS  ACTIVE  LOCK WAITS  IO WAITS  OLDEST S  COMMITS/S  ROLLBACKS/S  CPU   WAITING
a:1     95 of 100    12      3           0         2.5       1000.0     0.5          91 %  7        too much: connections, cpu
b:1     3 of 100     -       -           -         -         -          -            -     0
";
        assert_eq!(db_load(&answer, false), expected);
        for odd in [json!(null), json!({"cluster": [1], "load": [null]})] {
            let _ = (db_replicas(&odd, true), db_load(&odd, true));
        }
    }

    #[test]
    fn the_cache_is_shown_by_rule() {
        let answer = json!({
            "entries": 3, "bytes": 2048, "max_bytes": 33_554_432, "hits": 1500, "misses": 500,
            "rules": [{ "rule": "prices", "ttl": "10.000", "entries": 3, "bytes": 2048, "hits": 1500, "misses": 500, "stored": 400 }],
        });
        let expected = "\
RULE    TTL S   ENTRIES  BYTES    HITS   MISSES  STORED
prices  10.000  3        2.0 KiB  1,500  500     400
3 entries, 2.0 KiB of 32.0 MiB; 75.0% of 2,000 from the cache
";
        assert_eq!(db_cache(&answer, false), expected);
    }

    #[test]
    fn pools_of_redis_are_beside_those_of_postgresql() {
        let redis = json!({ "servers": 5, "max_servers": 100, "own": 2, "max_own": 1000, "pools": [{
            "server": "127.0.0.1:6379", "user": "default", "database": 0, "protocol": 3, "size": 20, "limit": 20,
            "adaptive_limit": 9, "active": 4, "idle": 1, "connecting": 0, "waiting": 7, "oldest_wait": 0.25, "paused": true,
            "batches": 10, "commands": 20, "busy": 0.5, "error": null }] });
        let mut both = answer();
        both["redis"] = redis.clone();
        let expected = "\
REDIS DATABASE  USER     SERVER          PROTOCOL  SIZE  ACTIVE  IDLE  CONNECTING  WAITING
0               default  127.0.0.1:6379  3         20    4       1     0           7        paused
5 of 100 connections to Redis; 2 of 1000 sessions with one of their own
";
        assert_eq!(db_pools(&both, false), format!("{}\n{expected}", db_pools(&answer(), false)));
        let only = json!({ "servers": 0, "max_servers": 0, "pools": [], "redis": redis });
        assert_eq!(db_pools(&only, false), expected);
        let expected = "\
DATABASE       USER     WAITING  OLDEST S  ACTIVE  LIMIT  ADAPTIVE LIMIT  SIZE
redis 0 RESP3  default  7        0.250     4       20     9               20
";
        assert_eq!(db_queue(&only, false), expected);
    }

    #[test]
    fn what_was_paused_is_told() {
        assert_eq!(db_pools(&json!({"pools": []}), false), "no session has been pooled\n");
        let one = json!({"paused": true, "database": "a", "pools": 1});
        assert_eq!(db_paused(&one, false), "paused: 1 pool of a\n");
        assert_eq!(db_paused(&json!({"paused": false, "pools": 2}), false), "resumed: 2 pools\n");
    }
}
