//! Asking the server for a user's secret, on one connection that is kept.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use qudag_filter_api::{Address, Resolve};
use qudag_filter_common::connect;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Mutex;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::login::{LoggedIn, Login, LoginError, login};
use super::secret::{Identity, Stored};
use super::stream::SecureStream;
use super::tls::ClientTls;
use crate::wire::backend::{self, Report, Status};
use crate::wire::{WireError, body, build};

/// The longest answer that is read.
const LONGEST: usize = 64 << 10;
/// `character_not_in_repertoire` and `untranslatable_character`: no user of the server is called so.
const NOT_A_NAME: [&[u8]; 2] = [b"22021", b"22P05"];

/// How the server is reached that is asked for users.
#[derive(Clone)]
pub struct Way {
    /// The server.
    pub server: Address,
    /// How its name is resolved.
    pub resolve: Arc<dyn Resolve>,
    /// Its encryption.
    pub tls: Arc<ClientTls>,
    /// The time to connect.
    pub connect_timeout: Duration,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error("{0}")]
    Connect(#[from] qudag_filter_api::FilterError),
    #[error("{0}")]
    Login(#[from] LoginError),
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    #[error("the answer makes no sense: {0}")]
    Wire(#[from] WireError),
    #[error("the query has to return two columns, a user and a secret")]
    Columns,
    #[error("the secret begins as a SCRAM verifier and is none")]
    Verifier,
    #[error("the query failed with SQLSTATE {0}")]
    Failed(String),
    #[error("no answer in time")]
    Timeout,
}

/// The connection and what is asked on it.
pub(super) struct Asker {
    way: Way,
    text: String,
    user: String,
    database: String,
    /// None while there is none, and while it is in use: an answer that is not read to its end leaves none behind.
    kept: Mutex<Option<Connection>>,
}

struct Connection {
    stream: SecureStream,
    inbox: BytesMut,
}

impl Asker {
    pub(super) fn new(way: Way, text: &str, user: &str, database: &str) -> Self {
        let [text, user, database] = [text, user, database].map(str::to_owned);
        Self { way, text, user, database, kept: Mutex::new(None) }
    }

    /// Who asks.
    pub(super) fn user(&self) -> &[u8] {
        self.user.as_bytes()
    }

    /// What the server keeps of a user; `None` for a user that is none, or has no password.
    pub(super) async fn ask(&self, user: &[u8], own: &Identity) -> Result<Option<Stored>, AskError> {
        let mut kept = self.kept.lock().await;
        if let Some(mut connection) = kept.take() {
            match connection.ask(&self.text, user).await {
                // The server was restarted in the meantime, or has closed what was idle.
                Err(AskError::Io(_)) => {}
                Err(AskError::Failed(sqlstate)) if sqlstate.starts_with("57P") => {}
                answer => {
                    *kept = answer.is_ok().then_some(connection);
                    return answer;
                }
            }
        }
        let mut connection = self.connect(own).await?;
        let answer = connection.ask(&self.text, user).await;
        *kept = answer.is_ok().then_some(connection);
        answer
    }

    async fn connect(&self, own: &Identity) -> Result<Connection, AskError> {
        let Way { server, resolve, tls, connect_timeout } = &self.way;
        let deadline = Instant::now() + *connect_timeout;
        let stream = connect(server, &**resolve, *connect_timeout).await?;
        let parameters: [(&[u8], &[u8]); 2] =
            [(b"application_name", b"qudag-sidecar"), (b"client_encoding", b"UTF8")];
        let who = Login {
            user: self.user.as_bytes(),
            database: self.database.as_bytes(),
            parameters: &parameters,
            identity: own,
            server,
            tls,
        };
        let LoggedIn { stream, rest, .. } = login(stream, &who, deadline).await?;
        Ok(Connection { stream, inbox: rest })
    }
}

impl Connection {
    async fn ask(&mut self, text: &str, user: &[u8]) -> Result<Option<Stored>, AskError> {
        let mut out = BytesMut::new();
        build::ask(&mut out, text.as_bytes(), &[user]);
        self.stream.write_all(&out).await?;
        self.stream.flush().await?;
        let mut answer = Ok(None);
        loop {
            let head = loop {
                match backend::head(&self.inbox)? {
                    Some(head) if head.len > LONGEST => return Err(WireError::Length(head.kind).into()),
                    Some(head) if head.len <= self.inbox.len() => break head,
                    _ => {}
                }
                if self.stream.read_buf(&mut self.inbox).await? == 0 {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
            };
            let content = body(&self.inbox, head).unwrap_or_default();
            match head.kind {
                backend::DATA_ROW => answer = secret(content),
                backend::ERROR => {
                    let sqlstate = Report::read(content).sqlstate;
                    if !NOT_A_NAME.contains(&sqlstate) {
                        answer = Err(AskError::Failed(String::from_utf8_lossy(sqlstate).into_owned()));
                    }
                }
                backend::READY => {
                    Status::read(content)?;
                    self.inbox.advance(head.len);
                    return answer;
                }
                _ => {}
            }
            // A secret may have been in it.
            if let Some(read) = self.inbox.get_mut(..head.len) {
                read.fill(0);
            }
            self.inbox.advance(head.len);
        }
    }
}

/// The secret of a row.
fn secret(row: &[u8]) -> Result<Option<Stored>, AskError> {
    match backend::columns(row)?.get(1) {
        None => Err(AskError::Columns),
        Some(None) => Ok(None),
        Some(Some(secret)) => {
            let secret = Zeroizing::new(secret.to_vec());
            Stored::read(&secret).map_err(|_| AskError::Verifier)
        }
    }
}
