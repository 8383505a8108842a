//! The bound listener and the life of its connections.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::future::BoxFuture;
use metrics::{counter, gauge};
use qudag_filter_api::{Address, Chains, Env, FilterError, Flow, FlowKey, Kind, Resolve};
use qudag_filter_common::{
    ByteCounters, Drain, FlowLine, Front, Seat, Seats, Socket, SpliceOptions, Stream, connect, splice,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};

use crate::pool::{Cancels, Coming, pooled};
use crate::reply::{error_response, say_last};
use crate::startup::{Progress, StartupError, parse, shown};
use crate::{Db, DbAnswer, DbRequest, DbSession, DbSettings, Pooled, StartupPacket};

/// How many connections may be in their start-up or carry a CancelRequest at a time. They are counted apart from sessions, so that
/// queries can be cancelled while there are as many sessions as may be.
const MAX_STARTING: usize = 1024;
/// The start-up time of connections that are accepted while databases are switched off.
const REFUSAL_TIME: Duration = Duration::from_secs(10);

/// What the connections share.
struct Place {
    chains: Chains<Db>,
    resolve: Arc<dyn Resolve>,
    starting: Seats,
    sessions: Seats,
    cancels: Cancels,
    /// Whether sessions are for replicas.
    read_only: bool,
}

pub(crate) fn bind(
    address: Address,
    read_only: bool,
    chains: Chains<Db>,
    env: Env,
) -> BoxFuture<'static, io::Result<Box<dyn Front>>> {
    let (starting, sessions) = (Seats::default(), Seats::default());
    let (cancels, resolve) = (Cancels::default(), Arc::clone(&env.resolve));
    let place = Arc::new(Place { chains, resolve, starting, sessions, cancels, read_only });
    Socket::front(address, env, move |client, drain| connection(Arc::clone(&place), client, drain))
}

/// A place among `max_sessions`.
struct SessionSeat(#[expect(dead_code, reason = "held for its drop")] Seat);

impl SessionSeat {
    fn take(sessions: &Seats, most: usize) -> Option<Self> {
        let seat = sessions.take(most)?;
        gauge!("qudag_sidecar_db_sessions_active").increment(1.0);
        Some(Self(seat))
    }
}

impl Drop for SessionSeat {
    fn drop(&mut self) {
        gauge!("qudag_sidecar_db_sessions_active").decrement(1.0);
    }
}

/// A connection to the server, on which this connection's packets have been sent.
struct Upstream {
    stream: Stream,
    settings: Arc<DbSettings>,
    /// `None` for a CancelRequest.
    seat: Option<SessionSeat>,
}

/// How a connection goes on.
enum Way {
    /// Its bytes are passed on.
    Through(Upstream),
    /// Its session is pooled: what was read of it is read again there.
    Pooled {
        pooled: Pooled,
        key: FlowKey,
        settings: Arc<DbSettings>,
        seat: SessionSeat,
        read: Vec<u8>,
        deadline: Instant,
    },
    /// It has carried a CancelRequest to a pooled session.
    Cancelled,
}

/// Why a connection ends before its bytes were left to the splice.
enum End {
    /// With an ErrorResponse.
    Refused(FilterError),
    /// Without a word, since none could be understood; the outcome in words.
    Silent(&'static str),
}

impl From<FilterError> for End {
    fn from(error: FilterError) -> Self {
        Self::Refused(error)
    }
}

impl From<StartupError> for End {
    fn from(error: StartupError) -> Self {
        Self::Refused(FilterError::Malformed(error.to_string().into()))
    }
}

async fn connection(place: Arc<Place>, client: Stream, drain: Drain) {
    let line = FlowLine::start(Db::NAME, client.peer_addr());
    let Some(seat) = place.starting.take(MAX_STARTING) else {
        client.reset();
        return line.end("overloaded", 0, 0);
    };
    let mut start = Start { place: &place, client, line, up: 0, down: 0 };
    let begun = tokio::select! {
        biased;
        () = drain.aborted() => None,
        begun = start.run() => Some(begun),
    };
    let Start { client, mut line, up, down, .. } = start;
    let upstream = match begun {
        Some(Ok(Way::Through(upstream))) => upstream,
        Some(Ok(Way::Cancelled)) => return line.end("ok", up, down),
        Some(Ok(Way::Pooled { pooled: way, key, settings, seat: session, read, deadline })) => {
            drop(seat);
            let coming = Coming {
                stream: client,
                inbox: BytesMut::from(&read[..]),
                key,
                access: way.access,
                replicas: way.replicas,
                read_only: place.read_only,
                pools: way.pools,
                settings: way.settings,
                chains: Arc::clone(&place.chains),
                cancels: place.cancels.clone(),
                deadline,
                stall: settings.splice.stall,
            };
            let (outcome, up, down) = pooled(coming, drain, &mut line).await;
            drop(session);
            ByteCounters::new(Db::NAME, &settings.target).add(up, down);
            return line.end(outcome, up, down);
        }
        Some(Err(End::Refused(error))) => {
            line.detail("error", &error);
            let said = last_words(client, &error).await;
            return line.end(error.label(), up, down + said);
        }
        Some(Err(End::Silent(outcome))) => return line.end(outcome, up, down),
        None => {
            client.reset();
            return line.end("aborted", up, down);
        }
    };

    let Upstream { stream, settings, seat: session } = upstream;
    let counters = ByteCounters::new(Db::NAME, &settings.target);
    counters.add(up, down);
    let spliced = if session.is_some() {
        drop(seat);
        splice(client, stream, settings.splice, &drain, &counters).await
    } else {
        // The server answers a CancelRequest with the end of the connection.
        let limit = settings.startup_timeout;
        let options = SpliceOptions { stall: limit, half_close: limit };
        match timeout(limit, splice(client, stream, options, &drain, &counters)).await {
            Ok(spliced) => spliced,
            Err(_) => return line.end("stalled", up, down),
        }
    };
    line.end(spliced.end.label(), up + spliced.up, down + spliced.down);
}

/// The first part of a connection, until its bytes need not be understood any more.
struct Start<'a> {
    place: &'a Place,
    client: Stream,
    line: FlowLine,
    /// Bytes passed on so far.
    up: u64,
    down: u64,
}

impl Start<'_> {
    async fn run(&mut self) -> Result<Way, End> {
        let time = (self.place.chains)().map_or(REFUSAL_TIME, |lease| lease.settings.startup_timeout);
        let deadline = Instant::now() + time;
        // What the chain said, once it has been asked.
        let mut asked: Option<Result<Upstream, FilterError>> = None;
        let (mut ssl, mut gss) = (false, false);
        loop {
            let (packet, bytes) = self.read(deadline).await?;
            match &packet {
                StartupPacket::CancelRequest { process, secret } => {
                    if self.place.cancels.cancel(*process, secret) {
                        self.line.detail("startup", packet.label());
                        return Ok(Way::Cancelled);
                    }
                    self.line.detail("startup", packet.label());
                    let upstream = match asked {
                        Some(Ok(upstream)) => upstream,
                        _ => {
                            self.connect_past_the_chain().await.map_err(|error| End::Silent(error.label()))?
                        }
                    };
                    let forwarded = self.forward(upstream, &bytes).await;
                    return forwarded.map(Way::Through).map_err(|error| End::Silent(error.label()));
                }
                StartupPacket::Startup(message) => {
                    self.line.detail("user", shown(&message.user));
                    self.line.detail("database", shown(&message.database));
                    if !message.application_name.is_empty() {
                        self.line.detail("application", shown(&message.application_name));
                    }
                }
                StartupPacket::SslRequest if std::mem::replace(&mut ssl, true) => {
                    return Err(StartupError::Repeated("SSLRequest").into());
                }
                StartupPacket::GssEncRequest if std::mem::replace(&mut gss, true) => {
                    return Err(StartupError::Repeated("GSSENCRequest").into());
                }
                _ => {}
            }
            let answer = match asked.take() {
                Some(answer) => answer,
                None => match self.ask(packet.clone(), deadline).await {
                    Ok(Way::Through(upstream)) => Ok(upstream),
                    Ok(mut way) => {
                        if let Way::Pooled { read, .. } = &mut way {
                            *read = bytes;
                        }
                        return Ok(way);
                    }
                    Err(error) => Err(error),
                },
            };
            match &packet {
                StartupPacket::SslRequest | StartupPacket::GssEncRequest => {
                    let negotiated = match answer {
                        Ok(upstream) => self.negotiate(upstream, &bytes).await,
                        Err(error) => Err(error),
                    };
                    let (reply, upstream) = match negotiated {
                        Ok((reply, upstream)) => (reply, Ok(upstream)),
                        // Current clients distrust an ErrorResponse here (CVE-2024-10977) and show it to nobody. After `N` comes the
                        // StartupMessage, and then the error is shown.
                        Err(error) => (b'N', Err(error)),
                    };
                    self.tell(deadline, reply).await?;
                    match upstream {
                        Ok(upstream) if reply != b'N' => {
                            self.line.detail("startup", packet.label());
                            return Ok(Way::Through(upstream));
                        }
                        upstream => asked = Some(upstream),
                    }
                }
                StartupPacket::DirectTls => {
                    self.line.detail("startup", packet.label());
                    // Within TLS, an ErrorResponse could not be understood.
                    let upstream = answer.map_err(|error| End::Silent(error.label()))?;
                    let forwarded = self.forward(upstream, &bytes).await;
                    return forwarded.map(Way::Through).map_err(|error| End::Silent(error.label()));
                }
                StartupPacket::Startup(_) | StartupPacket::CancelRequest { .. } => {
                    self.line.detail("startup", packet.label());
                    return Ok(Way::Through(self.forward(answer?, &bytes).await?));
                }
            }
        }
    }

    /// The next packet and its bytes. Takes nothing of what follows it.
    async fn read(&mut self, deadline: Instant) -> Result<(StartupPacket, Vec<u8>), End> {
        let mut bytes = Vec::new();
        let packet = loop {
            let missing = match parse(&bytes) {
                Ok(Progress::Packet(packet, _)) => break packet,
                Ok(Progress::Need(total)) => total.saturating_sub(bytes.len()) as u64,
                Err(error) => {
                    count("malformed");
                    return Err(error.into());
                }
            };
            match timeout_at(deadline, (&mut self.client).take(missing).read_buf(&mut bytes)).await {
                Err(_) => return Err(End::Silent("startup_timeout")),
                Ok(Ok(0) | Err(_)) => return Err(End::Silent("client_gone")),
                Ok(Ok(_)) => {}
            }
        };
        count(packet.label());
        Ok((packet, bytes))
    }

    /// Asks the current generation's chain for a connection.
    async fn ask(&mut self, first: StartupPacket, deadline: Instant) -> Result<Way, FilterError> {
        let lease = (self.place.chains)().ok_or(FilterError::Draining)?;
        let settings = Arc::clone(&lease.settings);
        let seat = SessionSeat::take(&self.place.sessions, settings.max_sessions)
            .ok_or(FilterError::Overloaded("too many sessions".into()))?;
        let server = Arc::clone(&settings.target);
        let client = self.client.peer_addr();
        let session = DbSession { client, first, server, pooled: None, replicas: None };
        let key = session.key();
        match lease.chain.call(DbRequest::Session(session)).await? {
            DbAnswer::PassThrough(stream) => {
                Ok(Way::Through(Upstream { stream, settings, seat: Some(seat) }))
            }
            DbAnswer::Pooled(pooled) => {
                Ok(Way::Pooled { pooled, key, settings, seat, read: Vec::new(), deadline })
            }
            DbAnswer::Server(_) | DbAnswer::Reply(_) | DbAnswer::Own => {
                Err(FilterError::Internal("a server for a session that was not begun".into()))
            }
        }
    }

    /// A connection for a CancelRequest, which must get through when nothing else does.
    async fn connect_past_the_chain(&mut self) -> Result<Upstream, FilterError> {
        let lease = (self.place.chains)().ok_or(FilterError::Draining)?;
        let settings = Arc::clone(&lease.settings);
        let stream = connect(&settings.server, &*self.place.resolve, settings.connect_timeout).await?;
        Ok(Upstream { stream, settings, seat: None })
    }

    /// Passes a packet on to the server.
    async fn forward(&mut self, mut upstream: Upstream, bytes: &[u8]) -> Result<Upstream, FilterError> {
        let limit = upstream.settings.connect_timeout;
        in_time(limit, upstream.stream.write_all(bytes)).await?;
        self.up += bytes.len() as u64;
        Ok(upstream)
    }

    /// Passes a request for encryption on and reads the one byte of the answer. What follows it belongs to the client.
    async fn negotiate(&mut self, upstream: Upstream, bytes: &[u8]) -> Result<(u8, Upstream), FilterError> {
        let mut upstream = self.forward(upstream, bytes).await?;
        let limit = upstream.settings.connect_timeout;
        let reply = in_time(limit, upstream.stream.read_u8()).await?;
        Ok((reply, upstream))
    }

    /// Answers a request for encryption.
    async fn tell(&mut self, deadline: Instant, reply: u8) -> Result<(), End> {
        match timeout_at(deadline, self.client.write_u8(reply)).await {
            Err(_) => Err(End::Silent("startup_timeout")),
            Ok(Err(_)) => Err(End::Silent("client_gone")),
            Ok(Ok(())) => {
                self.down += 1;
                Ok(())
            }
        }
    }
}

fn count(packet: &'static str) {
    counter!("qudag_sidecar_db_startup_packets_total", "packet" => packet).increment(1);
}

/// Something that the server does, with its time limit.
async fn in_time<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> Result<T, FilterError> {
    match timeout(limit, work).await {
        Ok(done) => done.map_err(|why| FilterError::Upstream(why.to_string().into())),
        Err(_) => Err(FilterError::Timeout { after: limit }),
    }
}

/// Sends an ErrorResponse and closes; returns its length.
async fn last_words(client: Stream, error: &FilterError) -> u64 {
    let response = error_response(error);
    say_last(client, &response).await;
    response.len() as u64
}
