//! One bound listener and the life of its connections.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use qudag_filter_api::{Address, Chains, Env, FilterError, FilterSpec, HostPort, Kind, Lane, Lease};
use qudag_filter_common::splice::Early;
use qudag_filter_common::{
    ByteCounters, Drain, FlowLine, Front, Seat, Seats, Socket, SpliceOptions, Stream, splice_after,
};
use tokio::time::MissedTickBehavior;

use crate::capture::Taken;
use crate::discovery::Announced;
use crate::opening::Opening;
use crate::routes::Known;
use crate::{ConnectionPooling, Link, Peer, PeerConnect, Route, RouteTable, Sidecar};

/// How long a client waits for its connection at most, all attempts together. libp2p gives an upgrade 20 s, and needs what is left
/// for its other addresses.
pub(crate) const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// How often a listener says that its route's tunnel is wanted.
pub(crate) const WARM: Duration = Duration::from_secs(1);

/// What a listener's connections share.
struct Place {
    name: String,
    bind: HostPort,
    chains: Chains<Peer>,
    open: Seats,
}

pub(crate) async fn bind(
    name: String,
    address: Address,
    chains: Chains<Peer>,
    env: Env,
) -> io::Result<Box<dyn Front>> {
    let Address::Tcp(bind) = &address else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "peers are reached over TCP only"));
    };
    let socket = Socket::bind(&address, &*env.resolve).await?;
    let place = Arc::new(Place { name, bind: bind.clone(), chains, open: Seats::default() });
    let warm = Arc::clone(&place);
    let front = socket.into_front(move |client, drain| connection(Arc::clone(&place), client, drain));
    let at = front.address();
    Ok(Box::new(Tended { front, beside: Box::pin(async move { warm.keep_warm(&at).await }) }))
}

/// A listener, and what is done beside it while it serves: it has the tunnels of its routes ready before the first client comes.
pub(crate) struct Tended {
    pub(crate) front: Box<dyn Front>,
    pub(crate) beside: BoxFuture<'static, ()>,
}

impl Front for Tended {
    fn address(&self) -> Address {
        self.front.address()
    }

    fn serve(self: Box<Self>, drain: Drain) -> BoxFuture<'static, ()> {
        let Self { front, beside } = *self;
        Box::pin(async move {
            tokio::select! {
                () = front.serve(drain) => {}
                () = beside => {}
            }
        })
    }
}

impl Place {
    /// The lane of the route's tunnel, where it has one and the filter is on.
    fn lane(&self) -> Option<Arc<Lane>> {
        let lease = (self.chains)()?;
        let sidecar = lease.settings.route(&self.name, &self.bind)?.sidecar.as_ref()?;
        lane(&lease, sidecar)
    }

    /// Wants the tunnel of the route as long as there is one and the filter is on.
    async fn keep_warm(&self, at: &Address) {
        let at = if let Address::Tcp(at) = at { at.socket_addr() } else { None };
        let mut announced = Announced::new(&self.name, at);
        let mut ticks = tokio::time::interval(WARM);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let Some(lease) = (self.chains)() else { continue };
            let route = lease.settings.route(&self.name, &self.bind);
            announced.want(&lease, route.map(|route| &**route));
            follow(&lease);
            if let Some(route) = route {
                warm(&lease, route);
            }
        }
    }
}

/// The lane of the tunnel to a sidecar, where there is an identity and the filter is on.
pub(crate) fn lane(lease: &Lease<Peer>, sidecar: &Sidecar) -> Option<Arc<Lane>> {
    let way = lease.settings.way.get().filter(|_| lease.chain.has(ConnectionPooling::NAME))?;
    Some(way.lane(sidecar))
}

/// Wants names to be followed, where the filter is on.
pub(crate) fn follow(lease: &Lease<Peer>) {
    if let Some(table) = lease.settings.table.get()
        && lease.chain.has(RouteTable::NAME)
    {
        table.want();
    }
}

/// Wants the tunnel of a route, where it has one and the filter is on.
pub(crate) fn warm(lease: &Lease<Peer>, route: &Route) {
    if let (Some(sidecar), Some(way)) = (&route.sidecar, lease.settings.way.get())
        && lease.chain.has(ConnectionPooling::NAME)
        && way.identity.name() != sidecar.name
    {
        let table = lease.settings.table.get().filter(|_| lease.chain.has(RouteTable::NAME));
        way.pool(sidecar, table.and_then(|table| Known::of(table, route))).want();
    }
}

/// A connection to the upstream, and what the rest of the client's life needs.
pub(crate) struct Opened {
    upstream: Link,
    route: Arc<Route>,
    options: SpliceOptions,
    _seat: Seat,
    _taken: Option<Taken>,
}

impl Opened {
    /// One that took its way over a route.
    pub(crate) fn new(upstream: Link, route: Arc<Route>, options: SpliceOptions, seat: Seat) -> Self {
        Self { upstream, route, options, _seat: seat, _taken: None }
    }

    /// The same, counted as captured until it ends.
    pub(crate) fn taken(self, taken: Taken) -> Self {
        Self { _taken: Some(taken), ..self }
    }
}

async fn connection(place: Arc<Place>, client: Stream, drain: Drain) {
    let lane = place.lane();
    let life = move |client: Stream, drain| async move {
        let address = client.peer_addr();
        let mut line = FlowLine::start(Peer::NAME, address);
        line.detail("listener", &place.name);
        carry(client, drain, line, async |opening, line| open(&place, address, opening, line).await).await;
    };
    on_lane(lane, client, drain, life).await;
}

/// Takes a client to a lane, that of its tunnel, and does the rest there; here where it has none.
pub(crate) async fn on_lane<F>(
    lane: Option<Arc<Lane>>,
    client: Stream,
    drain: Drain,
    life: impl FnOnce(Stream, Drain) -> F + Send + 'static,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let Some(lane) = lane else { return life(client, drain).await };
    // Fails only for a socket that is of no use to anybody.
    let Ok(client) = client.detach() else { return };
    let handle = lane.handle();
    drain.clone().spawn_on(&handle, async move {
        let _lane = lane;
        let Ok(client) = client.attach() else { return };
        drain.clone().until_aborted(life(client, drain)).await;
    });
}

/// The life of a client's connection: it is opened, and then both sides' bytes are passed on.
pub(crate) async fn carry(
    mut client: Stream,
    drain: Drain,
    mut line: FlowLine,
    open: impl AsyncFnOnce(&Opening, &mut FlowLine) -> Result<Opened, FilterError>,
) {
    let opening = Opening::default();
    // In a box, so that what only the opening needs does not stay as long as the connection.
    let opened = Box::pin(async {
        tokio::select! {
            biased;
            () = drain.aborted() => Err(FilterError::Draining),
            opened = open(&opening, &mut line) => opened,
            _ = opening.feed(&mut client) => Err(FilterError::ClientGone),
        }
    });
    let opened = opened.await;
    if let Some(reason) = opening.fallback() {
        line.detail("fallback", reason);
    }
    let Opened { upstream, route, options, _seat, _taken } = match opened {
        Ok(opened) => opened,
        Err(error) => {
            line.detail("error", &error);
            client.reset();
            return line.end(error.label(), 0, 0);
        }
    };
    let counters = ByteCounters::new(Peer::NAME, &route.name);
    line.detail("path", upstream.label());
    let buffers = opening.buffers();
    let spliced = match upstream {
        Link::Direct(upstream) => {
            let early = Early { up: opening.take(0), down: Vec::new() };
            splice_after(early, client, upstream, options, &buffers, &drain, &counters).await
        }
        Link::Tunnel(upstream) => {
            let sent = upstream.sent();
            let early = Early { up: opening.take(sent), down: Vec::new() };
            let before = sent as u64;
            counters.add(before, 0);
            let mut spliced =
                splice_after(early, client, upstream, options, &buffers, &drain, &counters).await;
            spliced.up += before;
            spliced
        }
    };
    line.end(spliced.end.label(), spliced.up, spliced.down);
}

/// Asks the current generation's chain for a connection.
async fn open(
    place: &Place,
    client: Option<SocketAddr>,
    opening: &Opening,
    line: &mut FlowLine,
) -> Result<Opened, FilterError> {
    let lease = (place.chains)().ok_or(FilterError::Refused("peer traffic is switched off".into()))?;
    let settings = &lease.settings;
    let seat = place
        .open
        .take(settings.max_connections)
        .ok_or(FilterError::Overloaded("max_connections reached".into()))?;
    let route = settings.route(&place.name, &place.bind);
    let route = route.ok_or(FilterError::Refused("the route was removed".into()))?;
    line.detail("route", &route.name).detail("to", &route.to);
    ask(&lease, route, client, None, opening, seat).await
}

/// Asks a generation's chain for a connection over a route; to `destination`, where it goes directly and that is known.
pub(crate) async fn ask(
    lease: &Lease<Peer>,
    route: &Arc<Route>,
    client: Option<SocketAddr>,
    destination: Option<SocketAddr>,
    opening: &Opening,
    seat: Seat,
) -> Result<Opened, FilterError> {
    let settings = &lease.settings;
    let way = settings.way.get().cloned();
    let routes = settings.table.get().cloned();
    let (route, opening) = (Arc::clone(route), opening.clone());
    let request =
        PeerConnect { client, route: Arc::clone(&route), destination, opening, way, routes, follows: false };
    let answer = tokio::time::timeout(CONNECT_LIMIT, lease.chain.call(request)).await;
    let upstream = answer.map_err(|_| FilterError::Timeout { after: CONNECT_LIMIT })??;
    Ok(Opened::new(upstream, route, settings.splice, seat))
}
