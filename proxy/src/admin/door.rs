//! The admin API from its configuration: the socket, and the tokens that open it.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use qudag_filter_api::{Address, Host, HostPort, Secret};
use qudag_filter_common::Socket;
use tokio_util::sync::CancellationToken;

use super::auth::{Auth, Role};
use super::operations::Operations;
use super::server::serve;
use crate::config::AdminConfig;
use crate::resolve::SystemResolver;
use crate::state_dir::write_atomically;
use crate::telemetry::Metrics;

/// The bound admin API.
#[derive(Debug)]
pub struct Door {
    socket: Socket,
    auth: Auth,
    token_file: Option<PathBuf>,
}

impl Door {
    /// Binds, and reads or makes the tokens. Over TCP, where no token is configured, a new one is written to `admin-token` in
    /// `folder`, for the command line on this host.
    ///
    /// # Errors
    /// When the address cannot be bound, or a token cannot be read or written.
    pub async fn open(config: &AdminConfig, folder: &Path) -> io::Result<Self> {
        let mut auth = Auth::default();
        let mut token_file = None;
        match (&config.token, &config.bind) {
            (Some(secret), _) => {
                auth = auth.token(Role::Write, &secret.read().map_err(io::Error::other)?);
                if let Secret::File(path) = secret {
                    token_file = Some(std::path::absolute(path)?);
                }
            }
            (None, Address::Tcp(_)) => {
                let path = folder.join("admin-token");
                let token = new_token()?;
                write_atomically(&path, token.as_bytes())?;
                auth = auth.token(Role::Write, &token);
                token_file = Some(path);
            }
            (None, Address::Unix(_)) => {}
        }
        if let Some(secret) = &config.read_token {
            auth = auth.token(Role::Read, &secret.read().map_err(io::Error::other)?);
        }
        if let Address::Tcp(HostPort { host: Host::Name(name), .. }) = &config.bind {
            auth = auth.name(name);
        }
        let socket = Socket::bind(&config.bind, &SystemResolver::new())
            .await
            .map_err(|why| io::Error::new(why.kind(), format!("cannot listen on {}: {why}", config.bind)))?;
        Ok(Self { socket, auth, token_file })
    }

    /// Where it really listens.
    pub fn address(&self) -> Address {
        self.socket.address()
    }

    /// The file with the token that allows everything, if there is one.
    pub fn token_file(&self) -> Option<PathBuf> {
        self.token_file.clone()
    }

    /// Serves until `stop`, then finishes the answers under way.
    pub async fn serve<C: Operations>(self, control: C, metrics: Metrics, stop: CancellationToken) {
        serve(self.socket, control, self.auth, metrics, stop).await;
    }
}

/// 256 random bits, hexadecimal.
fn new_token() -> io::Result<String> {
    let mut bits = [0; 32];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bits)?;
    Ok(blake3::Hash::from_bytes(bits).to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn config(bind: &str) -> AdminConfig {
        AdminConfig { bind: bind.parse().unwrap(), token: None, read_token: None }
    }

    #[tokio::test]
    async fn a_token_is_made_for_the_owner_only_and_anew_at_each_start() {
        let dir = tempfile::tempdir().unwrap();
        let mut tokens = Vec::new();
        for _ in 0..2 {
            let door = Door::open(&config("127.0.0.1:0"), dir.path()).await.unwrap();
            let file = door.token_file().unwrap();
            assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
            tokens.push(std::fs::read_to_string(file).unwrap());
            assert_ne!(door.address().to_string(), "127.0.0.1:0");
        }
        assert_eq!(tokens[0].len(), 64);
        assert_ne!(tokens[0], tokens[1]);
    }

    #[tokio::test]
    async fn a_configured_token_is_used_and_its_file_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t");
        std::fs::write(&file, "secret\n").unwrap();
        let token = Some(Secret::File(file.clone()));
        let door = Door::open(&AdminConfig { token, ..config("127.0.0.1:0") }, dir.path()).await.unwrap();
        assert_eq!(door.token_file(), Some(file));
        assert!(!dir.path().join("admin-token").exists());

        let token = Some(Secret::File(dir.path().join("none")));
        assert!(Door::open(&AdminConfig { token, ..config("127.0.0.1:0") }, dir.path()).await.is_err());
    }

    #[tokio::test]
    async fn a_unix_socket_needs_no_token() {
        let dir = tempfile::tempdir().unwrap();
        let bind = format!("unix:{}", dir.path().join("s").display());
        let door = Door::open(&config(&bind), dir.path()).await.unwrap();
        assert_eq!(door.token_file(), None);
        assert_eq!(door.address().to_string(), bind);
    }

    #[tokio::test]
    async fn an_address_in_use_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let first = Door::open(&config("127.0.0.1:0"), dir.path()).await.unwrap();
        let address = first.address().to_string();
        let why = Door::open(&config(&address), dir.path()).await.unwrap_err();
        assert!(why.to_string().contains(&address), "{why}");
    }
}
