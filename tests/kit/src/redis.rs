//! A private Redis.

use std::path::{Path, PathBuf};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::program::{Program, Start};
use crate::wait::PATIENCE;

/// A running Redis on a Unix socket, without persistence.
pub struct Redis {
    program: Program,
    dir: TempDir,
    options: Vec<String>,
}

impl Redis {
    /// Starts it.
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// Starts it with further options, as on its command line: `--requirepass`, `sesame`.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn with(options: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("qkrd").tempdir().unwrap();
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        let program = spawn(dir.path(), &options);
        let mut redis = Self { program, dir, options };
        redis.answers().await;
        redis
    }

    /// Its address, as `filters.dns.dns_shared_cache.url` takes it.
    pub fn url(&self) -> String {
        format!("unix:{}?db=0", self.socket().display())
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("redis.sock")
    }

    async fn answers(&mut self) {
        crate::eventually(PATIENCE, "Redis answers", async || {
            if let Some(status) = self.program.ended() {
                panic!("redis-server ended: {status}\n{}", self.program.log());
            }
            let said = self.client().arg("PING").output().await.stdout;
            (said.contains("PONG") || said.contains("NOAUTH")).then_some(())
        })
        .await;
    }

    fn client(&self) -> Start {
        Start::new("redis-cli").arg("-s").arg(self.socket())
    }

    /// The answer to a command.
    ///
    /// # Panics
    /// When there is none.
    pub async fn ask(&self, words: &[&str]) -> String {
        self.client().args(words.iter().copied()).output().await.ok().trim_end().to_owned()
    }

    /// How many connections others than this test have open.
    pub async fn clients(&self) -> usize {
        let list = self.ask(&["CLIENT", "LIST"]).await;
        list.lines().filter(|line| !line.contains("cmd=client")).count()
    }

    /// Ends it at once, with SIGKILL.
    pub fn kill(&mut self) {
        self.program.kill();
    }

    /// Starts it again, empty, where it was before.
    pub async fn start_again(&mut self) {
        self.program = spawn(self.dir.path(), &self.options);
        self.answers().await;
    }

    /// Stops it without closing anything (SIGSTOP), or lets it go on.
    pub fn freeze(&self, frozen: bool) {
        self.program.signal(if frozen { Signal::STOP } else { Signal::CONT });
    }
}

fn spawn(dir: &Path, options: &[String]) -> Program {
    let server = Start::new("redis-server").args(["--port", "0", "--save", "", "--appendonly", "no"]);
    let server = server.arg("--dir").arg(dir).arg("--unixsocket").arg(dir.join("redis.sock"));
    server.args(options.iter().cloned()).spawn(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_keeps_values_until_it_is_killed() {
        crate::needs_program!("redis-server", "redis-cli");
        let mut redis = Redis::start().await;
        assert_eq!(redis.ask(&["SET", "a", "b"]).await, "OK");
        assert_eq!(redis.ask(&["GET", "a"]).await, "b");
        assert_eq!(redis.clients().await, 0);
        redis.kill();
        redis.start_again().await;
        assert_eq!(redis.ask(&["GET", "a"]).await, "");
    }
}
