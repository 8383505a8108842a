//! A chart without a library: one small panel a series, with the trend of the second half.

use std::fmt::Write;

use super::Trend;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 120.0;
const LEFT: f64 = 80.0;

/// One series.
pub(super) struct Panel<'a> {
    pub(super) title: &'a str,
    pub(super) points: Vec<(f64, f64)>,
    pub(super) trend: Trend,
}

/// All panels below each other.
pub(super) fn svg(panels: &[Panel<'_>]) -> String {
    let height = HEIGHT * panels.len() as f64 + 30.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let end = panels.iter().filter_map(|panel| panel.points.last()).map(|point| point.0).fold(1.0, f64::max);
    for (number, panel) in panels.iter().enumerate() {
        draw(&mut svg, panel, HEIGHT * number as f64, end);
    }
    writeln!(svg, "<text x=\"{LEFT}\" y=\"{}\">0 s</text>", height - 10.0).unwrap();
    let right = WIDTH - 20.0;
    writeln!(svg, "<text x=\"{right}\" y=\"{}\" text-anchor=\"end\">{end:.0} s</text>", height - 10.0)
        .unwrap();
    svg.push_str("</svg>\n");
    svg
}

fn draw(svg: &mut String, panel: &Panel<'_>, top: f64, end: f64) {
    let most = panel.points.iter().map(|point| point.1).fold(0.0, f64::max).max(1e-9);
    let x = |at: f64| LEFT + at / end * (WIDTH - LEFT - 20.0);
    let y = |value: f64| top + HEIGHT - 15.0 - value / most * (HEIGHT - 45.0);
    let (title, trend) = (panel.title, &panel.trend);
    writeln!(svg, "<text x=\"{LEFT}\" y=\"{}\" font-weight=\"bold\">{title}</text>", top + 20.0).unwrap();
    writeln!(svg, "<text x=\"{}\" y=\"{}\">{trend}</text>", LEFT + 200.0, top + 20.0).unwrap();
    for value in [0.0, most] {
        let (right, line) = (WIDTH - 20.0, y(value));
        writeln!(svg, "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{line}\" y2=\"{line}\" stroke=\"#ddd\"/>")
            .unwrap();
        let text = LEFT - 6.0;
        writeln!(svg, "<text x=\"{text}\" y=\"{}\" text-anchor=\"end\">{value:.2}</text>", line + 4.0)
            .unwrap();
    }
    let points: Vec<_> =
        panel.points.iter().map(|(at, value)| format!("{:.1},{:.1}", x(*at), y(*value))).collect();
    let points = points.join(" ");
    writeln!(svg, "<polyline points=\"{points}\" fill=\"none\" stroke=\"#2563eb\"/>").unwrap();
    let [from, to] = [end / 2.0, end];
    let at = |time: f64| y((trend.origin + trend.slope * time).clamp(0.0, most));
    let (x1, y1, x2, y2) = (x(from), at(from), x(to), at(to));
    writeln!(svg, "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"#dc2626\"/>")
        .unwrap();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_has_a_panel_for_each_series() {
        let points = vec![(0.0, 1.0), (1.0, 3.0), (2.0, 2.0), (3.0, 2.5)];
        let panel = |title| Panel { title, points: points.clone(), trend: Trend::of(&points) };
        let svg = svg(&[panel("memory MB"), panel("nothing")]);
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert!(svg.contains(">memory MB</text>") && svg.ends_with("</svg>\n"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }
}
