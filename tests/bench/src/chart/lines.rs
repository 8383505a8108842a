//! A panel with a line for each program: a figure over the load, as a multiple of what there can be.

use std::fmt::Write as _;

use super::{BELOW, LINEAR, TITLE, WIDTH, escaped};
use crate::row::{Row, number};

/// Of the axes within a panel.
const LEFT: f64 = 60.0;
const RIGHT: f64 = 130.0;
const HEIGHT: f64 = 150.0;
/// What a name needs so that another one can stand below it.
const LINE: f64 = 13.0;
/// How the lines of peers differ, besides their names.
const DASHES: [&str; 3] = ["", "6 3", "2 3"];

/// One figure of all programs over the load.
pub(super) struct Lines<'a> {
    pub(super) title: &'a str,
    unit: &'static str,
    target: Option<f64>,
    /// Load and value.
    series: Vec<(&'static str, Vec<(f64, f64)>)>,
}

impl<'a> Lines<'a> {
    pub(super) fn new(title: &'a str, unit: &'static str) -> Self {
        Self { title, unit, target: None, series: Vec::new() }
    }

    /// Adds the places of a row.
    pub(super) fn add(&mut self, row: &Row, at: f64) {
        let (Some(peer), Some(value)) = (row.peer, row.peer_value) else { return };
        self.target = self.target.or(row.target.filter(|_| !row.of_ratio));
        for (name, value) in [("sidecar", row.ours), (peer, value)] {
            let known = self.series.iter_mut().find(|(of, _)| *of == name);
            match known {
                // The sidecar's figure stands in the row of each peer.
                Some((_, points)) if points.last().is_some_and(|(last, _)| *last == at) => {}
                Some((_, points)) => points.push((at, value)),
                None => self.series.push((name, vec![(at, value)])),
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.series.is_empty()
    }

    pub(super) fn height() -> f64 {
        TITLE + HEIGHT + 2.0 * BELOW
    }

    pub(super) fn draw(&self, left: f64, top: f64, text: &mut String) {
        let points = || self.series.iter().flat_map(|(_, points)| points);
        let values = || points().map(|(_, value)| *value).chain(self.target);
        let most = values().fold(0.0, f64::max) * 1.05;
        let least = values().filter(|value| *value > 0.0).fold(most, f64::min);
        // A share has its place between nothing and everything.
        let logarithmic = most > LINEAR * least && !self.unit.starts_with('%');
        let (first, last) = points()
            .fold((f64::MAX, 0.0), |(first, last): (f64, f64), (at, _)| (first.min(*at), last.max(*at)));
        let (base, from, room) = (top + TITLE + HEIGHT, left + LEFT, WIDTH - LEFT - RIGHT);
        let x = |at: f64| from + room * share(at.ln(), first.ln(), last.ln());
        let y = |value: f64| {
            let up = if logarithmic {
                share(value.max(least).ln(), least.ln() - 0.2, most.ln())
            } else {
                share(value, 0.0, most)
            };
            base - HEIGHT * up
        };
        let scale = if logarithmic { ", logarithmic" } else { "" };
        let title = escaped(self.title);
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "<text x=\"{:.0}\" y=\"{:.0}\" font-weight=\"600\">{title} <tspan class=\"note\" font-weight=\"400\">({}{scale})</tspan></text>\
             <path class=\"axis\" d=\"M{from:.1} {:.1}V{base:.1}H{:.1}\"/>",
            left + 12.0,
            top + TITLE - 12.0,
            self.unit,
            base - HEIGHT,
            from + room
        );
        let mut loads: Vec<f64> = points().map(|(at, _)| *at).collect();
        loads.sort_by(f64::total_cmp);
        loads.dedup();
        for at in loads {
            let _ = writeln!(
                text,
                "<text class=\"note\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{at} ×</text>",
                x(at),
                base + 14.0
            );
        }
        let ends = if logarithmic { [least, most / 1.05] } else { [0.0, most / 1.05] };
        for value in ends {
            let _ = writeln!(
                text,
                "<text class=\"note\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                from - 6.0,
                y(value) + 4.0,
                number(value)
            );
        }
        if let Some(target) = self.target {
            let at = y(target);
            let _ = writeln!(
                text,
                "<line class=\"aim\" x1=\"{from:.1}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text class=\"note\" font-size=\"10\" x=\"{:.1}\" y=\"{:.1}\">aim {}</text>",
                from + room,
                from + 4.0,
                at - 3.0,
                number(target)
            );
        }
        // The sidecar's last, so that it lies above the others.
        for (place, (name, points)) in self.series.iter().enumerate().rev() {
            let class = if place == 0 { "our-line" } else { "peer-line" };
            let dash = DASHES.get(place.saturating_sub(1) % DASHES.len()).copied().unwrap_or_default();
            let dash = if place == 0 { "" } else { dash };
            let path: Vec<String> =
                points.iter().map(|(at, value)| format!("{:.1},{:.1}", x(*at), y(*value))).collect();
            let _ = writeln!(
                text,
                "<polyline class=\"{class}\" stroke-dasharray=\"{dash}\" points=\"{}\"><title>{name}</title></polyline>",
                path.join(" ")
            );
        }
        let ends = self.series.iter().filter_map(|(name, points)| {
            let (at, value) = points.last()?;
            // A line that ends before has nothing to show for more.
            let name = if *at < last { format!("{name}, ≤ {at} ×") } else { (*name).to_owned() };
            Some((name, y(*value)))
        });
        for (name, at) in apart(ends.collect(), base - HEIGHT, base) {
            let weight =
                if name.starts_with("sidecar") && !name.starts_with("sidecar off") { 600 } else { 400 };
            let _ = writeln!(
                text,
                "<text x=\"{:.1}\" y=\"{:.1}\" font-weight=\"{weight}\">{name}</text>",
                from + room + 8.0,
                at + 4.0
            );
        }
    }
}

/// Where a value lies between two others, from 0 to 1.
fn share(value: f64, from: f64, to: f64) -> f64 {
    if to > from { ((value - from) / (to - from)).clamp(0.0, 1.0) } else { 0.5 }
}

/// Names at their heights, moved where they would cover each other: up, or down again below the highest place.
fn apart(mut names: Vec<(String, f64)>, highest: f64, lowest: f64) -> Vec<(String, f64)> {
    names.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    let mut room = lowest + LINE;
    for (_, at) in &mut names {
        *at = at.min(room - LINE);
        room = *at;
    }
    let mut room = highest - LINE;
    for (_, at) in names.iter_mut().rev() {
        *at = at.max(room + LINE);
        room = *at;
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_cover_each_other() {
        let placed = |names: [(&str, f64); 4]| {
            let names = names.map(|(name, at)| (name.to_owned(), at));
            apart(names.into(), 0.0, 100.0)
                .into_iter()
                .map(|(name, at)| format!("{name}{at}"))
                .collect::<Vec<_>>()
        };
        let low = placed([("a", 100.0), ("b", 99.0), ("c", 20.0), ("d", 100.0)]);
        assert_eq!(low, ["a100", "d87", "b74", "c20"]);
        let high = placed([("a", 3.0), ("b", 2.0), ("c", 1.0), ("d", 60.0)]);
        assert_eq!(high, ["d60", "a26", "b13", "c0"]);
    }
}
