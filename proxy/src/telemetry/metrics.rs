//! The recorder behind `/metrics`.

use std::fmt::Write;
use std::time::Duration;

use metrics::{describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use qudag_filter_common::live;
use tracing_appender::non_blocking::ErrorCounter;

use super::catalogue::{CATALOGUE, MetricKind};
use super::process;

/// Upper bounds of the buckets of durations, in seconds: 10 µs to 10 s, three a decade.
const BUCKETS: [f64; 19] = [
    1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
    10.0,
];
/// The end of the names of histograms of numbers, and the upper bounds of their buckets.
const NUMBER: &str = "_operations";
const NUMBERS: [f64; 7] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];
/// How often samples of histograms are sorted into buckets. Between scrapes they would pile up.
const UPKEEP: Duration = Duration::from_secs(1);

/// Why the recorder could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// There is one already.
    #[error("a metrics recorder is installed already")]
    Installed,
    /// The buckets were not taken.
    #[error("cannot set up the metrics recorder: {0}")]
    Build(#[from] metrics_exporter_prometheus::BuildError),
}

/// The metrics of the process.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
    dropped_log_lines: Option<ErrorCounter>,
}

impl Metrics {
    /// Installs the recorder of the process and describes every metric. Once per process.
    ///
    /// # Errors
    /// When a recorder is installed already.
    pub fn install() -> Result<Self, MetricsError> {
        let recorder = recorder()?;
        let handle = recorder.handle();
        metrics::set_global_recorder(recorder).map_err(|_| MetricsError::Installed)?;
        describe();
        Ok(Self { handle, dropped_log_lines: None })
    }

    /// A recorder that records nothing, for a server in a test.
    #[cfg(test)]
    pub(crate) fn detached() -> Self {
        let recorder = recorder().unwrap();
        Self { handle: recorder.handle(), dropped_log_lines: None }
    }

    /// Also exports how many log lines were dropped.
    #[must_use]
    pub fn with_dropped_log_lines(self, counter: ErrorCounter) -> Self {
        Self { dropped_log_lines: Some(counter), ..self }
    }

    /// Keeps the recorder's memory bounded. Never returns.
    pub async fn upkeep(self) {
        let mut ticks = tokio::time::interval(UPKEEP);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            live::upkeep();
            self.handle.run_upkeep();
        }
    }

    /// All metrics in Prometheus' text format, version 0.0.4.
    pub fn render(&self) -> String {
        let mut text = without_the_gone(&self.handle.render());
        let dropped = self.dropped_log_lines.as_ref();
        let dropped =
            dropped.map(|lines| ("qudag_sidecar_log_lines_dropped_total", lines.dropped_lines() as f64));
        for (name, value) in process::sample().into_iter().chain(dropped) {
            write_metric(&mut text, name, value);
        }
        text
    }
}

/// Without the series that say *not a number*: what they showed is gone (see [`live`]).
fn without_the_gone(text: &str) -> String {
    let lines = text.split_inclusive('\n');
    lines.filter(|line| line.starts_with('#') || !line.trim_end().ends_with(" NaN")).collect()
}

fn recorder() -> Result<PrometheusRecorder, MetricsError> {
    let numbers = Matcher::Suffix(NUMBER.to_owned());
    let builder = PrometheusBuilder::new().set_buckets(&BUCKETS)?;
    Ok(builder.set_buckets_for_metric(numbers, &NUMBERS)?.build_recorder())
}

fn describe() {
    for metric in CATALOGUE {
        match metric.kind {
            MetricKind::Counter => describe_counter!(metric.name, metric.help),
            MetricKind::Gauge => describe_gauge!(metric.name, metric.help),
            MetricKind::Histogram => describe_histogram!(metric.name, metric.help),
        }
    }
    gauge!("qudag_sidecar_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}

/// Writes a metric that is read at the moment of the scrape.
fn write_metric(text: &mut String, name: &str, value: f64) {
    let Some(metric) = CATALOGUE.iter().find(|metric| metric.name == name) else { return };
    let kind = match metric.kind {
        MetricKind::Counter => "counter",
        MetricKind::Gauge | MetricKind::Histogram => "gauge",
    };
    // Writing to a string cannot fail.
    let _ = writeln!(text, "# HELP {name} {}\n# TYPE {name} {kind}\n{name} {value}\n", metric.help);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;

    #[test]
    fn what_is_rendered_is_described_and_typed() {
        let recorder = recorder().unwrap();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            describe();
            metrics::counter!("qudag_sidecar_flows_total", "kind" => "dns", "outcome" => "ok").increment(3);
            metrics::histogram!("qudag_sidecar_flow_duration_seconds", "kind" => "dns").record(0.003);
            metrics::histogram!("qudag_sidecar_crypto_batch_operations").record(40.0);
        });
        let text = Metrics { handle, dropped_log_lines: None }.render();
        for line in [
            "# TYPE qudag_sidecar_flows_total counter",
            "qudag_sidecar_flows_total{kind=\"dns\",outcome=\"ok\"} 3",
            "qudag_sidecar_flow_duration_seconds_bucket{kind=\"dns\",le=\"0.002\"} 0",
            "qudag_sidecar_flow_duration_seconds_bucket{kind=\"dns\",le=\"0.005\"} 1",
            "qudag_sidecar_flow_duration_seconds_bucket{kind=\"dns\",le=\"+Inf\"} 1",
            "qudag_sidecar_crypto_batch_operations_bucket{le=\"32\"} 0",
            "qudag_sidecar_crypto_batch_operations_bucket{le=\"64\"} 1",
            "# TYPE process_cpu_seconds_total counter",
            concat!("qudag_sidecar_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        let named = |prefix: &str| -> BTreeSet<String> {
            let lines = text.lines().filter_map(|line| line.strip_prefix(prefix));
            lines.filter_map(|line| line.split(' ').next().map(str::to_owned)).collect()
        };
        assert_eq!(named("# HELP "), named("# TYPE "));
    }

    #[test]
    fn what_is_gone_is_left_out() {
        let recorder = recorder().unwrap();
        let handle = recorder.handle();
        let metrics = Metrics { handle, dropped_log_lines: None };
        let shown = || metrics.render().lines().any(|line| line.starts_with("qudag_sidecar_breaker_open{"));
        metrics::with_local_recorder(&recorder, || {
            let gauge = metrics::gauge!("qudag_sidecar_breaker_open", "kind" => "rpc", "target" => "NaN NaN");
            let gauge = live::LiveGauge::new(gauge, 1.0);
            assert!(shown());
            drop(gauge);
        });
        assert!(!shown(), "{}", metrics.render());
    }

    /// Both ways: what the sources emit is in the catalogue, and what is in the catalogue is emitted.
    #[test]
    fn the_catalogue_is_what_the_sources_emit() {
        let emitted: BTreeSet<String> = code()
            .iter()
            .flat_map(|(_, code)| code.split('"').filter(|text| is_name(text)))
            .map(str::to_owned)
            .collect();
        let known: BTreeSet<String> = CATALOGUE.iter().map(|metric| metric.name.to_owned()).collect();
        assert_eq!(known.len(), CATALOGUE.len(), "a name is there twice");
        let missing: Vec<_> = emitted.difference(&known).collect();
        assert!(missing.is_empty(), "not in the catalogue: {missing:?}");
        let unused: Vec<_> = known.difference(&emitted).collect();
        assert!(unused.is_empty(), "in the catalogue and emitted nowhere: {unused:?}");
    }

    /// Both ways: what the sources write of flows can be asked for with `tap --filter`, and nothing else.
    #[test]
    fn the_keys_of_conditions_are_what_flows_have() {
        let mut written = BTreeSet::from(["client".to_owned(), "outcome".to_owned()]);
        for (_, code) in code() {
            for call in [".detail(", ".add("] {
                let keys = code.split(call).skip(1).filter_map(|rest| rest.trim_start().strip_prefix('"'));
                written.extend(keys.filter_map(|rest| rest.split('"').next().map(str::to_owned)));
            }
        }
        let keys: BTreeSet<_> = qudag_filter_common::flow::KEYS.map(str::to_owned).into();
        assert_eq!(written, keys);
    }

    /// Where a macro names a metric, its kind and labels are those of the catalogue.
    #[test]
    fn kinds_and_labels_are_as_in_the_catalogue() {
        let mut compared = 0;
        for (file, code) in code() {
            for (kind, what) in [
                (MetricKind::Counter, "counter!("),
                (MetricKind::Gauge, "gauge!("),
                (MetricKind::Histogram, "histogram!("),
            ] {
                for call in code.split(what).skip(1).map(|rest| rest.split(')').next().unwrap_or(rest)) {
                    let mut texts = call.split('"');
                    let leading = texts.next().unwrap_or_default();
                    let Some(name) = texts.next().filter(|name| leading.trim().is_empty() && is_name(name))
                    else {
                        continue;
                    };
                    let metric = CATALOGUE.iter().find(|metric| metric.name == name);
                    let metric = metric.unwrap_or_else(|| panic!("{name} is not in the catalogue"));
                    assert_eq!(metric.kind, kind, "{name} in {}", file.display());
                    let pairs: Vec<_> = call.split("=>").collect();
                    for before in pairs.iter().rev().skip(1) {
                        let label = before.rsplit('"').nth(1).unwrap_or_default();
                        assert!(metric.labels.contains(&label), "{label} of {name} in {}", file.display());
                    }
                    compared += 1;
                }
            }
        }
        assert!(compared > 20, "only {compared} calls were found");
    }

    fn is_name(text: &str) -> bool {
        ["qudag_sidecar_", "process_"].iter().any(|prefix| {
            text.strip_prefix(prefix).is_some_and(|rest| {
                !rest.is_empty()
                    && rest.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            })
        })
    }

    /// The sources of the product, without their tests, which name single lines such as `_bucket`.
    fn code() -> Vec<(PathBuf, String)> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let folders = ["proxy/src", "filters", "qudag-core/src"];
        let files = folders.iter().flat_map(|folder| sources(&root.join(folder)));
        files
            .map(|file| {
                let source = fs::read_to_string(&file).unwrap();
                let (code, _) = source.split_once("#[cfg(test)]\nmod tests {").unwrap_or((&source, ""));
                (file, code.to_owned())
            })
            .collect()
    }

    fn sources(folder: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "tests" {
                found.extend(sources(&path));
            } else if name.ends_with(".rs") && name != "catalogue.rs" && name != "tests.rs" {
                found.push(path);
            }
        }
        found
    }

    #[test]
    fn names_follow_the_conventions() {
        for metric in CATALOGUE {
            let is_total = metric.name.ends_with("_total");
            assert_eq!(is_total, metric.kind == MetricKind::Counter, "{}", metric.name);
            assert!(metric.help.ends_with('.'), "{}", metric.name);
            if metric.kind == MetricKind::Histogram {
                let has_buckets = metric.name.ends_with("_seconds") || metric.name.ends_with(NUMBER);
                assert!(has_buckets, "{}: the buckets are of durations or numbers", metric.name);
            }
        }
    }
}
