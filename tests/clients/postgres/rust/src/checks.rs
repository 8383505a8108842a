//! What both programs share: checks that are printed as JSON lines, and what they need at the server.

use std::fmt::Display;

use serde_json::{Value, json};

/// Carried out first.
pub const SETUP: &str = "drop schema if exists q cascade; create schema q; create type q.mood as enum ('sad', 'glad'); create type \
    q.pair as (a int, b text); create domain q.positive as int check (value > 0); create table q.items (id int primary key, name text \
    not null); create function q.say(what text) returns void language plpgsql as $$ begin raise notice 'heard: %', what; end $$; create \
    function q.fail(state text) returns void language plpgsql as $$ begin raise exception 'failed with %', state using errcode = state, \
    hint = 'a hint', detail = 'a detail'; end $$";

/// Statements, and the SQLSTATE of what is wrong with them.
pub const ERRORS: [(&str, &str); 12] = [
    ("select 1 / 0", "22012"),
    ("select * from nowhere", "42P01"),
    ("select nothing from q.items", "42703"),
    ("select from where", "42601"),
    ("select 'x'::int", "22P02"),
    ("insert into q.items values (null, 'x')", "23502"),
    ("insert into q.items values (1, 'x'), (1, 'y')", "23505"),
    ("select (-1)::q.positive", "23514"),
    ("select q.fail('P0042')", "P0042"),
    ("select q.fail('57014')", "57014"),
    ("select q.fail('53300')", "53300"),
    ("rollback to savepoint none", "25P01"),
];

/// What a check comes to, or why it failed.
pub type Checked = Result<Value, Box<dyn std::error::Error>>;

/// The connection URL.
pub fn url() -> String {
    std::env::args().nth(1).expect("URL STREAM_MB")
}

/// Rows of 1,000 bytes of the large result.
pub fn stream_rows() -> i32 {
    let megabytes: i32 = std::env::args().nth(2).and_then(|text| text.parse().ok()).expect("URL STREAM_MB");
    megabytes * 1000
}

/// Names and expressions of values of all types.
pub fn types() -> Vec<(String, String)> {
    serde_json::from_str(include_str!("../../types.json")).expect("types.json")
}

/// The most memory that the process had, in MB.
pub fn peak_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// Prints what came of a check.
pub fn tell(name: &str, checked: Checked) {
    let (ok, detail) = match checked {
        Ok(detail) => (true, detail),
        Err(why) => (false, json!(format!("{why:?}"))),
    };
    println!("{}", json!({ "check": name, "ok": ok, "detail": detail }));
}

/// Fails the check unless it is so.
pub fn expect(so: bool, what: impl Display) -> Result<(), Box<dyn std::error::Error>> {
    if so { Ok(()) } else { Err(what.to_string().into()) }
}
