//! The rows as a picture: a panel for each figure, a bar for each program.

use std::fmt::Write as _;

use crate::row::{Row, number};

/// Of a panel; two stand beside each other.
const WIDTH: f64 = 540.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 70.0;
const BAR: f64 = 18.0;
const GAP: f64 = 5.0;
const TITLE: f64 = 34.0;
const BELOW: f64 = 18.0;

/// What the rows have and the picture does not: beside the 99th percentile the median says little, and so on.
const LEFT_OUT: [&str; 2] = ["latency p50", "worst round"];

/// Between the shortest bar and the longest one; beyond it a panel has a logarithmic scale.
const LINEAR: f64 = 30.0;

/// One figure of all programs.
struct Panel<'a> {
    title: &'a str,
    unit: &'static str,
    target: Option<f64>,
    bars: Vec<(&'static str, f64)>,
}

/// The figures that stand beside a peer's, in the order of the rows.
fn panels(rows: &[Row]) -> Vec<Panel<'_>> {
    let mut panels: Vec<Panel<'_>> = Vec::new();
    for row in rows {
        let (Some(peer), Some(value)) = (row.peer, row.peer_value) else { continue };
        if LEFT_OUT.iter().any(|word| row.row.contains(word)) {
            continue;
        }
        match panels.last_mut().filter(|panel| panel.title == row.row) {
            Some(panel) => panel.bars.push((peer, value)),
            None => panels.push(Panel {
                title: &row.row,
                unit: row.unit,
                // Where the ratio is what is aimed at, the target is no place on the axis.
                target: row.target.filter(|_| !row.of_ratio),
                bars: vec![("sidecar", row.ours), (peer, value)],
            }),
        }
    }
    // Panels in which nobody has anything, such as failures that nobody had.
    panels.retain(|panel| panel.bars.iter().any(|(_, value)| *value > 0.0));
    panels
}

/// The rows as SVG.
pub fn svg(rows: &[Row]) -> String {
    let panels = panels(rows);
    let mut body = String::new();
    let mut top = 0.0;
    for pair in panels.chunks(2) {
        for (column, panel) in pair.iter().enumerate() {
            panel.draw(column as f64 * WIDTH, top, &mut body);
        }
        top += pair.iter().map(Panel::height).fold(0.0, f64::max);
    }
    let (width, height) = (2.0 * WIDTH, top + BELOW);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\">\n\
         <style>.us {{ fill: #2563a8 }} .peer {{ fill: #a3adb8 }} .aim {{ stroke: #b3261e; stroke-dasharray: 4 3 }} \
         text {{ fill: #1c2126 }} .note {{ fill: #5b6570 }}</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{body}</svg>\n"
    )
}

impl Panel<'_> {
    fn height(&self) -> f64 {
        TITLE + self.bars.len() as f64 * (BAR + GAP) + BELOW
    }

    fn draw(&self, left: f64, top: f64, text: &mut String) {
        let from = left + LEFT;
        let values = || self.bars.iter().map(|(_, value)| *value).chain(self.target);
        let most = values().fold(0.0, f64::max);
        let least = values().filter(|value| *value > 0.0).fold(most, f64::min);
        let logarithmic = most > LINEAR * least;
        let room = WIDTH - LEFT - RIGHT;
        let x = |value: f64| {
            if logarithmic {
                // Half a decade to the left of the shortest, so that it has a length.
                let floor = least.log10() - 0.5;
                room * ((value.max(least).log10() - floor) / (most.log10() - floor)).clamp(0.0, 1.0)
            } else {
                room * (value / most).clamp(0.0, 1.0)
            }
        };
        let scale = if logarithmic { ", logarithmic" } else { "" };
        let unit = if self.unit.is_empty() { "number" } else { self.unit };
        let title = escaped(self.title);
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "<text x=\"{:.0}\" y=\"{:.0}\" font-weight=\"600\">{title} <tspan class=\"note\" font-weight=\"400\">({unit}{scale})</tspan></text>",
            left + 12.0,
            top + TITLE - 12.0
        );
        for (place, (name, value)) in self.bars.iter().enumerate() {
            let y = top + TITLE + place as f64 * (BAR + GAP);
            let class = if place == 0 { "us" } else { "peer" };
            let length = if *value > 0.0 { x(*value).max(1.0) } else { 0.0 };
            let (base, end) = (y + BAR - 5.0, from + length + 6.0);
            let shown = number(*value);
            let _ = writeln!(
                text,
                "<text x=\"{:.0}\" y=\"{base:.0}\" text-anchor=\"end\">{name}</text>\
                 <rect class=\"{class}\" x=\"{from:.0}\" y=\"{y:.0}\" width=\"{length:.1}\" height=\"{BAR:.0}\"/>\
                 <text x=\"{end:.1}\" y=\"{base:.0}\">{shown}</text>",
                from - 8.0
            );
        }
        if let Some(target) = self.target {
            let (at, end) = (from + x(target), top + self.height() - BELOW);
            let _ = writeln!(
                text,
                "<line class=\"aim\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.0}\" y2=\"{end:.0}\"/>\
                 <text class=\"note\" font-size=\"10\" x=\"{at:.1}\" y=\"{:.0}\" text-anchor=\"middle\">aim {}</text>",
                top + TITLE - 3.0,
                end + 9.0,
                number(target)
            );
        }
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_program_has_a_bar_in_each_panel() {
        let rows = [
            Row::beside("speed <fast>", 200.0, "/s", "unbound", 100.0).ratio_at_least(1.2),
            Row::beside("speed <fast>", 200.0, "/s", "dnsmasq", 50.0),
            Row::beside("wait", 2.0, "ms", "unbound", 2000.0).at_most(100.0),
            Row::beside("failed", 0.0, "%", "unbound", 0.0),
            Row::alone("alone", 1.0, "ms"),
        ];
        let text = svg(&rows);
        assert_eq!(text.matches("class=\"us\"").count(), 2, "{text}");
        assert_eq!(text.matches("class=\"peer\"").count(), 3);
        assert_eq!(text.matches("<line").count(), 1, "a ratio has no place on the axis");
        assert!(text.contains("speed &lt;fast>") && !text.contains("failed"));
        assert!(text.contains("width=\"380.0\"") && text.contains("width=\"190.0\""));
        assert!(text.contains("(ms, logarithmic)"));
    }

    #[test]
    fn nothing_makes_an_empty_picture() {
        assert!(svg(&[]).ends_with("</svg>\n"));
    }
}
