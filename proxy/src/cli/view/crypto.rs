//! `crypto`: implementations and how fast they are, other sidecars, keys and queue.

use serde_json::Value;

use super::cache::{grouped, size};
use super::{is, list, number, text};
use crate::cli::output::{Cell, Tone, cell, columns, plain, table};

/// `crypto status` and `crypto selftest`
pub(in crate::cli) fn crypto(answer: &Value, colour: bool) -> String {
    let head = |name| cell(name, Tone::Head);
    let simd = answer.get("simd_crypto").filter(|simd| simd.is_object());
    let note = simd.map_or("simd_crypto is off", |_| "");
    let mut rows = vec![vec![head("backend"), plain(text(answer, "backend")), cell(note, Tone::Faint)]];
    match answer.get("crypto_offload").filter(|offload| offload.is_object()) {
        Some(offload) => {
            let counted = |key: &str| grouped(number(offload, key));
            let keys = format!(
                "{} ready, {} of them registered; {}",
                counted("keys"),
                counted("registered"),
                size(number(offload, "keys_bytes") as f64)
            );
            let queue =
                format!("{} operations, {}", counted("queued"), size(number(offload, "queued_bytes") as f64));
            rows.push(vec![head("threads"), plain(counted("threads"))]);
            rows.push(vec![head("keys"), plain(keys)]);
            rows.push(vec![head("queue"), plain(queue)]);
        }
        None => rows.push(vec![head("threads"), plain("-"), cell("crypto_offload is off", Tone::Faint)]),
    }
    let mut page = columns(rows, colour);
    if let Some(simd) = simd {
        page += &format!("\n{}", backends(simd, colour));
    }
    if let Some(routing) = answer.get("hardware_routing").filter(|routing| routing.is_object()) {
        page += &format!("\n{}", sidecars(routing, colour));
    }
    page
}

/// Other sidecars that may get batches.
fn sidecars(routing: &Value, colour: bool) -> String {
    let known = |sidecar: &Value, key: &str, unit: &str| match sidecar.get(key).and_then(Value::as_u64) {
        Some(value) => format!("{}{unit}", grouped(value)),
        None => "-".to_owned(),
    };
    let rows = list(routing, "sidecars").map(|sidecar| {
        let state = text(sidecar, "state");
        let tone = match state {
            "ready" => Tone::Good,
            "stopped" => Tone::Bad,
            _ => Tone::Faint,
        };
        vec![
            plain(text(sidecar, "address")),
            cell(state, tone),
            plain(sidecar.get("backend").and_then(Value::as_str).unwrap_or("-")),
            plain(known(sidecar, "connections", "")),
            plain(known(sidecar, "round_trip_us", " µs")),
            plain(known(sidecar, "queued", "")),
            plain(why(sidecar)),
        ]
    });
    let heads = ["SIDECAR", "STATE", "BACKEND", "CONNECTIONS", "ROUND TRIP", "QUEUED", ""];
    table(&heads, rows.collect(), colour)
}

/// Implementations and how they were tested.
pub(in crate::cli) fn backends(answer: &Value, colour: bool) -> String {
    let rows = list(answer, "backends").map(|backend| {
        let state = text(backend, "state");
        let tone = match state {
            "passed" => Tone::Good,
            "failed" | "demoted" => Tone::Bad,
            _ => Tone::Faint,
        };
        vec![plain(text(backend, "name")), cell(state, tone), plain(why(backend))]
    });
    table(&["BACKEND", "STATE", ""], rows.collect(), colour)
}

/// `crypto bench`: a row for each way to verify, a column for each implementation.
pub(in crate::cli) fn speeds(answer: &Value, colour: bool) -> String {
    let way = |speed: &Value| (number(speed, "signatures"), is(speed, "keys_ready"));
    let cpu = |speed: &Value| speed.get("cpu_us").and_then(Value::as_f64).unwrap_or_default();
    let mut heads = vec!["SIGNATURES", "KEYS"];
    let mut rows: Vec<((u64, bool), Vec<Cell>)> = Vec::new();
    for speed in list(answer, "speeds") {
        let backend = text(speed, "backend");
        if !heads.contains(&backend) {
            heads.push(backend);
        }
        let figure = plain(format!("{:.1} µs", cpu(speed)));
        match rows.last_mut().filter(|(last, _)| *last == way(speed)) {
            Some((_, row)) => row.push(figure),
            None => {
                let (signatures, ready) = way(speed);
                let keys = if ready { "ready" } else { "new" };
                rows.push((way(speed), vec![plain(signatures.to_string()), plain(keys), figure]));
            }
        }
    }
    let mut page = table(&heads, rows.into_iter().map(|(_, row)| row).collect(), colour);
    if let Some(fastest) = list(answer, "speeds").min_by(|a, b| cpu(a).total_cmp(&cpu(b))) {
        let rate = grouped((1e6 / cpu(fastest)) as u64);
        let remark = format!(
            "processor time of a signature when so many are verified together; at most {rate} a second on one core"
        );
        page += &format!("\n{}\n", cell(remark, Tone::Faint).paint(colour));
    }
    page
}

fn why(backend: &Value) -> &str {
    backend.get("why").and_then(Value::as_str).unwrap_or_default()
}

/// Whether an implementation is not used although the processor can run it.
pub(in crate::cli) fn has_unsound(answer: &Value) -> bool {
    let simd = answer.get("simd_crypto").unwrap_or(&Value::Null);
    list(simd, "backends").any(|backend| matches!(text(backend, "state"), "failed" | "demoted"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_way_to_verify_is_a_row_and_an_implementation_a_column() {
        let speed = |backend, signatures, keys_ready, cpu_us| json!({ "backend": backend, "signatures": signatures, "keys_ready": keys_ready, "cpu_us": cpu_us });
        let answer = json!({ "speeds": [
            speed("avx2", 1, true, 10.04), speed("portable", 1, true, 52.0), speed("avx2", 8, false, 31.0), speed("portable", 8, false, 100.26),
        ] });
        let expected = "\
SIGNATURES  KEYS   avx2     portable
1           ready  10.0 µs  52.0 µs
8           new    31.0 µs  100.3 µs

processor time of a signature when so many are verified together; at most 99,601 a second on one core
";
        assert_eq!(speeds(&answer, false), expected);
        assert_eq!(speeds(&json!({}), false), "SIGNATURES  KEYS\n");
    }

    #[test]
    fn implementations_keys_and_queue_are_shown() {
        let answer = json!({
            "backend": "avx2",
            "simd_crypto": { "best": "avx2", "backends": [
                { "name": "portable", "state": "passed" },
                { "name": "avx2", "state": "passed" },
                { "name": "avx512", "state": "failed", "why": "the self-test was ended by signal 4 (illegal instruction)" },
            ] },
            "crypto_offload": {
                "threads": 2, "keys": 1500, "registered": 3, "keys_bytes": 2048, "queued": 0, "queued_bytes": 0,
            },
        });
        let expected = "\
backend  avx2
threads  2
keys     1,500 ready, 3 of them registered; 2.0 KiB
queue    0 operations, 0 B

BACKEND   STATE
portable  passed
avx2      passed
avx512    failed  the self-test was ended by signal 4 (illegal instruction)
";
        assert_eq!(crypto(&answer, false), expected);
        assert!(has_unsound(&answer));
        let routed = json!({
            "backend": "portable", "simd_crypto": null, "crypto_offload": null,
            "hardware_routing": { "sidecars": [
                { "address": "127.0.0.1:4190", "state": "ready", "backend": "avx512", "connections": 2, "round_trip_us": 1250, "queued": 0 },
                { "address": "[::1]:1", "state": "unreachable", "why": "cannot connect", "backend": null, "connections": 0,
                  "round_trip_us": null, "queued": null },
            ] },
        });
        let expected = "\
backend  portable  simd_crypto is off
threads  -         crypto_offload is off

SIDECAR         STATE        BACKEND  CONNECTIONS  ROUND TRIP  QUEUED
127.0.0.1:4190  ready        avx512   2            1,250 µs    0
[::1]:1         unreachable  -        0            -           -       cannot connect
";
        assert_eq!(crypto(&routed, false), expected);
        let off = json!({ "backend": "portable", "simd_crypto": null, "crypto_offload": null });
        let expected = "\
backend  portable  simd_crypto is off
threads  -         crypto_offload is off
";
        assert_eq!(crypto(&off, false), expected);
        assert!(!has_unsound(&off) && !has_unsound(&json!({ "simd_crypto": { "backends": [1] } })));
    }
}
