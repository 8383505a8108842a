//! The exchange with a client, which the sidecar is the server of.

use std::io;
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use super::scram::{ScramError, Server, Verifier, random};
use super::secret::{Identity, Md5Hash, Password, Stored};
use super::settings::Method;
use super::stream::SecureStream;
use super::users::{Users, decoy};
use crate::startup::shown;
use crate::wire::auth::{self, Request, SaslInitial};
use crate::wire::build::ErrorResponse;
use crate::wire::{HEADER, WireError};

/// Why a client is not let in.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The client went away.
    #[error("client closed the connection")]
    Gone(#[from] io::Error),
    /// It did not answer in time.
    #[error("authentication timeout")]
    Timeout,
    /// Wrong password, or no such user, which nobody is told.
    #[error("password authentication failed for user \"{0}\"")]
    Password(String),
    /// The client may not log in like this.
    #[error("{0}")]
    NotAllowed(&'static str),
    /// What it sent does not follow the protocol.
    #[error("{0}")]
    Protocol(&'static str),
    /// The server could not be asked for the user.
    #[error("the user cannot be looked up: {0}")]
    Unavailable(Arc<str>),
}

impl From<WireError> for AuthError {
    fn from(why: WireError) -> Self {
        Self::Protocol(match why {
            WireError::Kind(_) => "expected password response",
            WireError::Length(_) | WireError::Body(_) => "invalid password packet size",
        })
    }
}

impl AuthError {
    /// The label of a metric or log line.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Gone(_) => "client_gone",
            Self::Timeout => "startup_timeout",
            Self::Password(_) => "password",
            Self::NotAllowed(_) => "refused",
            Self::Protocol(_) => "malformed",
            Self::Unavailable(_) => "upstream",
        }
    }

    /// Writes the ErrorResponse, FATAL as everything before the session; nothing for a client that is gone or silent.
    pub fn write(&self, out: &mut BytesMut) {
        let public;
        let (sqlstate, message, hint) = match self {
            Self::Gone(_) | Self::Timeout => return,
            Self::Password(_) => {
                public = self.to_string();
                ("28P01", &*public, None)
            }
            Self::NotAllowed(what) => ("28000", *what, Some("connect to qudag-sidecar with TLS")),
            Self::Protocol(what) => ("08P01", *what, None),
            // Nothing of the server, nor of the query.
            Self::Unavailable(_) => (
                "57P03",
                "the user cannot be looked up",
                Some("qudag-sidecar cannot ask the server; try again"),
            ),
        };
        ErrorResponse { fatal: true, sqlstate, message, detail: None, hint }.write(out);
    }
}

/// Finds out whether a client is the user of its StartupMessage. `inbox` is what was read of it behind that, and keeps what is behind the
/// exchange. Ends before AuthenticationOk, which is for the caller to say once there is nothing else to refuse.
///
/// A password that was changed at the server within the time for which its answers hold (30 seconds) is taken at once where the client
/// sends the password or an MD5 hash. By SCRAM it is refused once: the exchange has begun with the old salt, and cannot begin again.
///
/// # Errors
/// With what the client is to be told, before the connection is closed.
pub async fn authenticate(
    stream: &mut SecureStream,
    inbox: &mut BytesMut,
    user: &[u8],
    users: &Users,
    deadline: Instant,
) -> Result<Identity, AuthError> {
    let mut talk = Talk { stream, inbox, user, users };
    let proved = timeout_at(deadline, Box::pin(talk.prove())).await;
    proved.map_err(|_| AuthError::Timeout)?
}

/// An exchange under way.
struct Talk<'a> {
    stream: &'a mut SecureStream,
    inbox: &'a mut BytesMut,
    user: &'a [u8],
    users: &'a Users,
}

/// Runs what computes for milliseconds where it holds nobody up.
async fn compute<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, AuthError> {
    tokio::task::spawn_blocking(work).await.map_err(|why| AuthError::Gone(io::Error::other(why)))
}

impl Talk<'_> {
    async fn prove(&mut self) -> Result<Identity, AuthError> {
        match self.users.method() {
            Method::Trust => Ok(self.users.trusted(self.user)),
            Method::Password => self.password().await,
            Method::Scram => {
                let found = self.find(false).await?;
                match found.answer.as_deref() {
                    Some(Stored::Md5(hash)) => self.md5(hash, found.cached).await,
                    _ => self.scram(found.answer, found.cached).await,
                }
            }
        }
    }

    async fn find(&self, fresh: bool) -> Result<super::users::Found, AuthError> {
        self.users.find(self.user, fresh).await.map_err(AuthError::Unavailable)
    }

    fn refused(&self) -> AuthError {
        AuthError::Password(shown(self.user))
    }

    async fn ask(&mut self, request: Request<'_>) -> Result<(), AuthError> {
        let mut out = BytesMut::with_capacity(128);
        request.write(&mut out);
        self.stream.write_all(&out).await?;
        Ok(self.stream.flush().await?)
    }

    /// The body of the client's next message, as `read` makes of it. The bytes are overwritten behind it.
    async fn answer<T>(&mut self, read: impl FnOnce(&[u8]) -> Result<T, AuthError>) -> Result<T, AuthError> {
        let head = loop {
            match auth::client_head(self.inbox)? {
                Some(head) if head.len <= self.inbox.len() => break head,
                _ => {}
            }
            if self.stream.read_buf(self.inbox).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        };
        let message = self.inbox.get_mut(..head.len).unwrap_or_default();
        let answer = read(message.get(HEADER..).unwrap_or_default());
        message.fill(0);
        self.inbox.advance(head.len);
        answer
    }

    async fn password(&mut self) -> Result<Identity, AuthError> {
        if !is_private(self.stream) {
            return Err(AuthError::NotAllowed("passwords are not taken over an unencrypted connection"));
        }
        self.ask(Request::Cleartext).await?;
        let password = self.answer(|body| Ok(Password::new(auth::password(body)?))).await?;
        if password.bytes().is_empty() {
            return Err(self.refused());
        }
        let mut found = self.find(false).await?;
        loop {
            if self.is_right(found.answer, &password).await? {
                return Ok(Identity::Password(password));
            }
            if !found.cached {
                return Err(self.refused());
            }
            found = self.find(true).await?;
        }
    }

    async fn is_right(&self, known: Option<Arc<Stored>>, password: &Password) -> Result<bool, AuthError> {
        let (user, password) = (self.user.to_vec(), password.clone());
        compute(move || match known {
            Some(known) => known.verify(&user, &password),
            // Takes as long as for a user that there is.
            None => decoy(&user).is_ok_and(|decoy| decoy.verify(&password)),
        })
        .await
    }

    async fn md5(&mut self, hash: &Md5Hash, cached: bool) -> Result<Identity, AuthError> {
        let mut salt = [0; 4];
        random(&mut salt).map_err(|_| self.refused())?;
        self.ask(Request::Md5(salt)).await?;
        let response = self.answer(|body| Ok(Password::new(auth::password(body)?))).await?;
        if hash.verify(salt, response.bytes()) {
            return Ok(Identity::Md5(hash.clone()));
        }
        if cached
            && let Some(Stored::Md5(hash)) = self.find(true).await?.answer.as_deref()
            && hash.verify(salt, response.bytes())
        {
            return Ok(Identity::Md5(hash.clone()));
        }
        Err(self.refused())
    }

    async fn scram(&mut self, known: Option<Arc<Stored>>, cached: bool) -> Result<Identity, AuthError> {
        let verifier = match &known {
            Some(known) if known.has_verifier() => known.verifier(),
            Some(known) => {
                let known = Arc::clone(known);
                compute(move || known.verifier()).await?
            }
            None => decoy(self.user),
        };
        let verifier = verifier.map_err(|_| self.refused())?;
        match self.scram_with(verifier).await {
            Ok(key) => Ok(known.and_then(|known| known.identity()).unwrap_or(key)),
            Err(AuthError::Password(user)) => {
                // For the next attempt.
                if cached {
                    drop(self.find(true).await);
                }
                Err(AuthError::Password(user))
            }
            Err(error) => Err(error),
        }
    }

    async fn scram_with(&mut self, verifier: Verifier) -> Result<Identity, AuthError> {
        let failed = |user: &[u8], why| match why {
            ScramError::Refused | ScramError::OtherVerifier => AuthError::Password(shown(user)),
            ScramError::Malformed | ScramError::Iterations => AuthError::Protocol("malformed SCRAM message"),
            ScramError::Binding => AuthError::Protocol("SCRAM channel binding negotiation error"),
            ScramError::Extension => AuthError::Protocol("client requires an unsupported SCRAM extension"),
        };
        let user = self.user;
        let binding = self.stream.tls_server_end_point().map(<[u8]>::to_vec);
        let mut server = Server::new(verifier, binding).map_err(|why| failed(user, why))?;
        let mechanisms = server.mechanisms().iter().map(|name| name.as_bytes()).collect();
        self.ask(Request::Sasl(mechanisms)).await?;
        let first = self.answer(|body| {
            let SaslInitial { mechanism, response } = SaslInitial::read(body)?;
            let mechanism = server.mechanisms().iter().find(|name| name.as_bytes() == mechanism);
            let mechanism = mechanism
                .ok_or(AuthError::Protocol("client selected an invalid SASL authentication mechanism"))?;
            let response = response.ok_or(AuthError::Protocol("malformed SCRAM message"))?;
            server.first(mechanism, response).map_err(|why| failed(user, why))
        });
        let first = first.await?;
        self.ask(Request::SaslContinue(&first)).await?;
        let (last, key) = self.answer(|body| server.last(body).map_err(|why| failed(user, why))).await?;
        // The client waits for AuthenticationOk behind it.
        self.ask(Request::SaslFinal(&last)).await?;
        Ok(Identity::Key(key))
    }
}

/// Whether nobody between the two can read along: there is TLS, or both are on this host.
fn is_private(stream: &SecureStream) -> bool {
    let socket = stream.socket();
    stream.is_encrypted()
        || matches!(socket, qudag_filter_common::Stream::Unix(_))
        || socket.peer_ip().is_some_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::backend::{self, Report};
    use crate::wire::body;

    #[test]
    fn errors_are_worded_as_postgresql_words_them() {
        let said = |error: AuthError| {
            let mut out = BytesMut::new();
            error.write(&mut out);
            let head = backend::head(&out).unwrap().unwrap();
            let report = Report::read(body(&out, head).unwrap());
            assert!(report.is_fatal());
            (
                String::from_utf8_lossy(report.sqlstate).into_owned(),
                String::from_utf8_lossy(&out).into_owned(),
            )
        };
        let (sqlstate, text) = said(AuthError::Password("ann".to_owned()));
        assert_eq!(sqlstate, "28P01");
        assert!(text.contains("Mpassword authentication failed for user \"ann\"\0"), "{text}");
        assert_eq!(said(AuthError::NotAllowed("x")).0, "28000");
        assert_eq!(said(WireError::Kind(b'Q').into()).0, "08P01");
        let (sqlstate, text) = said(AuthError::Unavailable("secret-host".into()));
        assert!(sqlstate == "57P03" && !text.contains("secret-host") && text.contains("\0H"), "{text}");
        let mut out = BytesMut::new();
        AuthError::Timeout.write(&mut out);
        assert!(out.is_empty());
    }
}
