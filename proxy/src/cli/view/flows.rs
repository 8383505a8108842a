//! Flows as they come, in columns.

use serde_json::Value;

use super::{number, shown, text};
use crate::cli::output::{Cell, Tone, cell, plain};

/// A column: its heading, its least width, and what stands in it.
struct Column {
    heading: &'static str,
    width: usize,
    right: bool,
    show: fn(&Value) -> Cell,
}

/// Columns that grow with what stands in them; the first row comes with the headings.
pub(crate) struct FlowTable {
    columns: Vec<Column>,
    rows: u64,
}

/// Wider texts do not move what follows in other rows.
const WIDEST: usize = 48;

fn column(heading: &'static str, width: usize, show: fn(&Value) -> Cell) -> Column {
    Column { heading, width: width.max(heading.len()), right: false, show }
}

fn right(heading: &'static str, width: usize, show: fn(&Value) -> Cell) -> Column {
    Column { right: true, ..column(heading, width, show) }
}

/// What is shown of everything that waits for a server of a pool.
fn of_a_pool() -> [Column; 6] {
    [
        column("DATABASE", 8, |flow| detail(flow, "database", Tone::Plain)),
        column("USER", 8, |flow| detail(flow, "user", Tone::Plain)),
        column("OUTCOME", 8, outcome),
        right("MS", 8, duration),
        right("WAITED", 8, |flow| detail(flow, "waited_ms", Tone::Plain)),
        right("BUSY", 8, |flow| detail(flow, "busy_ms", Tone::Plain)),
    ]
}

impl FlowTable {
    /// The columns that suit a kind of traffic.
    pub(crate) fn of(kind: &str) -> Self {
        let mut columns = vec![column("TIME", 12, time), column("CLIENT", 15, client)];
        match kind {
            "dns" => columns.extend([
                column("NAME", 24, |flow| detail(flow, "name", Tone::Plain)),
                column("TYPE", 5, |flow| detail(flow, "type", Tone::Plain)),
                column("REPLY", 8, reply),
                column("BY", 12, |flow| detail(flow, "filter", Tone::Plain)),
                right("MS", 8, duration),
                column("OVER", 4, |flow| detail(flow, "transport", Tone::Faint)),
                column("FLAGS", 8, |flow| detail(flow, "flags", Tone::Faint)),
                column("", 0, |flow| rest(flow, &["name", "type", "rcode", "filter", "transport", "flags"])),
            ]),
            "db" => columns.extend([
                column("DATABASE", 8, |flow| detail(flow, "database", Tone::Plain)),
                column("USER", 8, |flow| detail(flow, "user", Tone::Plain)),
                column("OUTCOME", 8, outcome),
                right("MS", 10, duration),
                right("UP", 8, |flow| plain(number(flow, "bytes_up").to_string())),
                right("DOWN", 8, |flow| plain(number(flow, "bytes_down").to_string())),
                right("TRANSACTIONS", 0, |flow| detail(flow, "transactions", Tone::Plain)),
                column("", 0, |flow| rest(flow, &["database", "user", "transactions"])),
            ]),
            "db_transactions" => columns.extend(of_a_pool().into_iter().chain([
                column("FINGERPRINT", 16, |flow| detail(flow, "statement", Tone::Faint)),
                column("STATEMENT", 0, |flow| detail(flow, "text", Tone::Plain)),
            ])),
            "redis_batches" => columns.extend(of_a_pool().into_iter().chain([
                right("COMMANDS", 8, |flow| detail(flow, "commands", Tone::Plain)),
                column("NAMES", 0, |flow| detail(flow, "names", Tone::Plain)),
            ])),
            _ => columns.extend([
                column("OUTCOME", 8, outcome),
                right("MS", 10, duration),
                right("UP", 8, |flow| plain(number(flow, "bytes_up").to_string())),
                right("DOWN", 8, |flow| plain(number(flow, "bytes_down").to_string())),
                column("", 0, |flow| rest(flow, &[])),
            ]),
        }
        Self { columns, rows: 0 }
    }

    /// The next row, with the headings above the first one.
    pub(crate) fn row(&mut self, flow: &Value, colour: bool) -> String {
        let cells: Vec<_> = self.columns.iter().map(|column| (column.show)(flow)).collect();
        for (column, cell) in self.columns.iter_mut().zip(&cells) {
            column.width = column.width.max(cell.width().min(WIDEST));
        }
        let mut out = String::new();
        if self.rows == 0 {
            let headings = self.columns.iter().map(|column| cell(column.heading, Tone::Head)).collect();
            out += &self.aligned(headings, colour);
        }
        self.rows += 1;
        out + &self.aligned(cells, colour)
    }

    fn aligned(&self, cells: Vec<Cell>, colour: bool) -> String {
        let mut out = String::new();
        let mut pending = 0;
        for (column, cell) in self.columns.iter().zip(cells) {
            let space = column.width.saturating_sub(cell.width());
            let (before, after) = if column.right { (space, 0) } else { (0, space) };
            if cell.width() == 0 {
                pending += column.width + 2;
                continue;
            }
            out.extend(std::iter::repeat_n(' ', pending + before));
            out += &cell.paint(colour);
            pending = after + 2;
        }
        out.push('\n');
        out
    }
}

fn time(flow: &Value) -> Cell {
    let at = flow.get("at").and_then(Value::as_f64).unwrap_or_default();
    // Milliseconds since 1970 fit for a while.
    let at = jiff::Timestamp::from_millisecond((at * 1e3) as i64).ok();
    cell(at.map(|at| at.strftime("%H:%M:%S.%3f").to_string()).unwrap_or_default(), Tone::Faint)
}

fn client(flow: &Value) -> Cell {
    match flow.get("client").and_then(Value::as_str) {
        Some(client) => plain(client),
        None => plain("unix"),
    }
}

fn detail(flow: &Value, key: &str, tone: Tone) -> Cell {
    cell(shown(flow.get("detail").and_then(|detail| detail.get(key))), tone)
}

fn duration(flow: &Value) -> Cell {
    let millis = flow.get("duration_ms").and_then(Value::as_f64).unwrap_or_default();
    let tone = if millis >= 100.0 { Tone::Warn } else { Tone::Plain };
    cell(format!("{millis:.3}"), tone)
}

fn outcome(flow: &Value) -> Cell {
    let outcome = text(flow, "outcome");
    let tone = match outcome {
        "ok" => Tone::Good,
        "malformed" | "rate_limited" | "client_gone" | "reset" => Tone::Warn,
        _ => Tone::Bad,
    };
    cell(outcome, tone)
}

/// The code of a DNS reply; where something else says more about how it ended, that too.
fn reply(flow: &Value) -> Cell {
    let (outcome, code) =
        (text(flow, "outcome"), shown(flow.get("detail").and_then(|detail| detail.get("rcode"))));
    let tone = match code.as_str() {
        "noerror" => Tone::Good,
        "nxdomain" => Tone::Warn,
        _ => Tone::Bad,
    };
    match outcome == "ok" || outcome == code {
        true => cell(code, tone),
        false => cell(format!("{code} ({outcome})"), tone),
    }
}

/// The details that have no column.
fn rest(flow: &Value, shown_already: &[&str]) -> Cell {
    let details = flow.get("detail").and_then(Value::as_object).into_iter().flatten();
    let words = details
        .filter(|(key, _)| !shown_already.contains(&key.as_str()))
        .map(|(key, value)| format!("{key}={}", shown(Some(value))));
    cell(words.collect::<Vec<_>>().join(" "), Tone::Faint)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn dns_flows_stand_in_columns_that_grow() {
        let flow = |name: &str, rcode: &str, outcome: &str| {
            json!({"kind": "dns", "at": 1_700_000_000.25, "client": "127.0.0.1:4242", "outcome": outcome,
                "duration_ms": 0.0421, "bytes_up": 30, "bytes_down": 60, "detail": {"name": name, "type": "A",
                "rcode": rcode, "filter": "dns_cache", "source": "cache", "transport": "udp", "flags": "rd ra"}})
        };
        let mut table = FlowTable::of("dns");
        let text = table.row(&flow("a.example", "noerror", "ok"), false)
            + &table.row(&flow("a-longer-name-than-that.example", "servfail", "timeout"), false);
        let expected = "\
TIME          CLIENT           NAME                      TYPE   REPLY     BY                  MS  OVER  FLAGS
22:13:20.250  127.0.0.1:4242   a.example                 A      noerror   dns_cache        0.042  udp   rd ra     source=cache
22:13:20.250  127.0.0.1:4242   a-longer-name-than-that.example  A      servfail (timeout)  dns_cache        0.042  udp   rd ra     source=cache
";
        assert_eq!(text, expected);
    }

    #[test]
    fn other_kinds_show_what_they_have() {
        let flow = json!({"kind": "rpc", "at": 0.0, "client": null, "outcome": "connect", "duration_ms": 1234.5,
            "bytes_up": 1, "bytes_down": 0, "detail": {"method": "get_status\u{1b}[2J"}});
        let text = FlowTable::of("rpc").row(&flow, false);
        let expected = "\
TIME          CLIENT           OUTCOME           MS        UP      DOWN
00:00:00.000  unix             connect     1234.500         1         0  method=get_status\u{fffd}[2J
";
        assert_eq!(text, expected);
    }

    #[test]
    fn transactions_show_what_they_waited_for_and_no_value() {
        let flow = json!({"kind": "db_transactions", "at": 0.0, "client": "127.0.0.1:4242", "outcome": "ok", "duration_ms": 3.5,
            "bytes_up": 30, "bytes_down": 60, "detail": {"user": "ann", "database": "accounts", "statement": "00000000000000ff",
            "text": "select ?", "waited_ms": "0.010", "busy_ms": "3.400"}});
        let expected = "\
TIME          CLIENT           DATABASE  USER      OUTCOME         MS    WAITED      BUSY  FINGERPRINT       STATEMENT
00:00:00.000  127.0.0.1:4242   accounts  ann       ok           3.500     0.010     3.400  00000000000000ff  select ?
";
        assert_eq!(FlowTable::of("db_transactions").row(&flow, false), expected);
    }

    #[test]
    fn batches_show_names_of_commands() {
        let flow = json!({"kind": "redis_batches", "at": 0.0, "client": "127.0.0.1:4242", "outcome": "ok", "duration_ms": 0.5,
            "bytes_up": 30, "bytes_down": 60, "detail": {"user": "default", "database": "0", "commands": "2", "names": "SET GET",
            "waited_ms": "0.010", "busy_ms": "0.400"}});
        let expected = "\
TIME          CLIENT           DATABASE  USER      OUTCOME         MS    WAITED      BUSY  COMMANDS  NAMES
00:00:00.000  127.0.0.1:4242   0         default   ok           0.500     0.010     0.400         2  SET GET
";
        assert_eq!(FlowTable::of("redis_batches").row(&flow, false), expected);
    }

    #[test]
    fn an_answer_of_another_version_does_not_make_it_panic() {
        for kind in ["dns", "rpc", "db", "db_transactions", "redis_batches"] {
            for flow in [json!(null), json!([]), json!({"detail": 1, "at": "x"}), json!({"at": 1e300})] {
                let _ = FlowTable::of(kind).row(&flow, true);
            }
        }
    }
}
