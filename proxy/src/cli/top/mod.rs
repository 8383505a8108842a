//! `top`: what keeps the sidecar busy, again and again.

mod sample;

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant, SystemTime};

use qudag_filter_api::Period;
use serde_json::Value;

use self::sample::sample;
use super::args::{Common, Format, Target};
use super::exit::{FAILED, Failure};
use super::remote::block_on;
use super::{find, output, view};
use crate::admin::client::Client;
use crate::resolve::SystemResolver;

/// More often than that the looking itself would be seen.
const SHORTEST: Duration = Duration::from_millis(100);
/// What is assumed of a terminal that does not tell its size.
const USUAL: (usize, usize) = (120, 40);

/// What to look at, and how often.
#[derive(Debug, clap::Args)]
pub struct TopOptions {
    /// The kind of traffic
    #[arg(value_enum)]
    kind: TopKind,
    /// How often to look
    #[arg(long, value_name = "DURATION", default_value = "1s")]
    interval: Period,
    /// End after the first sample
    #[arg(long)]
    once: bool,
}

/// The kinds of traffic that can be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum TopKind {
    /// Pooled database sessions
    Db,
}

/// Shows samples until it is interrupted, or nobody reads on.
///
/// # Errors
/// When no sidecar answers, or it says no.
pub(super) fn run(top: &TopOptions, common: &Common, target: &Target, format: Format) -> Result<(), Failure> {
    let TopKind::Db = top.kind;
    if top.interval.0 < SHORTEST {
        return Err(Failure::new(FAILED, format!("{} is too short", top.interval)).hint("at least 100ms"));
    }
    let client = find::client(common, target)?;
    block_on(follow(top, &client, format))?
}

async fn follow(top: &TopOptions, client: &Client, format: Format) -> Result<(), Failure> {
    let resolve = SystemResolver::new();
    let mut page = Page::new(format, top.once);
    let (mut before, mut then) = (client.get("/db", &resolve).await?, Instant::now());
    loop {
        tokio::select! {
            () = tokio::time::sleep(top.interval.0) => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
        let (now, at) = (client.get("/db", &resolve).await?, Instant::now());
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let seen = sample(&before, &now, unix.as_secs_f64(), (at - then).as_secs_f64());
        if !page.show(&seen)? || top.once {
            return Ok(());
        }
        (before, then) = (now, at);
    }
}

/// Where samples are shown.
struct Page {
    json: bool,
    colour: bool,
    /// Whether each takes the place of the one before.
    redraw: bool,
    first: bool,
}

impl Page {
    fn new(format: Format, once: bool) -> Self {
        let redraw = io::stdout().is_terminal() && !format.json && !once;
        Self { json: format.json, colour: output::colour_on_stdout(), redraw, first: true }
    }

    /// False when nobody reads on.
    fn show(&mut self, sample: &Value) -> Result<bool, Failure> {
        let first = std::mem::take(&mut self.first);
        if self.json {
            return output::stream(&format!("{sample}\n"));
        }
        if self.redraw {
            let (width, height) = size();
            return output::stream(&screen(&view::top_db(sample, width, self.colour), height, first));
        }
        let gap = if first { "" } else { "\n" };
        output::stream(&format!("{gap}{}", view::top_db(sample, usize::MAX, self.colour)))
    }
}

/// Columns and lines of the terminal.
fn size() -> (usize, usize) {
    match rustix::termios::tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 1 => (size.ws_col.into(), size.ws_row.into()),
        _ => USUAL,
    }
}

/// A page over the one before, without a flicker: each line is written over the old one, and what is left of it erased.
fn screen(page: &str, height: usize, first: bool) -> String {
    let mut out = String::from(if first { "\u{1b}[2J\u{1b}[H" } else { "\u{1b}[H" });
    for line in page.lines().take(height.saturating_sub(1)) {
        out.push_str(line);
        out.push_str("\u{1b}[K\n");
    }
    out.push_str("\u{1b}[J");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_fits_on_the_screen_and_leaves_nothing_of_the_one_before() {
        assert_eq!(screen("a\nb\nc\n", 3, false), "\u{1b}[Ha\u{1b}[K\nb\u{1b}[K\n\u{1b}[J");
        assert!(screen("a\n", 3, true).starts_with("\u{1b}[2J\u{1b}[H"));
    }
}
