//! A login at the server.

use std::io;

use bytes::{Bytes, BytesMut};
use qudag_filter_api::Address;
use qudag_filter_common::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use super::exchange::{Exchange, Session, is_slow};
use super::scram::ScramError;
use super::secret::Identity;
use super::stream::{SecureStream, connect_tls};
use super::tls::{ClientTls, TlsError};
use crate::session::Parameters;
use crate::wire::auth;
use crate::wire::build::ErrorResponse;

/// Who logs in, where and how.
#[derive(Clone, Copy, Debug)]
pub struct Login<'a> {
    /// The user.
    pub user: &'a [u8],
    /// The database.
    pub database: &'a [u8],
    /// Further parameters of the StartupMessage, in their order.
    pub parameters: &'a [(&'a [u8], &'a [u8])],
    /// What proves it.
    pub identity: &'a Identity,
    /// The server that the stream leads to, whose name has to be in its certificate.
    pub server: &'a Address,
    /// Its encryption.
    pub tls: &'a ClientTls,
}

/// A session that is idle.
#[derive(Debug)]
pub struct LoggedIn {
    /// The connection.
    pub stream: SecureStream,
    /// What the server reported.
    pub parameters: Parameters,
    /// The server's process for this session; 0 where it told none.
    pub process: u32,
    /// The key that cancels the session's queries, with the process; empty where it told none.
    pub secret: Box<[u8]>,
    /// What was read behind ReadyForQuery.
    pub rest: BytesMut,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The connection failed or ended.
    #[error("the connection to the server failed: {0}")]
    Io(#[from] io::Error),
    /// The server took too long.
    #[error("the server did not finish the login in time")]
    Timeout,
    /// There is no TLS as it has to be.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The server did not follow the protocol.
    #[error("the server broke the protocol at its login: {0}")]
    Protocol(&'static str),
    /// The server asks for something that there is not.
    #[error("{0}")]
    Credentials(&'static str),
    /// The SCRAM exchange failed on this side. After [`ScramError::OtherVerifier`] the key is of no use any more: the user's password was
    /// changed, and the client has to prove itself anew.
    #[error(transparent)]
    Scram(#[from] ScramError),
    /// The server refused, with this ErrorResponse.
    #[error("the server refused the login with SQLSTATE {sqlstate}")]
    Refused {
        /// The SQLSTATE.
        sqlstate: String,
        /// The whole message as it came, with type and length, for the client to see.
        response: Bytes,
    },
}

impl LoginError {
    /// The label of a metric or log line.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Io(_) => "io",
            Self::Timeout => "timeout",
            Self::Tls(_) => "tls",
            Self::Protocol(_) => "protocol",
            Self::Credentials(_) | Self::Scram(_) => "credentials",
            Self::Refused { .. } => "refused",
        }
    }

    /// Writes what the client is told: a refusal of the server in its own words, and anything else as an error of the sidecar, FATAL or
    /// for one batch, without the addresses and names behind it.
    pub fn write(&self, fatal: bool, out: &mut BytesMut) {
        let (sqlstate, message, hint) = match self {
            Self::Refused { response, .. } => return out.extend_from_slice(response),
            // `invalid_authorization_specification`.
            Self::Scram(ScramError::OtherVerifier) => {
                ("28000", self.to_string(), "the password was changed; connect to qudag-sidecar again")
            }
            Self::Credentials(_) | Self::Scram(_) => {
                ("28000", self.to_string(), "qudag-sidecar cannot log in at the server as this user")
            }
            // `connection_failure`.
            Self::Io(why) => (
                "08006",
                format!("the connection to the server failed: {}", why.kind()),
                "qudag-sidecar has no connection to the server; try again",
            ),
            Self::Tls(TlsError::Io(_)) => {
                ("08006", "TLS with the server failed".to_owned(), "the log of qudag-sidecar says why")
            }
            Self::Timeout | Self::Tls(_) | Self::Protocol(_) => {
                ("08006", self.to_string(), "qudag-sidecar has no connection to the server; try again")
            }
        };
        let error = ErrorResponse { fatal, sqlstate, message: &message, detail: None, hint: Some(hint) };
        error.write(out);
    }
}

/// Logs in on a new connection: TLS, StartupMessage, authentication, and everything through the first ReadyForQuery.
///
/// # Errors
/// When there is no session at the deadline.
pub async fn login(stream: Stream, login: &Login<'_>, deadline: Instant) -> Result<LoggedIn, LoginError> {
    let stream = connect_tls(stream, login.server, login.tls, deadline).await?;
    timeout_at(deadline, Box::pin(run(stream, login))).await.map_err(|_| LoginError::Timeout)?
}

async fn run(mut stream: SecureStream, login: &Login<'_>) -> Result<LoggedIn, LoginError> {
    let mut out = BytesMut::new();
    let who: [(&[u8], &[u8]); 2] = [(b"user", login.user), (b"database", login.database)];
    auth::startup(&mut out, who.iter().chain(login.parameters).copied());
    let mut exchange = Exchange::new(login.user, login.identity.clone(), stream.tls_server_end_point());
    let mut inbox = BytesMut::with_capacity(1024);
    loop {
        if !out.is_empty() {
            stream.write_all(&out).await?;
            stream.flush().await?;
            // A password may have been in it.
            out.fill(0);
            out.clear();
        }
        let head = loop {
            let head = auth::server_head(&inbox)?;
            match head.filter(|head| head.len <= inbox.len()) {
                Some(head) => break head,
                None if stream.read_buf(&mut inbox).await? == 0 => {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                None => {}
            }
        };
        let message = inbox.split_to(head.len).freeze();
        let ready = if is_slow(&message, &exchange) {
            let computed = tokio::task::spawn_blocking(move || {
                let taken = exchange.take(head, message, &mut out);
                (exchange, out, taken)
            });
            let taken;
            (exchange, out, taken) = computed.await.map_err(io::Error::other)?;
            taken?
        } else {
            exchange.take(head, message, &mut out)?
        };
        if ready {
            let Session { parameters, process, secret } = exchange.finish();
            return Ok(LoggedIn { stream, parameters, process, secret, rest: inbox });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::backend::{self, Report};
    use crate::wire::body;

    #[test]
    fn the_server_is_quoted_and_everything_else_is_the_sidecars() {
        let said = |error: LoginError, fatal: bool| {
            let mut out = BytesMut::new();
            error.write(fatal, &mut out);
            out
        };
        let response = Bytes::from_static(b"E\0\0\0\x05\0");
        let refused = LoginError::Refused { sqlstate: String::new(), response: response.clone() };
        assert_eq!(said(refused, true), response);
        let inside = io::Error::other("10.0.0.7 says sesame");
        for (error, sqlstate) in [
            (LoginError::Timeout, "08006"),
            (LoginError::Io(io::Error::other("10.0.0.7 says sesame")), "08006"),
            (LoginError::Tls(TlsError::Io(inside)), "08006"),
            (LoginError::Tls(TlsError::NotOffered), "08006"),
            (LoginError::Credentials("nothing"), "28000"),
            (LoginError::Scram(ScramError::OtherVerifier), "28000"),
        ] {
            let bytes = said(error, sqlstate == "28000");
            let head = backend::head(&bytes).unwrap().unwrap();
            let report = Report::read(body(&bytes, head).unwrap());
            assert_eq!(report.sqlstate, sqlstate.as_bytes());
            assert_eq!(report.is_fatal(), sqlstate == "28000");
            let text = String::from_utf8_lossy(&bytes);
            assert!(text.contains("\0H") && !text.contains("sesame"), "{text}");
        }
    }
}
