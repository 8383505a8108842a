//! The server: a private PostgreSQL cluster that can be stopped, frozen, and looked at.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use qudag_kit::program::{Program, Signal, is_root};
use qudag_kit::{Start, ports, postgres};
use rustix::process::{Pid, kill_process};
use tempfile::TempDir;

use super::connection::USER;
use super::wire::ROWS_SQL;
use crate::contenders::Stage;
use crate::{Failure, clients};

/// How long it may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running cluster that lets everybody in without a password.
pub(super) struct Cluster {
    programs: PathBuf,
    folder: TempDir,
    address: SocketAddr,
    /// Sessions that it has room for.
    sessions: usize,
    /// The processor that it has for itself.
    core: Option<usize>,
    /// Its own settings, after those of all.
    settings: Vec<String>,
    program: Option<Program>,
}

impl Cluster {
    /// Makes one and starts it.
    ///
    /// # Errors
    /// When PostgreSQL is not installed or does not start.
    pub(super) fn start(stage: &Stage, sessions: usize, core: Option<usize>) -> Result<Self, Failure> {
        Self::start_with(stage, sessions, core, &[])
    }

    /// The same with settings of its own.
    ///
    /// # Errors
    /// When PostgreSQL is not installed or does not start.
    pub(super) fn start_with(
        stage: &Stage,
        sessions: usize,
        core: Option<usize>,
        settings: &[&str],
    ) -> Result<Self, Failure> {
        let programs = postgres::programs()?;
        let folder = tempfile::Builder::new().prefix("qkdb").tempdir()?;
        if is_root() {
            // The server refuses to run as root; its user must own its files.
            stage.run(Start::new("chown").arg("postgres").arg(folder.path()))?;
        }
        let mut data = OsString::from("--pgdata=");
        data.push(folder.path().join("data"));
        let initdb = Start::new(programs.join("initdb")).as_user("postgres").arg(data);
        let user = format!("--username={USER}");
        let options = ["--auth=trust", "--encoding=UTF8", "--no-sync", "--no-instructions", &user];
        stage.run(initdb.args(options))?;
        let address = ports::free();
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let mut cluster = Self { programs, folder, address, sessions, core, settings, program: None };
        cluster.run()?;
        stage.run(
            Start::new(cluster.programs.join("createdb"))
                .args(["-h", "127.0.0.1", "-U", USER, "-p"])
                .arg(address.port().to_string())
                .arg(USER),
        )?;
        cluster.sql(ROWS_SQL)?;
        Ok(cluster)
    }

    /// Starts the server's processes and waits until they let somebody in.
    fn run(&mut self) -> Result<(), Failure> {
        let server = self.programs.join("postgres");
        let mut start = match self.core {
            Some(core) => Start::new("taskset").named("postgres").args(["-c", &core.to_string()]).arg(server),
            None => Start::new(server),
        };
        start = start.as_user("postgres").arg("-D").arg(self.folder.path().join("data"));
        let sessions = format!("max_connections={}", self.sessions + 20);
        // Nothing here measures a disk, and nothing may begin to work on its own.
        let settings = [
            "fsync=off",
            "synchronous_commit=off",
            "full_page_writes=off",
            "autovacuum=off",
            "jit=off",
            "listen_addresses=127.0.0.1",
            "logging_collector=off",
            "log_min_messages=fatal",
            &sessions,
        ];
        for setting in settings.into_iter().chain(self.settings.iter().map(String::as_str)) {
            start = start.args(["-c", setting]);
        }
        let mut sockets = OsString::from("unix_socket_directories=");
        sockets.push(self.folder.path());
        start = start.arg("-c").arg(sockets).arg("-p").arg(self.address.port().to_string());
        let mut program = start.spawn(self.folder.path());
        let deadline = Instant::now() + PATIENCE;
        while !self.lets_in() {
            if program.ended().is_some() || Instant::now() > deadline {
                return Err(format!("PostgreSQL does not start:\n{}", program.log()).into());
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        self.program = Some(program);
        Ok(())
    }

    /// That the database does not exist yet is an answer as well, and so is that all sessions are taken, where a thousand clients have
    /// waited for it; while it starts it is 57P03.
    fn lets_in(&self) -> bool {
        match clients::Postgres::connect(self.address, USER) {
            Ok(_) => true,
            Err(why) => ["3D000", "53300"].iter().any(|known| why.to_string().contains(known)),
        }
    }

    /// Makes a replica that follows it, and starts that.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) fn replica(&self, stage: &Stage) -> Result<Self, Failure> {
        let folder = tempfile::Builder::new().prefix("qkdb").tempdir()?;
        if is_root() {
            stage.run(Start::new("chown").arg("postgres").arg(folder.path()))?;
        }
        let mut data = OsString::from("--pgdata=");
        data.push(folder.path().join("data"));
        let copy = Start::new(self.programs.join("pg_basebackup")).as_user("postgres").arg(data);
        let copy =
            copy.args(["-R", "-X", "stream", "-c", "fast", "--no-sync", "-h", "127.0.0.1", "-U", USER, "-p"]);
        stage.run(copy.arg(self.address.port().to_string()))?;
        let (programs, settings) = (self.programs.clone(), self.settings.clone());
        let mut replica = Self {
            programs,
            folder,
            address: ports::free(),
            sessions: self.sessions,
            core: self.core,
            settings,
            program: None,
        };
        replica.run()?;
        Ok(replica)
    }

    /// Makes a replica the primary. Returns when it is.
    ///
    /// # Errors
    /// When it does not become one.
    pub(super) fn promote(&self, stage: &Stage) -> Result<(), Failure> {
        let promote =
            Start::new(self.programs.join("pg_ctl")).as_user("postgres").args(["promote", "-s", "-w", "-D"]);
        stage.run(promote.arg(self.folder.path().join("data")))?;
        Ok(())
    }

    /// Ends all its processes at once (SIGKILL).
    pub(super) fn kill(&mut self) {
        let children = children(self.pid());
        if let Some(mut program) = self.program.take() {
            program.kill();
        }
        for pid in children {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                // It may have noticed that the first of them has gone.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Runs one statement or more: the first column of the last row.
    ///
    /// # Errors
    /// When it fails.
    pub(super) fn sql(&self, sql: &str) -> Result<String, Failure> {
        Ok(clients::Postgres::connect(self.address, USER)?.query(sql)?)
    }

    fn pid(&self) -> u32 {
        self.program.as_ref().map_or(0, Program::pid)
    }

    /// The processes of the sessions that come over TCP.
    pub(super) fn sessions(&self) -> Vec<u32> {
        let session = format!("postgres: {USER} {USER} 127.0.0.1(");
        let of_session = |pid: &u32| {
            std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|title| title.starts_with(session.as_bytes()))
        };
        children(self.pid()).into_iter().filter(of_session).collect()
    }

    /// Stops all its processes without answering anything any more (SIGSTOP), or lets them go on. Connections can be made
    /// to it all the same: the kernel does that.
    pub(super) fn freeze(&self, frozen: bool) {
        let signal = if frozen { Signal::STOP } else { Signal::CONT };
        // First the one that starts others. One that has ended by itself is no matter.
        for pid in std::iter::once(self.pid()).chain(children(self.pid())) {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, signal);
            }
        }
    }

    /// Stops it, ending all sessions, and starts it again when it was away for so long.
    ///
    /// # Errors
    /// When it does not come back.
    pub(super) fn restart(&mut self, away: Duration) -> Result<(), Failure> {
        let Some(mut program) = self.program.take() else { return Err("there is no server".into()) };
        let start = Instant::now();
        // "Fast shutdown".
        program.signal(Signal::INT);
        while program.ended().is_none() {
            if start.elapsed() > PATIENCE {
                return Err("PostgreSQL does not stop".into());
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
        crate::measure::pause(away.saturating_sub(start.elapsed()));
        self.run()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Stopped processes would not notice that the first of them is gone.
        self.freeze(false);
    }
}

/// The processes that another one has started and that are still there.
fn children(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    text.unwrap_or_default().split_whitespace().filter_map(|child| child.parse().ok()).collect()
}
