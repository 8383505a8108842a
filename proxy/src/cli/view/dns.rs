//! Look-ups and servers as a person reads them.

use serde_json::Value;

use super::cache::grouped;
use super::{is, list, number, shown, text};
use crate::cli::output::{Cell, Tone, cell, plain, table};

/// `dns lookup`
pub(crate) fn lookup(answer: &Value, colour: bool) -> String {
    let rcode = text(answer, "rcode");
    let tone = match rcode {
        "NOERROR" => Tone::Good,
        "NXDOMAIN" => Tone::Warn,
        _ => Tone::Bad,
    };
    let elapsed = answer.get("elapsed_ms").and_then(Value::as_f64).unwrap_or_default();
    let flags: Vec<_> = list(answer, "flags").filter_map(Value::as_str).collect();
    let flags = if flags.is_empty() { String::new() } else { format!(" ({})", flags.join(" ")) };
    let mut out = format!(
        "{} {}: {} from {} in {elapsed:.3} ms{}\n",
        plain(text(answer, "name")).paint(colour),
        plain(text(answer, "type")).paint(colour),
        cell(rcode, tone).paint(colour),
        plain(text(answer, "source")).paint(colour),
        cell(flags, Tone::Faint).paint(colour),
    );
    if let Some(why) = answer.get("error") {
        out += &format!(
            "{} {}\n",
            cell("no answer:", Tone::Bad).paint(colour),
            plain(shown(Some(why))).paint(colour)
        );
    }
    for extended in list(answer, "extended_errors") {
        let (code, reason, more) =
            (number(extended, "code"), text(extended, "reason"), text(extended, "text"));
        let more = if more.is_empty() { String::new() } else { format!(": {more}") };
        let told = cell(format!("extended error {code}, {}{more}", reason.replace('_', " ")), Tone::Warn);
        out += &format!("{}\n", told.paint(colour));
    }
    let mut records: Vec<_> = list(answer, "records").collect();
    if records.is_empty() {
        records.extend(list(answer, "authority"));
    }
    let rows: Vec<_> = records.into_iter().map(record).collect();
    if !rows.is_empty() {
        out += &table(&["NAME", "TTL", "TYPE", "DATA"], rows, colour);
    }
    let way: Vec<_> = list(answer, "trace").flat_map(filter).collect();
    if !way.is_empty() {
        out += "\n";
        out += &table(&["FILTER", "SWITCH", "AT", "WHAT"], way, colour);
    }
    out
}

fn record(record: &Value) -> Vec<Cell> {
    vec![
        plain(text(record, "name")),
        plain(shown(record.get("ttl"))),
        plain(text(record, "type")),
        plain(text(record, "data")),
    ]
}

/// A filter on the query's way: a row for each of its remarks, at least one.
fn filter(filter: &Value) -> Vec<Vec<Cell>> {
    let rollout = filter.get("rollout").and_then(Value::as_f64).unwrap_or(100.0);
    let (reached, layer) = (text(filter, "reached"), text(filter, "layer"));
    let switch = match filter.get("enabled").and_then(Value::as_bool) {
        None => plain(""),
        Some(false) => cell("off", Tone::Faint),
        Some(true) if rollout < 100.0 => cell(format!("{rollout} %"), Tone::Warn),
        Some(true) => cell("on", Tone::Good),
    };
    let on = filter.get("enabled").is_none_or(|_| is(filter, "enabled"));
    let mut remarks: Vec<(Cell, Cell)> = Vec::new();
    if reached == "without" {
        remarks.push((plain(""), cell("past it: not in its rollout", Tone::Warn)));
    }
    remarks.extend(list(filter, "steps").map(|step| {
        let at = step.get("at_ms").and_then(Value::as_f64).unwrap_or_default();
        (cell(format!("{at:.3} ms"), Tone::Faint), plain(text(step, "what")))
    }));
    if remarks.is_empty() {
        let said = match (on, reached) {
            (false, _) => format!("switched off by {layer}"),
            (true, "") => "not reached".to_owned(),
            (true, _) => "passed on".to_owned(),
        };
        remarks.push((plain(""), cell(said, Tone::Faint)));
    }
    let heads = std::iter::once((plain(text(filter, "filter")), switch));
    let heads = heads.chain(std::iter::repeat_with(|| (plain(""), plain(""))));
    heads.zip(remarks).map(|((name, switch), (at, what))| vec![name, switch, at, what]).collect()
}

/// `dns servers`
pub(crate) fn servers(answer: &Value, colour: bool) -> String {
    let millis = |server: &Value, key: &str| match server.get(key).and_then(Value::as_f64) {
        Some(millis) => plain(format!("{millis:.1}")),
        None => cell("-", Tone::Faint),
    };
    let count = |server: &Value, key: &str| grouped(number(server, key));
    let rows = list(answer, "servers").map(|server| {
        let breaker = match text(server, "breaker") {
            "open" => cell("open", Tone::Bad),
            other => cell(other, if other == "closed" { Tone::Plain } else { Tone::Warn }),
        };
        let failures = number(server, "failures");
        vec![
            plain(text(server, "server")),
            cell(text(server, "list"), Tone::Faint),
            cell(text(server, "protocol"), Tone::Faint),
            if is(server, "healthy") { cell("healthy", Tone::Good) } else { cell("avoided", Tone::Bad) },
            breaker,
            millis(server, "latency_ms"),
            millis(server, "p95_ms"),
            plain(count(server, "answers")),
            cell(count(server, "failures"), if failures > 0 { Tone::Warn } else { Tone::Plain }),
            plain(count(server, "in_flight")),
            cell(shown(server.get("last_failure")), Tone::Faint),
        ]
    });
    let rows: Vec<_> = rows.collect();
    if rows.is_empty() {
        return "no server is known yet\n".to_owned();
    }
    let headings = [
        "SERVER",
        "LIST",
        "OVER",
        "HEALTH",
        "BREAKER",
        "MS",
        "P95 MS",
        "ANSWERS",
        "FAILURES",
        "IN FLIGHT",
        "LAST FAILURE",
    ];
    table(&headings, rows, colour)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_lookup_names_its_source() {
        let value = json!({"name": "a.example.", "type": "A", "rcode": "NOERROR", "source": "cache",
            "elapsed_ms": 0.0421, "flags": ["rd", "ra"],
            "records": [{"name": "a.example.", "ttl": 60, "type": "A", "data": "192.0.2.1"}]});
        let expected = "\
a.example. A: NOERROR from cache in 0.042 ms (rd ra)
NAME        TTL  TYPE  DATA
a.example.  60   A     192.0.2.1
";
        assert_eq!(lookup(&value, false), expected);
    }

    #[test]
    fn servers_are_shown_with_their_health() {
        let answer = json!({"servers": [
            {"server": "192.0.2.1:53", "list": "servers", "protocol": "udp", "healthy": true, "breaker": "closed",
             "latency_ms": 4.25, "p95_ms": 12.0, "in_flight": 2, "connections": 1, "answers": 1234, "failures": 0,
             "last_failure": null, "repeats_case": true},
            {"server": "tls://192.0.2.2:853", "list": "alternative", "protocol": "tls", "healthy": false,
             "breaker": "open", "latency_ms": null, "p95_ms": null, "in_flight": 0, "connections": 0, "answers": 0,
             "failures": 3, "last_failure": "timeout", "repeats_case": false},
        ]});
        let expected = "\
SERVER               LIST         OVER  HEALTH   BREAKER  MS   P95 MS  ANSWERS  FAILURES  IN FLIGHT  LAST FAILURE
192.0.2.1:53         servers      udp   healthy  closed   4.2  12.0    1,234    0         2
tls://192.0.2.2:853  alternative  tls   avoided  open     -    -       0        3         0          timeout
";
        assert_eq!(servers(&answer, false), expected);
        assert_eq!(servers(&json!({"servers": []}), false), "no server is known yet\n");
    }

    #[test]
    fn a_trace_tells_what_every_filter_did() {
        let value = json!({"name": "a.example", "type": "A", "rcode": "SERVFAIL", "source": "sidecar",
        "elapsed_ms": 1500.0, "error": "no answer within 1.5s",
        "extended_errors": [{"code": 22, "reason": "no_reachable_authority", "text": "timeout"}],
        "trace": [
            {"filter": "hosts", "enabled": true, "rollout": 100, "layer": "yaml", "reached": "with",
             "steps": [{"at_ms": 0.01, "what": "not among the 2 names of /etc/hosts"}]},
            {"filter": "rate_limit", "enabled": true, "rollout": 10, "layer": "yaml", "reached": "without", "steps": []},
            {"filter": "local", "enabled": true, "rollout": 100, "layer": "yaml", "reached": "with", "steps": []},
            {"filter": "dns_cache", "enabled": false, "rollout": 100, "layer": "kill_file", "reached": null, "steps": []},
            {"filter": "late", "enabled": true, "rollout": 100, "layer": "yaml", "reached": null, "steps": []},
            {"filter": "dns_upstream", "reached": "with",
             "steps": [{"at_ms": 0.1, "what": "asked 192.0.2.1:53"}, {"at_ms": 1500.0, "what": "no answer"}]},
        ]});
        let expected = "\
a.example A: SERVFAIL from sidecar in 1500.000 ms
no answer: no answer within 1.5s
extended error 22, no reachable authority: timeout

FILTER        SWITCH  AT           WHAT
hosts         on      0.010 ms     not among the 2 names of /etc/hosts
rate_limit    10 %                 past it: not in its rollout
local         on                   passed on
dns_cache     off                  switched off by kill_file
late          on                   not reached
dns_upstream          0.100 ms     asked 192.0.2.1:53
                      1500.000 ms  no answer
";
        assert_eq!(lookup(&value, false), expected);
    }
}
