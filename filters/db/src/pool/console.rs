//! The database `qudag_sidecar`, which the sidecar answers for itself: pools, sessions and queues in psql, and what may be done to them.

use std::fmt::Write as _;
use std::io;
use std::sync::Arc;

use bytes::{Buf, BufMut, BytesMut};
use qudag_filter_common::Drain;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Pools;
use super::registry::PoolStatus;
use crate::auth::SecureStream;
use crate::load::Load;
use crate::query_cache::RuleStats;
use crate::replicas::Replicas;
use crate::session::Parameters;
use crate::wire::backend::{self, Status};
use crate::wire::build::{self, ErrorResponse};
use crate::wire::{body, frontend};

/// The name of the database.
pub(crate) const DATABASE: &[u8] = b"qudag_sidecar";
/// The longest message.
const LONGEST: usize = 64 << 10;
/// The type `text`.
const TEXT: u32 = 25;

/// What is shown.
pub(super) struct Seen<'a> {
    pub(super) pools: &'a Arc<Pools>,
    /// Where `read_replicas` is on.
    pub(super) replicas: Option<&'a Replicas>,
    pub(super) load: &'a Load,
}

/// A table of text.
struct Table {
    columns: &'static [&'static str],
    rows: Vec<Vec<String>>,
}

/// What a command says.
enum Said {
    Table(Table),
    /// The tag of CommandComplete.
    Done(&'static str),
}

const COMMANDS: &[(&str, &str)] = &[
    ("SHOW POOLS", "connections and transactions of each user and database"),
    ("SHOW CLIENTS", "sessions, and what they do"),
    ("SHOW SERVERS", "connections to servers, and what they do"),
    ("SHOW QUEUE", "transactions that wait for a server, and how many may be under way"),
    ("SHOW STATS", "statements without their values, by the time that they keep servers busy"),
    ("SHOW REPLICAS", "the servers of the cluster: which is the primary, and which may be read from"),
    ("SHOW LOAD", "how loaded the servers are, as they say themselves"),
    ("SHOW CACHE", "the rules of db_query_cache, and what became of their queries"),
    ("SHOW CONFIG", "the settings of db_pool"),
    ("SHOW VERSION", "the sidecar's version"),
    ("PAUSE [database]", "hold transactions back; those under way go on"),
    ("RESUME [database]", "let them go on"),
    ("FLUSH [RULE name | TABLE name]", "forget replies of db_query_cache"),
];

/// What a client of this database is told at its login.
pub(super) fn parameters() -> Parameters {
    let mut parameters = Parameters::default();
    let version = concat!("15.0 (qudag-sidecar ", env!("CARGO_PKG_VERSION"), ")");
    for (name, value) in [
        ("server_version", version),
        ("server_encoding", "UTF8"),
        ("client_encoding", "UTF8"),
        ("DateStyle", "ISO, MDY"),
        ("TimeZone", "UTC"),
        ("integer_datetimes", "on"),
        ("standard_conforming_strings", "on"),
    ] {
        parameters.report(name.as_bytes(), value.as_bytes());
    }
    parameters
}

/// Answers a client until it goes; the outcome.
pub(super) async fn serve(
    mut stream: SecureStream,
    mut inbox: BytesMut,
    mut out: BytesMut,
    seen: &Seen<'_>,
    drain: &Drain,
) -> &'static str {
    // An extended batch is refused once, up to its Sync.
    let mut skipping = false;
    loop {
        loop {
            let head = match frontend::head(&inbox) {
                Ok(Some(head)) if head.len > LONGEST => return "malformed",
                Ok(Some(head)) => head,
                Ok(None) => break,
                Err(_) => return "malformed",
            };
            let Some(text) = body(&inbox, head) else { break };
            match head.kind {
                frontend::TERMINATE => return "ok",
                frontend::QUERY => answer(frontend::query(text).unwrap_or_default(), seen, &mut out),
                frontend::SYNC => {
                    skipping = false;
                    out.extend_from_slice(&build::ready(Status::Idle));
                }
                frontend::FLUSH => {}
                _ if !std::mem::replace(&mut skipping, true) => {
                    error(
                        &mut out,
                        "0A000",
                        "this database knows the simple query protocol only",
                        Some("psql, or PQexec in libpq"),
                    );
                }
                _ => {}
            }
            inbox.advance(head.len);
        }
        let read = async {
            stream.write_all(&out).await?;
            stream.flush().await?;
            out.clear();
            stream.read_buf(&mut inbox).await
        };
        let read: io::Result<usize> = tokio::select! {
            read = read => read,
            () = drain.stopping() => return "draining",
        };
        if !matches!(read, Ok(1..)) {
            return "client_gone";
        }
    }
}

fn error(out: &mut BytesMut, sqlstate: &str, message: &str, hint: Option<&str>) {
    ErrorResponse { fatal: false, sqlstate, message, detail: None, hint }.write(out);
}

/// The commands of a Query, up to the first that fails.
fn answer(text: &[u8], seen: &Seen<'_>, out: &mut BytesMut) {
    let text = String::from_utf8_lossy(text);
    let mut commands = text.split(';').map(str::trim).filter(|command| !command.is_empty()).peekable();
    if commands.peek().is_none() {
        out.extend_from_slice(build::EMPTY_QUERY);
    }
    for command in commands {
        match run(command, seen) {
            Ok(Said::Table(table)) => write_table(&table, out),
            Ok(Said::Done(tag)) => build::command_complete(out, tag),
            Err((sqlstate, message)) => {
                error(out, sqlstate, &message, Some("SHOW HELP lists what there is"));
                break;
            }
        }
    }
    out.extend_from_slice(&build::ready(Status::Idle));
}

fn run(command: &str, seen: &Seen<'_>) -> Result<Said, (&'static str, String)> {
    let pools = seen.pools;
    let words: Vec<_> = command.split_whitespace().collect();
    let upper: Vec<_> = words.iter().map(|word| word.to_ascii_uppercase()).collect();
    let upper: Vec<_> = upper.iter().map(String::as_str).collect();
    let database = words.get(1).map(|name| name.trim_matches('"'));
    let act = |found: usize, tag| match (found, database) {
        (0, Some(name)) => Err(("3D000", format!("database \"{name}\" has no pool"))),
        _ => Ok(Said::Done(tag)),
    };
    let table = match upper.as_slice() {
        ["SHOW", "POOLS"] => pools_table(pools),
        ["SHOW", "CLIENTS"] => clients_table(pools),
        ["SHOW", "SERVERS"] => servers_table(pools),
        ["SHOW", "QUEUE"] => queue_table(pools),
        ["SHOW", "STATS"] => stats_table(pools),
        ["SHOW", "REPLICAS"] => replicas_table(seen.replicas),
        ["SHOW", "LOAD"] => load_table(seen.load),
        ["SHOW", "CACHE"] => cache_table(pools),
        ["SHOW", "CONFIG"] => config_table(pools),
        ["SHOW", "VERSION"] => Table {
            columns: &["version"],
            rows: vec![vec![format!("qudag-sidecar {}", env!("CARGO_PKG_VERSION"))]],
        },
        ["SHOW", "HELP"] | ["HELP"] => {
            let rows = COMMANDS.iter().map(|(command, what)| vec![(*command).to_owned(), (*what).to_owned()]);
            Table { columns: &["command", "what"], rows: rows.collect() }
        }
        ["PAUSE"] | ["PAUSE", _] => return act(pools.pause(database), "PAUSE"),
        ["RESUME"] | ["RESUME", _] => return act(pools.resume(database), "RESUME"),
        ["FLUSH"] | ["FLUSH", "RULE" | "TABLE", _] => return flush(&words, pools),
        _ => {
            let shown: String = command.chars().take(60).collect();
            return Err(("42601", format!("unknown command: {shown}")));
        }
    };
    Ok(Said::Table(table))
}

/// Forgets replies; the words are `FLUSH`, `FLUSH RULE name` or `FLUSH TABLE name`.
fn flush(words: &[&str], pools: &Pools) -> Result<Said, (&'static str, String)> {
    let Some(cache) = pools.cache() else {
        return Err(("55000", "db_query_cache is off, or nothing has passed through it yet".to_owned()));
    };
    match words {
        [_, what, name] if what.eq_ignore_ascii_case("rule") => {
            let name = name.trim_matches('"');
            if cache.flush_rule(name).is_none() {
                return Err(("42704", format!("db_query_cache has no rule \"{name}\"")));
            }
        }
        [_, _, name] => drop(cache.flush_table(name)),
        _ => drop(cache.flush()),
    }
    Ok(Said::Done("FLUSH"))
}

fn cache_table(pools: &Pools) -> Table {
    let rules = pools.cache().map(|cache| cache.stats().rules).unwrap_or_default();
    let row = |rule: RuleStats| {
        let numbers = [rule.entries, rule.bytes, rule.hits, rule.misses, rule.stored];
        [rule.rule, rule.ttl].into_iter().chain(numbers.iter().map(ToString::to_string)).collect()
    };
    Table {
        columns: &["rule", "ttl_s", "entries", "bytes", "hits", "misses", "stored"],
        rows: rules.into_iter().map(row).collect(),
    }
}

/// A row for each of the things of all pools, which begins with the pool's database and user.
fn rows_of<T>(
    pools: &Pools,
    columns: &'static [&'static str],
    of: impl Fn(&PoolStatus) -> Vec<T>,
    row: impl Fn(&T) -> Vec<String>,
) -> Table {
    let status = pools.status();
    let rows = status.pools.iter().flat_map(|pool| {
        let whose = [pool.database.clone(), pool.user.clone()];
        of(pool).iter().map(|one| whose.iter().cloned().chain(row(one)).collect()).collect::<Vec<_>>()
    });
    Table { columns, rows: rows.collect() }
}

fn seconds(seconds: f64) -> String {
    format!("{seconds:.3}")
}

fn pools_table(pools: &Pools) -> Table {
    let columns = &[
        "database",
        "user",
        "server",
        "size",
        "active",
        "idle",
        "connecting",
        "clients",
        "pinned",
        "waiting",
        "paused",
        "error",
    ];
    rows_of(
        pools,
        columns,
        |pool| vec![pool.clone()],
        |pool| {
            let numbers = [
                pool.size,
                pool.active,
                pool.idle,
                pool.connecting,
                pool.sessions,
                pool.pinned,
                pool.waiting,
            ];
            let mut row = vec![pool.server.clone()];
            row.extend(numbers.iter().map(ToString::to_string));
            row.extend([pool.paused.to_string(), pool.error.clone().unwrap_or_default()]);
            row
        },
    )
}

fn clients_table(pools: &Pools) -> Table {
    let columns = &[
        "database",
        "user",
        "client",
        "application",
        "state",
        "for_s",
        "age_s",
        "transactions",
        "pinned",
        "tls",
    ];
    rows_of(
        pools,
        columns,
        |pool| pool.clients.clone(),
        |client| {
            vec![
                client.client.map_or_else(|| "unix".to_owned(), |addr| addr.to_string()),
                client.application.clone(),
                client.doing.label().to_owned(),
                seconds(client.since),
                seconds(client.age),
                client.transactions.to_string(),
                client.pinned.to_string(),
                client.tls.to_string(),
            ]
        },
    )
}

fn servers_table(pools: &Pools) -> Table {
    let columns = &["database", "user", "process", "state", "for_s", "age_s", "transactions", "tls"];
    rows_of(
        pools,
        columns,
        |pool| pool.connections.clone(),
        |server| {
            vec![
                server.process.to_string(),
                server.doing.label().to_owned(),
                seconds(server.since),
                seconds(server.age),
                server.transactions.to_string(),
                server.tls.to_string(),
            ]
        },
    )
}

fn queue_table(pools: &Pools) -> Table {
    let columns = &["database", "user", "waiting", "oldest_s", "active", "limit", "adaptive_limit", "size"];
    rows_of(
        pools,
        columns,
        |pool| vec![pool.clone()],
        |pool| {
            let mut row = vec![pool.waiting.to_string(), seconds(pool.oldest_wait)];
            row.extend(
                [pool.active, pool.limit, pool.adaptive_limit, pool.size].iter().map(ToString::to_string),
            );
            row
        },
    )
}

fn stats_table(pools: &Pools) -> Table {
    let columns = &["database", "user", "fingerprint", "calls", "busy_s", "mean_ms", "statement"];
    rows_of(
        pools,
        columns,
        |pool| pool.statements.clone(),
        |statement| {
            let mean = 1000.0 * statement.busy / (statement.calls.max(1) as f64);
            vec![
                statement.fingerprint.clone(),
                statement.calls.to_string(),
                seconds(statement.busy),
                seconds(mean),
                statement.text.clone(),
            ]
        },
    )
}

fn replicas_table(replicas: Option<&Replicas>) -> Table {
    let columns = &["server", "role", "timeline", "position", "lag_s", "usable", "why", "reads", "share"];
    let text = |number: Option<String>| number.unwrap_or_default();
    let status = replicas.map(Replicas::status).unwrap_or_default();
    let rows = status.into_iter().map(|server| {
        vec![
            server.server,
            server.role.to_owned(),
            text(server.timeline.map(|timeline| timeline.to_string())),
            text(server.position),
            text(server.lag.map(seconds)),
            server.usable.to_string(),
            server.why.unwrap_or_default().to_owned(),
            server.reads.to_string(),
            format!("{:.3}", server.share),
        ]
    });
    Table { columns, rows: rows.collect() }
}

fn load_table(load: &Load) -> Table {
    let columns = &[
        "server",
        "user",
        "asked_s",
        "connections",
        "max_connections",
        "reserved",
        "active",
        "lock_waits",
        "io_waits",
        "oldest_transaction_s",
        "commits_s",
        "rollbacks_s",
        "deadlocks_s",
        "temporary_bytes_s",
        "cpu",
        "processors",
        "waiting",
        "too_much",
        "not_visible",
        "error",
    ];
    let real = |number: Option<f64>| number.map(seconds).unwrap_or_default();
    let count = |number: Option<u64>| number.map(|number| number.to_string()).unwrap_or_default();
    let rows = load.status().into_iter().map(|server| {
        vec![
            server.server,
            server.user,
            real(server.asked),
            count(server.connections),
            count(server.max_connections),
            count(server.reserved),
            count(server.active),
            count(server.lock_waits),
            count(server.io_waits),
            real(server.oldest_transaction),
            real(server.commits),
            real(server.rollbacks),
            real(server.deadlocks),
            real(server.temporary_bytes),
            real(server.cpu),
            real(server.processors),
            server.waiting.to_string(),
            server.indicators.join(" "),
            server.not_visible.join(" "),
            server.error.unwrap_or_default(),
        ]
    });
    Table { columns, rows: rows.collect() }
}

fn config_table(pools: &Pools) -> Table {
    let settings = serde_json::to_value(&*pools.settings()).unwrap_or_default();
    let rows = settings.as_object().into_iter().flatten().map(|(key, value)| {
        let mut text = String::new();
        match value {
            serde_json::Value::String(value) => text.push_str(value),
            // Writing to a string does not fail.
            value => drop(write!(text, "{value}")),
        }
        vec![key.clone(), text]
    });
    Table { columns: &["key", "value"], rows: rows.collect() }
}

fn write_table(table: &Table, out: &mut BytesMut) {
    build::message(out, backend::ROW_DESCRIPTION, |out| {
        out.put_u16(u16::try_from(table.columns.len()).unwrap_or(u16::MAX));
        for column in table.columns {
            build::string(out, column.as_bytes());
            // No table and no column of one; a type of any length; text format.
            out.put_u32(0);
            out.put_u16(0);
            out.put_u32(TEXT);
            out.put_i16(-1);
            out.put_i32(-1);
            out.put_u16(0);
        }
    });
    for row in &table.rows {
        build::message(out, backend::DATA_ROW, |out| {
            out.put_u16(u16::try_from(row.len()).unwrap_or(u16::MAX));
            for value in row {
                out.put_u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
                out.put_slice(value.as_bytes());
            }
        });
    }
    build::command_complete(out, "SHOW");
}
