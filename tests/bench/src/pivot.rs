//! The rows as a table in Markdown: a line for each figure, a column for each program.

use std::fmt::Write as _;

use crate::row::{Row, number};

/// The rows as Markdown.
pub fn markdown(rows: &[Row]) -> String {
    let mut peers: Vec<&str> = Vec::new();
    let mut lines: Vec<(&str, Vec<&Row>)> = Vec::new();
    for row in rows {
        if let Some(peer) = row.peer
            && !peers.contains(&peer)
        {
            peers.push(peer);
        }
        match lines.last_mut().filter(|(title, _)| *title == row.row) {
            Some((_, rows)) => rows.push(row),
            None => lines.push((&row.row, vec![row])),
        }
    }
    let mut text = format!("| figure | unit | sidecar | {} | aim |\n", peers.join(" | "));
    let _ = writeln!(text, "|---|---|{}---|", "---:|".repeat(peers.len() + 1));
    for (title, rows) in lines {
        let Some(first) = rows.first() else { continue };
        let value = |peer: &&str| {
            let row = rows.iter().find(|row| row.peer == Some(*peer));
            row.and_then(|row| row.peer_value).map(number).unwrap_or_default()
        };
        let values: Vec<String> = peers.iter().map(value).collect();
        let (title, unit) = (title.replace('|', "\\|"), first.unit);
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "| {title} | {unit} | **{}** | {} | {} |",
            number(first.ours),
            values.join(" | "),
            aims(&rows)
        );
    }
    text
}

/// What was aimed at, and whether it was reached.
fn aims(rows: &[&Row]) -> String {
    let mut aims: Vec<String> = Vec::new();
    for row in rows {
        let (Some(target), Some(met)) = (row.target, row.met) else { continue };
        let verdict = if met { "met" } else { "missed" };
        let aim = if row.of_ratio {
            let ratio = row.ratio.map(number).unwrap_or_default();
            format!("{} × {}: {ratio}, {verdict}", number(target), row.peer.unwrap_or_default())
        } else {
            format!("{}: {verdict}", number(target))
        };
        if !aims.contains(&aim) {
            aims.push(aim);
        }
    }
    aims.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_figure_has_a_line_and_each_program_a_column() {
        let rows = [
            Row::beside("speed", 200.0, "/s", "unbound", 100.0).ratio_at_least(1.2),
            Row::beside("speed", 200.0, "/s", "dnsmasq", 50.0),
            Row::beside("wait", 2.0, "ms", "dnsmasq", 3.0).at_most(1.0),
            Row::alone("alone", 1.0, "ms"),
        ];
        assert_eq!(
            markdown(&rows),
            "| figure | unit | sidecar | unbound | dnsmasq | aim |\n|---|---|---:|---:|---:|---|\n\
             | speed | /s | **200** | 100 | 50.0 | 1.20 × unbound: 2.00, met |\n\
             | wait | ms | **2.00** |  | 3.00 | 1.00: missed |\n\
             | alone | ms | **1.00** |  |  |  |\n"
        );
    }
}
