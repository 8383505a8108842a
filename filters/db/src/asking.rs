//! Questions of the sidecar's own to a server, on one connection that is kept.

use std::fmt;
use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use qudag_filter_api::{ConfigError, ConfigPath};
use qudag_filter_common::Stream;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use crate::auth::{Identity, LoggedIn, Login, LoginError, SecureStream, Users, login};
use crate::pool::Target;
use crate::wire::{WireError, backend, build};

/// The longest answer that is read.
const LONGEST: usize = 64 << 10;

/// `listeners.postgres.probe`: who asks servers what they are and how loaded, for `read_replicas` and `load`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ProbeSettings {
    /// The user that asks; its secret is in the file of `auth.users`, unless the server trusts it. Without it, a user asks that has logged in
    /// through the sidecar, which sees less.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// In which database that user asks.
    pub database: String,
    /// How loaded each server is, and what to do about it.
    pub load: crate::load::LoadSettings,
}

impl Default for ProbeSettings {
    fn default() -> Self {
        Self { user: None, database: "postgres".to_owned(), load: crate::load::LoadSettings::default() }
    }
}

impl ProbeSettings {
    pub(crate) fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let mut errors = self.load.check(&at.key("load"));
        let is_name = |name: &str| !name.is_empty() && !name.contains('\0');
        if self.user.as_deref().is_some_and(|user| !is_name(user)) {
            errors.push(at.key("user").error("no name of a user").hint("such as monitor"));
        }
        if !is_name(&self.database) {
            errors.push(at.key("database").error("no name of a database").hint("such as postgres"));
        }
        errors
    }
}

/// The configured user that asks.
pub(crate) struct ProbeUser {
    pub(crate) user: Box<[u8]>,
    pub(crate) database: Box<[u8]>,
    /// Its secret is there, and may change.
    pub(crate) users: Arc<Users>,
}

impl fmt::Debug for ProbeUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProbeUser")
            .field("user", &String::from_utf8_lossy(&self.user))
            .finish_non_exhaustive()
    }
}

impl ProbeUser {
    pub(crate) fn asker(&self) -> Asker {
        let identity = self.users.trusted(&self.user);
        Asker { user: self.user.clone(), database: self.database.clone(), identity }
    }
}

/// Who asks.
#[derive(Clone, Debug)]
pub(crate) struct Asker {
    pub(crate) user: Box<[u8]>,
    pub(crate) database: Box<[u8]>,
    pub(crate) identity: Identity,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error(transparent)]
    Login(#[from] LoginError),
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    #[error("the answer makes no sense: {0}")]
    Wire(#[from] WireError),
    #[error("the answer is not as expected")]
    Answer,
    #[error("the query failed with SQLSTATE {0}")]
    Failed(String),
    #[error("no answer in time")]
    Timeout,
}

impl AskError {
    /// Whether the server has no room for another connection (`too_many_connections`).
    pub(crate) fn is_too_many(&self) -> bool {
        matches!(self, Self::Login(LoginError::Refused { sqlstate, .. }) if sqlstate == "53300")
    }

    /// Whether another user might get an answer.
    pub(crate) fn is_of_user(&self) -> bool {
        match self {
            Self::Login(LoginError::Refused { sqlstate, .. }) | Self::Failed(sqlstate) => {
                ["28", "3D", "42", "53"].iter().any(|class| sqlstate.starts_with(class))
            }
            Self::Login(LoginError::Scram(_) | LoginError::Credentials(_)) => true,
            _ => false,
        }
    }
}

/// A connection for questions.
pub(crate) struct Connection {
    stream: SecureStream,
    inbox: BytesMut,
    /// The process that listens at the server's Unix socket.
    pub(crate) listener: Option<u32>,
}

impl Connection {
    pub(crate) async fn open(target: &Target, asker: &Asker, deadline: Instant) -> Result<Self, AskError> {
        let stream = target.connect().await.map_err(io::Error::other)?;
        let listener = match &stream {
            Stream::Unix(unix) => unix.peer().and_then(|peer| u32::try_from(peer.pid()?).ok()),
            Stream::Tcp(_) => None,
        };
        let parameters: [(&[u8], &[u8]); 2] =
            [(b"application_name", b"qudag-sidecar"), (b"client_encoding", b"UTF8")];
        let request = Login {
            user: &asker.user,
            database: &asker.database,
            parameters: &parameters,
            identity: &asker.identity,
            server: &target.address,
            tls: &target.tls,
        };
        let LoggedIn { stream, rest, .. } = login(stream, &request, deadline).await?;
        Ok(Self { stream, inbox: rest, listener })
    }

    /// Lets `read` take the row of the answer, where null is an empty text. After an error the connection is of no use.
    pub(crate) async fn ask<T>(
        &mut self,
        question: &[u8],
        read: impl Fn(&[&[u8]]) -> Option<T>,
    ) -> Result<T, AskError> {
        let mut out = BytesMut::new();
        build::query(&mut out, question);
        self.stream.write_all(&out).await?;
        self.stream.flush().await?;
        let mut at = 0;
        loop {
            let rest = self.inbox.get(at..).unwrap_or_default();
            let head = backend::head(rest)?.filter(|head| head.len <= rest.len());
            if let Some(head) = head {
                if head.kind == backend::ERROR {
                    let body = rest.get(crate::wire::HEADER..head.len).unwrap_or_default();
                    let sqlstate = backend::Report::read(body).sqlstate;
                    return Err(AskError::Failed(String::from_utf8_lossy(sqlstate).into_owned()));
                }
                at += head.len;
                if head.kind == backend::READY {
                    let answer = backend::first_row(&self.inbox).and_then(|row| read(&row));
                    self.inbox.clear();
                    return answer.ok_or(AskError::Answer);
                }
                continue;
            }
            if self.inbox.len() > LONGEST {
                return Err(AskError::Answer);
            }
            if self.stream.read_buf(&mut self.inbox).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }
}
