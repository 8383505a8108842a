//! A PostgreSQL server of one test, and its client programs.

#[allow(dead_code, reason = "not every test file sends its own messages")]
pub(crate) mod wire;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use qudag_filter_common::testing::PATIENCE;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

/// A running server. It ends with this value.
pub(crate) struct Postgres {
    pub(crate) port: u16,
    pub(crate) folder: TempDir,
    bin: PathBuf,
    user: Option<(u32, u32)>,
    server: Child,
}

/// The folder of the server's programs; the newest where there are several.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    let bins = versions.filter_map(|version| Some(version.ok()?.path().join("bin")));
    let complete =
        |bin: &PathBuf| ["initdb", "postgres", "psql", "pgbench"].iter().all(|name| bin.join(name).exists());
    bins.filter(complete).max()
}

/// The user and group that the server runs as, when it cannot run as the present user: it refuses root.
fn other_user() -> Result<Option<(u32, u32)>, String> {
    let ids = |program: &str, args: &[&str]| -> Option<u32> {
        let output = std::process::Command::new(program).args(args).output().ok()?;
        String::from_utf8(output.stdout).ok()?.trim().parse().ok()
    };
    match ids("id", &["-u"]) {
        Some(0) => {}
        Some(_) => return Ok(None),
        None => return Err("`id` does not answer".to_owned()),
    }
    ids("id", &["-u", "postgres"])
        .zip(ids("id", &["-g", "postgres"]))
        .map(Some)
        .ok_or("running as root, and there is no user postgres".to_owned())
}

/// One of the server's programs, to be run as that user.
fn as_user(user: Option<(u32, u32)>, bin: &Path, program: &str) -> std::process::Command {
    let mut command = std::process::Command::new(bin.join(program));
    command.current_dir("/").env_remove("PGPORT").stdin(Stdio::null());
    if let Some((uid, gid)) = user {
        command.uid(uid).gid(gid);
    }
    command
}

/// A certificate for `localhost` that its own key signs.
async fn self_signed(folder: &Path) -> Result<(), String> {
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]);
    openssl.arg("-keyout").arg(folder.join("server.key")).arg("-out").arg(folder.join("server.crt"));
    run(openssl.stdin(Stdio::null())).await.map(drop)
}

/// What a program printed.
async fn run(command: &mut Command) -> Result<String, String> {
    let output = timeout(PATIENCE, command.kill_on_drop(true).output()).await;
    let output = output
        .map_err(|_| format!("{command:?} does not end"))?
        .map_err(|why| format!("{command:?}: {why}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!("{}{}", text(&output.stdout), text(&output.stderr)))
    }
}

/// The server on a port, ready to be used; `None` when it cannot have the port.
async fn launch(bin: &Path, user: Option<(u32, u32)>, folder: &TempDir, port: u16) -> Option<Child> {
    let mut server = Command::from(as_user(user, bin, "postgres"));
    server.arg("-D").arg(folder.path().join("data"));
    server.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-F"]);
    let option = |name: &str, value: &str| format!("{name}={value}");
    let path = |name: &str| folder.path().join(name).display().to_string();
    for option in [
        option("unix_socket_directories", &folder.path().display().to_string()),
        option("ssl", "on"),
        option("ssl_cert_file", &path("server.crt")),
        option("ssl_key_file", &path("server.key")),
        option("shared_buffers", "16MB"),
        option("max_connections", "30"),
    ] {
        server.args(["-c", &option]);
    }
    let log = fs::File::create(folder.path().join("log")).unwrap();
    let mut server = server.stdout(log.try_clone().unwrap()).stderr(log).kill_on_drop(true).spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        if server.try_wait().unwrap().is_some() {
            return None;
        }
        let mut ready = Command::new(bin.join("psql"));
        ready.args(format!("-h 127.0.0.1 -p {port} -U ann -d postgres -c SELECT").split(' '));
        if run(&mut ready).await.is_ok() {
            return Some(server);
        }
        assert!(Instant::now() < deadline, "{}", fs::read_to_string(folder.path().join("log")).unwrap());
        sleep(Duration::from_millis(50)).await;
    }
}

impl Postgres {
    /// A server on 127.0.0.1 and on a Unix socket in its folder; `None`, with the reason on standard output, where there can be none.
    pub(crate) async fn start() -> Option<Self> {
        let Some(bin) = programs() else {
            println!("SKIPPED: no PostgreSQL server under /usr/lib/postgresql");
            return None;
        };
        let user = match other_user() {
            Ok(user) => user,
            Err(why) => {
                println!("SKIPPED: {why}");
                return None;
            }
        };
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        if let Err(why) = self_signed(folder.path()).await {
            println!("SKIPPED: no certificate for the server: {why}");
            return None;
        }
        if let Some((uid, gid)) = user {
            for path in [folder.path().to_owned(), folder.path().join("server.key")] {
                chown(path, Some(uid), Some(gid)).unwrap();
            }
        }
        let mut initdb = Command::from(as_user(user, &bin, "initdb"));
        initdb.arg("-D").arg(&data).args("-U ann -A trust -E UTF8 --no-locale --no-sync".split(' '));
        run(&mut initdb).await.unwrap();

        // Somebody else can take the port between the look and the start; then another one is tried.
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            if let Some(server) = launch(&bin, user, &folder, port).await {
                return Some(Self { port, folder, bin, user, server });
            }
        }
        panic!("{}", fs::read_to_string(folder.path().join("log")).unwrap());
    }

    /// Starts it again where it was, after [`Postgres::stop`].
    #[allow(dead_code, reason = "not every test file stops the server")]
    pub(crate) async fn start_again(&mut self) {
        self.server.wait().await.unwrap();
        self.server = launch(&self.bin, self.user, &self.folder, self.port).await.expect("the port is free");
    }

    /// A server that replicates this one, at the same user and database.
    #[allow(dead_code, reason = "not every test file has replicas")]
    pub(crate) async fn replica(&self) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["server.key", "server.crt"] {
            fs::copy(self.folder.path().join(name), folder.path().join(name)).unwrap();
        }
        if let Some((uid, gid)) = self.user {
            for path in [folder.path().to_owned(), folder.path().join("server.key")] {
                chown(path, Some(uid), Some(gid)).unwrap();
            }
        }
        let mut copy = Command::from(as_user(self.user, &self.bin, "pg_basebackup"));
        copy.arg("-D").arg(folder.path().join("data"));
        copy.args(format!("-h 127.0.0.1 -p {} -U ann -R -X stream -c fast --no-sync", self.port).split(' '));
        run(&mut copy).await.unwrap();
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            if let Some(server) = launch(&self.bin, self.user, &folder, port).await {
                return Self { port, folder, bin: self.bin.clone(), user: self.user, server };
            }
        }
        panic!("{}", fs::read_to_string(folder.path().join("log")).unwrap());
    }

    /// Makes a replica a primary. Returns when it is one.
    #[allow(dead_code, reason = "not every test file has replicas")]
    pub(crate) async fn promote(&self) {
        let mut promote = Command::from(as_user(self.user, &self.bin, "pg_ctl"));
        promote.args(["promote", "-s", "-w", "-D"]).arg(self.folder.path().join("data"));
        run(&mut promote).await.unwrap();
    }

    /// A client program for a server at a host, or a folder with a Unix socket, and a port.
    pub(crate) fn client(&self, program: &str, host: &str, port: u16) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command
            .envs([
                ("PGHOST", host),
                ("PGPORT", &port.to_string()),
                ("PGUSER", "ann"),
                ("PGDATABASE", "postgres"),
            ])
            .envs([("PGSSLMODE", "prefer"), ("PGCONNECT_TIMEOUT", "20"), ("PGAPPNAME", "test")])
            .stdin(Stdio::null());
        command
    }

    /// What `psql` prints for some SQL, or what it complains about.
    pub(crate) async fn psql(
        &self,
        host: &str,
        port: u16,
        settings: &[(&str, &str)],
        sql: &str,
    ) -> Result<String, String> {
        let mut psql = self.client("psql", host, port);
        psql.envs(settings.iter().copied()).args([
            "-X",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-v",
            "VERBOSITY=verbose",
        ]);
        run(psql.args(["-c", sql])).await
    }

    /// What a client program prints.
    pub(crate) async fn run(command: &mut Command) -> Result<String, String> {
        run(command).await
    }

    /// The address of the Unix socket.
    pub(crate) fn unix(&self) -> String {
        format!("unix:{}/.s.PGSQL.{}", self.folder.path().display(), self.port)
    }

    /// Ends the server with its sessions (immediate shutdown), and waits for it.
    pub(crate) fn stop(&mut self) {
        self.stop_with("immediate");
    }

    /// Stops the server, which tells its clients. Returns when it is gone.
    #[allow(dead_code, reason = "not every test file needs it")]
    pub(crate) fn shut_down(&mut self) {
        self.stop_with("fast");
    }

    fn stop_with(&mut self, mode: &str) {
        if self.server.id().is_some() {
            let mut stop = as_user(self.user, &self.bin, "pg_ctl");
            stop.args(["stop", "-s", "-m", mode, "-D"]).arg(self.folder.path().join("data"));
            // What does not end so is killed by the drop of the child.
            let _ = stop.stderr(Stdio::null()).status();
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // A killed server would leave its shared memory behind.
        self.stop();
    }
}
