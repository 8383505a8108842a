//! One bound listener and the life of its connections.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use qudag_filter_api::{Address, Chains, Env, FilterError, HostPort, Kind};
use qudag_filter_common::{
    ByteCounters, Drain, FlowLine, Front, Seat, Seats, Socket, SpliceOptions, Stream, splice,
};

use crate::{Peer, PeerConnect, Route};

/// How long a client waits for its connection at most, all attempts together. libp2p gives an upgrade 20 s, and needs what is left
/// for its other addresses.
pub(crate) const CONNECT_LIMIT: Duration = Duration::from_secs(10);

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
    Ok(socket.into_front(move |client, drain| connection(Arc::clone(&place), client, drain)))
}

/// A connection to the upstream, and what the rest of the client's life needs.
struct Opened {
    upstream: Stream,
    route: Arc<Route>,
    options: SpliceOptions,
    _seat: Seat,
}

async fn connection(place: Arc<Place>, client: Stream, drain: Drain) {
    let mut line = FlowLine::start(Peer::NAME, client.peer_addr());
    line.detail("listener", &place.name);
    let opened = tokio::select! {
        biased;
        () = drain.aborted() => Err(FilterError::Draining),
        opened = open(&place, &client, &mut line) => opened,
    };
    let Opened { upstream, route, options, _seat } = match opened {
        Ok(opened) => opened,
        Err(error) => {
            line.detail("error", &error);
            client.reset();
            return line.end(error.label(), 0, 0);
        }
    };
    let counters = ByteCounters::new(Peer::NAME, &route.name);
    let spliced = splice(client, upstream, options, &drain, &counters).await;
    line.end(spliced.end.label(), spliced.up, spliced.down);
}

/// Asks the current generation's chain for a connection. Reads nothing from the client.
async fn open(place: &Place, client: &Stream, line: &mut FlowLine) -> Result<Opened, FilterError> {
    let lease = (place.chains)().ok_or(FilterError::Refused("peer traffic is switched off".into()))?;
    let settings = &lease.settings;
    let seat = place
        .open
        .take(settings.max_connections)
        .ok_or(FilterError::Overloaded("max_connections reached".into()))?;
    let route = settings.route(&place.name, &place.bind);
    let route = route.ok_or(FilterError::Refused("the route was removed".into()))?;
    line.detail("route", &route.name).detail("to", &route.to);

    let request = PeerConnect { client: client.peer_addr(), route: Arc::clone(route) };
    let answer = tokio::time::timeout(CONNECT_LIMIT, lease.chain.call(request)).await;
    let upstream = answer.map_err(|_| FilterError::Timeout { after: CONNECT_LIMIT })??;
    Ok(Opened { upstream, route: Arc::clone(route), options: settings.splice, _seat: seat })
}
