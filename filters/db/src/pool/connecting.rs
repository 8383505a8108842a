//! Making connections to the server, a few at a time, and what is learned by them.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use metrics::counter;
use qudag_filter_api::FilterError;
use tokio::time::{sleep, timeout_at};

use super::conn::{CancelKey, Conn};
use super::desk::{BACKOFF, Desk, PARALLEL, Want, lock};
use super::places::Who;
use super::servers::{Known, Pool};
use super::taking::Lease;
use crate::auth::{Login, LoginError, login};
use crate::session::{Parameters, Server};

/// Start-up parameters of clients whose meaning for the server is remembered.
const WISHES: usize = 256;

/// Why no connection could be made.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) why: Arc<str>,
    /// The server's own ErrorResponse, as it came.
    pub(crate) response: Option<Bytes>,
    /// Trying again is no use: the user, the database or the password is wrong.
    pub(super) hopeless: bool,
    pub(super) at: Instant,
    /// The server says that it has too much.
    pub(super) too_much: bool,
}

impl Failure {
    fn of(error: &LoginError) -> Self {
        let (response, sqlstate) = match error {
            LoginError::Refused { response, sqlstate } => {
                (Some(Bytes::copy_from_slice(response)), sqlstate.as_str())
            }
            _ => (None, ""),
        };
        Self {
            why: error.to_string().into(),
            response,
            hopeless: ["28", "3D", "42"].iter().any(|class| sqlstate.starts_with(class))
                || matches!(error, LoginError::Scram(_) | LoginError::Credentials(_)),
            at: Instant::now(),
            too_much: sqlstate.starts_with("53"),
        }
    }

    pub(super) fn error(&self) -> FilterError {
        FilterError::Unavailable { why: self.why.to_string().into(), retry_after: BACKOFF.max }
    }
}

/// An error at the login of a client, with the server's own words where it has said them.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) error: FilterError,
    pub(crate) response: Option<Bytes>,
}

impl Pool {
    /// Makes as many connections as are wanted and may be made at a time.
    pub(super) fn make_connections(self: &Arc<Self>) {
        let now = Instant::now();
        loop {
            if !lock(&self.known).attempts.may(now) {
                return;
            }
            let Some(home) = self.home.upgrade() else { return };
            if !lock(&self.places).wants_connection(PARALLEL) {
                return;
            }
            if !home.may_connect(self) {
                lock(&self.places).failed();
                return;
            }
            drop(self.lane.handle().spawn(Arc::clone(self).make_connection()));
        }
    }

    async fn make_connection(self: Arc<Self>) {
        match self.log_in().await {
            Ok((connection, parameters)) => {
                counter!("qudag_sidecar_db_connects_total", "outcome" => "ok").increment(1);
                {
                    let mut known = lock(&self.known);
                    known.attempts.made();
                    known.welcome = Some(parameters);
                }
                let surplus = lock(&self.places).connected(Box::new(connection), Instant::now());
                if surplus.is_some() {
                    self.closed("shrunk");
                }
                self.news.notify_waiters();
            }
            Err(error) => {
                let failure = Failure::of(&error);
                let outcome = if failure.response.is_some() { "refused" } else { "failed" };
                counter!("qudag_sidecar_db_connects_total", "outcome" => outcome).increment(1);
                lock(&self.places).failed();
                self.disconnected();
                let wait = {
                    let mut known = lock(&self.known);
                    if failure.too_much {
                        self.too_much(&mut known);
                    }
                    let why = Arc::clone(&failure.why);
                    let (wait, first) = known.attempts.fail(failure, Instant::now());
                    if first {
                        tracing::warn!(server = %self.key.server, error = %why, "cannot connect to the database");
                    }
                    wait
                };
                self.news.notify_waiters();
                sleep(wait).await;
                lock(&self.known).attempts.waited();
            }
        }
        self.make_connections();
    }

    async fn log_in(&self) -> Result<(Conn, Arc<Parameters>), LoginError> {
        let (identity, statements) = {
            let known = lock(&self.known);
            (known.identity.clone(), known.settings.statements)
        };
        let deadline = tokio::time::Instant::now() + self.target.connect_timeout;
        let connected = timeout_at(deadline, self.target.connect()).await.map_err(|_| LoginError::Timeout)?;
        let stream = connected.map_err(std::io::Error::other)?;
        let request = Login {
            user: &self.key.user,
            database: &self.key.database,
            parameters: &[],
            identity: &identity,
            tls: &self.target.tls,
            server: &self.target.address,
        };
        let logged = login(stream, &request, deadline).await?;
        let parameters = Arc::new(logged.parameters);
        let machine = Server::new(Arc::clone(&parameters), statements);
        let key = CancelKey { process: logged.process, secret: logged.secret };
        let mut connection = Conn::new(machine, logged.stream, key, Instant::now());
        connection.down = logged.rest;
        self.servers.add(&connection.seen);
        Ok((connection, parameters))
    }

    /// A server for a session that is not pooled any more: one of its own. While others are getting theirs, and for a while after the
    /// server would have no more, the pool leads it as before: all sessions want one at the same time, and nobody is to wait for that.
    ///
    /// # Errors
    /// Those of [`Pool::take`].
    pub(crate) async fn dedicated(self: &Arc<Self>, want: Want) -> Result<Lease, FilterError> {
        let refused = |known: &Known| known.no_own_before.is_some_and(|time| Instant::now() < time);
        if let Ok(_one_of_few) = self.own.try_acquire()
            && !refused(&lock(&self.known))
        {
            match self.log_in().await {
                Ok((connection, _)) => return Ok(Lease::new(self, None, Some(Box::new(connection)), None)),
                Err(error) => {
                    let failure = Failure::of(&error);
                    tracing::debug!(server = %self.key.server, error = %failure.why, "the pool leads a session on");
                    lock(&self.known).no_own_before = Some(Instant::now() + BACKOFF.max);
                }
            }
        }
        self.take(want).await
    }

    /// Resolves when an attempt to connect has failed that ended after `begun`.
    pub(crate) async fn unreachable(&self, begun: Instant) {
        loop {
            let news = self.news.notified();
            if lock(&self.known).attempts.failure().is_some_and(|failure| failure.at >= begun) {
                return;
            }
            news.await;
        }
    }

    /// What the server reports at a login.
    ///
    /// # Errors
    /// When no connection can be made in time.
    pub(crate) async fn welcome(self: &Arc<Self>, who: Who) -> Result<Arc<Parameters>, Failed> {
        if let Some(welcome) = lock(&self.known).welcome.clone() {
            return Ok(welcome);
        }
        let want = Want { who, bytes: 0, pressure: None };
        let timeout = self.target.connect_timeout;
        let taken = tokio::time::timeout(timeout, self.take(want)).await;
        match taken.unwrap_or(Err(FilterError::Timeout { after: timeout })) {
            Ok(lease) => lease.give_back(None, Instant::now()),
            Err(error) => return Err(Failed { response: self.failure(), error }),
        }
        let welcome = lock(&self.known).welcome.clone();
        welcome
            .ok_or(Failed { error: FilterError::Upstream("the connection was lost".into()), response: None })
    }

    fn failure(&self) -> Option<Bytes> {
        lock(&self.known).attempts.failure().and_then(|failure| failure.response.clone())
    }

    /// What clients are told who gave parameters at their start-up, where that is known.
    pub(crate) fn wish(&self, wish: &[u8]) -> Option<Arc<Parameters>> {
        lock(&self.known).wishes.get(wish).cloned()
    }

    pub(crate) fn remember_wish(&self, wish: Box<[u8]>, parameters: Arc<Parameters>) {
        let mut known = lock(&self.known);
        if known.wishes.len() >= WISHES {
            known.wishes.clear();
        }
        known.wishes.insert(wish, parameters);
    }
}
