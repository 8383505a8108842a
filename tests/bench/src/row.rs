//! One line of the result.

use std::fmt::Write as _;

use serde::Serialize;

/// A figure of ours beside the same figure of something else, taken in the same run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What was measured.
    pub row: String,
    /// Our figure.
    pub ours: f64,
    /// The unit of both figures.
    pub unit: &'static str,
    /// What stands beside ours: `direct` is the same traffic without anything between.
    pub peer: Option<&'static str>,
    /// Its figure.
    pub peer_value: Option<f64>,
    /// `ours ÷ peer_value`.
    pub ratio: Option<f64>,
    /// The ratio or value that is aimed at; none yet for pass-through.
    pub target: Option<f64>,
    /// Whether it was reached.
    pub met: Option<bool>,
    /// Whether the target is one of the ratio.
    #[serde(skip)]
    pub of_ratio: bool,
    /// Where it belongs to a line rather than to a bar of its own.
    #[serde(skip)]
    pub line: Option<Line>,
}

/// A place on a line in the picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// What the line shows; rows that have this in common and follow each other make up a panel.
    pub panel: String,
    /// The load, as a multiple of what there can be.
    pub at: f64,
}

impl Row {
    /// A figure that stands alone.
    pub fn alone(row: impl Into<String>, ours: f64, unit: &'static str) -> Self {
        Self {
            row: row.into(),
            ours,
            unit,
            peer: None,
            peer_value: None,
            ratio: None,
            target: None,
            met: None,
            of_ratio: false,
            line: None,
        }
    }

    /// A figure beside a peer's.
    pub fn beside(
        row: impl Into<String>,
        ours: f64,
        unit: &'static str,
        peer: &'static str,
        peer_value: f64,
    ) -> Self {
        let ratio = (peer_value > 0.0).then(|| ours / peer_value);
        Self { peer: Some(peer), peer_value: Some(peer_value), ratio, ..Self::alone(row, ours, unit) }
    }

    /// Demands that our figure is at most `target`.
    #[must_use]
    pub fn at_most(self, target: f64) -> Self {
        Self { target: Some(target), met: Some(self.ours <= target), ..self }
    }

    /// Demands that the ratio to the peer is at least `target`.
    #[must_use]
    pub fn ratio_at_least(self, target: f64) -> Self {
        Self {
            target: Some(target),
            met: Some(self.ratio.is_some_and(|ratio| ratio >= target)),
            of_ratio: true,
            ..self
        }
    }

    /// Demands that the ratio to the peer is at most `target`.
    #[must_use]
    pub fn ratio_at_most(self, target: f64) -> Self {
        Self {
            target: Some(target),
            met: Some(self.ratio.is_some_and(|ratio| ratio <= target)),
            of_ratio: true,
            ..self
        }
    }

    /// Demands that our figure is at least `target`.
    #[must_use]
    pub fn at_least(self, target: f64) -> Self {
        Self { target: Some(target), met: Some(self.ours >= target), ..self }
    }

    /// Makes it a place on a line.
    #[must_use]
    pub fn on_line(self, panel: String, at: f64) -> Self {
        Self { line: Some(Line { panel, at }), ..self }
    }

    /// The row as one JSON object.
    pub fn json(&self) -> String {
        // Numbers and strings only: serialization cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Puts a figure of ours, the first, beside each of the others'; alone when there are none.
pub fn beside(row: &str, unit: &'static str, figures: &[(&'static str, f64)]) -> Vec<Row> {
    match figures.split_first() {
        None => Vec::new(),
        Some(((_, ours), [])) => vec![Row::alone(row, *ours, unit)],
        Some(((_, ours), others)) => {
            others.iter().map(|(name, theirs)| Row::beside(row, *ours, unit, name, *theirs)).collect()
        }
    }
}

/// The rows as a table for people.
pub fn table(rows: &[Row]) -> String {
    let head = ["", "ours", "peer", "", "ratio"].map(str::to_owned);
    let mut cells = vec![head];
    for row in rows {
        let value = |value: f64| format!("{} {}", number(value), row.unit);
        let verdict = match (row.target, row.met) {
            (Some(target), Some(met)) => {
                format!("  (aim {}: {})", number(target), if met { "met" } else { "missed" })
            }
            _ => String::new(),
        };
        cells.push([
            row.row.clone(),
            value(row.ours),
            row.peer.unwrap_or_default().to_owned(),
            row.peer_value.map(value).unwrap_or_default(),
            row.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default() + &verdict,
        ]);
    }
    let mut widths = [0; 5];
    for line in &cells {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for [row, ours, peer, value, ratio] in &cells {
        let [a, b, c, d, e] = widths;
        let line = format!("{row:<a$}  {ours:>b$}  {peer:<c$}  {value:>d$}  {ratio:<e$}");
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// Three significant digits, without an exponent; more of a share that is almost the whole.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        v if v > 99.0 && v < 100.0 => format!("{value:.3}"),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_every_key_and_null_where_there_is_nothing() {
        let row: serde_json::Value = serde_json::from_str(&Row::alone("x", 1.5, "µs").json()).unwrap();
        let keys: Vec<_> = row.as_object().unwrap().keys().cloned().collect();
        assert_eq!(keys, ["met", "ours", "peer", "peer_value", "ratio", "row", "target", "unit"]);
        assert!(row["peer"].is_null() && row["target"].is_null() && row["met"].is_null());
        let row = Row::beside("x", 3.0, "µs", "direct", 2.0);
        assert_eq!(row.ratio, Some(1.5));
        assert_eq!(Row::beside("x", 3.0, "µs", "direct", 0.0).ratio, None);
        assert_eq!(Row::alone("x", 3.0, "ns").at_most(2.0).met, Some(false));
    }

    #[test]
    fn the_table_lines_up() {
        let text = table(&[
            Row::alone("short", 1.0, "µs"),
            Row::beside("a longer one", 250.0, "µs", "direct", 20.0),
        ]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[2].starts_with("a longer one   250 µs  direct  20.0 µs  12.50"), "{text}");
    }
}
