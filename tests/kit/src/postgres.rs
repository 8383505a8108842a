//! A private PostgreSQL cluster.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use crate::ports;
use crate::program::{Finished, Program, Start, is_root};
use crate::wait::PATIENCE;

/// The password of the user `qudag`.
pub const PASSWORD: &str = "sesame";

/// A running cluster with a database and a user `qudag` (SCRAM over TCP).
pub struct Postgres {
    addr: SocketAddr,
    program: Program,
    tls: bool,
    dir: TempDir,
}

impl Postgres {
    /// Whether the server's programs are installed; if not, why.
    ///
    /// # Errors
    /// When they are not.
    pub fn available() -> Result<(), String> {
        programs().map(|_| ())
    }

    /// Starts it, without TLS.
    pub async fn start() -> Self {
        Self::start_with(false).await
    }

    /// Starts it, with a self-signed certificate for TLS if `tls`.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start_with(tls: bool) -> Self {
        let programs = programs().unwrap();
        let dir = tempfile::Builder::new().prefix("qkpg").tempdir().unwrap();
        if is_root() {
            // The server refuses to run as root; its user must own its files.
            Start::new("chown").arg("postgres").arg(dir.path()).output().await.ok();
        }
        let data = dir.path().join("data");
        let password = dir.path().join("password");
        std::fs::write(&password, PASSWORD).unwrap();
        let initdb = Start::new(programs.join("initdb")).as_user("postgres");
        let initdb = initdb.args(["--username=qudag", "--auth-local=trust", "--auth-host=scram-sha-256"]);
        let initdb = initdb.args(["--encoding=UTF8", "--no-sync", "--no-instructions"]);
        let initdb = initdb.arg(option("--pwfile=", &password)).arg(option("--pgdata=", &data));
        initdb.output().await.ok();
        if tls {
            certificate(&data).await;
        }
        let addr = ports::free();
        let mut cluster = Self { addr, program: spawn(dir.path(), addr, tls), tls, dir };
        cluster.answers().await;
        psql_to(addr, "postgres", &["-c", "create database qudag"]).await.ok();
        cluster
    }

    async fn answers(&mut self) {
        crate::eventually(PATIENCE, "PostgreSQL answers", async || {
            if let Some(status) = self.program.ended() {
                panic!("postgres ended: {status}\n{}", self.program.log());
            }
            let finished = psql_to(self.addr, "postgres", &["-c", "select 1"]).await;
            (finished.code == 0).then_some(())
        })
        .await;
    }

    /// Kills the server and all its processes (SIGKILL): what is not in the write-ahead log is lost, sessions are cut.
    ///
    /// # Panics
    /// When the processes cannot be seen.
    pub fn kill(&mut self) {
        // Stopped first, so that it starts no other process meanwhile.
        self.program.signal(Signal::STOP);
        let children = children(self.program.pid());
        self.program.kill();
        for child in children {
            // It may have ended by itself, since it notices that its parent is gone.
            let _ = rustix::process::kill_process(child, Signal::KILL);
        }
    }

    /// Starts it again after [`kill`](Self::kill), where it was; it recovers from its write-ahead log first.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start_again(&mut self) {
        // While a process of the old server still has its shared memory, a new one refuses to start.
        crate::eventually(PATIENCE, "PostgreSQL starts again", async || {
            self.program = spawn(self.dir.path(), self.addr, self.tls);
            crate::eventually(PATIENCE, "PostgreSQL answers or ends", async || {
                let finished = psql_to(self.addr, "postgres", &["-c", "select 1"]).await;
                (finished.code == 0 || self.program.ended().is_some()).then_some(())
            })
            .await;
            self.program.ended().is_none().then_some(())
        })
        .await;
    }

    /// What it logged.
    pub fn log(&self) -> String {
        self.program.log()
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Stops the processes of the cluster without answering anything any more (SIGSTOP), or lets them go on.
    pub fn freeze(&self, frozen: bool) {
        self.program.signal(if frozen { Signal::STOP } else { Signal::CONT });
    }
}

fn spawn(dir: &Path, addr: SocketAddr, tls: bool) -> Program {
    let programs = programs().unwrap();
    let server = Start::new(programs.join("postgres")).as_user("postgres");
    let mut server = server.arg("-D").arg(dir.join("data"));
    for setting in ["fsync=off", "max_connections=300", "listen_addresses=127.0.0.1", "logging_collector=off"]
    {
        server = server.args(["-c", setting]);
    }
    if tls {
        server = server.args(["-c", "ssl=on"]);
    }
    server = server.arg("-c").arg(option("unix_socket_directories=", dir));
    server.args(["-p".to_owned(), addr.port().to_string()]).spawn(dir)
}

/// The processes whose parent is `pid`.
fn children(pid: u32) -> Vec<Pid> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let child = |process: &i32| {
        // The name, in parentheses, may contain anything; the state and the parent follow it.
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
        parent.and_then(|parent| parent.parse().ok()) == Some(pid)
    };
    processes.filter(child).filter_map(Pid::from_raw).collect()
}

fn option(name: &str, value: &Path) -> OsString {
    let mut option = OsString::from(name);
    option.push(value);
    option
}

/// `psql ARGS` against the database `qudag` at an address.
pub async fn psql(server: SocketAddr, args: &[&str]) -> Finished {
    psql_to(server, "qudag", args).await
}

async fn psql_to(server: SocketAddr, database: &str, args: &[&str]) -> Finished {
    client("psql", server, database).args(["-X", "-v", "ON_ERROR_STOP=1"]).args(args).output().await
}

/// `pgbench ARGS` against the database `qudag` at an address.
pub async fn pgbench(server: SocketAddr, args: &[&str]) -> Finished {
    client("pgbench", server, "qudag").args(args).output().await
}

/// A PostgreSQL client program with its environment set for a server.
pub fn client(program: &str, server: SocketAddr, database: &str) -> Start {
    let path = programs().map(|dir| dir.join(program)).unwrap();
    Start::new(path)
        .env("PGHOST", server.ip().to_string())
        .env("PGPORT", server.port().to_string())
        .env("PGUSER", "qudag")
        .env("PGPASSWORD", PASSWORD)
        .env("PGDATABASE", database)
        .env("PGCONNECT_TIMEOUT", "10")
        .env("HOME", "/nonexistent")
}

/// The newest installed `/usr/lib/postgresql/N/bin`.
///
/// # Errors
/// When there is none.
pub fn programs() -> Result<PathBuf, String> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let versions = versions.filter(|entry| entry.path().join("bin/initdb").is_file());
    let version = |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().parse::<u32>().unwrap_or(0);
    let newest = versions.max_by_key(version).ok_or("PostgreSQL's server is not installed")?;
    Ok(newest.path().join("bin"))
}

async fn certificate(data: &Path) {
    let (key, cert) = (data.join("server.key"), data.join("server.crt"));
    let openssl = Start::new("openssl").as_user("postgres").args(["req", "-x509", "-newkey", "rsa:2048"]);
    let openssl = openssl.args(["-nodes", "-days", "2", "-subj", "/CN=localhost"]);
    openssl.arg("-keyout").arg(&key).arg("-out").arg(&cert).output().await.ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_answers_over_tcp_and_tls() {
        if let Err(reason) = Postgres::available() {
            crate::skip!("{reason}");
        }
        let postgres = Postgres::start_with(true).await;
        let ssl = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
        assert_eq!(psql(postgres.addr(), &["-Atc", ssl]).await.ok().trim(), "t");
    }

    #[tokio::test]
    async fn it_recovers_what_was_committed() {
        if let Err(reason) = Postgres::available() {
            crate::skip!("{reason}");
        }
        let mut postgres = Postgres::start().await;
        psql(postgres.addr(), &["-c", "create table t as select 7 as seven"]).await.ok();
        postgres.kill();
        assert_ne!(psql(postgres.addr(), &["-c", "select 1"]).await.code, 0);
        postgres.start_again().await;
        assert_eq!(psql(postgres.addr(), &["-Atc", "select * from t"]).await.ok().trim(), "7");
        assert!(postgres.log().contains("automatic recovery in progress"), "{}", postgres.log());
    }
}
