//! `tap`: flows as they end.

use std::time::Duration;

use qudag_filter_api::Period;
use qudag_filter_db::TRANSACTIONS;
use qudag_filter_db::redis::BATCHES;
use serde_json::Value;

use super::args::{Common, Format, Target};
use super::exit::{FAILED, Failure};
use super::output::{self, Cell, Tone, cell, plain};
use super::remote::block_on;
use super::{find, view};
use crate::admin::client::{Client, Lines};
use crate::admin::is_plain_query;
use crate::resolve::SystemResolver;

/// What to show.
#[derive(Debug, clap::Args)]
pub struct TapOptions {
    /// The kind of traffic: dns, peer, rpc, http, db, redis or crypto
    kind: String,
    /// The transactions of pooled sessions, and not the sessions; for db
    #[arg(long)]
    transactions: bool,
    /// The batches of commands of pooled sessions, and not the sessions; for redis
    #[arg(long, conflicts_with = "transactions")]
    batches: bool,
    /// Only flows of which this holds: KEY=VALUE or KEY!=VALUE; may be given several times
    #[arg(long, value_name = "CONDITION")]
    filter: Vec<String>,
    /// End after so many flows
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// End after this time: 30s, 10m
    #[arg(long = "for", value_name = "DURATION")]
    duration: Option<Period>,
}

/// Further away than any tap lasts.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Shows flows until there were enough, the time is over, it is interrupted, or the sidecar stops.
///
/// # Errors
/// When no sidecar answers, it says no, or it breaks off.
pub(super) fn run(tap: &TapOptions, common: &Common, target: &Target, format: Format) -> Result<(), Failure> {
    let path = path(tap)?;
    let client = find::client(common, target)?;
    block_on(follow(tap, &path, &client, format))?
}

fn path(tap: &TapOptions) -> Result<String, Failure> {
    let name = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !name(&tap.kind) {
        return Err(Failure::new(FAILED, format!("no kind of traffic {:?}", tap.kind))
            .hint("dns, peer, rpc, http, db, redis or crypto"));
    }
    for condition in &tap.filter {
        if !is_plain_query(condition) || condition.contains('&') {
            let problem = format!("{condition:?} cannot be asked for");
            return Err(Failure::new(FAILED, problem).hint("one word of letters, digits and . _ - : / [ ]"));
        }
    }
    for (asked, kind, what) in [(tap.transactions, "db", "transactions"), (tap.batches, "redis", "batches")] {
        if asked && tap.kind != kind {
            let failure = Failure::new(FAILED, format!("{} has no {what}", tap.kind));
            return Err(failure.hint(format!("tap {kind} --{what}")));
        }
    }
    let query = tap.filter.join("&");
    Ok(format!("/tap/{}{}{query}", stream(tap), if query.is_empty() { "" } else { "?" }))
}

/// What is tapped.
fn stream(tap: &TapOptions) -> &str {
    match (tap.transactions, tap.batches) {
        (true, _) => TRANSACTIONS,
        (_, true) => BATCHES,
        _ => &tap.kind,
    }
}

async fn follow(tap: &TapOptions, path: &str, client: &Client, format: Format) -> Result<(), Failure> {
    let mut lines = client.lines(path, &SystemResolver::new()).await?;
    let mut shown = Shown::new(tap, format);
    let what =
        if tap.filter.is_empty() { String::new() } else { format!(" where {}", tap.filter.join(", ")) };
    output::remark(&format!("{}{what}, live; Ctrl-C ends", tap.kind));
    let over = tokio::time::sleep(tap.duration.map_or(FOR_EVER, |period| period.0));
    let mut over = std::pin::pin!(over);
    let ended = loop {
        let line = tokio::select! {
            line = next(&mut lines) => line?,
            () = &mut over => break None,
            _ = tokio::signal::ctrl_c() => break None,
        };
        let Some((line, value)) = line else { break Some("the sidecar broke off".to_owned()) };
        if let Some(why) = value.get("end") {
            break Some(why.as_str().unwrap_or_default().to_owned());
        }
        if !shown.line(&line, &value)? {
            break None;
        }
    };
    let lost = if shown.lost > 0 { format!(", {} too fast to be shown", shown.lost) } else { String::new() };
    let why = ended.map(|why| format!("{why}: ")).unwrap_or_default();
    let flows = if shown.flows == 1 { "flow" } else { "flows" };
    output::remark(&format!("{why}{} {flows}{lost}", shown.flows));
    Ok(())
}

/// The next line that says something.
async fn next(lines: &mut Lines) -> Result<Option<(String, Value)>, Failure> {
    while let Some(line) = lines.next().await? {
        if !line.trim().is_empty() {
            let value = serde_json::from_str(&line).unwrap_or_default();
            return Ok(Some((line, value)));
        }
    }
    Ok(None)
}

/// What was shown so far.
struct Shown {
    json: bool,
    colour: bool,
    limit: u64,
    table: view::FlowTable,
    flows: u64,
    lost: u64,
}

impl Shown {
    fn new(tap: &TapOptions, format: Format) -> Self {
        Self {
            json: format.json,
            colour: output::colour_on_stdout(),
            limit: tap.limit.unwrap_or(u64::MAX),
            table: view::FlowTable::of(stream(tap)),
            flows: 0,
            lost: 0,
        }
    }

    /// Shows a line. False when it was the last one that is wanted, or nobody reads on.
    fn line(&mut self, line: &str, value: &Value) -> Result<bool, Failure> {
        if let Some(lost) = value.get("lost").and_then(Value::as_u64) {
            self.lost += lost;
            return match self.json {
                true => output::stream(&format!("{line}\n")),
                false => output::stream(&self.gap(lost)),
            };
        }
        self.flows += 1;
        let text = if self.json { format!("{line}\n") } else { self.table.row(value, self.colour) };
        Ok(output::stream(&text)? && self.flows < self.limit)
    }

    fn gap(&self, lost: u64) -> String {
        let cell: Cell = match lost {
            0 => plain(""),
            lost => cell(format!("… {lost} flows came too fast to be shown"), Tone::Warn),
        };
        format!("{}\n", cell.paint(self.colour))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tap(kind: &str, filter: &[&str]) -> TapOptions {
        let filter = filter.iter().map(|condition| (*condition).to_owned()).collect();
        TapOptions {
            kind: kind.to_owned(),
            transactions: false,
            batches: false,
            filter,
            limit: None,
            duration: None,
        }
    }

    #[test]
    fn conditions_become_a_query_that_needs_no_escapes() {
        assert_eq!(path(&tap("dns", &[])).ok().unwrap(), "/tap/dns");
        let conditions = ["name=example.com", "outcome!=ok", "client=[::1]:53"];
        assert_eq!(
            path(&tap("dns", &conditions)).ok().unwrap(),
            "/tap/dns?name=example.com&outcome!=ok&client=[::1]:53"
        );
        let transactions = |kind| TapOptions { transactions: true, ..tap(kind, &["outcome!=ok"]) };
        assert_eq!(path(&transactions("db")).ok().unwrap(), "/tap/db_transactions?outcome!=ok");
        let batches = |kind| TapOptions { batches: true, ..tap(kind, &[]) };
        assert_eq!(path(&batches("redis")).ok().unwrap(), "/tap/redis_batches");
        assert!(path(&transactions("dns")).is_err() && path(&batches("db")).is_err());
        for (kind, condition) in
            [("", "a=b"), ("d/x", "a=b"), ("dns", "a=b&c=d"), ("dns", "a=b c"), ("dns", "ä=b")]
        {
            assert!(path(&tap(kind, &[condition])).is_err(), "{kind} {condition}");
        }
    }
}
