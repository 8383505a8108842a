//! One connection to a server.

use std::fmt;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::BytesMut;
use metrics::{counter, gauge};
use qudag_filter_api::FilterError;
use qudag_filter_common::Seat;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use zeroize::Zeroize;

use super::credentials::command;
use super::pools::PoolKey;
use super::resp::{Reply, ReplyScan};
use super::settings::RedisUpstream;
use crate::auth::SecureStream;
use crate::pool::conn::poll_read;
use crate::pool::desk::Connection;

/// The most that is read for a login.
const LONGEST_LOGIN: usize = 64 << 10;

/// A connection after its login.
pub(crate) struct Conn {
    pub(crate) stream: SecureStream,
    /// Towards the server.
    pub(crate) up: BytesMut,
    /// What was written has not all left.
    pub(crate) unflushed: bool,
    /// From the server.
    pub(crate) down: BytesMut,
    pub(crate) scan: ReplyScan,
    /// Since when it is there, and since when nobody uses it.
    pub(crate) created: Instant,
    pub(crate) idle_since: Instant,
    pub(crate) count: Count,
}

/// Its place among all connections.
pub(crate) struct Count(#[expect(dead_code, reason = "held for its drop")] Seat, &'static str);

impl Drop for Count {
    fn drop(&mut self) {
        gauge!("qudag_sidecar_redis_servers", "of" => self.1).decrement(1.0);
    }
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conn").finish_non_exhaustive()
    }
}

/// Why there is no connection.
#[derive(Clone, Debug)]
pub(crate) enum LoginError {
    /// It could not be made, or broke.
    Failed(FilterError),
    /// The server's own error, without the `-` and the end of the line.
    Refused(Vec<u8>),
}

impl From<FilterError> for LoginError {
    fn from(error: FilterError) -> Self {
        Self::Failed(error)
    }
}

impl LoginError {
    /// Whether the server has as many connections as it takes.
    pub(crate) fn is_too_much(&self) -> bool {
        matches!(self, Self::Refused(why) if why.starts_with(b"ERR max number of clients"))
    }

    /// As it is logged and, without the server's address, told.
    pub(crate) fn error(&self) -> FilterError {
        match self {
            Self::Failed(error) => error.clone(),
            Self::Refused(why) => FilterError::Upstream(format!("refused: {}", why.escape_ascii()).into()),
        }
    }
}

/// Who has a connection, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    Pool,
    Session,
}

impl Conn {
    /// Connects and logs in: AUTH, HELLO, SELECT and CLIENT SETNAME, as far as they are wanted, all at once.
    pub(crate) async fn open(
        target: &RedisUpstream,
        key: &PoolKey,
        name: Option<&[u8]>,
        (seat, of): (Seat, Of),
    ) -> Result<Self, LoginError> {
        let limit = target.connect_timeout;
        let opened = timeout(limit, Self::begin(target, key, name, (seat, of))).await;
        let opened = opened.unwrap_or(Err(FilterError::Timeout { after: limit }.into()));
        let outcome = match &opened {
            Ok(_) => "ok",
            Err(LoginError::Refused(_)) => "refused",
            Err(LoginError::Failed(_)) => "failed",
        };
        counter!("qudag_sidecar_redis_connects_total", "outcome" => outcome).increment(1);
        opened
    }

    async fn begin(
        target: &RedisUpstream,
        key: &PoolKey,
        name: Option<&[u8]>,
        (seat, of): (Seat, Of),
    ) -> Result<Self, LoginError> {
        let mut stream = target.connect().await?;
        let (mut said, mut owed) = (Vec::new(), 0);
        let mut say = |words: &[u8]| {
            said.extend_from_slice(words);
            owed += 1;
        };
        if let Some(credentials) = &key.credentials {
            say(&credentials.command());
        }
        if key.resp3 {
            say(&command(&[b"HELLO", b"3"]));
        }
        if key.database != 0 {
            say(&command(&[b"SELECT", key.database.to_string().as_bytes()]));
        }
        if let Some(name) = name {
            say(&command(&[b"CLIENT", b"SETNAME", name]));
        }
        let lost = |why: std::io::Error| FilterError::Upstream(why.to_string().into());
        let written = stream.write_all(&said).await;
        said.zeroize();
        written.map_err(lost)?;
        stream.flush().await.map_err(lost)?;
        let (mut scan, mut down, mut read) = (ReplyScan::default(), BytesMut::new(), 0);
        while owed > 0 {
            let more = stream.read_buf(&mut down).await.map_err(lost)?;
            read += more;
            if more == 0 || read > LONGEST_LOGIN {
                return Err(FilterError::Upstream("the connection was closed at its login".into()).into());
            }
            while let Some(reply) = next(&mut scan, &mut down)? {
                if reply.is_error() {
                    return Err(LoginError::Refused(reply.error));
                }
                owed -= usize::from(!reply.is_push() && owed > 0);
            }
        }
        let label = if of == Of::Pool { "pool" } else { "session" };
        gauge!("qudag_sidecar_redis_servers", "of" => label).increment(1.0);
        let now = Instant::now();
        let count = Count(seat, label);
        let up = BytesMut::new();
        Ok(Self { stream, up, unflushed: false, down, scan, created: now, idle_since: now, count })
    }

    /// It belongs to a session from now on.
    pub(crate) fn becomes_own(&mut self, seat: Seat) {
        gauge!("qudag_sidecar_redis_servers", "of" => "session").increment(1.0);
        self.count = Count(seat, "session");
    }
}

impl Connection for Conn {
    fn since(&self) -> (Instant, Instant) {
        (self.created, self.idle_since)
    }

    /// Whether nothing came while nobody had it: only a server that closes it has something to say then.
    fn is_quiet(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.down.is_empty() && matches!(poll_read(&mut self.stream, &mut cx, &mut self.down), Poll::Pending)
    }
}

/// The next reply in a buffer, which is taken out of it.
fn next(scan: &mut ReplyScan, down: &mut BytesMut) -> Result<Option<Reply>, FilterError> {
    if down.is_empty() {
        return Ok(None);
    }
    let (taken, reply) = scan.feed(down).map_err(|why| FilterError::Upstream(why.to_string().into()))?;
    drop(down.split_to(taken));
    Ok(reply)
}

/// Counts why a connection to a server was closed.
pub(crate) fn closed(reason: &'static str) {
    counter!("qudag_sidecar_redis_servers_closed_total", "reason" => reason).increment(1);
}
