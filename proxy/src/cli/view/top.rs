//! `top`: a sample as a page.

use serde_json::Value;

use super::db::{db_load, db_replicas, fixed, servers_in_use, too_much, waiting};
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
