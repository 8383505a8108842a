//! The admin API's answers as a person reads them.

mod cache;
mod crypto;
mod db;
mod dns;
mod flows;
mod peers;
mod top;

use qudag_filter_api::Period;
use serde_json::Value;

pub(super) use cache::{cache, flushed, rebuilt};
pub(super) use crypto::{backends, crypto, has_unsound, speeds};
pub(super) use db::{
    db_cache, db_clients, db_load, db_paused, db_pools, db_queue, db_replicas, db_servers, db_statements,
};
pub(super) use dns::{lookup, servers};
pub(super) use flows::FlowTable;
pub(super) use peers::peers;
pub(super) use top::top_db;

use super::output::{Cell, Tone, cell, columns, plain, table};

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn number(value: &Value, key: &str) -> u64 {
    value.get(key).and_then(Value::as_u64).unwrap_or_default()
}

fn is(value: &Value, key: &str) -> bool {
    value.get(key).and_then(Value::as_bool).unwrap_or_default()
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn shown(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

fn on_off(on: bool) -> Cell {
    if on { cell("on", Tone::Good) } else { cell("off", Tone::Faint) }
}

fn seconds(seconds: u64) -> String {
    Period::secs(seconds).to_string()
}

fn time(unix: u64) -> String {
    let at = i64::try_from(unix).ok().and_then(|unix| jiff::Timestamp::from_second(unix).ok());
    at.map_or_else(|| unix.to_string(), |at| at.to_string())
}

/// `status`
pub(super) fn status(status: &Value, colour: bool) -> String {
    let config = status.get("config").unwrap_or(&Value::Null);
    let origin = match text(config, "origin") {
        "last_known_good" => cell("last known good: the file cannot be used", Tone::Bad),
        "pass_through" => cell("pass-through: filters cannot be built", Tone::Bad),
        _ => cell(format!("since {}", time(number(config, "since"))), Tone::Faint),
    };
    let state =
        if is(status, "draining") { cell("draining", Tone::Warn) } else { cell("running", Tone::Good) };
    let draining = match number(status, "draining_generations") {
        0 => String::new(),
        n => format!("{n} superseded still at work"),
    };
    let bypass = if is(status, "bypass") {
        cell("on: no filter is in use", Tone::Warn)
    } else {
        cell("off", Tone::Plain)
    };
    let head = |name| cell(name, Tone::Head);
    let up = format!(
        "{} pid {}, up {}",
        text(status, "version"),
        number(status, "pid"),
        seconds(number(status, "uptime_seconds"))
    );
    let mut out = columns(
        vec![
            vec![head("sidecar"), state, cell(up, Tone::Faint)],
            vec![head("node"), plain(text(status, "node"))],
            vec![head("config"), plain(text(config, "source")), origin],
            vec![
                head("generation"),
                plain(number(status, "generation").to_string()),
                cell(draining, Tone::Warn),
            ],
            vec![head("bypass"), bypass],
        ],
        colour,
    );
    if let Some(capture) = status.get("capture").filter(|capture| capture.is_object()) {
        let (rules, connections) = (capture.get("rules").unwrap_or(&Value::Null), capture.get("connections"));
        let state = match text(rules, "state") {
            "installed" => cell("rules installed", Tone::Good),
            "removed" => cell("rules removed: connections go directly", Tone::Warn),
            "failed" => cell(format!("rules: {}", text(rules, "error")), Tone::Bad),
            _ => cell("rules are managed by `redirect`", Tone::Plain),
        };
        let counts = plain(peers::captured(connections.unwrap_or(&Value::Null)));
        out += &columns(vec![vec![head("capture"), state], vec![plain(""), counts]], colour);
    }
    if let Some(refused) = config.get("refused").filter(|refused| !refused.is_null()) {
        out += "\n";
        out += &cell(format!("The change of {} was refused:", time(number(refused, "at"))), Tone::Bad)
            .paint(colour);
        out += "\n";
        for problem in list(refused, "problems") {
            out += &format!("  {}\n", plain(shown(Some(problem))).paint(colour));
        }
    }
    let listeners: Vec<_> = list(status, "listeners")
        .map(|listener| {
            vec![plain(text(listener, "kind")), plain(text(listener, "name")), plain(text(listener, "addr"))]
        })
        .collect();
    let settings: Vec<_> = list(status, "settings").collect();
    if !settings.is_empty() {
        out += "\n";
        out += &setting_table(settings.into_iter(), colour);
    }
    out += "\n";
    out += &table(&["KIND", "LISTENER", "ADDRESS"], listeners, colour);
    out += "\n";
    out + &filter_table(list(status, "filters"), colour)
}

fn filter_table<'a>(filters: impl Iterator<Item = &'a Value>, colour: bool) -> String {
    let rows = filters.map(|filter| {
        let expires = filter.get("expires_in_seconds").and_then(Value::as_u64);
        vec![
            plain(text(filter, "kind")),
            plain(text(filter, "name")),
            on_off(is(filter, "enabled")),
            plain(format!("{} %", shown(filter.get("rollout")))),
            plain(text(filter, "layer")),
            cell(expires.map(|left| format!("{} left", seconds(left))).unwrap_or_default(), Tone::Warn),
        ]
    });
    table(&["KIND", "FILTER", "STATE", "ROLLOUT", "DECIDED BY", ""], rows.collect(), colour)
}

fn setting_table<'a>(settings: impl Iterator<Item = &'a Value>, colour: bool) -> String {
    let rows = settings.map(|setting| {
        let expires = setting.get("expires_in_seconds").and_then(Value::as_u64);
        let left = expires.map(|left| format!("{} left", seconds(left))).unwrap_or_default();
        let state = if is(setting, "in_force") { left } else { "does not fit the configuration".to_owned() };
        vec![plain(text(setting, "key")), plain(text(setting, "value")), cell(state, Tone::Warn)]
    });
    table(&["LIVE SETTING", "VALUE", ""], rows.collect(), colour)
}

/// `filters list`
pub(super) fn filters(answer: &Value, colour: bool) -> String {
    let mut out = filter_table(list(answer, "filters"), colour);
    if is(answer, "bypass") {
        out += &cell("\nbypass is on: no filter is in use\n".trim(), Tone::Warn).paint(colour);
        out += "\n";
    }
    out
}

/// What a change did.
pub(super) fn applied(applied: &Value, colour: bool) -> String {
    let took = applied.get("took_ms").and_then(Value::as_f64).unwrap_or_default();
    let generation = number(applied, "generation");
    let mut out = if is(applied, "changed") {
        format!(
            "{} generation {generation} is in force ({took:.1} ms)\n",
            cell("done:", Tone::Good).paint(colour)
        )
    } else {
        format!("nothing to change: generation {generation} goes on\n")
    };
    let filters: Vec<_> = list(applied, "filters").collect();
    if !filters.is_empty() {
        out += &filter_table(filters.into_iter(), colour);
    }
    let settings: Vec<_> = list(applied, "settings").collect();
    if !settings.is_empty() {
        out += &setting_table(settings.into_iter(), colour);
    }
    for note in list(applied, "notes") {
        out += &format!(
            "{} {}\n",
            cell("note:", Tone::Warn).paint(colour),
            plain(shown(Some(note))).paint(colour)
        );
    }
    out
}

/// `bypass status`
pub(super) fn bypass(answer: &Value, colour: bool) -> String {
    let mut out = match (answer.get("by").and_then(Value::as_str), is(answer, "bypass")) {
        (Some(layer), _) if layer != "bypass" => {
            let text = format!("on: no filter is in use, by the layer {layer}");
            format!("{}\n", cell(text, Tone::Warn).paint(colour))
        }
        (None, false) => "off\n".to_owned(),
        _ => format!("{}\n", cell("on: no filter is in use", Tone::Warn).paint(colour)),
    };
    if let Some(zone) = answer.get("zone").filter(|zone| zone.is_object()) {
        out += &format!("\n{} serial {}\n", plain(text(zone, "zone")).paint(colour), number(zone, "serial"));
        let rows = list(zone, "names").map(|name| {
            let addresses = list(name, "addresses").filter_map(Value::as_str).collect::<Vec<_>>().join(", ");
            vec![plain(text(name, "name")), plain(addresses)]
        });
        out += &table(&["NAME", "LEADS TO"], rows.collect(), colour);
    }
    if let Some(update) = answer.get("update").filter(|update| update.is_object()) {
        out += "\n";
        let rows = list(update, "names").map(|name| {
            let failed = name.get("error").and_then(Value::as_str);
            let tone = if failed.is_some() { Tone::Bad } else { Tone::Good };
            vec![
                plain(text(name, "name")),
                cell(text(name, "outcome"), tone),
                plain(failed.unwrap_or_else(|| text(name, "server"))),
            ]
        });
        out += &table(&["UPDATED NAME", "OUTCOME", ""], rows.collect(), colour);
    }
    if let Some(report) = answer.get("verification").filter(|report| report.is_object()) {
        out += "\n";
        let rows = list(report, "steps").map(step).collect();
        out += &columns(rows, colour);
        out += &verdict(report, colour);
    }
    out
}

/// A step of a verification.
fn step(step: &Value) -> Vec<Cell> {
    let (mark, tone) = match text(step, "state") {
        "ok" => ("✔", Tone::Good),
        "failed" => ("✗", Tone::Bad),
        "skipped" => ("-", Tone::Faint),
        _ => ("…", Tone::Warn),
    };
    let took = step.get("took_ms").and_then(Value::as_f64).unwrap_or_default();
    vec![
        cell(mark, tone),
        cell(text(step, "name"), Tone::Head),
        plain(format!("{took:.0} ms")),
        plain(text(step, "detail")),
    ]
}

/// A step on a line of its own, for a verification under way.
pub(super) fn step_line(it: &Value, colour: bool) -> String {
    let cells: Vec<_> = step(it).iter().map(|cell| cell.paint(colour)).collect();
    format!("{}\n", cells.join("  "))
}

/// The end of a verification.
pub(super) fn verdict(report: &Value, colour: bool) -> String {
    let took = report.get("took_ms").and_then(Value::as_f64).unwrap_or_default();
    let what = if is(report, "bypass") { "bypass on" } else { "bypass off" };
    let (text, tone) = match (is(report, "done"), is(report, "ok")) {
        (false, _) => (format!("{what}: under way for {took:.0} ms"), Tone::Warn),
        (true, true) => (format!("{what}: verified in {took:.0} ms"), Tone::Good),
        (true, false) => (format!("{what}: a step failed, {took:.0} ms"), Tone::Bad),
    };
    format!("{}\n", cell(text, tone).paint(colour))
}

/// `drain`
pub(super) fn draining(_: &Value, _: bool) -> String {
    "draining: the sidecar stops when the work under way is done\n".to_owned()
}

/// `flags explain`
pub(super) fn explanations(answer: &Value, colour: bool) -> String {
    let mut parts = Vec::new();
    for filter in answer.as_array().into_iter().flatten() {
        let name = cell(format!("{}.{}", text(filter, "kind"), text(filter, "name")), Tone::Head);
        let state = on_off(is(filter, "enabled"));
        let rollout = shown(filter.get("rollout"));
        let mut part = format!("{} is {} at {rollout} %\n", name.paint(colour), state.paint(colour));
        let rows = list(filter, "layers").map(|layer| {
            let says = match layer.get("enabled").and_then(Value::as_bool) {
                Some(on) => on_off(on),
                None => cell("-", Tone::Faint),
            };
            let rollout = layer.get("rollout").map(|rollout| format!("{} %", shown(Some(rollout))));
            vec![
                if is(layer, "decides") { cell("→", Tone::Good) } else { plain(" ") },
                plain(text(layer, "layer")),
                says,
                plain(rollout.unwrap_or_default()),
                cell(text(layer, "reason"), Tone::Faint),
            ]
        });
        part += &table(&["", "LAYER", "SAYS", "ROLLOUT", "BECAUSE"], rows.collect(), colour);
        parts.push(part);
    }
    parts.join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn a_filter() -> Value {
        json!({"kind": "dns", "name": "dns_cache", "enabled": true, "rollout": 12.5, "layer": "override",
               "expires_in_seconds": 90})
    }

    #[test]
    fn status_is_a_page() {
        let value = json!({
            "version": "0.1.0", "pid": 7, "node": "node-a", "uptime_seconds": 61, "generation": 3,
            "draining_generations": 1, "bypass": false, "draining": false,
            "config": {"source": "/etc/s.yaml", "origin": "file", "fingerprint": "ab", "since": 1_700_000_000,
                       "refused": {"at": 1_700_000_001, "problems": ["/etc/s.yaml:1:1: no"]}},
            "settings": [{"key": "node.name", "value": "a", "expires_in_seconds": 90, "in_force": true},
                         {"key": "a.b", "value": "5", "in_force": false}],
            "listeners": [{"kind": "dns", "name": "dns", "addr": "127.0.0.1:5300"}],
            "filters": [a_filter()],
        });
        let expected = "\
sidecar     running      0.1.0 pid 7, up 1m 1s
node        node-a
config      /etc/s.yaml  since 2023-11-14T22:13:20Z
generation  3            1 superseded still at work
bypass      off

The change of 2023-11-14T22:13:21Z was refused:
  /etc/s.yaml:1:1: no

LIVE SETTING  VALUE
node.name     a      1m 30s left
a.b           5      does not fit the configuration

KIND  LISTENER  ADDRESS
dns   dns       127.0.0.1:5300

KIND  FILTER     STATE  ROLLOUT  DECIDED BY
dns   dns_cache  on     12.5 %   override    1m 30s left
";
        assert_eq!(status(&value, false), expected);
    }

    #[test]
    fn a_change_tells_what_holds_now() {
        let value = json!({"generation": 4, "changed": true, "took_ms": 3.21, "filters": [a_filter()],
                           "notes": ["dns.dns_cache stays off"]});
        let expected = "\
done: generation 4 is in force (3.2 ms)
KIND  FILTER     STATE  ROLLOUT  DECIDED BY
dns   dns_cache  on     12.5 %   override    1m 30s left
note: dns.dns_cache stays off
";
        assert_eq!(applied(&value, false), expected);
        let value = json!({"generation": 4, "changed": false, "took_ms": 3.21});
        assert_eq!(applied(&value, false), "nothing to change: generation 4 goes on\n");
    }

    #[test]
    fn the_deciding_layer_is_marked() {
        let value = json!([{"kind": "dns", "name": "dns_cache", "enabled": false, "rollout": 100, "layers": [
            {"layer": "kill_file", "decides": true, "enabled": false, "reason": "/run/kill"},
            {"layer": "yaml", "decides": false, "enabled": true, "rollout": 100, "reason": "s.yaml:3"},
            {"layer": "default", "decides": false, "enabled": null, "reason": ""},
        ]}]);
        let expected = "\
dns.dns_cache is off at 100 %
   LAYER      SAYS  ROLLOUT  BECAUSE
→  kill_file  off            /run/kill
   yaml       on    100 %    s.yaml:3
   default    -
";
        assert_eq!(explanations(&value, false), expected);
    }

    #[test]
    fn other_views() {
        assert_eq!(bypass(&json!({"bypass": true}), false), "on: no filter is in use\n");
        let all = filters(&json!({"bypass": true, "filters": []}), false);
        assert_eq!(all, "KIND  FILTER  STATE  ROLLOUT  DECIDED BY\nbypass is on: no filter is in use\n");
    }

    #[test]
    fn an_answer_of_another_version_does_not_make_it_panic() {
        for value in [json!(null), json!([]), json!({}), json!([1]), json!({"filters": 1, "config": []})] {
            for view in [status, filters, applied, bypass, draining, explanations, cache, flushed, lookup] {
                let _ = view(&value, true);
            }
            for view in [
                db_cache,
                db_pools,
                db_clients,
                db_servers,
                db_queue,
                db_replicas,
                db_load,
                db_statements,
                db_paused,
            ] {
                let _ = view(&value, true);
            }
        }
    }
}
