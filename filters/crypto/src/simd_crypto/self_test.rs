//! The self-test of an implementation in a process of its own, which an illegal instruction ends instead of the sidecar.

use std::fmt;
use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use qudag_mldsa::Backend;

/// How often a process is looked at.
const LOOK: Duration = Duration::from_millis(2);
/// How much of what a process says is read.
const WORDS: u64 = 4_096;

/// A program that tests the backend that it is told: it ends with 0 when all is well.
#[derive(Clone, Debug)]
pub struct Tester {
    program: PathBuf,
    arguments: Vec<String>,
}

/// Why a test was not passed.
#[derive(Debug)]
pub enum Failure {
    /// The process was ended by a signal.
    Signal(i32),
    /// It says no.
    Refused {
        /// The exit code.
        code: i32,
        /// What it said.
        words: String,
    },
    /// It took too long.
    TimedOut(Duration),
    /// It could not be run.
    NotRun(io::Error),
}

impl Failure {
    /// A short name for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Signal(_) => "signal",
            Self::Refused { .. } => "wrong_answer",
            Self::TimedOut(_) => "timeout",
            Self::NotRun(_) => "not_run",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(signal) => match name(*signal) {
                Some(name) => write!(f, "the self-test was ended by signal {signal} ({name})"),
                None => write!(f, "the self-test was ended by signal {signal}"),
            },
            Self::Refused { code, words } if words.is_empty() => {
                write!(f, "the self-test ended with code {code}")
            }
            Self::Refused { words, .. } => write!(f, "the self-test says: {words}"),
            Self::TimedOut(limit) => write!(f, "the self-test took longer than {limit:?}"),
            Self::NotRun(why) => write!(f, "the self-test could not be run: {why}"),
        }
    }
}

/// The signals that faulty code ends by, by their numbers on Linux.
fn name(signal: i32) -> Option<&'static str> {
    match signal {
        4 => Some("illegal instruction"),
        6 => Some("abort"),
        7 => Some("bus error"),
        8 => Some("arithmetic exception"),
        9 => Some("kill"),
        11 => Some("segmentation fault"),
        _ => None,
    }
}

impl Tester {
    /// The program that runs, with `crypto selftest --in-process --backend BACKEND`. It is found even if its file was replaced.
    pub fn this_program() -> Self {
        let arguments = ["crypto", "selftest", "--in-process", "--backend"];
        Self::new("/proc/self/exe", arguments.map(str::to_owned).into())
    }

    /// A program and its arguments, before the backend's name.
    pub fn new(program: impl Into<PathBuf>, arguments: Vec<String>) -> Self {
        Self { program: program.into(), arguments }
    }

    /// Tests a backend; waits for the end.
    ///
    /// # Errors
    /// When the test is not passed within the limit.
    pub fn test(&self, backend: Backend, limit: Duration) -> Result<(), Failure> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).arg(backend.name());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(Failure::NotRun)?;
        match wait(&mut child, limit) {
            Ok(Some(status)) => judge(status, &mut child),
            Ok(None) => {
                end(&mut child);
                Err(Failure::TimedOut(limit))
            }
            Err(why) => {
                end(&mut child);
                Err(Failure::NotRun(why))
            }
        }
    }
}

/// How a process ended; `None` when it has not within the limit.
#[allow(clippy::disallowed_methods, reason = "on a thread that has nothing else to do")]
fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        sleep(LOOK);
    }
}

/// Ends a process. One that has ended already cannot be killed, and one that is killed ends.
fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

fn judge(status: ExitStatus, child: &mut Child) -> Result<(), Failure> {
    if status.success() {
        return Ok(());
    }
    if let Some(signal) = status.signal() {
        return Err(Failure::Signal(signal));
    }
    let mut words = Vec::new();
    // It has ended: what it said is in the pipe, as much as fits there.
    if let Some(pipe) = child.stderr.take() {
        let _ = pipe.take(WORDS).read_to_end(&mut words);
    }
    let words = String::from_utf8_lossy(&words).split_whitespace().collect::<Vec<_>>().join(" ");
    Err(Failure::Refused { code: status.code().unwrap_or_default(), words })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Result<(), Failure> {
        // The backend's name is $1.
        let arguments = ["-c", script, "sh"].map(str::to_owned).into();
        Tester::new("/bin/sh", arguments).test(Backend::Avx2, Duration::from_millis(500))
    }

    #[test]
    fn every_end_of_a_test_is_told_apart() {
        assert!(shell("test $1 = avx2").is_ok());
        let said = |script| shell(script).unwrap_err();
        let failures = [
            (said("kill -ILL $$"), "signal", "ended by signal 4 (illegal instruction)"),
            (said("echo judged wrong >&2; exit 3"), "wrong_answer", "the self-test says: judged wrong"),
            (said("exit 3"), "wrong_answer", "ended with code 3"),
            (said("exec sleep 60"), "timeout", "longer than 500ms"),
        ];
        for (failure, label, words) in failures {
            assert_eq!(failure.label(), label);
            assert!(failure.to_string().contains(words), "{failure}");
        }
        let nowhere = Tester::new("/nowhere/at/all", Vec::new());
        let failure = nowhere.test(Backend::Avx2, Duration::from_secs(1)).unwrap_err();
        assert_eq!(failure.label(), "not_run");
    }
}
