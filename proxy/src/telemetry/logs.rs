//! Logs: lines for people or JSON lines for programs, written by a thread of their own.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use super::flows::{FlowFilter, Flows};
use super::writer::LogFile;

/// How many lines may wait to be written. More are dropped and counted: logging never holds up traffic.
const WAITING_LINES: usize = 16_384;

/// What a line looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people; in colour on a terminal, unless `NO_COLOR` is set.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// What is logged, how and where.
#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    /// What a line looks like.
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives as `tracing_subscriber::EnvFilter` takes them:
    /// `info,qudag_filter_dns=debug`. Empty means `info`.
    pub level: String,
    /// The file; standard error without one.
    pub file: Option<PathBuf>,
    /// Which completion lines of flows are written.
    pub flows: Flows,
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The level cannot be read.
    #[error("{level:?} is not a log level: {why}")]
    Level {
        /// The level.
        level: String,
        /// Why.
        why: String,
    },
    /// The file cannot be opened.
    #[error("cannot open the log file {}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        why: io::Error,
    },
    /// Another part of the process has set up a log already.
    #[error("a log is set up already")]
    Installed,
}

/// The log of the process, as far as it can be changed while it is written.
pub struct Logs {
    level: reload::Handle<EnvFilter, Registry>,
    flows: FlowFilter,
    reopen: Arc<AtomicBool>,
    dropped: ErrorCounter,
}

impl Logs {
    /// Sets up the log of the process. Once per process. Lines that wait are written when the guard is dropped.
    ///
    /// # Errors
    /// When the level cannot be read, the file cannot be opened, or there is a log already.
    pub fn install(options: &LogOptions) -> Result<(Self, WorkerGuard), LogError> {
        let (logs, guard, subscriber) = Self::build(options)?;
        subscriber.try_init().map_err(|_| LogError::Installed)?;
        Ok((logs, guard))
    }

    fn build(
        options: &LogOptions,
    ) -> Result<(Self, WorkerGuard, impl tracing::Subscriber + Send + Sync + use<>), LogError> {
        let reopen = Arc::new(AtomicBool::new(false));
        let builder = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(WAITING_LINES)
            .thread_name("qudag-log");
        let (writer, guard) = match &options.file {
            Some(path) => {
                let file = LogFile::open(path, Arc::clone(&reopen));
                builder.finish(file.map_err(|why| LogError::File { path: path.clone(), why })?)
            }
            None => builder.finish(io::stderr()),
        };
        let colour = options.file.is_none() && io::stderr().is_terminal() && no_color_is_unset();
        let dropped = writer.error_counter();
        let flows = FlowFilter::default();
        flows.0.store(Arc::new(options.flows.clone()));
        let (level, handle) = reload::Layer::new(filter(&options.level)?);
        let lines = lines(options.format, writer, colour);
        let subscriber = tracing_subscriber::registry().with(level).with(flows.clone()).with(lines);
        Ok((Self { level: handle, flows, reopen, dropped }, guard, subscriber))
    }

    /// Puts another level and other choices of flows in force. Format and file stay until a restart.
    ///
    /// # Errors
    /// When the level cannot be read; nothing has changed then.
    pub fn apply(&self, options: &LogOptions) -> Result<(), LogError> {
        let filter = filter(&options.level)?;
        self.level.reload(filter).map_err(|_| LogError::Installed)?;
        self.flows.0.store(Arc::new(options.flows.clone()));
        Ok(())
    }

    /// Opens the log file again before the next line, after it was rotated.
    pub fn reopen(&self) {
        self.reopen.store(true, Ordering::Release);
    }

    /// How many lines were dropped because they could not be written fast enough.
    pub fn dropped_lines(&self) -> ErrorCounter {
        self.dropped.clone()
    }
}

/// Whether the user has not asked for plain text (<https://no-color.org>).
pub(crate) fn no_color_is_unset() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn filter(level: &str) -> Result<EnvFilter, LogError> {
    let wanted = if level.trim().is_empty() { "info" } else { level };
    // A later directive for a target replaces an earlier one. Completion lines have a choice of their own, unless the level
    // names them; changes by operators are always on record.
    EnvFilter::try_new(format!("flow=info,{wanted},audit=info"))
        .map_err(|why| LogError::Level { level: level.to_owned(), why: why.to_string() })
}

fn lines<S>(format: LogFormat, writer: NonBlocking, colour: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    let layer = fmt::layer().with_writer(writer).with_ansi(colour);
    match format {
        LogFormat::Human => layer.boxed(),
        LogFormat::Json => {
            layer.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::telemetry::FlowLog;

    fn to_file(path: &Path, format: LogFormat, level: &str) -> LogOptions {
        LogOptions { format, level: level.into(), file: Some(path.into()), flows: Flows::new() }
    }

    fn flow(kind: &str, outcome: &str) {
        tracing::info!(target: "flow", kind, outcome, bytes_up = 1_u64);
    }

    /// Runs with a log of its own and returns what was written.
    fn written(options: &LogOptions, work: impl FnOnce(&Logs)) -> String {
        let (logs, guard, subscriber) = Logs::build(options).unwrap();
        tracing::subscriber::with_default(subscriber, || work(&logs));
        drop(guard);
        fs::read_to_string(options.file.as_ref().unwrap()).unwrap()
    }

    #[test]
    fn json_lines_are_objects_with_the_fields_at_the_top() {
        let dir = tempfile::tempdir().unwrap();
        let options = to_file(&dir.path().join("log"), LogFormat::Json, "");
        let text = written(&options, |_| flow("dns", "ok"));
        let line: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!((&line["kind"], &line["outcome"]), (&"dns".into(), &"ok".into()));
        assert_eq!((&line["target"], &line["level"]), (&"flow".into(), &"INFO".into()));
        assert!(line["timestamp"].is_string());
    }

    #[test]
    fn the_level_is_changed_live_and_audit_stays_on() {
        let dir = tempfile::tempdir().unwrap();
        let options = to_file(&dir.path().join("log"), LogFormat::Human, "error");
        let text = written(&options, |logs| {
            tracing::info!("hidden");
            tracing::info!(target: "audit", "kept");
            assert!(logs.apply(&LogOptions { level: "nonsense=loud".into(), ..options.clone() }).is_err());
            tracing::info!("hidden as well");
            logs.apply(&LogOptions { level: "debug".into(), ..options.clone() }).unwrap();
            tracing::debug!("shown");
        });
        assert!(!text.contains("hidden"), "{text}");
        assert!(text.contains("kept") && text.contains("shown"), "{text}");
        assert!(!text.contains('\u{1b}'), "colour in a file: {text}");
    }

    #[test]
    fn flows_are_chosen_per_kind_and_the_choice_changes_live() {
        let dir = tempfile::tempdir().unwrap();
        let mut options = to_file(&dir.path().join("log"), LogFormat::Human, "warn");
        options.flows = [("dns".to_owned(), FlowLog::Errors), ("db".to_owned(), FlowLog::Off)].into();
        let text = written(&options, |logs| {
            for (kind, outcome) in
                [("dns", "ok"), ("dns", "timeout"), ("db", "ok"), ("db", "upstream"), ("peer", "ok")]
            {
                flow(kind, outcome);
            }
            let flows = [("peer".to_owned(), FlowLog::Off)].into();
            logs.apply(&LogOptions { flows, ..options.clone() }).unwrap();
            flow("peer", "reset");
            flow("dns", "ok");
        });
        let lines: Vec<_> = text.lines().map(|line| line.split_once("kind=").unwrap().1).collect();
        let expected = ["\"dns\" outcome=\"timeout\"", "\"peer\" outcome=\"ok\"", "\"dns\" outcome=\"ok\""];
        assert_eq!(lines.len(), expected.len(), "{text}");
        for (line, expected) in lines.iter().zip(expected) {
            assert!(line.starts_with(expected), "{line}");
        }
    }

    #[test]
    fn a_level_that_names_flows_decides_on_them() {
        let dir = tempfile::tempdir().unwrap();
        let options = to_file(&dir.path().join("log"), LogFormat::Human, "info,flow=warn,audit=error");
        let text = written(&options, |_| {
            flow("dns", "ok");
            tracing::warn!(target: "flow", kind = "dns", outcome = "upstream");
            tracing::info!(target: "audit", "kept");
        });
        assert!(!text.contains("\"ok\"") && text.contains("upstream") && text.contains("kept"), "{text}");
    }

    #[test]
    fn text_from_outside_stays_on_its_line() {
        let dir = tempfile::tempdir().unwrap();
        for format in [LogFormat::Human, LogFormat::Json] {
            let options = to_file(&dir.path().join(format!("{format:?}")), format, "info");
            let evil = "a\nINFO audit: accepted \u{1b}[31m";
            let text = written(&options, |_| tracing::info!(target: "audit", body = evil, "refused"));
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(!text.contains('\u{1b}'), "{text}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_an_error() {
        let options = to_file(Path::new("/nonexistent/log"), LogFormat::Human, "info");
        assert!(matches!(Logs::build(&options), Err(LogError::File { .. })));
    }
}
