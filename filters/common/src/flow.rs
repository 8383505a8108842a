//! One line and a few figures for every flow that has ended.

use std::fmt::{Display, Write};
use std::net::SocketAddr;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use tokio::time::Instant;

/// A flow under way. [`FlowLine::end`] writes the line; a line that is dropped before ends as `aborted`.
///
/// The line is a tracing event at target `flow` with the fields `kind`, `client`, `outcome`, `duration_ms`, `bytes_up`,
/// `bytes_down` and `detail`; it is a warning unless all is well or a peer is to blame.
///
/// Metrics: `qudag_sidecar_flows_total{kind,outcome}`, `qudag_sidecar_flow_duration_seconds{kind}`,
/// `qudag_sidecar_flows_active{kind}`.
#[derive(Debug)]
pub struct FlowLine {
    kind: &'static str,
    client: Option<SocketAddr>,
    start: Instant,
    detail: String,
    active: Option<Gauge>,
}

impl FlowLine {
    /// Starts a flow of a kind. `client` is `None` for a Unix socket.
    pub fn start(kind: &'static str, client: Option<SocketAddr>) -> Self {
        let active = gauge!("qudag_sidecar_flows_active", "kind" => kind);
        active.increment(1.0);
        Self { kind, client, start: Instant::now(), detail: String::new(), active: Some(active) }
    }

    /// Adds `key=value` to the line. Values come from peers as well: they are written in Rust's string notation where they hold
    /// more than visible ASCII without quotes.
    pub fn detail(&mut self, key: &'static str, value: impl Display) -> &mut Self {
        if tracing::enabled!(target: "flow", tracing::Level::WARN) {
            let value = value.to_string();
            let plain = !value.is_empty() && value.bytes().all(|b| b.is_ascii_graphic() && b != b'"');
            let space = if self.detail.is_empty() { "" } else { " " };
            // Writing to a string cannot fail.
            let _ = match plain {
                true => write!(self.detail, "{space}{key}={value}"),
                false => write!(self.detail, "{space}{key}={value:?}"),
            };
        }
        self
    }

    /// Ends the flow. `outcome` is `ok`, the label of an error or of a splice's end; it becomes a metric label. The
    /// numbers are payload bytes from and to the client.
    pub fn end(mut self, outcome: &'static str, bytes_up: u64, bytes_down: u64) {
        self.finish(outcome, bytes_up, bytes_down);
    }

    fn finish(&mut self, outcome: &'static str, bytes_up: u64, bytes_down: u64) {
        let Some(active) = self.active.take() else { return };
        active.decrement(1.0);
        let duration = self.start.elapsed();
        flows(self.kind, outcome).increment(1);
        histogram!("qudag_sidecar_flow_duration_seconds", "kind" => self.kind).record(duration.as_secs_f64());

        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    target: "flow",
                    kind = self.kind,
                    client = self.client.map(tracing::field::display),
                    outcome,
                    duration_ms = duration.as_secs_f64() * 1e3,
                    bytes_up,
                    bytes_down,
                    detail = (!self.detail.is_empty()).then_some(self.detail.as_str()),
                )
            };
        }
        if is_ordinary(outcome) { line!(info) } else { line!(warn) }
    }
}

impl Drop for FlowLine {
    fn drop(&mut self) {
        self.finish("aborted", 0, 0);
    }
}

/// Counts flows that were answered on the spot, many at a time: they are never active, and nobody wants a line of each.
#[derive(Debug)]
pub struct FlowTally {
    kind: &'static str,
    ok: Counter,
    duration: Histogram,
    ended: u32,
    failed: u32,
}

impl FlowTally {
    /// For flows of a kind.
    pub fn new(kind: &'static str) -> Self {
        Self {
            kind,
            ok: flows(kind, "ok"),
            duration: histogram!("qudag_sidecar_flow_duration_seconds", "kind" => kind),
            ended: 0,
            failed: 0,
        }
    }

    /// A flow has ended. `outcome` is as in [`FlowLine::end`].
    pub fn end(&mut self, outcome: &'static str) {
        self.ended += 1;
        if outcome != "ok" {
            self.failed += 1;
            flows(self.kind, outcome).increment(1);
        }
    }

    /// Adds up what has ended since the last time; each took at most `duration`.
    pub fn settle(&mut self, duration: Duration) {
        let (ended, failed) = (std::mem::take(&mut self.ended), std::mem::take(&mut self.failed));
        if ended > 0 {
            self.ok.increment((ended - failed).into());
            self.duration.record_many(duration.as_secs_f64(), ended as usize);
        }
    }
}

fn flows(kind: &'static str, outcome: &'static str) -> Counter {
    counter!("qudag_sidecar_flows_total", "kind" => kind, "outcome" => outcome)
}

/// Whether an outcome needs nobody's attention: success, and what peers do to their own connections.
fn is_ordinary(outcome: &str) -> bool {
    matches!(outcome, "ok" | "malformed" | "rate_limited" | "client_gone" | "reset")
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::testing::Metrics;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What `work` logs, as JSON lines.
    fn logged(work: impl FnOnce()) -> Vec<serde_json::Value> {
        let lines = Lines::default();
        let to = lines.clone();
        let subscriber = tracing_subscriber::fmt().json().with_writer(move || to.clone()).finish();
        tracing::subscriber::with_default(subscriber, work);
        let bytes = lines.0.lock().unwrap().clone();
        let text = String::from_utf8(bytes).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_flow_is_one_line_and_one_count() {
        let metrics = Metrics::record();
        let active = r#"qudag_sidecar_flows_active{kind="test"}"#;
        let lines = logged(|| {
            let mut flow = FlowLine::start("test", Some("10.0.0.1:5".parse().unwrap()));
            assert_eq!(metrics.get(active), Some(1.0));
            flow.detail("target", "a").detail("method", "evil\n{\"x\"}").detail("tries", 2);
            flow.end("ok", 3, 4);
        });
        let [line] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!((&line["target"], &line["level"]), (&"flow".into(), &"INFO".into()));
        let fields = &line["fields"];
        assert_eq!(fields["kind"], "test");
        assert_eq!(fields["client"], "10.0.0.1:5");
        assert_eq!(fields["outcome"], "ok");
        assert_eq!((&fields["bytes_up"], &fields["bytes_down"]), (&3.into(), &4.into()));
        assert!(fields["duration_ms"].as_f64().is_some_and(|ms| ms >= 0.0));
        assert_eq!(fields["detail"], r#"target=a method="evil\n{\"x\"}" tries=2"#);
        assert_eq!(metrics.get(active), Some(0.0));
        assert_eq!(metrics.get(r#"qudag_sidecar_flows_total{kind="test",outcome="ok"}"#), Some(1.0));
        let durations = r#"qudag_sidecar_flow_duration_seconds_count{kind="test"}"#;
        assert_eq!(metrics.get(durations), Some(1.0));
    }

    #[test]
    fn failures_are_warnings_and_a_dropped_flow_is_aborted() {
        let metrics = Metrics::record();
        let lines = logged(|| {
            FlowLine::start("test", None).end("client_gone", 0, 0);
            FlowLine::start("test", None).end("connect", 0, 0);
            drop(FlowLine::start("test", None));
        });
        let levels: Vec<_> = lines.iter().map(|line| line["level"].as_str().unwrap()).collect();
        assert_eq!(levels, ["INFO", "WARN", "WARN"]);
        assert!(lines.iter().all(|line| line["fields"].get("client").is_none()));
        assert_eq!(lines[2]["fields"]["outcome"], "aborted");
        assert_eq!(metrics.get(r#"qudag_sidecar_flows_active{kind="test"}"#), Some(0.0));
    }
}
