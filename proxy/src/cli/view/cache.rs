//! The DNS cache as a person reads it: whatever figures there are, with units and in groups.

use qudag_filter_api::Period;
use serde_json::{Map, Value};

use super::{is, number, shown, text};
use crate::cli::output::{Cell, Tone, cell, columns, plain};

/// A group, and how the names of its figures begin, in the order in which they are shown.
const GROUPS: [(&str, &[&str]); 4] = [
    ("answers", &["hits", "misses", "hit_ratio", "stale", "failures_served", "expired"]),
    ("contents", &["entries", "bytes", "max_bytes", "inserts", "evictions", "flushes"]),
    ("upkeep", &["prefetch", "refresh", "rebuild", "snapshot", "shared"]),
    ("integrity", &["checksum", "corrupt", "mismatch"]),
];

/// Figures that ask for attention when there are any.
const ALARMING: [&str; 4] =
    ["checksum_failures", "hit_ratio_anomaly", "snapshot_failures", "prefetch_failures"];

/// `cache stats`: whatever figures there are.
pub(crate) fn cache(stats: &Value, colour: bool) -> String {
    let none = Map::new();
    let stats = stats.as_object().unwrap_or(&none);
    let mut groups: Vec<(String, Vec<Vec<Cell>>)> =
        GROUPS.iter().map(|(name, _)| ((*name).to_owned(), Vec::new())).collect();
    let mut others = Vec::new();
    let mut sorted: Vec<_> = stats.iter().collect();
    sorted.sort_by_key(|(name, _)| place(name));
    for (name, value) in sorted {
        if let Some(inner) = value.as_object() {
            groups.push((label(name), inner.iter().map(|(name, value)| row(name, value, inner)).collect()));
            continue;
        }
        match groups.get_mut(place(name).0) {
            Some((_, rows)) if place(name).0 < GROUPS.len() => rows.push(row(name, value, stats)),
            _ => others.push(row(name, value, stats)),
        }
    }
    groups.push(("more".to_owned(), others));
    let shown = groups.into_iter().filter(|(_, rows)| !rows.is_empty());
    let rows = shown.flat_map(|(group, rows)| {
        let heads = std::iter::once(group).chain(std::iter::repeat(String::new()));
        heads.zip(rows).map(|(head, row)| std::iter::once(cell(head, Tone::Head)).chain(row).collect())
    });
    columns(rows.collect(), colour)
}

/// Group and place within it; behind all groups for what is in none.
fn place(name: &str) -> (usize, usize) {
    let found = GROUPS.iter().enumerate().find_map(|(group, (_, beginnings))| {
        let exact = beginnings.iter().position(|beginning| name == *beginning);
        let place = exact.or_else(|| beginnings.iter().position(|beginning| name.starts_with(beginning)));
        place.map(|place| (group, place))
    });
    found.unwrap_or((GROUPS.len(), 0))
}

fn row(name: &str, value: &Value, all: &Map<String, Value>) -> Vec<Cell> {
    let alarming =
        ALARMING.contains(&name) && !matches!(value.as_u64(), Some(0)) && *value != Value::Bool(false);
    let figure = cell(figure(name, value), if alarming { Tone::Bad } else { Tone::Plain });
    let share = match (name, value.as_f64(), all.get("max_bytes").and_then(Value::as_f64)) {
        ("bytes", Some(bytes), Some(most)) if most > 0.0 => {
            format!("{:.1} % of the most", bytes / most * 100.0)
        }
        _ => String::new(),
    };
    vec![plain(label(name)), figure, cell(share, Tone::Faint)]
}

fn label(name: &str) -> String {
    let name = ["_seconds", "_ms"].iter().find_map(|unit| name.strip_suffix(unit)).unwrap_or(name);
    name.replace('_', " ")
}

/// A figure with the unit that its name tells.
fn figure(name: &str, value: &Value) -> String {
    let has = |word: &str| name.split('_').any(|part| part == word);
    match (value, value.as_f64()) {
        (Value::Bool(yes), _) => if *yes { "yes" } else { "no" }.to_owned(),
        (Value::Null, _) => "none".to_owned(),
        (_, Some(ratio)) if has("ratio") => format!("{:.2} %", ratio * 100.0),
        (_, Some(bytes)) if has("bytes") => size(bytes),
        (_, Some(seconds)) if has("seconds") => std::time::Duration::try_from_secs_f64(seconds.round())
            .map_or_else(|_| shown(Some(value)), |d| Period(d).to_string()),
        (_, Some(millis)) if has("ms") => format!("{millis:.3} ms"),
        (number, _) => match number.as_u64() {
            Some(number) => grouped(number),
            None => shown(Some(value)),
        },
    }
}

/// A number with its thousands apart.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes in the unit that suits them.
pub(super) fn size(bytes: f64) -> String {
    let mut size = bytes;
    let mut unit = "B";
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        if size < 1024.0 {
            break;
        }
        size /= 1024.0;
        unit = larger;
    }
    if unit == "B" { format!("{size} B") } else { format!("{size:.1} {unit}") }
}

/// `cache flush`
pub(crate) fn flushed(answer: &Value, _: bool) -> String {
    let dropped = match number(answer, "flushed") {
        1 => "1 entry dropped".to_owned(),
        n => format!("{} entries dropped", grouped(n)),
    };
    let left = match answer.get("left").and_then(Value::as_u64) {
        Some(left) => format!(", {} left", grouped(left)),
        None => String::new(),
    };
    let fleet = match text(answer, "fleet") {
        "" => "",
        "fleet" => "; flushed in the whole fleet",
        _ => "; the rest of the fleet cannot be reached and follows when it can",
    };
    format!("{dropped}{left}{fleet}\n")
}

/// `cache rebuild`
pub(crate) fn rebuilt(answer: &Value, colour: bool) -> String {
    let (done, failed) = (number(answer, "done"), number(answer, "failed"));
    let entries = |n| if n == 1 { "1 entry".to_owned() } else { format!("{} entries", grouped(n)) };
    let mut out = format!("{} asked for again", entries(done));
    if is(answer, "rebuilding") {
        out += &format!(" of {}, goes on", grouped(number(answer, "total")));
    }
    if failed > 0 {
        let stay = format!(", no answer for {}, which stay as they are", entries(failed));
        out += &cell(stay, Tone::Warn).paint(colour);
    }
    out + "\n"
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn figures_stand_in_groups_with_their_units() {
        let stats = json!({
            "entries": 1_234_567, "bytes": 16_777_216, "max_bytes": 33_554_432, "hits": 3, "misses": 1,
            "hit_ratio": 0.75, "hit_ratio_anomaly": false, "stale_slow": 2, "prefetches": 5,
            "prefetch_failures": 0, "checksum_failures": 0, "snapshot_age_seconds": 61.2, "rebuilding": false,
            "evictions": 0, "wonders": 7, "level_two": {"entries": 4, "latency_ms": 1.5}, "nothing": null,
        });
        let expected = "\
answers    hits               3
           misses             1
           hit ratio          75.00 %
           hit ratio anomaly  no
           stale slow         2
contents   entries            1,234,567
           bytes              16.0 MiB   50.0 % of the most
           max bytes          32.0 MiB
           evictions          0
upkeep     prefetch failures  0
           prefetches         5
           rebuilding         no
           snapshot age       1m 1s
integrity  checksum failures  0
level two  entries            4
           latency            1.500 ms
more       nothing            none
           wonders            7
";
        assert_eq!(cache(&stats, false), expected);
    }

    #[test]
    fn corruption_is_shown_in_red() {
        let red = |stats| cache(&stats, true).contains("\u{1b}[31m");
        assert!(red(json!({"checksum_failures": 1})));
        assert!(!red(json!({"checksum_failures": 0, "hits": 5, "hit_ratio_anomaly": false})));
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0.0, 1023.0, 1536.0].map(size), ["0 B", "1023 B", "1.5 KiB"]);
        assert_eq!(flushed(&json!({"flushed": 1}), false), "1 entry dropped\n");
        let rebuild = |done, failed, goes_on| {
            rebuilt(&json!({"total": 5000, "done": done, "failed": failed, "rebuilding": goes_on}), false)
        };
        assert_eq!(rebuild(5000, 0, false), "5,000 entries asked for again\n");
        let partly =
            "1 entry asked for again of 5,000, goes on, no answer for 2 entries, which stay as they are\n";
        assert_eq!(rebuild(1, 2, true), partly);
        let many = json!({"flushed": 12_000, "left": 3});
        assert_eq!(flushed(&many, false), "12,000 entries dropped, 3 left\n");
        for (fleet, says) in
            [("fleet", "whole fleet"), ("later", "cannot be reached"), ("off", "cannot be reached")]
        {
            assert!(flushed(&json!({"flushed": 2, "fleet": fleet}), false).contains(says));
        }
    }
}
