//! What the sidecar says about itself: metrics and logs.

mod catalogue;
mod flows;
pub mod logs;
mod metrics;
mod process;
mod writer;

use std::io;

pub use catalogue::{CATALOGUE, Metric, MetricKind};
pub use flows::{FlowLog, Flows};
pub use logs::{LogFormat, LogOptions, Logs};
pub use metrics::{Metrics, MetricsError};
use qudag_filter_common::Audience;
use tracing_appender::non_blocking::WorkerGuard;

use crate::config::TelemetryConfig;

/// Metrics and log of the process. Dropping it writes the log lines that wait.
pub struct Telemetry {
    metrics: Metrics,
    logs: Logs,
    _writes_the_rest: WorkerGuard,
}

impl Telemetry {
    /// Sets both up. Once per process.
    ///
    /// # Errors
    /// When the log file cannot be opened, or a part of the process has set up a log or a recorder already.
    pub fn start(config: &TelemetryConfig) -> io::Result<Self> {
        let (logs, guard) = Logs::install(&config.into()).map_err(io::Error::other)?;
        let metrics = Metrics::install().map_err(io::Error::other)?;
        let metrics = metrics.with_dropped_log_lines(logs.dropped_lines());
        tell_audiences(config);
        Ok(Self { metrics, logs, _writes_the_rest: guard })
    }

    /// The metrics.
    pub fn metrics(&self) -> Metrics {
        self.metrics.clone()
    }

    /// Puts the level and the choice of flows of a new configuration in force. Format and file take a restart.
    pub fn apply(&self, config: &TelemetryConfig) {
        // The check of the configuration has read the level already.
        if let Err(why) = self.logs.apply(&config.into()) {
            tracing::error!(%why, "the log goes on as before");
            return;
        }
        tell_audiences(config);
    }

    /// Opens the log file again before the next line, after it was rotated.
    pub fn reopen_logs(&self) {
        self.logs.reopen();
    }
}

/// Spares the making of lines that the log would not keep.
fn tell_audiences(config: &TelemetryConfig) {
    for (kind, choice) in config.flows.kinds() {
        Audience::of(kind).log_takes_ok(choice == FlowLog::All);
    }
}

impl From<&TelemetryConfig> for LogOptions {
    fn from(config: &TelemetryConfig) -> Self {
        let log = config.log.clone();
        Self { format: log.format, level: log.level, file: log.file, flows: config.flows.table() }
    }
}
