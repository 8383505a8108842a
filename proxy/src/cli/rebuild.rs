//! `cache rebuild`: started, then followed to its end.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use serde_json::{Value, json};

use super::args::{Common, Format, Target};
use super::exit::{FAILED, Failure};
use super::remote::block_on;
use super::{find, output, view};
use crate::admin::client::{Client, ClientError};
use crate::resolve::SystemResolver;

/// How often it is asked how far it is.
const LOOK: Duration = Duration::from_millis(100);
/// How wide the bar is.
const WIDTH: u64 = 40;

/// Rebuilds the cache, with a progress bar on a terminal.
///
/// # Errors
/// When no sidecar answers, it says no, or not one entry could be asked for again.
pub(super) fn run(common: &Common, target: &Target, format: Format) -> Result<(), Failure> {
    let client = find::client(common, target)?;
    let answer = block_on(follow(&client))??;
    output::answer(&answer, view::rebuilt, format)?;
    let count = |key| answer.get(key).and_then(Value::as_u64).unwrap_or_default();
    if count("done") == 0 && count("failed") > 0 { Err(Failure::silent(FAILED)) } else { Ok(()) }
}

async fn follow(client: &Client) -> Result<Value, ClientError> {
    let resolve = SystemResolver::new();
    let mut answer = client.post("/cache/rebuild", &json!({}), &resolve).await?;
    let bar = Bar(io::stderr().is_terminal());
    while answer.get("rebuilding").and_then(Value::as_bool).unwrap_or_default() {
        bar.show(&answer);
        tokio::time::sleep(LOOK).await;
        answer = progress(&client.get("/cache", &resolve).await?);
    }
    bar.clear();
    Ok(answer)
}

/// What the figures of the cache say of a rebuild.
fn progress(stats: &Value) -> Value {
    let of = |key: &str| stats.get(key).cloned().unwrap_or_default();
    json!({
        "rebuilding": of("rebuilding"),
        "total": of("rebuild_total"),
        "done": of("rebuild_done"),
        "failed": of("rebuild_failed"),
    })
}

/// A line that is written again and again, on a terminal.
struct Bar(bool);

impl Bar {
    fn show(&self, answer: &Value) {
        self.write(&bar(answer));
    }

    fn clear(&self) {
        self.write("");
    }

    fn write(&self, text: &str) {
        if self.0 {
            // There is nowhere to complain to.
            let _ = write!(io::stderr(), "\r\u{1b}[K{text}");
        }
    }
}

fn bar(answer: &Value) -> String {
    let count = |key| answer.get(key).and_then(Value::as_u64).unwrap_or_default();
    let (total, done, failed) = (count("total"), count("done"), count("failed"));
    let ended = done.saturating_add(failed).min(total);
    let filled = ended.saturating_mul(WIDTH).checked_div(total).unwrap_or_default().min(WIDTH);
    let part = |sign: &str, times: u64| sign.repeat(usize::try_from(times).unwrap_or_default());
    format!("[{}{}] {ended}/{total}", part("#", filled), part(".", WIDTH - filled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_fills() {
        let stats = json!({"rebuilding": true, "rebuild_total": 80, "rebuild_done": 19, "rebuild_failed": 1, "hits": 5});
        assert_eq!(bar(&progress(&stats)), format!("[{}{}] 20/80", "#".repeat(10), ".".repeat(30)));
        assert_eq!(bar(&json!({})), format!("[{}] 0/0", ".".repeat(40)));
        let odd = json!({"total": 1, "done": u64::MAX, "failed": 3});
        assert_eq!(bar(&odd), format!("[{}] 1/1", "#".repeat(40)));
    }
}
