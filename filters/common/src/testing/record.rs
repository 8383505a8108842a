//! The metrics and the log of a test program.

use std::io;
use std::sync::{LazyLock, Mutex};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use super::lock;

static METRICS: LazyLock<PrometheusHandle> = LazyLock::new(|| {
    tracing_subscriber::fmt().with_ansi(false).with_writer(|| Log).init();
    PrometheusBuilder::new().install_recorder().unwrap()
});

static LINES: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// Where log lines go.
struct Log;

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&LINES).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Records from now on, if not yet.
pub(super) fn start() {
    LazyLock::force(&METRICS);
}

/// Whether one line of the log has all these parts.
pub fn is_logged(parts: &[&str]) -> bool {
    let lines = lock(&LINES).clone();
    String::from_utf8_lossy(&lines).lines().any(|line| parts.iter().all(|part| line.contains(part)))
}

/// The value of a metric whose line has all these parts; 0 when there is none.
pub fn metric(name: &str, labels: &[&str]) -> f64 {
    let text = METRICS.render();
    let line = text.lines().find(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
            && labels.iter().all(|label| line.contains(label))
    });
    line.and_then(|line| line.rsplit(' ').next()).map_or(0.0, |value| value.parse().unwrap())
}
