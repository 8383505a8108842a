//! Programs that use PostgreSQL through the libraries of several languages, those of `tests/clients/postgres`.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::node::newest;
use crate::postgres::PASSWORD;
use crate::program::{Start, find};

/// A library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PostgresClient {
    /// Python's psycopg 3, which is libpq.
    Psycopg,
    /// Python's asyncpg.
    Asyncpg,
    /// JavaScript's node-postgres.
    NodePostgres,
    /// Rust's tokio-postgres.
    TokioPostgres,
    /// Rust's sqlx.
    Sqlx,
}

impl PostgresClient {
    /// Whether its program can run here; if not, why.
    ///
    /// # Errors
    /// When something is missing, with how to get it.
    pub fn available(self) -> Result<(), String> {
        if self == Self::NodePostgres && find("node").is_none() {
            return Err("node is not installed".into());
        }
        if !self.program().is_file() {
            return Err(format!("{self:?} is not installed; tests/run does it"));
        }
        Ok(())
    }

    fn program(self) -> PathBuf {
        match self {
            Self::Psycopg => newest("postgres-python-", "psycopg_client.py"),
            Self::Asyncpg => newest("postgres-python-", "asyncpg_client.py"),
            Self::NodePostgres => newest("postgres-node-", "pg_client.mjs"),
            Self::TokioPostgres => newest("postgres-rust-", "tokio-postgres-client"),
            Self::Sqlx => newest("postgres-rust-", "sqlx-client"),
        }
    }

    /// Its program, which does all that the library can do with a database of the kit's server, and prints a line of JSON for each
    /// check: `{"check": NAME, "ok": BOOL, "detail": …}`. The last check is `all`. One result has so many MB.
    pub fn start(self, server: SocketAddr, database: &str, stream_mb: u32) -> Start {
        let program = self.program();
        let start = match self {
            Self::Psycopg | Self::Asyncpg => {
                // Started by its place in the virtual environment, it knows the libraries there.
                Start::new(program.with_file_name("venv/bin/python")).arg("-B").arg(program)
            }
            Self::NodePostgres => Start::new("node").arg("--no-deprecation").arg(program),
            Self::TokioPostgres | Self::Sqlx => Start::new(program),
        };
        let start = start.arg(format!("postgresql://qudag:{PASSWORD}@{server}/{database}"));
        start.arg(stream_mb.to_string())
    }
}
