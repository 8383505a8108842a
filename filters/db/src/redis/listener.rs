//! The bound listener and the life of its connections.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::future::BoxFuture;
use metrics::gauge;
use qudag_filter_api::{Address, Chains, Env, FilterError, Kind};
use qudag_filter_common::{
    ByteCounters, Drain, Early, FlowLine, Front, Seat, Seats, Socket, SpliceOptions, Stream,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::kind::{Pooled, Redis, RedisAnswer, RedisRequest, RedisSession, RedisSettings};
use super::relay::pass_on;
use super::reply::refusal;
use super::session::{End, Session};
use crate::auth::{Begun as Beginning, SecureStream, ServerTls, TlsError, accept_tls};

/// How long an error may take to be sent and read.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// The time that a client has for its TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

pub(crate) fn bind(
    address: Address,
    chains: Chains<Redis>,
    env: Env,
) -> BoxFuture<'static, io::Result<Box<dyn Front>>> {
    let place = Arc::new(Place { chains, sessions: Seats::default() });
    Socket::front(address, env, move |client, drain| connection(Arc::clone(&place), client, drain))
}

/// What the connections share.
struct Place {
    chains: Chains<Redis>,
    sessions: Seats,
}

/// A place among `max_sessions`.
struct SessionSeat(#[expect(dead_code, reason = "held for its drop")] Seat);

impl SessionSeat {
    fn take(sessions: &Seats, most: usize) -> Option<Self> {
        let seat = sessions.take(most)?;
        gauge!("qudag_sidecar_redis_sessions_active").increment(1.0);
        Some(Self(seat))
    }
}

impl Drop for SessionSeat {
    fn drop(&mut self) {
        gauge!("qudag_sidecar_redis_sessions_active").decrement(1.0);
    }
}

/// How a session goes on.
struct Begun {
    answer: RedisAnswer,
    settings: Arc<RedisSettings>,
    _seat: SessionSeat,
}

/// Why a session does not begin.
struct NotBegun {
    error: FilterError,
    /// The client begins with TLS.
    encrypted: bool,
}

async fn connection(place: Arc<Place>, client: Stream, drain: Drain) {
    let mut line = FlowLine::start(Redis::NAME, client.peer_addr());
    let begun = tokio::select! {
        biased;
        () = drain.aborted() => {
            client.reset();
            return line.end("aborted", 0, 0);
        }
        begun = begin(&place, &client) => begun,
    };
    let Begun { answer, settings, _seat } = match begun {
        Ok(begun) => begun,
        Err(error) => {
            line.detail("error", &error.error);
            // Before its handshake a client with TLS understands nothing.
            let said = if error.encrypted { 0 } else { last_words(client.into(), &error.error).await };
            return line.end(error.error.label(), 0, said);
        }
    };
    let tls = match &answer {
        RedisAnswer::PassThrough(_, tls) => tls.clone(),
        RedisAnswer::Pooled(pooled) => pooled.upstream.clients.clone(),
        RedisAnswer::Server(_) | RedisAnswer::Own => None,
    };
    let client = tokio::select! {
        biased;
        () = drain.aborted() => return line.end("aborted", 0, 0),
        client = secured(client, tls.as_deref()) => client,
    };
    let client = match client {
        Ok(client) => client,
        Err(why) => {
            line.detail("error", &why);
            return line.end("tls", 0, 0);
        }
    };
    let counters = ByteCounters::new(Redis::NAME, &settings.target);
    match answer {
        RedisAnswer::PassThrough(stream, _) => {
            let spliced = pass_on(Early::default(), client, stream, settings.splice, &drain, &counters).await;
            line.end(spliced.end.label(), spliced.up, spliced.down);
        }
        RedisAnswer::Pooled(pooled) => {
            pooled_session(&place, client, pooled, settings.splice, drain, &counters, line).await;
        }
        RedisAnswer::Server(_) | RedisAnswer::Own => {
            let error = FilterError::Internal("a server for a session that was not begun".into());
            line.end(error.label(), 0, last_words(client, &error).await);
        }
    }
}

/// The client's stream, after its handshake where it begins with TLS.
async fn secured(client: Stream, tls: Option<&ServerTls>) -> Result<SecureStream, TlsError> {
    match tls {
        Some(tls) => {
            let deadline = Instant::now() + HANDSHAKE;
            accept_tls(client, BytesMut::new(), Beginning::Expected, tls, deadline).await
        }
        None => Ok(client.into()),
    }
}

/// Asks the current generation's chain how the session is carried.
async fn begin(place: &Place, client: &Stream) -> Result<Begun, NotBegun> {
    let Some(lease) = (place.chains)() else {
        return Err(NotBegun { error: FilterError::Draining, encrypted: false });
    };
    let settings = Arc::clone(&lease.settings);
    let refused = |error| NotBegun { error, encrypted: settings.encrypted };
    let seat = SessionSeat::take(&place.sessions, settings.max_sessions)
        .ok_or_else(|| refused(FilterError::Overloaded("too many sessions".into())))?;
    let server = Arc::clone(&settings.target);
    let session = RedisSession { client: client.peer_addr(), server, pooled: None };
    let answer = lease.chain.call(RedisRequest::Session(session)).await.map_err(refused)?;
    Ok(Begun { answer, settings, _seat: seat })
}

async fn pooled_session(
    place: &Place,
    client: SecureStream,
    pooled: Pooled,
    options: SpliceOptions,
    drain: Drain,
    counters: &ByteCounters,
    mut line: FlowLine,
) {
    let chains = Arc::clone(&place.chains);
    let Some(mut session) = Session::new(client, pooled, chains, options.stall) else {
        return line.end("overloaded", 0, 0);
    };
    let end = tokio::select! {
        biased;
        () = drain.aborted() => None,
        end = session.run(&drain) => Some(end),
    };
    let Session { client, inbox, out, up, down, commands, .. } = session;
    line.detail("commands", commands);
    counters.add(up, down);
    match end {
        None => {
            client.reset();
            line.end("aborted", up, down);
        }
        Some(End::Over("stalled")) => {
            client.reset();
            line.end("stalled", up, down);
        }
        Some(End::Over(outcome)) => {
            close(client).await;
            line.end(outcome, up, down);
        }
        Some(End::Own(connection)) => {
            line.detail("own", true);
            let connection = *connection;
            let early = Early { up: inbox.to_vec(), down: [&out[..], &connection.down[..]].concat() };
            let _count = connection.count;
            let spliced = pass_on(early, client, connection.stream, options, &drain, counters).await;
            line.end(spliced.end.label(), up + spliced.up, down + spliced.down);
        }
    }
}

/// Sends an error and closes; returns its length.
async fn last_words(mut client: SecureStream, error: &FilterError) -> u64 {
    let words = refusal(error);
    // Nothing more can be done for a client that does not take it.
    let said = async {
        client.write_all(&words).await?;
        client.flush().await
    };
    let _ = timeout(LAST_WORDS, said).await;
    close(client).await;
    words.len() as u64
}

/// Closes. Closing while there are unread bytes would send RST, which can destroy what was said last on its way, so a little is read
/// and thrown away.
async fn close(mut client: SecureStream) {
    let end = async {
        client.shutdown().await?;
        tokio::io::copy(&mut (&mut client).take(64 << 10), &mut tokio::io::sink()).await
    };
    let _ = timeout(LAST_WORDS, end).await;
}
