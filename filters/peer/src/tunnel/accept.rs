//! The listener of the tunnel: takes connections of other sidecars, and leads their streams to this one's node.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use metrics::counter;
use qudag_filter_api::{Address, Chains, Env, FilterError, Host, HostPort, Kind, Lanes};
use qudag_filter_common::splice::Early;
use qudag_filter_common::{ByteCounters, Drain, FlowLine, Front, Seats, splice_after};
use quinn::{Connection, Incoming, RecvStream, SendStream, VarInt};
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, timeout};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::TunnelStream;
use super::door::{self, Beginning, Door, Entrance};
use super::header::{Destination, Header, MAX_HEADER, Status};
use super::pulse;
use super::shares::{Shares, What};
use crate::discovery::Announced;
use crate::exchange::answer;
use crate::identity::{HandshakeOutcome, PeerName, peer_name};
use crate::kind::{Link, Peer, PeerConnect, PeerSettings, Route};
use crate::listener::{CONNECT_LIMIT, WARM, follow};
use crate::opening::Opening;

/// Handshakes at a time. Each costs the cryptography of a connection before its maker is known.
const HANDSHAKES: usize = 256;
/// From so many on, whoever wants one has to show first that its address is its own (RFC 9000 section 8.1.2).
const CROWD: usize = 64;
/// For a handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// For a header after its stream was opened.
const HEADER_LIMIT: Duration = Duration::from_secs(5);
/// How long a client may owe an answer before it is asked whether it is there at all. Longer than a client waits for a server:
/// what stands between the two may say of any datagram to the client that nobody has the port.
const OWED: Duration = Duration::from_secs(3);
/// The most that is read with a header.
const PIECE: usize = 16 << 10;
/// So many connections of a peer that has too many are told so at a time; others are closed without a word.
const TURNED_AWAY: usize = 4;
/// The codes with which connections are closed.
const DONE: VarInt = VarInt::from_u32(0);
const REFUSED: VarInt = VarInt::from_u32(1);

/// What all connections of the listener share.
struct Place {
    name: String,
    chains: Chains<Peer>,
    open: Seats,
    shares: Arc<Shares>,
    lanes: Lanes,
    handshakes: Arc<Semaphore>,
    /// Stays as long as the last connection.
    door: OnceLock<Arc<Door>>,
}

struct QuicFront {
    entrance: Entrance,
    address: Address,
    place: Arc<Place>,
}

/// Binds the listener of the tunnel.
///
/// # Errors
/// When the operating system refuses the address.
pub(crate) async fn bind(
    name: String,
    bind: HostPort,
    chains: Chains<Peer>,
    env: Env,
) -> io::Result<Box<dyn Front>> {
    let ips = match &bind.host {
        Host::Ip(ip) => vec![*ip],
        Host::Name(name) => env.resolve.resolve(name).await?,
    };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for ip in ips {
        match door::at(SocketAddr::new(ip, bind.port)).await {
            Ok(entrance) => {
                let address = Address::Tcp(entrance.address()?.into());
                let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
                let place = Place {
                    name,
                    chains,
                    open: Seats::default(),
                    shares: Arc::default(),
                    lanes: env.lanes,
                    handshakes,
                    door: OnceLock::new(),
                };
                return Ok(Box::new(QuicFront { entrance, address, place: Arc::new(place) }));
            }
            Err(why) => last = why,
        }
    }
    Err(last)
}

impl Front for QuicFront {
    fn address(&self) -> Address {
        self.address.clone()
    }

    fn serve(self: Box<Self>, drain: Drain) -> BoxFuture<'static, ()> {
        // The lane of the first connection too, as long as nothing else is on it: the endpoint is not reckoned in.
        let lane = self.place.lanes.any().handle();
        Box::pin(async move {
            // Fails when the process ends.
            let _ = AbortOnDropHandle::new(lane.spawn(serve(self.entrance, self.place, drain))).await;
        })
    }
}

async fn serve(entrance: Entrance, place: Arc<Place>, drain: Drain) {
    // What comes before there is a configuration waits in the socket; each connection gets the current one below.
    let (endpoint, server) = loop {
        if let Some(configs) = place.configs() {
            break configs;
        }
        tokio::select! {
            () = drain.stopping() => return,
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
    };
    let door = match entrance.open(endpoint, (*server).clone()) {
        Ok(door) => door,
        Err(error) => return tracing::error!(%error, listener = place.name, "cannot serve"),
    };
    // Was empty.
    let _ = place.door.set(Arc::clone(&door));
    let (mut announced, mut ticks) = (Announced::new(&place.name, None), tokio::time::interval(WARM));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let incoming = tokio::select! {
            biased;
            () = drain.stopping() => break,
            incoming = door.endpoint.accept() => incoming,
            _ = ticks.tick() => {
                if let Some(lease) = (place.chains)() {
                    announced.want(&lease, None);
                    follow(&lease);
                }
                continue;
            }
        };
        let Some(incoming) = incoming else { break };
        admit(&place, incoming, &drain);
    }
    // Connections that are there keep the socket.
    door.close();
}

impl Place {
    /// What connections are taken with now.
    fn config(&self) -> Option<Arc<quinn::ServerConfig>> {
        let lease = (self.chains)()?;
        let settings = Arc::clone(&lease.settings);
        let way = settings.way.get()?;
        let allow = Arc::clone(&settings.allow);
        Some(way.server(move |name| allow.contains(name)))
    }

    /// What the endpoint begins with.
    fn configs(&self) -> Option<(Beginning, Arc<quinn::ServerConfig>)> {
        let server = self.config()?;
        let lease = (self.chains)()?;
        Some((lease.settings.way.get()?.identity.endpoint_config(), server))
    }
}

fn handshake(outcome: &'static str) {
    counter!("qudag_sidecar_peer_handshakes_total", "outcome" => outcome).increment(1);
}

fn admit(place: &Arc<Place>, incoming: Incoming, drain: &Drain) {
    let Some(config) = place.config() else {
        handshake("off");
        return incoming.refuse();
    };
    let Ok(permit) = Arc::clone(&place.handshakes).try_acquire_owned() else {
        handshake("overloaded");
        return incoming.refuse();
    };
    let crowded = HANDSHAKES - place.handshakes.available_permits() > CROWD;
    if crowded && !incoming.remote_address_validated() && incoming.may_retry() {
        handshake("retry");
        // Cannot fail after the question above.
        let _ = incoming.retry();
        return;
    }
    let (place, drain) = (Arc::clone(place), drain.clone());
    let lane = place.lanes.any();
    drain.clone().spawn_on(&lane.handle(), async move {
        let _lane = lane;
        let remote = incoming.remote_address();
        let shaken = match incoming.accept_with(config) {
            Ok(connecting) => timeout(HANDSHAKE_LIMIT, connecting).await,
            Err(why) => Ok(Err(why)),
        };
        drop(permit);
        let outcome = match &shaken {
            Ok(Ok(_)) => HandshakeOutcome::Ok,
            Ok(Err(why)) => HandshakeOutcome::of(why),
            Err(_) => HandshakeOutcome::Timeout,
        };
        let Ok(Ok(connection)) = shaken else {
            handshake(outcome.label());
            let why = outcome.explanation();
            tracing::info!(%remote, outcome = outcome.label(), why, "a tunnel was not accepted");
            return;
        };
        let (own, most) = (place.chains)().map_or((None, 0), |lease| {
            let own = lease.settings.way.get().map(|way| way.identity.name());
            (own, lease.settings.max_tunnels_per_peer)
        });
        match peer_name(&connection) {
            Some(name) if own.as_ref() != Some(&name) => {
                let Some(_share) = place.shares.take(&name, What::Tunnels, most) else {
                    handshake("over_share");
                    tracing::info!(%remote, peer = %name, most, "a tunnel was not accepted: its peer has too many");
                    return turn_away(&place, connection, &name).await;
                };
                handshake("ok");
                serve_connection(&place, connection, name, &drain).await;
            }
            name => {
                handshake(if name.is_some() { "itself" } else { "no_certificate" });
                connection.close(REFUSED, b"");
            }
        }
    });
}

/// Says to whoever has too many connections that it is so, where it asks soon: its first stream is a question whether streams are taken at all.
async fn turn_away(place: &Place, connection: Connection, name: &PeerName) {
    if let Some(_share) = place.shares.take(name, What::TurnedAway, TURNED_AWAY)
        && let Ok(Ok((mut send, mut receive))) = timeout(HEADER_LIMIT, connection.accept_bi()).await
    {
        last_word(&mut send, &mut receive, Status::Overloaded).await;
    }
    connection.close(REFUSED, b"");
}

/// Takes the streams of a connection until it ends; when the drain starts, no more, and the connection ends with the last one.
async fn serve_connection(place: &Arc<Place>, connection: Connection, name: PeerName, drain: &Drain) {
    let streams = TaskTracker::new();
    tokio::spawn(pulse::watch(connection.clone(), OWED, None));
    let begin = |(send, receive): (SendStream, RecvStream)| {
        let (place, drain, name) = (Arc::clone(place), drain.clone(), name.clone());
        let remote = connection.remote_address();
        let stream = async move { stream(&place, send, receive, &name, remote, &drain).await };
        streams.spawn(stream);
    };
    loop {
        tokio::select! {
            biased;
            // What came at the same time is refused below, as what comes later.
            () = drain.stopping() => break,
            opened = connection.accept_bi() => match opened {
                Ok(halves) => begin(halves),
                // The streams end by themselves.
                Err(_) => break,
            },
        }
    }
    streams.close();
    loop {
        tokio::select! {
            biased;
            () = streams.wait() => break,
            opened = connection.accept_bi() => match opened {
                Ok((mut send, mut receive)) => {
                    streams.spawn(async move { refuse(&mut send, &mut receive, Status::Draining).await });
                }
                Err(_) => break,
            },
        }
    }
    streams.wait().await;
    connection.close(DONE, b"");
}

/// Counts a stream that a peer opened.
fn opened(outcome: &'static str) {
    counter!("qudag_sidecar_peer_streams_total", "side" => "in", "outcome" => outcome).increment(1);
}

/// Answers with a status other than ok.
async fn refuse(send: &mut SendStream, receive: &mut RecvStream, status: Status) {
    refuse_as(status.label(), send, receive, status).await;
}

/// Answers with a status other than ok, and counts it as `outcome`.
async fn refuse_as(outcome: &'static str, send: &mut SendStream, receive: &mut RecvStream, status: Status) {
    opened(outcome);
    last_word(send, receive, status).await;
}

/// Answers, and sees the answer arrive.
async fn last_word(send: &mut SendStream, receive: &mut RecvStream, status: Status) {
    // All of these fail only when nobody is there any more.
    let _ = receive.stop(REFUSED);
    if send.write_all(&[status.byte()]).await.is_ok() && send.finish().is_ok() {
        let _ = timeout(HEADER_LIMIT, send.stopped()).await;
    }
}

/// Reads the header, and what came with it.
async fn header(receive: &mut RecvStream) -> Result<(Header, Vec<u8>), Status> {
    let mut bytes = Vec::new();
    loop {
        let chunk = receive.read_chunk(PIECE, true).await;
        let Ok(Some(chunk)) = chunk else { return Err(Status::Refused) };
        bytes.extend_from_slice(&chunk.bytes);
        match Header::decode(&bytes)? {
            Some((header, length)) => {
                bytes.drain(..length);
                return Ok((header, bytes));
            }
            // Never: the longest header has been there.
            None if bytes.len() > MAX_HEADER => return Err(Status::Refused),
            None => {}
        }
    }
}

/// The life of a stream that a peer opened.
async fn stream(
    place: &Place,
    mut send: SendStream,
    mut receive: RecvStream,
    name: &PeerName,
    remote: SocketAddr,
    drain: &Drain,
) {
    let read = timeout(HEADER_LIMIT, header(&mut receive)).await.unwrap_or(Err(Status::Refused));
    let (header, early) = match read {
        Ok(read) => read,
        Err(status) => return refuse(&mut send, &mut receive, status).await,
    };
    let lease = (place.chains)();
    let Some(lease) = lease.filter(|lease| lease.settings.allow.contains(name)) else {
        return refuse(&mut send, &mut receive, Status::Refused).await;
    };
    if header.control {
        // Not a stream that a drain waits for: it ends when the drain begins.
        opened("control");
        drop(lease);
        return control(place, send, receive, name, early, drain).await;
    }
    if header.probe {
        opened("probe");
        return last_word(&mut send, &mut receive, Status::Ok).await;
    }
    let settings: &PeerSettings = &lease.settings;
    let mut line = FlowLine::start(Peer::NAME, Some(remote));
    line.detail("listener", &place.name).detail("peer", name);
    let opening = Opening::default();
    // What it is counted as, what the other side is told, and why.
    let refused = |status: Status, why: FilterError| (status.label(), status, why);
    let opened = async {
        let route = settings.destinations.get(&header.destination).ok_or_else(|| {
            refused(Status::UnknownDestination, FilterError::Refused("unknown destination".into()))
        })?;
        let overloaded = |key: &str| FilterError::Overloaded(format!("{key} reached").into());
        let share = place.shares.take(name, What::Streams, settings.max_connections_per_peer);
        let share = share
            .ok_or_else(|| ("over_share", Status::Overloaded, overloaded("max_connections_per_peer")))?;
        let seat = place.open.take(settings.max_connections);
        let seat = seat.ok_or_else(|| refused(Status::Overloaded, overloaded("max_connections")))?;
        line.detail("route", &route.name).detail("to", &route.to);
        let upstream = tokio::select! {
            biased;
            () = drain.aborted() => Err(refused(Status::Draining, FilterError::Draining)),
            answer = connect(&lease, route, remote, &opening) => {
                answer.map_err(|why| refused(status(&why), why))
            }
        }?;
        Ok((share, seat, Arc::clone(route), upstream))
    };
    let (_share, _seat, route, upstream) = match opened.await {
        Ok(opened) => opened,
        Err((outcome, status, why)) => {
            line.detail("error", &why);
            refuse_as(outcome, &mut send, &mut receive, status).await;
            return line.end(why.label(), 0, 0);
        }
    };
    let (options, counters) = (settings.splice, ByteCounters::new(Peer::NAME, &route.name));
    let exchange = settings.way.get().map(|way| Arc::clone(&way.exchange));
    // The open connection is independent of reloads.
    drop(lease);
    if send.write_all(&[Status::Ok.byte()]).await.is_err() {
        upstream.reset();
        return line.end("reset", 0, 0);
    }
    self::opened(Status::Ok.label());
    if header.destination == Destination::node()
        && let Some(exchange) = exchange
    {
        exchange.meet(name);
    }
    let client = TunnelStream::new(send, receive, 0, ());
    let early = Early { up: early, down: Vec::new() };
    let spliced = splice_after(early, client, upstream, options, &opening.buffers(), drain, &counters).await;
    line.end(spliced.end.label(), spliced.up, spliced.down);
}

/// The life of a control stream: as long as there is a tunnel, and the peer may use it.
async fn control(
    place: &Place,
    send: SendStream,
    receive: RecvStream,
    name: &PeerName,
    early: Vec<u8>,
    drain: &Drain,
) {
    let way = || {
        let lease = (place.chains)()?;
        let allowed = lease.settings.allow.contains(name);
        lease.settings.way.get().filter(|_| allowed).cloned()
    };
    if let Some(first) = way() {
        let allowed = || way().is_some_and(|way| Arc::ptr_eq(&way.exchange, &first.exchange));
        answer(&first.exchange, name, send, receive, early, drain.stopping(), allowed).await;
    }
}

async fn connect(
    lease: &qudag_filter_api::Lease<Peer>,
    route: &Arc<Route>,
    remote: SocketAddr,
    opening: &Opening,
) -> Result<qudag_filter_common::Stream, FilterError> {
    let request = PeerConnect {
        client: Some(remote),
        route: Arc::clone(route),
        destination: None,
        opening: opening.clone(),
        way: None,
        routes: lease.settings.table.get().cloned(),
        follows: false,
    };
    let answer = timeout(CONNECT_LIMIT, lease.chain.call(request)).await;
    match answer.map_err(|_| FilterError::Timeout { after: CONNECT_LIMIT })?? {
        Link::Direct(stream) => Ok(stream),
        // Routes of the tunnel's own listener lead to no sidecar.
        Link::Tunnel(_) => Err(FilterError::Internal("from tunnel to tunnel".into())),
    }
}

fn status(why: &FilterError) -> Status {
    match why {
        FilterError::Overloaded(_) | FilterError::Shed { .. } => Status::Overloaded,
        FilterError::Draining => Status::Draining,
        FilterError::Refused(_) | FilterError::Internal(_) => Status::Refused,
        _ => Status::NodeDown,
    }
}
