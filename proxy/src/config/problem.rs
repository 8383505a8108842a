//! What is wrong with a configuration, where, and how it is shown.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, SourceCode};
use serde::Serialize;

use super::tree::{Origin, Place, printable};

/// One problem.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The path of the key, `filters.dns.dns_cache.max_ttl` for instance; empty for the file as a whole.
    pub path: String,
    /// The line, from 1, where the file has the key.
    pub line: Option<usize>,
    /// The column in characters, from 1.
    pub column: Option<usize>,
    /// How many characters are concerned.
    pub length: Option<usize>,
    /// The environment variable, where one has set the key.
    pub variable: Option<String>,
    /// Whether the operator has set the key while the sidecar runs.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub operator: bool,
    /// The value seen; never that of a secret.
    pub value: Option<String>,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub hint: Option<String>,
    /// The place in bytes.
    #[serde(skip)]
    pub(super) place: Option<Place>,
    /// What must not be shown.
    #[serde(skip)]
    pub(super) secret: Option<Place>,
}

impl Problem {
    pub(super) fn new(path: Vec<String>, message: impl Into<String>) -> Self {
        Self { path: path.join("."), message: message.into(), ..Self::default() }
    }

    pub(super) fn at(mut self, origin: &Origin) -> Self {
        match origin {
            Origin::File(place) => {
                self.line = Some(place.line);
                self.column = Some(place.column);
                self.length = Some(place.length);
                self.place = Some(*place);
            }
            Origin::Env(name) => self.variable = Some(name.to_string()),
            Origin::Operator => self.operator = true,
        }
        self
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The file by line, then the environment, then what has no place.
    pub(super) fn order(&self) -> (usize, usize, bool) {
        let last = usize::MAX;
        (self.line.unwrap_or(last), self.column.unwrap_or(last), self.variable.is_none())
    }

    fn sentence(&self) -> String {
        let mut sentence = String::new();
        if !self.path.is_empty() {
            sentence += &format!("{}: ", self.path);
        }
        sentence += &self.message;
        // Most messages about a value quote it.
        if let Some(value) = &self.value
            && !self.message.contains(value.trim_matches(['"', '\'']))
        {
            sentence += &format!(" (found {value})");
        }
        sentence.chars().map(printable).collect()
    }
}

/// Why a configuration was refused: everything that is wrong with it, in the order of its lines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConfigFailure {
    /// The file's path, or what stands in for it.
    pub source: String,
    /// The text that was read, for showing the places; empty if it could not be read.
    #[serde(skip)]
    pub text: String,
    /// The problems, at least one.
    pub problems: Vec<Problem>,
}

impl std::error::Error for ConfigFailure {}

/// One line a problem: `FILE:LINE:COLUMN: KEY: MESSAGE; HINT`.
impl fmt::Display for ConfigFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            self.line(f, problem)?;
        }
        Ok(())
    }
}

impl ConfigFailure {
    /// One line a problem, as [`fmt::Display`] has them.
    pub fn lines(&self) -> Vec<String> {
        self.to_string().lines().map(str::to_owned).collect()
    }

    fn line(&self, f: &mut fmt::Formatter<'_>, problem: &Problem) -> fmt::Result {
        match (&problem.variable, problem.line, problem.column) {
            (Some(variable), ..) => write!(f, "environment variable {variable}: ")?,
            _ if problem.operator => f.write_str("live setting: ")?,
            (None, Some(line), Some(column)) => write!(f, "{}:{line}:{column}: ", self.source)?,
            _ => write!(f, "{}: ", self.source)?,
        }
        f.write_str(&problem.sentence())?;
        match &problem.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

/// A frame around a longer line would hide the message.
const LONGEST_LINE: usize = 400;

impl ConfigFailure {
    /// The problems with the lines that they concern, for a terminal.
    pub fn render(&self, colour: bool) -> String {
        let theme = if colour { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
        let handler = GraphicalReportHandler::new_themed(theme).with_width(100).without_syntax_highlighting();
        let source = NamedSource::new(&self.source, Arc::new(self.masked()));
        let mut out = String::new();
        for problem in &self.problems {
            if !out.is_empty() {
                out.push('\n');
            }
            let place = problem.place.filter(|place| self.frame(place));
            let report = Report { problem, place, source: &source };
            if handler.render_report(&mut out, &report).is_err() {
                out.push_str(&problem.sentence());
            }
        }
        let count = match self.problems.len() {
            1 => "1 problem".to_owned(),
            n => format!("{n} problems"),
        };
        out.push_str(&format!("\n{count} in {}\n", self.source));
        out
    }

    /// Whether a line and its neighbours are short enough to be shown.
    fn frame(&self, place: &Place) -> bool {
        let Some((before, after)) = self.text.split_at_checked(place.offset) else { return false };
        let mut lines = before.rsplit('\n').take(2).chain(after.split('\n').take(2));
        lines.all(|line| line.len() <= LONGEST_LINE)
    }

    /// The text with secrets and control characters replaced, each by as many bytes.
    fn masked(&self) -> String {
        let found = self.problems.iter().filter_map(|problem| problem.secret);
        let secrets: Vec<_> =
            found.map(|place| place.offset..place.offset.saturating_add(place.bytes)).collect();
        let secrets: Vec<_> = secrets.into_iter().chain(tokens(&self.text)).collect();
        let mut masked = String::with_capacity(self.text.len());
        for (at, c) in self.text.char_indices() {
            if c.is_whitespace() && !c.is_control() || c == '\n' || c == '\t' {
                masked.push(c);
            } else if secrets.iter().any(|secret| secret.contains(&at)) {
                masked.extend(std::iter::repeat_n('*', c.len_utf8()));
            } else if c.is_control() {
                masked.extend(std::iter::repeat_n(' ', c.len_utf8()));
            } else {
                masked.push(c);
            }
        }
        masked
    }
}

/// What stands behind a key of a token and is no reference: where YAML cannot be read, nothing else tells a secret.
fn tokens(text: &str) -> impl Iterator<Item = Range<usize>> {
    text.match_indices("token:").filter_map(|(at, key)| {
        let start = at + key.len();
        let value = text.get(start..)?.lines().next()?;
        let written = value.trim();
        let reference = written.starts_with('{') || matches!(written, "" | "~" | "null");
        (!reference).then(|| start..start + value.len())
    })
}

/// A problem as miette prints it.
struct Report<'a> {
    problem: &'a Problem,
    place: Option<Place>,
    source: &'a dyn SourceCode,
}

impl fmt::Debug for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.problem.fmt(f)
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(variable) = &self.problem.variable {
            write!(f, "environment variable {variable}: ")?;
        } else if self.problem.operator {
            f.write_str("live setting: ")?;
        }
        f.write_str(&self.problem.sentence())
    }
}

impl std::error::Error for Report<'_> {}

impl Diagnostic for Report<'_> {
    fn help<'b>(&'b self) -> Option<Box<dyn fmt::Display + 'b>> {
        self.problem.hint.as_ref().map(|hint| Box::new(hint) as _)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.place.is_some().then_some(self.source)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let place = self.place?;
        // On one line: a frame around a whole section says less than its first line.
        let length = if place.bytes > 0 { place.length.min(place.bytes) } else { 1 };
        Some(Box::new(std::iter::once(LabeledSpan::new(Some("here".to_owned()), place.offset, length))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure() -> ConfigFailure {
        let text = "a: 1\ntoken: hunter2\nb: \u{1b}[31m\n".to_owned();
        let place = Place { line: 2, column: 8, length: 7, offset: 12, bytes: 7 };
        let mut problem = Problem::new(vec!["token".to_owned()], "a secret is given by reference")
            .at(&Origin::File(place))
            .hint("write { file: PATH }");
        problem.secret = Some(place);
        ConfigFailure { source: "x.yaml".to_owned(), text, problems: vec![problem] }
    }

    #[test]
    fn a_problem_is_shown_with_its_line_and_a_caret() {
        let shown = failure().render(false);
        for part in
            ["x.yaml:2:8", "token: a secret is given by reference", "here", "help: write { file: PATH }"]
        {
            assert!(shown.contains(part), "{part} in {shown}");
        }
        assert!(failure().render(true).contains('\u{1b}'));
        assert_eq!(
            failure().to_string(),
            "x.yaml:2:8: token: a secret is given by reference; write { file: PATH }"
        );
    }

    #[test]
    fn secrets_and_escape_sequences_are_not_shown() {
        let failure = failure();
        let all = format!("{}{failure}{}", failure.render(false), serde_json::to_string(&failure).unwrap());
        assert!(!all.contains("hunter2"), "{all}");
        assert!(!all.contains('\u{1b}'), "{all}");
        assert!(failure.render(false).contains("*******"));
    }

    #[test]
    fn very_long_lines_are_not_framed() {
        let mut failure = failure();
        failure.text = format!("a: {}\n", "x".repeat(100_000));
        failure.problems[0].place = Some(Place { line: 1, column: 4, length: 9, offset: 3, bytes: 9 });
        assert!(failure.render(false).len() < 1000);
    }
}
