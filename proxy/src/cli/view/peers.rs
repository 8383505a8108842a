//! `peers` as a person reads it.

use serde_json::Value;

use super::cache::grouped;
use super::{list, number, shown, text};
use crate::cli::output::{Tone, cell, plain, table};

/// `peers`
pub(crate) fn peers(answer: &Value, colour: bool) -> String {
    let mut page = String::new();
    if let Some(own) = answer.get("identity").filter(|own| own.is_object()) {
        let expires = i64::try_from(number(own, "expires")).unwrap_or(i64::MAX);
        let expires =
            jiff::Timestamp::from_second(expires).map_or_else(|_| "never".to_owned(), |at| at.to_string());
        page.push_str(&format!("this sidecar is {}, until {expires}\n\n", text(own, "name")));
    }
    let routes = list(answer, "routes").map(|route| {
        let path = text(route, "path");
        let tone = match path {
            "tunnel" => Tone::Good,
            "none" => Tone::Bad,
            _ => Tone::Plain,
        };
        vec![
            plain(text(route, "name")),
            plain(text(route, "bind")),
            plain(shown(route.get("peer"))),
            plain(text(route, "to")),
            plain(grouped(number(route, "captured"))),
            cell(path, tone),
            cell(text(route, "why"), Tone::Faint),
        ]
    });
    let routes: Vec<_> = routes.collect();
    if routes.is_empty() {
        page.push_str("there is no route\n");
    } else {
        page.push_str(&table(
            &["ROUTE", "BIND", "SIDECAR", "DIRECT TO", "CAPTURED", "PATH", "WHY"],
            routes,
            colour,
        ));
    }
    if let Some(counts) = answer.get("capture").filter(|capture| capture.is_object()) {
        page.push_str(&format!("\ncaptured by {}: {}\n", text(counts, "mode"), captured(counts)));
    }
    let connections: Vec<_> = list(answer, "pools")
        .flat_map(|pool| {
            list(pool, "connections").map(move |connection| {
                let lost = number(connection, "packets_lost");
                vec![
                    plain(text(pool, "peer")),
                    cell(text(pool, "class"), Tone::Faint),
                    plain(text(connection, "to")),
                    plain(text(connection, "state")),
                    plain(grouped(number(connection, "streams"))),
                    plain(
                        connection
                            .get("rtt_ms")
                            .and_then(Value::as_f64)
                            .map_or_else(|| "-".to_owned(), |millis| format!("{millis:.1}")),
                    ),
                    plain(grouped(number(connection, "packets_sent"))),
                    cell(grouped(lost), if lost > 0 { Tone::Warn } else { Tone::Plain }),
                    plain(number(connection, "mtu").to_string()),
                    plain(grouped(number(connection, "seconds"))),
                ]
            })
        })
        .collect();
    if !connections.is_empty() {
        page.push('\n');
        let headings =
            ["SIDECAR", "CLASS", "ADDRESS", "STATE", "STREAMS", "RTT MS", "SENT", "LOST", "MTU", "AGE S"];
        page.push_str(&table(&headings, connections, colour));
    }
    page
}

/// What became of captured connections.
pub(super) fn captured(counts: &Value) -> String {
    let count = |key| grouped(number(counts, key));
    format!(
        "{} over routes, {} directly, {} refused, {} to the listener itself; {} open",
        count("routed"),
        count("direct"),
        count("refused"),
        count("itself"),
        count("active")
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn routes_and_connections_are_shown() {
        let answer = json!({
            "identity": { "name": "spiffe://qudag/a", "expires": 1_900_000_000 },
            "routes": [
                { "name": "b", "bind": "127.0.0.1:4101", "to": "b.example:4001", "peer": "spiffe://qudag/b",
                  "path": "tunnel", "why": "1 connection", "captured": 12 },
                { "name": "c", "bind": "127.0.0.1:4102", "to": "c.example:4001", "peer": null,
                  "path": "direct", "why": "the route has no sidecar" },
            ],
            "pools": [{ "peer": "spiffe://qudag/b", "class": "interactive", "connections": [
                { "to": "192.0.2.1:4433", "state": "live", "streams": 3, "rtt_ms": 40.25, "packets_sent": 12_345,
                  "packets_lost": 2, "mtu": 1452, "seconds": 61 } ] }],
            "capture": { "mode": "redirect", "unmatched": "direct", "active": 1, "routed": 12, "direct": 3, "refused": 0,
                         "itself": 0 },
        });
        let expected = "\
this sidecar is spiffe://qudag/a, until 2030-03-17T17:46:40Z

ROUTE  BIND            SIDECAR           DIRECT TO       CAPTURED  PATH    WHY
b      127.0.0.1:4101  spiffe://qudag/b  b.example:4001  12        tunnel  1 connection
c      127.0.0.1:4102                    c.example:4001  0         direct  the route has no sidecar

captured by redirect: 12 over routes, 3 directly, 0 refused, 0 to the listener itself; 1 open

SIDECAR           CLASS        ADDRESS         STATE  STREAMS  RTT MS  SENT    LOST  MTU   AGE S
spiffe://qudag/b  interactive  192.0.2.1:4433  live   3        40.2    12,345  2     1452  61
";
        assert_eq!(peers(&answer, false), expected);
        assert_eq!(peers(&json!({ "identity": null }), false), "there is no route\n");
    }
}
