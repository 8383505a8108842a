//! A real server, and a sidecar in front of it.

use std::net::SocketAddr;
use std::path::PathBuf;

use qudag_kit::postgres::psql;
use qudag_kit::{Postgres, TestSidecar, ports};
use tempfile::TempDir;

/// How sessions reach the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Each session has a connection to the server of its own, and its bytes are passed on untouched.
    PassThrough,
    /// Sessions share so many connections to the server, a transaction each, and wait for one for as long as it takes.
    Pooled(usize),
    /// The same, but those that would wait for long are refused.
    Shedding(usize),
}

/// A server and a sidecar whose door stays the same, whichever of them is killed and started again.
pub struct Stand {
    /// The server.
    pub postgres: Postgres,
    /// The sidecar.
    pub sidecar: TestSidecar,
    /// Where it takes sessions.
    pub door: SocketAddr,
    /// Further sections of the configuration.
    sections: &'static str,
    users: PathBuf,
    _dir: TempDir,
}

impl Stand {
    /// Starts both.
    pub async fn start(way: Way) -> Self {
        Self::start_with(way, "select 1", "").await
    }

    /// Starts both, with SQL that the server carries out first, roles for instance, and further sections of the
    /// configuration.
    ///
    /// # Panics
    /// When they do not come up.
    pub async fn start_with(way: Way, sql: &str, sections: &'static str) -> Self {
        let postgres = Postgres::start().await;
        psql(postgres.addr(), &["-qc", sql]).await.ok();
        let dir = tempfile::tempdir().unwrap();
        let users = dir.path().join("users");
        // PgBouncer's form; what the server keeps of the passwords, not they themselves.
        let verifiers = "select format('\"%s\" \"%s\"', rolname, rolpassword) from pg_authid where rolpassword is not null";
        std::fs::write(&users, psql(postgres.addr(), &["-Atc", verifiers]).await.ok()).unwrap();
        let door = ports::free();
        let sidecar = TestSidecar::start(&(yaml(way, door, postgres.addr(), &users, true) + sections)).await;
        Self { postgres, sidecar, door, sections, users, _dir: dir }
    }

    /// What the server keeps of a role's password: `SCRAM-SHA-256$4096:SALT$STORED-KEY:SERVER-KEY`.
    ///
    /// # Panics
    /// When there is no such role.
    pub fn verifier(&self, role: &str) -> String {
        let users = std::fs::read_to_string(&self.users).unwrap();
        let prefix = format!("\"{role}\" \"");
        let line = users.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap();
        line.trim_end_matches('"').to_owned()
    }

    /// Reloads with another number of connections to the server, or with a limit of the rate that nothing reaches.
    ///
    /// # Panics
    /// When the configuration is refused.
    pub async fn reload(&self, way: Way, limited: bool) {
        let yaml = yaml(way, self.door, self.postgres.addr(), &self.users, limited);
        self.sidecar.reload_with(&(yaml + self.sections)).await.ok();
    }
}

fn yaml(way: Way, door: SocketAddr, server: SocketAddr, users: &std::path::Path, limited: bool) -> String {
    let users = users.display();
    let (size, backpressure) = match way {
        Way::PassThrough => (0, ""),
        Way::Pooled(size) => (size, ", wait: 30s, standing: 30s"),
        Way::Shedding(size) => (size, ""),
    };
    let (mut auth, mut pool) = (String::new(), String::new());
    if size > 0 {
        auth = format!("    auth: {{ method: scram, users: \"{users}\" }}\n");
        pool = format!(
            "    db_backpressure: {{ enabled: true{backpressure} }}\n    db_pool: {{ enabled: true, size: {size} }}\n"
        );
    }
    format!(
        "listeners:\n  postgres:\n    bind: \"{door}\"\n    server: \"{server}\"\n{auth}filters:\n  db:\n    rate_limit: {{ \
         enabled: {limited}, per_client: {{ rate: 100000, burst: 100000 }}, total: {{ rate: 100000, burst: 100000 }} }}\n    circuit_breaker: {{ enabled: true }}\n{pool}"
    )
}
