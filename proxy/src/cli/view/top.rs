//! `top`: a sample as a page.

use serde_json::Value;

use super::db::{db_load, db_replicas, fixed, redis_in_use, servers_in_use, too_much, waiting};
use super::{is, list, number, text};
use crate::cli::output::{Tone, cell, plain, table};

/// Statements on a page.
const STATEMENTS: usize = 20;
/// Clients on a page.
const CLIENTS: usize = 10;
/// The columns that the figures of a statement take, without names.
const FIGURES: usize = 62;
/// The least that is shown of a statement.
const LEAST: usize = 20;

/// `top db`. `width`: the columns of the terminal, to which statements are cut.
pub(in crate::cli) fn top_db(sample: &Value, width: usize, colour: bool) -> String {
    let redis = redis(sample, colour);
    if list(sample, "pools").next().is_none() && !redis.is_empty() {
        return redis;
    }
    let mut page = format!(
        "{:.1} transactions a second of {:.1} asked for, {:.2} servers busy; {}",
        real(sample, "rate"),
        real(sample, "asked"),
        real(sample, "busy"),
        servers_in_use(sample)
    );
    page.push('\n');
    let pools = list(sample, "pools").map(|pool| {
        let count = |key| plain(number(pool, key).to_string());
        vec![
            plain(text(pool, "database")),
            plain(text(pool, "user")),
            count("active"),
            count("limit"),
            count("size"),
            waiting(pool),
            plain(fixed(pool, "oldest_wait", 3)),
            count("sessions"),
            count("pinned"),
            cell(if is(pool, "paused") { "paused" } else { text(pool, "error") }, Tone::Warn),
        ]
    });
    let headings =
        ["DATABASE", "USER", "ACTIVE", "LIMIT", "SIZE", "WAITING", "OLDEST S", "CLIENTS", "PINNED", ""];
    page += &table(&headings, pools.collect(), colour);
    page += &too_much(sample, colour);
    for (key, view) in [("cluster", db_replicas as fn(&Value, bool) -> String), ("load", db_load)] {
        if list(sample, key).next().is_some() {
            page.push('\n');
            page += &view(sample, colour);
        }
    }
    if !redis.is_empty() {
        page += &format!("\n{redis}");
    }
    let names = list(sample, "statements").take(STATEMENTS);
    let names = names.map(|one| text(one, "database").chars().count() + text(one, "user").chars().count());
    let room = width.saturating_sub(FIGURES + names.max().unwrap_or_default()).max(LEAST);
    let statements = list(sample, "statements").take(STATEMENTS).map(|statement| {
        vec![
            plain(text(statement, "database")),
            plain(text(statement, "user")),
            plain(format!("{:.1} %", 100.0 * real(statement, "share"))),
            plain(fixed(statement, "servers", 2)),
            plain(fixed(statement, "rate", 1)),
            plain(fixed(statement, "mean_ms", 2)),
            cell(text(statement, "fingerprint"), Tone::Faint),
            plain(cut(text(statement, "text"), room)),
        ]
    });
    let statements: Vec<_> = statements.collect();
    if !statements.is_empty() {
        page.push('\n');
        let headings =
            ["DATABASE", "USER", "SHARE", "SERVERS", "RATE", "MEAN MS", "FINGERPRINT", "STATEMENT"];
        page += &table(&headings, statements, colour);
    }
    let clients = list(sample, "waiting").take(CLIENTS).map(|client| {
        vec![
            plain(text(client, "database")),
            plain(text(client, "user")),
            cell(fixed(client, "since", 3), Tone::Warn),
            plain(client.get("client").and_then(Value::as_str).unwrap_or("unix")),
            plain(text(client, "application")),
        ]
    });
    let clients: Vec<_> = clients.collect();
    if !clients.is_empty() {
        page.push('\n');
        page += &table(&["DATABASE", "USER", "WAITS S", "CLIENT", "APPLICATION"], clients, colour);
    }
    page
}

/// The pools of Redis, where there are any.
fn redis(sample: &Value, colour: bool) -> String {
    let Some(redis) = sample.get("redis").filter(|redis| list(redis, "pools").next().is_some()) else {
        return String::new();
    };
    let pools = list(redis, "pools").map(|pool| {
        let count = |key| plain(number(pool, key).to_string());
        vec![
            count("database"),
            plain(text(pool, "user")),
            count("protocol"),
            plain(fixed(pool, "rate", 1)),
            plain(fixed(pool, "batch_rate", 1)),
            plain(fixed(pool, "mean_ms", 3)),
            plain(fixed(pool, "servers", 2)),
            count("limit"),
            count("size"),
            waiting(pool),
            plain(fixed(pool, "oldest_wait", 3)),
            cell(if is(pool, "paused") { "paused" } else { text(pool, "error") }, Tone::Warn),
        ]
    });
    let headings = [
        "REDIS DATABASE",
        "USER",
        "PROTOCOL",
        "COMMANDS/S",
        "BATCHES/S",
        "MEAN MS",
        "BUSY",
        "LIMIT",
        "SIZE",
        "WAITING",
        "OLDEST S",
        "",
    ];
    format!("{}{}", table(&headings, pools.collect(), colour), redis_in_use(sample))
}

fn real(of: &Value, key: &str) -> f64 {
    of.get(key).and_then(Value::as_f64).unwrap_or_default()
}

fn cut(text: &str, room: usize) -> String {
    match text.char_indices().nth(room.saturating_sub(1)) {
        Some((end, _)) if text.chars().count() > room => format!("{}…", text.get(..end).unwrap_or_default()),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_sample_is_a_page() {
        let sample = json!({ "seconds": 1.0, "servers": 3, "max_servers": 100, "busy": 1.5, "rate": 20.0, "asked": 25.0,
            "pools": [{ "database": "accounts", "user": "ann", "active": 2, "limit": 4, "size": 4, "waiting": 1,
                        "oldest_wait": 0.25, "sessions": 50, "pinned": 0, "paused": false, "error": null }],
            "statements": [{ "database": "accounts", "user": "ann", "fingerprint": "00000000000000ff", "share": 0.8,
                             "servers": 1.2, "rate": 12.0, "mean_ms": 100.0, "text": "select ? from a_rather_long_name where x = ?" }],
            "waiting": [{ "client": null, "application": "app", "user": "ann", "database": "accounts", "since": 0.25 }] });
        let expected = "\
20.0 transactions a second of 25.0 asked for, 1.50 servers busy; 3 of 100 connections to servers

DATABASE  USER  ACTIVE  LIMIT  SIZE  WAITING  OLDEST S  CLIENTS  PINNED
accounts  ann   2       4      4     1        0.250     50       0

DATABASE  USER  SHARE   SERVERS  RATE  MEAN MS  FINGERPRINT       STATEMENT
accounts  ann   80.0 %  1.20     12.0  100.00   00000000000000ff  select ? from a_rat…

DATABASE  USER  WAITS S  CLIENT  APPLICATION
accounts  ann   0.250    unix    app
";
        assert_eq!(top_db(&sample, 80, false), expected);
        assert!(top_db(&sample, usize::MAX, false).contains("where x = ?"));
    }

    #[test]
    fn pools_of_redis_are_on_it() {
        let redis = json!({ "servers": 5, "max_servers": 100, "own": 2, "max_own": 1000, "pools": [{
            "user": "default", "database": 0, "protocol": 3, "rate": 2000.0, "batch_rate": 125.0, "mean_ms": 0.25, "servers": 1.5,
            "limit": 20, "size": 20, "waiting": 7, "oldest_wait": 0.25, "paused": false, "error": null }] });
        let page = top_db(&json!({ "pools": [], "redis": redis.clone() }), 80, false);
        let expected = "\
REDIS DATABASE  USER     PROTOCOL  COMMANDS/S  BATCHES/S  MEAN MS  BUSY  LIMIT  SIZE  WAITING  OLDEST S
0               default  3         2000.0      125.0      0.250    1.50  20     20    7        0.250
5 of 100 connections to Redis; 2 of 1000 sessions with one of their own
";
        assert_eq!(page, expected);
        let both = top_db(&json!({ "pools": [{}], "redis": redis }), 80, false);
        assert!(
            both.contains("connections to servers") && both.ends_with(&format!("\n\n{expected}")),
            "{both}"
        );
    }

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!((cut("äöü", 3), cut("äöüß", 3), cut("", 3)), ("äöü".into(), "äö…".into(), String::new()));
    }

    #[test]
    fn an_answer_of_another_version_does_not_make_it_panic() {
        for odd in [json!(null), json!({"pools": [1], "statements": [null], "waiting": [[]]})] {
            let _ = top_db(&odd, 0, true);
        }
    }
}
