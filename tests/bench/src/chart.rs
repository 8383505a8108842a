//! The rows as a picture: a panel for each figure, with a bar for each program, or a line where there is a load.

mod lines;

use std::fmt::Write as _;

use lines::Lines;

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

/// What has a place of its own.
enum Figure<'a> {
    Bars(Panel<'a>),
    Lines(Lines<'a>),
}

impl Figure<'_> {
    fn height(&self) -> f64 {
        match self {
            Self::Bars(panel) => panel.height(),
            Self::Lines(_) => Lines::height(),
        }
    }

    /// Whether anybody has anything to be seen, other than failures that nobody had.
    fn says_something(&self) -> bool {
        match self {
            Self::Bars(panel) => panel.bars.iter().any(|(_, value)| *value > 0.0),
            Self::Lines(lines) => !lines.is_empty(),
        }
    }
}

/// The figures that stand beside a peer's, in the order of the rows.
fn figures(rows: &[Row]) -> Vec<Figure<'_>> {
    let mut figures: Vec<Figure<'_>> = Vec::new();
    for row in rows {
        if let Some(line) = &row.line {
            let known = figures.iter_mut().find_map(|figure| match figure {
                Figure::Lines(lines) if lines.title == line.panel => Some(lines),
                _ => None,
            });
            match known {
                Some(lines) => lines.add(row, line.at),
                None => {
                    let mut lines = Lines::new(&line.panel, row.unit);
                    lines.add(row, line.at);
                    figures.push(Figure::Lines(lines));
                }
            }
            continue;
        }
        let (Some(peer), Some(value)) = (row.peer, row.peer_value) else { continue };
        if LEFT_OUT.iter().any(|word| row.row.contains(word)) {
            continue;
        }
        match figures.last_mut() {
            Some(Figure::Bars(panel)) if panel.title == row.row => panel.bars.push((peer, value)),
            _ => figures.push(Figure::Bars(Panel {
                title: &row.row,
                unit: row.unit,
                // Where the ratio is what is aimed at, the target is no place on the axis.
                target: row.target.filter(|_| !row.of_ratio),
                bars: vec![("sidecar", row.ours), (peer, value)],
            })),
        }
    }
    figures.retain(Figure::says_something);
    figures
}

/// The rows as SVG.
pub fn svg(rows: &[Row]) -> String {
    let figures = figures(rows);
    let mut body = String::new();
    let mut top = 0.0;
    for pair in figures.chunks(2) {
        for (column, figure) in pair.iter().enumerate() {
            let left = column as f64 * WIDTH;
            match figure {
                Figure::Bars(panel) => panel.draw(left, top, &mut body),
                Figure::Lines(lines) => lines.draw(left, top, &mut body),
            }
        }
        top += pair.iter().map(Figure::height).fold(0.0, f64::max);
    }
    let (width, height) = (2.0 * WIDTH, top + BELOW);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\">\n\
         <style>.us {{ fill: #2563a8 }} .peer {{ fill: #a3adb8 }} .aim {{ stroke: #b3261e; stroke-dasharray: 4 3 }} \
         .our-line {{ fill: none; stroke: #2563a8; stroke-width: 3 }} .peer-line {{ fill: none; stroke: #7a858f; stroke-width: 1.5 }} \
         .axis {{ fill: none; stroke: #a3adb8 }} \
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
    fn a_figure_over_the_load_is_a_line_for_each_program() {
        let place = |at: f64, ours: f64, peer, value| {
            Row::beside(format!("{at} × goodput"), ours, "% of peak", peer, value)
                .on_line("goodput".into(), at)
        };
        let text = svg(&[
            place(0.8, 80.0, "direct", 80.0),
            place(0.8, 80.0, "pgbouncer", 78.0),
            Row::beside("between", 1.0, "ms", "direct", 2.0),
            place(8.0, 99.0, "direct", 5.0).at_least(95.0),
            place(8.0, 99.0, "pgbouncer", 0.0).at_least(95.0),
        ]);
        assert_eq!(text.matches("<polyline").count(), 3, "{text}");
        assert_eq!((text.matches("our-line\"").count(), text.matches("class=\"us\"").count()), (1, 1));
        assert!(text.contains(">0.8 ×</text>") && text.contains(">8 ×</text>") && text.contains("aim 95.0"));
        // From the first load to the last, from 0 to a little more than the most.
        assert!(text.contains("points=\"60.0,68.6 410.0,41.1\""), "{text}");
        assert!(svg(&[Row::alone("x", 1.0, "%").on_line("y".into(), 1.0)]).ends_with("</svg>\n"));
    }

    #[test]
    fn nothing_makes_an_empty_picture() {
        assert!(svg(&[]).ends_with("</svg>\n"));
    }
}
