//! A program under test: started with its output in a file, killed with the test.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};

use crate::netns::Namespace;
use crate::wait::{PATIENCE, eventually};

/// How a program is to be started.
pub struct Start {
    name: String,
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    namespace: Option<String>,
    user: Option<&'static str>,
    stdin: bool,
}

impl Start {
    /// `program` by path or by name.
    ///
    /// # Panics
    /// When no such program is installed.
    pub fn new(program: impl AsRef<Path>) -> Self {
        let program = program.as_ref();
        let path =
            find(program).unwrap_or_else(|| panic!("{} is not installed (run tests/run)", program.display()));
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self {
            name,
            program: path,
            args: Vec::new(),
            env: Vec::new(),
            namespace: None,
            user: None,
            stdin: false,
        }
    }

    /// The name under which its log is shown.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// One more environment variable.
    #[must_use]
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((key.into(), value.into()));
        self
    }

    /// Run in a network namespace.
    #[must_use]
    pub fn in_namespace(mut self, namespace: Option<&Namespace>) -> Self {
        self.namespace = namespace.map(|namespace| namespace.name().to_owned());
        self
    }

    /// Run in the network namespace with this name.
    #[must_use]
    pub fn in_namespace_named(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.to_owned());
        self
    }

    /// Run as another user, where the test itself is root.
    #[must_use]
    pub fn as_user(mut self, user: &'static str) -> Self {
        self.user = is_root().then_some(user);
        self
    }

    /// Keep a pipe to its standard input; otherwise it has none.
    #[must_use]
    pub fn with_stdin(mut self) -> Self {
        self.stdin = true;
        self
    }

    /// The command line, with what enters the namespace and changes the user in front.
    pub fn command(&self) -> Command {
        let mut words: Vec<OsString> = Vec::new();
        if let Some(namespace) = &self.namespace {
            words.extend(["ip", "netns", "exec", namespace].map(Into::into));
        }
        words.extend(["setpriv", "--pdeathsig", "KILL"].map(Into::into));
        if let Some(user) = self.user {
            words.extend(["--reuid", user, "--regid", user, "--init-groups"].map(Into::into));
        }
        words.push(self.program.clone().into_os_string());
        words.extend(self.args.iter().cloned());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).envs(self.env.iter().map(|(key, value)| (key, value)));
        command
    }

    /// Starts it with standard output and error in `DIR/NAME.log`.
    pub fn spawn(self, dir: &Path) -> Program {
        let log = dir.join(format!("{}.log", self.name));
        let file = File::options().create(true).append(true).open(&log).unwrap();
        let mut command = self.command();
        command.stdin(if self.stdin { Stdio::piped() } else { Stdio::null() });
        command.stdout(file.try_clone().unwrap()).stderr(file);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {}: {error}", self.name));
        let stdin = child.stdin.take();
        Program { name: self.name, child, stdin, log }
    }

    /// Runs it to its end: exit code and what it printed, standard error after standard output.
    ///
    /// # Panics
    /// When it cannot be started or takes longer than a minute.
    pub async fn output(self) -> Finished {
        let mut command = tokio::process::Command::from(self.command());
        command.stdin(Stdio::null()).kill_on_drop(true);
        let output = crate::within(Duration::from_secs(60), &self.name, command.output()).await.unwrap();
        Finished {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// A program that ran to its end.
#[derive(Debug)]
pub struct Finished {
    /// The exit code; −1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// Standard output of a success.
    ///
    /// # Panics
    /// When it failed.
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self.stdout
    }
}

/// A running program; killed on drop. When the test fails, the end of its log is printed.
pub struct Program {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    log: PathBuf,
}

impl Program {
    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its standard input, if [`Start::with_stdin`] asked for it.
    pub fn stdin(&mut self) -> Option<&mut ChildStdin> {
        self.stdin.as_mut()
    }

    /// Everything that it printed so far.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        plain(&String::from_utf8_lossy(&bytes))
    }

    /// The first log line for which `find` gives a value.
    ///
    /// # Panics
    /// When none comes, or the program ends first.
    pub async fn wait_for_log<T>(&mut self, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
        self.wait_for_log_within(PATIENCE, what, find).await
    }

    /// [`wait_for_log`](Self::wait_for_log) with another deadline.
    ///
    /// # Panics
    /// When none comes, or the program ends first.
    pub async fn wait_for_log_within<T>(
        &mut self,
        deadline: Duration,
        what: &str,
        find: impl Fn(&str) -> Option<T>,
    ) -> T {
        let name = self.name.clone();
        eventually(deadline, &format!("{name}: {what}"), async || {
            let ended = self.ended();
            let found = self.log().lines().find_map(&find);
            if found.is_none()
                && let Some(status) = ended
            {
                panic!("{name} ended ({status}) before {what}");
            }
            found
        })
        .await
    }

    /// Its exit status, if it ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it goes on.
    pub async fn wait_for_end(&mut self, deadline: Duration) -> ExitStatus {
        let what = format!("{} ends", self.name);
        eventually(deadline, &what, async || self.ended()).await
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Ends it at once, with SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Resident memory in KiB and open file descriptors.
    pub fn footprint(&self) -> (u64, usize) {
        footprint(self.pid())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(60)..];
            println!("--- log of {} (last {} lines)\n{}\n---", self.name, tail.len(), tail.join("\n"));
        }
    }
}

/// Resident memory in KiB and open file descriptors of a process; zeros when it is gone.
pub fn footprint(pid: u32) -> (u64, usize) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let rss = rss.and_then(|rest| rest.split_whitespace().next()).and_then(|kib| kib.parse().ok());
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    (rss.unwrap_or(0), fds)
}

/// Where a program is: as it is if it has a directory, otherwise in `PATH` or where Debian keeps servers.
pub fn find(program: impl AsRef<Path>) -> Option<PathBuf> {
    let program = program.as_ref();
    if program.components().count() > 1 {
        return program.exists().then(|| program.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    places.map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// Whether the test runs as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A text without terminal colours.
pub fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\u{1b}[") {
        plain.push_str(before);
        rest = after.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';');
        rest = rest.get(1..).unwrap_or_default();
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_removed() {
        assert_eq!(plain("\u{1b}[2mtime\u{1b}[0m \u{1b}[1;32mINFO\u{1b}[0m x"), "time INFO x");
        assert_eq!(plain("none"), "none");
    }

    #[tokio::test]
    async fn a_program_ends_with_its_guard() {
        let dir = tempfile::tempdir().unwrap();
        let mut program = Start::new("sleep").arg("60").spawn(dir.path());
        assert!(program.ended().is_none());
        let pid = program.pid();
        drop(program);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[tokio::test]
    async fn a_log_line_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let mut program = Start::new("sh").args(["-c", "echo one; echo two >&2; sleep 60"]).spawn(dir.path());
        let found = program.wait_for_log("two", |line| line.strip_prefix("tw").map(str::to_owned)).await;
        assert_eq!(found, "o");
    }
}
