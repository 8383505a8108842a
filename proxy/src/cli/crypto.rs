//! `crypto selftest --in-process` and `crypto bench`.

use std::io::{self, IsTerminal};
use std::time::Duration;

use qudag_filter_api::Period;
use qudag_filter_common::mldsa::Algorithm;
use qudag_filter_crypto::{Backend, BackendStatus, speeds, test_in_process};
use serde_json::json;

use super::args::Format;
use super::exit::{FAILED, Failure};
use super::{output, view};

/// Tests an implementation, or all that this processor can run, in this process.
///
/// # Errors
/// When one judges a known signature wrong, or the processor cannot run the one that is named.
pub(super) fn selftest(backend: Option<Backend>, format: Format) -> Result<(), Failure> {
    let mut problems = Vec::new();
    let backends: Vec<_> = chosen(backend)
        .into_iter()
        .map(|backend| match test_in_process(backend) {
            Ok(()) => BackendStatus { name: backend.name(), state: "passed", why: None },
            Err(why) => {
                problems.push(why.to_string());
                BackendStatus { name: backend.name(), state: "failed", why: Some(why.to_string()) }
            }
        })
        .collect();
    let answer = json!({ "backends": backends });
    output::answer(&answer, view::backends, format)?;
    // A sidecar that has started this reads the reason from standard error.
    if problems.is_empty() { Ok(()) } else { Err(Failure::new(FAILED, problems.join("; "))) }
}

/// Measures an implementation, or all that this processor can run, in this process.
///
/// # Errors
/// When one judges a known signature wrong, or the processor cannot run the one that is named.
pub(super) fn bench(backend: Option<Backend>, time: Duration, format: Format) -> Result<(), Failure> {
    // The fastest first.
    let backends: Vec<_> = chosen(backend).into_iter().rev().collect();
    for backend in &backends {
        test_in_process(*backend).map_err(|why| Failure::new(FAILED, why.to_string()))?;
    }
    if io::stderr().is_terminal() {
        output::remark(&format!("measuring for {} …", Period(time)));
    }
    let answer = json!({ "algorithm": Algorithm::Draft, "speeds": speeds(&backends, time) });
    output::answer(&answer, view::speeds, format)
}

/// The implementation that is named, or all that this processor can run, the slowest first.
fn chosen(backend: Option<Backend>) -> Vec<Backend> {
    backend.map_or_else(|| Backend::available().collect(), |backend| vec![backend])
}
