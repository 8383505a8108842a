//! A Redis server of one test.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use qudag_filter_common::testing::PATIENCE;
use tempfile::TempDir;
use tokio::time::Instant;

/// A server on a Unix socket in a folder of its own. It ends with this value.
pub(crate) struct Redis {
    server: Child,
    folder: TempDir,
    options: Vec<String>,
}

impl Redis {
    /// Starts it; `None`, with the reason on standard output, where there can be none.
    pub(crate) async fn start(options: &[&str]) -> Option<Self> {
        if Command::new("redis-server").arg("--version").stdout(Stdio::null()).status().is_err() {
            println!("SKIPPED: redis-server is not installed");
            return None;
        }
        let folder = tempfile::Builder::new().prefix("qdrd").tempdir().unwrap();
        let options: Vec<_> = options.iter().map(|option| (*option).to_owned()).collect();
        let server = spawn(folder.path(), &options);
        let redis = Self { server, folder, options };
        redis.answers().await;
        Some(redis)
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("redis.sock")
    }

    pub(crate) fn url(&self) -> String {
        format!("unix:{}?db=0", self.socket().display())
    }

    async fn answers(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.cli(&[], &["PING"]);
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            if said.contains("PONG") || said.contains("NOAUTH") {
                return;
            }
            assert!(Instant::now() < deadline, "redis-server does not answer: {output:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn cli(&self, stdin: &[u8], words: &[&str]) -> Output {
        let mut command = Command::new("redis-cli");
        command.arg("-s").arg(self.socket()).args(words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A server that is down ends the program before it reads.
        let _ = child.stdin.take().unwrap().write_all(stdin);
        child.wait_with_output().unwrap()
    }

    /// The answer to a command, raw.
    pub(crate) fn raw(&self, words: &[&str]) -> Vec<u8> {
        let mut output = self.cli(b"", words).stdout;
        // The line end is redis-cli's.
        if output.last() == Some(&b'\n') {
            output.pop();
        }
        output
    }

    /// The answer to a command.
    pub(crate) fn ask(&self, words: &[&str]) -> String {
        String::from_utf8_lossy(&self.raw(words)).into_owned()
    }

    /// Puts bytes under a key, for so many milliseconds.
    pub(crate) fn put(&self, key: &str, value: &[u8], millis: u64) {
        let said = self.cli(value, &["-x", "SET", key]);
        assert_eq!(said.stdout, b"OK\n", "{said:?}");
        assert_eq!(self.ask(&["PEXPIRE", key, &millis.to_string()]), "1");
    }

    /// The keys of entries.
    pub(crate) fn entries(&self) -> Vec<String> {
        let keys = self.ask(&["KEYS", "*:1:*"]);
        keys.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }

    /// Starts it again, without what it held.
    pub(crate) async fn start_again(&mut self) {
        self.server = spawn(self.folder.path(), &self.options);
        self.answers().await;
    }

    /// Stops it without closing anything, or lets it go on.
    pub(crate) fn freeze(&self, frozen: bool) {
        let signal = if frozen { "-STOP" } else { "-CONT" };
        let done = Command::new("kill").arg(signal).arg(self.server.id().to_string()).status().unwrap();
        assert!(done.success());
    }
}

fn spawn(folder: &Path, options: &[String]) -> Child {
    // Dies with the thread that started it, should the test be killed.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "redis-server", "--port", "0", "--save", "", "--appendonly", "no"]);
    command.arg("--dir").arg(folder).arg("--unixsocket").arg(folder.join("redis.sock")).args(options);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

impl Drop for Redis {
    fn drop(&mut self) {
        // It may be dead, or stopped: SIGKILL ends a stopped process too.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
