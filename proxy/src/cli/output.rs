//! What commands print: tables, colour where a person looks, and quiet when nobody reads on.

use std::io::{self, IsTerminal, Write};

use serde_json::Value;

use super::args::Format;
use super::exit::{FAILED, Failure};
use crate::telemetry::logs::no_color_is_unset;

/// Whether standard output is a terminal that shows colour.
pub(super) fn colour_on_stdout() -> bool {
    io::stdout().is_terminal() && no_color_is_unset()
}

/// Whether standard error is a terminal that shows colour.
pub(super) fn colour_on_stderr() -> bool {
    io::stderr().is_terminal() && no_color_is_unset()
}

/// Writes to standard output. A reader that has gone, as `head` does, is no failure.
///
/// # Errors
/// When it cannot be written.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    stream(text).map(|_| ())
}

/// Writes a value as JSON.
///
/// # Errors
/// When it cannot be written.
pub(super) fn json(value: &Value) -> Result<(), Failure> {
    print(&format!("{value:#}\n"))
}

/// Writes a value as JSON, or as a view shows it to a person.
///
/// # Errors
/// When it cannot be written.
pub(super) fn answer(
    value: &Value,
    view: impl FnOnce(&Value, bool) -> String,
    format: Format,
) -> Result<(), Failure> {
    if format.json { json(value) } else { print(&view(value, colour_on_stdout())) }
}

/// Writes to standard output; false when the reader has gone.
///
/// # Errors
/// When it cannot be written.
pub(super) fn stream(text: &str) -> Result<bool, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(why) if why.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(why) => Err(Failure::new(FAILED, format!("cannot write to standard output: {why}"))),
    }
}

/// Says something beside the output proper, on standard error.
pub(super) fn remark(text: &str) {
    let faint = cell(text, Tone::Faint).paint(colour_on_stderr());
    // There is nowhere to complain to.
    let _ = writeln!(io::stderr(), "{faint}");
}

/// What a piece of text says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    /// Nothing special.
    Plain,
    /// All is well.
    Good,
    /// Look here.
    Warn,
    /// Something is wrong.
    Bad,
    /// Less important.
    Faint,
    /// A heading.
    Head,
}

/// Text with a tone.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    text: String,
    tone: Tone,
}

/// Text with a tone. What comes from elsewhere cannot move the cursor or change the colour.
pub(super) fn cell(text: impl AsRef<str>, tone: Tone) -> Cell {
    let text = text.as_ref().chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    Cell { text, tone }
}

/// Text without a tone.
pub(super) fn plain(text: impl AsRef<str>) -> Cell {
    cell(text, Tone::Plain)
}

impl Cell {
    /// The text as a terminal shows it.
    pub(super) fn paint(&self, colour: bool) -> String {
        let code = match self.tone {
            Tone::Good => "32",
            Tone::Warn => "33",
            Tone::Bad => "31",
            Tone::Faint => "2",
            Tone::Head => "1",
            Tone::Plain => return self.text.clone(),
        };
        if colour { format!("\u{1b}[{code}m{}\u{1b}[0m", self.text) } else { self.text.clone() }
    }

    /// How many columns the text takes.
    pub(super) fn width(&self) -> usize {
        self.text.chars().count()
    }
}

/// Rows with aligned columns, under their headings.
pub(super) fn table(headings: &[&str], rows: Vec<Vec<Cell>>, colour: bool) -> String {
    let headings = headings.iter().map(|heading| cell(heading, Tone::Head)).collect();
    columns(std::iter::once(headings).chain(rows).collect(), colour)
}

/// Rows with aligned columns.
pub(super) fn columns(rows: Vec<Vec<Cell>>, colour: bool) -> String {
    let mut widths = Vec::new();
    for row in &rows {
        for (column, cell) in row.iter().enumerate() {
            match widths.get_mut(column) {
                Some(width) => *width = cell.width().max(*width),
                None => widths.push(cell.width()),
            }
        }
    }
    let mut text = String::new();
    for row in &rows {
        let last = row.iter().rposition(|cell| !cell.text.is_empty()).unwrap_or_default();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate().take(last + 1) {
            text += &cell.paint(colour);
            if column < last {
                text.extend(std::iter::repeat_n(' ', width - cell.width() + 2));
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Vec<Cell>> {
        vec![
            vec![plain("dns"), cell("on", Tone::Good), plain("")],
            vec![plain("größer"), cell("off", Tone::Bad), plain("x")],
        ]
    }

    #[test]
    fn columns_are_aligned_without_trailing_space() {
        let expected = "KIND    STATE  NOTE\ndns     on\ngrößer  off    x\n";
        assert_eq!(table(&["KIND", "STATE", "NOTE"], rows(), false), expected);
    }

    #[test]
    fn colour_does_not_move_columns() {
        let text = table(&["KIND", "STATE", "NOTE"], rows(), true);
        let plain = text.replace("\u{1b}[1m", "").replace("\u{1b}[32m", "").replace("\u{1b}[31m", "");
        assert_eq!(plain.replace("\u{1b}[0m", ""), table(&["KIND", "STATE", "NOTE"], rows(), false));
    }

    #[test]
    fn control_characters_are_not_printed() {
        assert_eq!(plain("a\u{1b}[31m\nb").paint(true), "a\u{fffd}[31m\u{fffd}b");
    }
}
