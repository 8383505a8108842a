//! The bound listener and the life of its connections.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use metrics::gauge;
use qudag_filter_api::{Address, Chains, Env, FilterError, Kind};
use qudag_filter_common::{
    Buffers, ByteCounters, Drain, Early, FlowLine, Front, Seat, Seats, Socket, SpliceOptions, Stream, splice,
    splice_after,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::kind::{Pooled, Redis, RedisAnswer, RedisRequest, RedisSession, RedisSettings};
use super::reply::refusal;
use super::session::{End, Session};

/// How long an error may take to be sent and read.
const LAST_WORDS: Duration = Duration::from_secs(1);

pub(crate) async fn bind(address: Address, chains: Chains<Redis>, env: Env) -> io::Result<Box<dyn Front>> {
    let socket = Socket::bind(&address, &*env.resolve).await?;
    let place = Arc::new(Place { chains, sessions: Seats::default() });
    Ok(socket.into_front(move |client, drain| connection(Arc::clone(&place), client, drain)))
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
            line.detail("error", &error);
            let said = last_words(client, &error).await;
            return line.end(error.label(), 0, said);
        }
    };
    let counters = ByteCounters::new(Redis::NAME, &settings.target);
    match answer {
        RedisAnswer::PassThrough(stream) => {
            let spliced = splice(client, stream, settings.splice, &drain, &counters).await;
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

/// Asks the current generation's chain how the session is carried.
async fn begin(place: &Place, client: &Stream) -> Result<Begun, FilterError> {
    let lease = (place.chains)().ok_or(FilterError::Draining)?;
    let settings = Arc::clone(&lease.settings);
    let seat = SessionSeat::take(&place.sessions, settings.max_sessions)
        .ok_or(FilterError::Overloaded("too many sessions".into()))?;
    let server = Arc::clone(&settings.target);
    let session = RedisSession { client: client.peer_addr(), server, pooled: None };
    let answer = lease.chain.call(RedisRequest::Session(session)).await?;
    Ok(Begun { answer, settings, _seat: seat })
}

async fn pooled_session(
    place: &Place,
    client: Stream,
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
            let (stream, buffers) = (connection.stream, Buffers::default());
            let _count = connection.count;
            let spliced = splice_after(early, client, stream, options, &buffers, &drain, counters).await;
            line.end(spliced.end.label(), up + spliced.up, down + spliced.down);
        }
    }
}

/// Sends an error and closes; returns its length.
async fn last_words(mut client: Stream, error: &FilterError) -> u64 {
    let words = refusal(error);
    // Nothing more can be done for a client that does not take it.
    let _ = timeout(LAST_WORDS, client.write_all(&words)).await;
    close(client).await;
    words.len() as u64
}

/// Closes. Closing while there are unread bytes would send RST, which can destroy what was said last on its way, so a little is read
/// and thrown away.
async fn close(mut client: Stream) {
    let end = async {
        client.shutdown().await?;
        tokio::io::copy(&mut (&mut client).take(64 << 10), &mut tokio::io::sink()).await
    };
    let _ = timeout(LAST_WORDS, end).await;
}
