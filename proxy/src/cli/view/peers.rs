//! `peers` as a person reads it.

use serde_json::Value;

use super::cache::grouped;
use super::{is, list, number, shown, text};
use crate::cli::output::{Cell, Tone, cell, plain, table};

/// `peers`
pub(crate) fn peers(answer: &Value, colour: bool) -> String {
    let mut page = String::new();
    if let Some(own) = answer.get("identity").filter(|own| own.is_object()) {
        let expires = i64::try_from(number(own, "expires")).unwrap_or(i64::MAX);
        let expires =
            jiff::Timestamp::from_second(expires).map_or_else(|_| "never".to_owned(), |at| at.to_string());
        page.push_str(&format!("this sidecar is {}, until {expires}\n", text(own, "name")));
    }
    if let Some(node) = answer.get("node") {
        match (text(node, "peer_id"), text(node, "failure")) {
            ("", "") => {}
            ("", why) => page.push_str(&format!("its node does not tell who it is: {why}\n")),
            (id, _) => page.push_str(&format!("its node is {id}\n")),
        }
    }
    if !page.is_empty() {
        page.push('\n');
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
    let names: Vec<_> = list(answer, "names").map(name_row).collect();
    if !names.is_empty() {
        page.push('\n');
        page.push_str(&table(
            &["NAME", "ADDRESSES", "STATE", "CONFIRMED S AGO", "ASKED AGAIN IN S"],
            names,
            colour,
        ));
    }
    if let Some(counts) = answer.get("capture").filter(|capture| capture.is_object()) {
        page.push_str(&format!("\ncaptured by {}: {}\n", text(counts, "mode"), captured(counts)));
    }
    let multiaddrs: Vec<_> = list(answer, "routes")
        .filter(|route| !text(route, "multiaddr").is_empty())
        .map(|route| {
            let node = answer.get("node");
            let name = text(route, "name");
            let of = |key: &str| node.and_then(|node| node.get(key)?.get(name));
            let told = match (of("announced"), of("problems")) {
                (Some(_), _) => cell("yes", Tone::Good),
                (None, Some(why)) => cell(shown(Some(why)), Tone::Warn),
                (None, None) => cell("no", Tone::Faint),
            };
            vec![plain(name), told, plain(text(route, "multiaddr"))]
        })
        .collect();
    if !multiaddrs.is_empty() {
        page.push('\n');
        page.push_str(&table(&["ROUTE", "ANNOUNCED", "MULTIADDR FOR THE NODE"], multiaddrs, colour));
    }
    let sidecars: Vec<_> = list(answer, "sidecars").map(sidecar_row).collect();
    if !sidecars.is_empty() {
        page.push('\n');
        let headings =
            ["SIDECAR", "HEARD S AGO", "RTT MS", "VERSION", "TUNNEL", "SERVES", "CAPABILITIES", "NODE"];
        page.push_str(&table(&headings, sidecars, colour));
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

/// What is known of a name.
fn name_row(name: &Value) -> Vec<Cell> {
    let addresses: Vec<_> = list(name, "addresses").filter_map(Value::as_str).collect();
    let tone = match text(name, "state") {
        "known" => Tone::Good,
        "unknown" => Tone::Bad,
        _ => Tone::Warn,
    };
    vec![
        plain(text(name, "name")),
        plain(addresses.join(" ")),
        cell(text(name, "state"), tone),
        plain(tenths(name, "answered_seconds_ago")),
        plain(tenths(name, "asked_again_in_seconds")),
    ]
}

/// A number with one digit behind the point.
fn tenths(of: &Value, key: &str) -> String {
    let value = of.get(key).and_then(Value::as_f64);
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"))
}

/// What another sidecar has told.
fn sidecar_row(sidecar: &Value) -> Vec<Cell> {
    let words = |key: &str| list(sidecar, key).filter_map(Value::as_str).collect::<Vec<_>>().join(" ");
    let tenths = |key: &str| tenths(sidecar, key);
    let tone = if is(sidecar, "connected") { Tone::Plain } else { Tone::Warn };
    vec![
        plain(text(sidecar, "name")),
        cell(tenths("heard_seconds_ago"), tone),
        plain(tenths("rtt_ms")),
        plain(text(sidecar, "version")),
        plain(shown(sidecar.get("tunnel_version"))),
        plain(words("destinations")),
        cell(words("capabilities"), Tone::Faint),
        plain(text(sidecar, "peer_id")),
    ]
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
                  "path": "tunnel", "why": "1 connection", "captured": 12, "multiaddr": "/ip4/127.0.0.1/tcp/4101/p2p/12D3KooB" },
                { "name": "c", "bind": "127.0.0.1:4102", "to": "c.example:4001", "peer": null,
                  "path": "direct", "why": "the route has no sidecar" },
            ],
            "names": [
                { "name": "b.example", "state": "known", "addresses": ["192.0.2.1", "2001:db8::1"],
                  "answered_seconds_ago": 12.0, "asked_again_in_seconds": 48.2, "failures": 0 },
                { "name": "c.example", "state": "unknown", "addresses": [], "answered_seconds_ago": null,
                  "asked_again_in_seconds": 1.5, "failures": 2 },
            ],
            "node": { "peer_id": "12D3KooA", "failure": null, "announced": { "b": "/ip4/127.0.0.1/tcp/4101/p2p/12D3KooB" },
                      "problems": {} },
            "sidecars": [
                { "name": "spiffe://qudag/b", "connected": true, "version": "0.1.0", "tunnel_version": 1,
                  "capabilities": ["x86_64", "avx2"], "peer_id": "12D3KooB", "destinations": ["node"],
                  "heard_seconds_ago": 1.25, "rtt_ms": 40.5 },
            ],
            "pools": [{ "peer": "spiffe://qudag/b", "class": "interactive", "connections": [
                { "to": "192.0.2.1:4433", "state": "live", "streams": 3, "rtt_ms": 40.25, "packets_sent": 12_345,
                  "packets_lost": 2, "mtu": 1452, "seconds": 61 } ] }],
            "capture": { "mode": "redirect", "unmatched": "direct", "active": 1, "routed": 12, "direct": 3, "refused": 0,
                         "itself": 0 },
        });
        let expected = "\
this sidecar is spiffe://qudag/a, until 2030-03-17T17:46:40Z
its node is 12D3KooA

ROUTE  BIND            SIDECAR           DIRECT TO       CAPTURED  PATH    WHY
b      127.0.0.1:4101  spiffe://qudag/b  b.example:4001  12        tunnel  1 connection
c      127.0.0.1:4102                    c.example:4001  0         direct  the route has no sidecar

NAME       ADDRESSES              STATE    CONFIRMED S AGO  ASKED AGAIN IN S
b.example  192.0.2.1 2001:db8::1  known    12.0             48.2
c.example                         unknown  -                1.5

captured by redirect: 12 over routes, 3 directly, 0 refused, 0 to the listener itself; 1 open

ROUTE  ANNOUNCED  MULTIADDR FOR THE NODE
b      yes        /ip4/127.0.0.1/tcp/4101/p2p/12D3KooB

SIDECAR           HEARD S AGO  RTT MS  VERSION  TUNNEL  SERVES  CAPABILITIES  NODE
spiffe://qudag/b  1.2          40.5    0.1.0    1       node    x86_64 avx2   12D3KooB

SIDECAR           CLASS        ADDRESS         STATE  STREAMS  RTT MS  SENT    LOST  MTU   AGE S
spiffe://qudag/b  interactive  192.0.2.1:4433  live   3        40.2    12,345  2     1452  61
";
        assert_eq!(peers(&answer, false), expected);
        assert_eq!(peers(&json!({ "identity": null }), false), "there is no route\n");
    }
}
