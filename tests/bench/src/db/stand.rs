//! What stands side by side before one server: the sidecar with its pool and its queue, the sidecar without them, PgBouncer, and
//! nothing. Here are all their settings.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use qudag_kit::program::{self, Program, Signal, is_root};
use qudag_kit::{Start, ports};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tempfile::TempDir;

use super::cluster::Cluster;
use super::connection::USER;
use crate::contenders::{Sidecar, Stage};
use crate::suites::{DIRECT, OURS};
use crate::{Failure, clients};

/// Connections to the server that each pool may have.
pub(super) const POOL: usize = 20;
/// Sessions that the server has room for: 1,000 clients, what pools keep, and what clients that have given up leave behind for a while.
const SESSIONS: usize = 1300;
/// Clients that each must let in.
const CLIENTS: usize = 2000;
/// How long a program may take to start.
const PATIENCE: Duration = Duration::from_secs(20);

/// Who can take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Who {
    /// The sidecar with `db_pool` and `db_backpressure`.
    Sidecar,
    /// The sidecar that passes bytes on.
    SidecarOff,
    /// PgBouncer in transaction mode.
    Pgbouncer,
    /// Twemproxy, which knows Redis only.
    Nutcracker,
    /// Nothing between.
    Direct,
}

impl Who {
    /// Its name in the rows.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Sidecar => OURS,
            Self::SidecarOff => "sidecar off",
            Self::Pgbouncer => "pgbouncer",
            Self::Nutcracker => "nutcracker",
            Self::Direct => DIRECT,
        }
    }

    /// What is missing for it, and the command that installs it.
    pub(super) fn missing(self) -> Option<&'static str> {
        match self {
            Self::Pgbouncer if program::find("pgbouncer").is_none() => {
                Some("apt-get install --no-install-recommends pgbouncer")
            }
            Self::Nutcracker if program::find("nutcracker").is_none() => {
                Some("apt-get install --no-install-recommends nutcracker")
            }
            _ => None,
        }
    }
}

enum Process {
    None,
    Sidecar(Sidecar),
    PgBouncer(Program, TempDir),
}

/// A way to the server.
pub(super) struct Way {
    pub(super) who: Who,
    /// Where clients connect.
    pub(super) at: SocketAddr,
    server: SocketAddr,
    process: Process,
}

impl Way {
    /// Starts what is between.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) fn start(who: Who, stage: &Stage, server: SocketAddr) -> Result<Self, Failure> {
        let failed = |why: Failure| format!("{} does not start: {why}", who.name());
        let (at, process) = match who {
            Who::Direct => (server, Process::None),
            Who::Pgbouncer => pgbouncer(server).map_err(failed)?,
            Who::Nutcracker => return Err("nutcracker does not know PostgreSQL".into()),
            Who::Sidecar | Who::SidecarOff => {
                let yaml = sidecar_yaml(server, (who == Who::Sidecar).then_some(POOL));
                stage.validate(&yaml).map_err(failed)?;
                let sidecar = stage.sidecar(&yaml)?;
                (sidecar.at("db")?, Process::Sidecar(sidecar))
            }
        };
        let way = Self { who, at, server, process };
        way.until_it_answers()?;
        Ok(way)
    }

    /// The sidecar before a primary and its replica.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) fn with_replica(
        stage: &Stage,
        server: SocketAddr,
        replica: SocketAddr,
    ) -> Result<Self, Failure> {
        let yaml = sidecar_yaml(server, Some(POOL))
            + &format!("    read_replicas: {{ enabled: true, servers: [\"{replica}\"] }}\n");
        stage.validate(&yaml)?;
        let sidecar = stage.sidecar(&yaml)?;
        let way =
            Self { who: Who::Sidecar, at: sidecar.at("db")?, server, process: Process::Sidecar(sidecar) };
        way.until_it_answers()?;
        Ok(way)
    }

    fn until_it_answers(&self) -> Result<(), Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = clients::Postgres::connect(self.at, USER).and_then(|mut it| it.query("SELECT 5"));
            match answer {
                Ok(answer) if answer == "5" => return Ok(()),
                Ok(answer) => return Err(format!("{} answers {answer}", self.who.name()).into()),
                Err(why) if Instant::now() > deadline => {
                    return Err(format!("{} does not answer: {why}\n{}", self.who.name(), self.log()).into());
                }
                Err(_) => std::thread::park_timeout(Duration::from_millis(20)),
            }
        }
    }

    /// What has been logged between.
    pub(super) fn log(&self) -> String {
        match &self.process {
            Process::None => String::new(),
            Process::Sidecar(sidecar) => sidecar.log(),
            Process::PgBouncer(program, _) => program.log(),
        }
    }

    /// The processes between, whose CPU time and memory are taken.
    pub(super) fn pids(&self) -> Vec<u32> {
        match &self.process {
            Process::None => Vec::new(),
            Process::Sidecar(sidecar) => vec![sidecar.pid()],
            Process::PgBouncer(program, _) => vec![program.pid()],
        }
    }

    /// Gives its pool another size while it runs.
    ///
    /// # Errors
    /// When it has no pool or does not take the size.
    pub(super) fn resize(&self, size: usize) -> Result<(), Failure> {
        match &self.process {
            Process::Sidecar(sidecar) if self.who == Who::Sidecar => {
                sidecar.reload(&sidecar_yaml(self.server, Some(size)))
            }
            Process::PgBouncer(program, folder) => {
                write_pgbouncer(folder, self.at, self.server, size)?;
                // RELOAD.
                program.signal(Signal::HUP);
                Ok(())
            }
            Process::Sidecar(_) | Process::None => Err(format!("{} has no pool", self.who.name()).into()),
        }
    }

    /// Switches a filter of the sidecar while it runs.
    ///
    /// # Errors
    /// When it is no sidecar or refuses.
    pub(super) fn switch(&self, filter: &str, on: bool) -> Result<(), Failure> {
        let Process::Sidecar(sidecar) = &self.process else { return Err("no sidecar".into()) };
        let verb = if on { "enable" } else { "disable" };
        sidecar.post(&format!("/filters/db.{filter}/{verb}"), serde_json::Value::Null)
    }
}

/// The sidecar's configuration: with a pool of a size and the queue before it, or passing bytes on. Connections are counted, so that it has none of its
/// own.
fn sidecar_yaml(server: SocketAddr, pool: Option<usize>) -> String {
    let listener = format!("bind: \"127.0.0.1:0\", server: \"{server}\", max_sessions: {CLIENTS}");
    match pool {
        None => format!("runtime: {{ workers: 1 }}\nlisteners: {{ postgres: {{ {listener} }} }}\n"),
        Some(size) => format!(
            "runtime: {{ workers: 1 }}\nlisteners:\n  postgres: {{ {listener}, auth: {{ method: trust }}, probe: {{ load: {{ enabled: false }} }} }}\nfilters:\n  db:\n    \
             db_backpressure: {{ enabled: true }}\n    db_pool: {{ enabled: true, size: {size} }}\n"
        ),
    }
}

fn pgbouncer(server: SocketAddr) -> Result<(SocketAddr, Process), Failure> {
    let (at, folder) = (ports::free(), tempfile::Builder::new().prefix("qkpb").tempdir()?);
    write_pgbouncer(&folder, at, server, POOL)?;
    if is_root() {
        // It refuses to run as root.
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    let start = Start::new("pgbouncer").as_user("postgres").arg(file(&folder));
    let program = start.spawn(folder.path());
    Ok((at, Process::PgBouncer(program, folder)))
}

fn file(folder: &TempDir) -> PathBuf {
    folder.path().join("pgbouncer.ini")
}

/// PgBouncer's defaults besides the pool's mode and what says who may come in; no log of each connection.
fn write_pgbouncer(folder: &TempDir, at: SocketAddr, server: SocketAddr, size: usize) -> std::io::Result<()> {
    let users = folder.path().join("users");
    std::fs::write(&users, format!("\"{USER}\" \"\"\n"))?;
    std::fs::write(
        file(folder),
        format!(
            "[databases]\n{USER} = host={} port={} dbname={USER}\n[pgbouncer]\nlisten_addr = {}\nlisten_port = {}\nunix_socket_dir =\n\
             auth_type = trust\nauth_file = {}\npool_mode = transaction\ndefault_pool_size = {size}\nmax_client_conn = {CLIENTS}\n\
             log_connections = 0\nlog_disconnections = 0\nlog_pooler_errors = 0\nlog_stats = 0\n",
            server.ip(),
            server.port(),
            at.ip(),
            at.port(),
            users.display()
        ),
    )
}

/// The server and all ways to it.
pub(super) struct Stand {
    // Ended before the server that they hold connections to.
    pub(super) ways: Vec<Way>,
    pub(super) cluster: Cluster,
}

impl Stand {
    /// Starts everything. The server has a processor for itself where one is given.
    ///
    /// # Errors
    /// When something does not start.
    pub(super) fn start(
        stage: &Stage,
        who: impl IntoIterator<Item = Who>,
        core: Option<usize>,
    ) -> Result<Self, Failure> {
        let cluster = Cluster::start(stage, SESSIONS, core)?;
        let ways = who.into_iter().map(|who| Way::start(who, stage, cluster.address()));
        let ways = ways.collect::<Result<_, _>>()?;
        Ok(Self { ways, cluster })
    }

    /// Ends all ways and starts one, when all their sessions have ended.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) fn only(&mut self, stage: &Stage, who: Who) -> Result<(), Failure> {
        self.ways.clear();
        self.calm()?;
        self.ways.push(Way::start(who, stage, self.cluster.address())?);
        Ok(())
    }

    /// Waits until nothing is left of the last load: its sessions at the server have ended, besides those that pools keep, and everybody
    /// answers.
    ///
    /// # Errors
    /// When that takes too long.
    pub(super) fn calm(&self) -> Result<(), Failure> {
        let deadline = Instant::now() + PATIENCE;
        while self.cluster.sessions().len() > POOL * self.ways.len() {
            if Instant::now() > deadline {
                return Err("sessions of the last load do not end".into());
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        self.ways.iter().try_for_each(Way::until_it_answers)
    }
}

/// While this lives, one processor is left to the server: this thread, and what it starts, keeps to the others.
pub(super) struct Apart {
    before: CpuSet,
    /// The server's.
    pub(super) core: Option<usize>,
}

impl Apart {
    /// Leaves the last processor to the server, where there is more than one.
    ///
    /// # Errors
    /// When the kernel does not allow it.
    pub(super) fn new() -> Result<Self, Failure> {
        let before = sched_getaffinity(None)?;
        let core = (0..CpuSet::MAX_CPU).rfind(|core| before.is_set(*core)).filter(|_| before.count() > 1);
        match core {
            Some(core) => {
                let mut others = before;
                others.unset(core);
                sched_setaffinity(None, &others)?;
            }
            None => {
                eprintln!(
                    "there is one processor only: server and clients share it, and the goodput is less"
                );
            }
        }
        Ok(Self { before, core })
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        // It was allowed before.
        let _ = sched_setaffinity(None, &self.before);
    }
}
