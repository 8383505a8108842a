//! The listener of captured connections: where each was meant to go, and which way it takes.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use qudag_filter_api::{Address, Chains, Env, FilterError, Host, HostPort, Kind, Lane, Resolve};
use qudag_filter_common::{Drain, FlowLine, Front, Seats, Socket, Stream, connect_marked};
use tokio::time::MissedTickBehavior;

use super::status::Outcome;
use super::{CaptureMode, CaptureSettings, Counts, Unmatched};
use crate::listener::{Opened, Tended, WARM, ask, carry, follow, lane, on_lane, warm};
use crate::opening::Opening;
use crate::routes::Found;
use crate::{Link, Peer, Route};

/// The name of captured connections without a route, in logs and metrics.
pub(crate) const CAPTURED: &str = "captured";

/// What a listener's connections share.
struct Place {
    name: String,
    bind: HostPort,
    chains: Chains<Peer>,
    open: Seats,
    resolve: Arc<dyn Resolve>,
}

/// Binds a listener of captured connections.
///
/// # Errors
/// When the operating system refuses the address, or the process lacks the capability.
pub(crate) async fn bind(
    name: String,
    bind: HostPort,
    chains: Chains<Peer>,
    env: Env,
) -> io::Result<Box<dyn Front>> {
    let Host::Ip(ip) = bind.host else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "rules know no names"));
    };
    // Whichever mode there is now: a reload may change it, and the listener keeps its socket.
    let socket = Socket::bind_transparent(SocketAddr::new(ip, bind.port)).map_err(|why| match why.kind() {
        io::ErrorKind::PermissionDenied => io::Error::other(
            "taking captured connections needs the capability CAP_NET_ADMIN (systemd: AmbientCapabilities=CAP_NET_ADMIN)",
        ),
        _ => why,
    })?;
    let place = Place { name, bind, chains, open: Seats::default(), resolve: env.resolve };
    let place = Arc::new(place);
    let warm = Arc::clone(&place);
    let front = socket.into_front(move |client, drain| connection(Arc::clone(&place), client, drain));
    Ok(Box::new(Tended { front, beside: Box::pin(async move { warm.keep_warm().await }) }))
}

impl Place {
    /// The lane of the tunnel that a connection will take, as far as that is known already.
    fn lane(&self, ends: &Ends) -> Option<Arc<Lane>> {
        let lease = (self.chains)()?;
        let capture = lease.settings.capture.get()?;
        let route = capture.routes.known(ends.destination(capture.mode, &capture.ports)?)?;
        lane(&lease, route.sidecar.as_ref()?)
    }

    /// Wants the tunnels of all routes, as the listener of a route does for its own.
    async fn keep_warm(&self) {
        let mut ticks = tokio::time::interval(WARM);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let Some(lease) = (self.chains)() else { continue };
            let Some(capture) = lease.settings.capture.get() else { continue };
            follow(&lease);
            for route in capture.routes.captured() {
                warm(&lease, route);
            }
        }
    }
}

async fn connection(place: Arc<Place>, client: Stream, drain: Drain) {
    let ends = Ends { local: client.local_addr(), original: client.original_destination() };
    let lane = place.lane(&ends);
    let life = move |client: Stream, drain| async move {
        let address = client.peer_addr();
        let mut line = FlowLine::start(Peer::NAME, address);
        line.detail("listener", &place.name);
        carry(client, drain, line, async |opening, line| open(&place, address, ends, opening, line).await)
            .await;
    };
    on_lane(lane, client, drain, life).await;
}

/// What the kernel says of the ends of a connection.
struct Ends {
    /// This side of the socket.
    local: Option<SocketAddr>,
    /// Where it led before a rule changed that.
    original: io::Result<SocketAddr>,
}

impl Ends {
    /// Where the node meant to connect; `None` when it was here, or nobody knows.
    fn destination(&self, mode: CaptureMode, ports: &[u16]) -> Option<SocketAddr> {
        let found = match mode {
            CaptureMode::Redirect => {
                self.original.as_ref().ok().copied().filter(|to| Some(*to) != self.local)
            }
            CaptureMode::Tproxy => self.local,
        };
        // No rule captures these ports.
        found.filter(|to| !ports.contains(&to.port()))
    }
}

/// Finds out where a captured connection was meant to go, and opens it.
async fn open(
    place: &Place,
    client: Option<SocketAddr>,
    ends: Ends,
    opening: &Opening,
    line: &mut FlowLine,
) -> Result<Opened, FilterError> {
    let lease = (place.chains)().ok_or(FilterError::Refused("peer traffic is switched off".into()))?;
    let settings = &lease.settings;
    let off = || FilterError::Refused("capture is switched off".into());
    let capture: Arc<CaptureSettings> = settings.capture.get().cloned().ok_or_else(off)?;
    let counts: &Arc<Counts> = &capture.counts;
    let Some(destination) = ends.destination(capture.mode, &capture.ports) else {
        counts.count(Outcome::Itself, None);
        return Err(FilterError::Refused(
            "the connection was not captured: it was made to this listener".into(),
        ));
    };
    let seat = place
        .open
        .take(settings.max_connections)
        .ok_or(FilterError::Overloaded("max_connections reached".into()))?;
    let taken = counts.taken();
    line.detail("to", destination);
    match capture.routes.find(destination, settings.connect_timeout).await {
        Found::Route(route) => {
            counts.count(Outcome::Routed, Some(&route.name));
            line.detail("route", &route.name);
            let opened = ask(&lease, &route, client, Some(destination), opening, seat).await;
            return opened.map(|opened| opened.taken(taken));
        }
        Found::Perhaps => {
            counts.count(Outcome::Refused, None);
            let why = "a route that requires the tunnel may lead there: its name was never resolved";
            return Err(FilterError::Refused(why.into()));
        }
        Found::Nobody => {}
    }
    line.detail("route", CAPTURED);
    if capture.unmatched == Unmatched::Refuse {
        counts.count(Outcome::Refused, None);
        return Err(FilterError::Refused("no route leads there, and `unmatched` is `refuse`".into()));
    }
    counts.count(Outcome::Direct, None);
    let to = Address::Tcp(destination.into());
    let mark = Some(capture.mark.0);
    let upstream = connect_marked(&to, &*place.resolve, settings.connect_timeout, mark).await?;
    let route = Route { name: CAPTURED.to_owned(), bind: place.bind.clone(), to, sidecar: None };
    let opened = Opened::new(Link::Direct(upstream), Arc::new(route), settings.splice, seat);
    Ok(opened.taken(taken))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_to_the_listener_itself_has_no_destination() {
        let addr = |text: &str| text.parse::<SocketAddr>().unwrap();
        let ends = |local: &str, original: Option<&str>| Ends {
            local: Some(addr(local)),
            original: original.map(addr).ok_or_else(|| io::ErrorKind::NotFound.into()),
        };
        let (here, peer) = ("127.0.0.1:4180", "192.0.2.1:4001");
        let redirected = |ends: Ends| ends.destination(CaptureMode::Redirect, &[4180]);
        assert_eq!(redirected(ends(here, Some(peer))), Some(addr(peer)));
        assert_eq!(redirected(ends(here, Some(here))), None, "conntrack without a rule");
        assert_eq!(redirected(ends(here, None)), None, "no conntrack");
        assert_eq!(redirected(ends(here, Some("[::1]:4180"))), None, "the other family's listener");
        let routed = |ends: Ends| ends.destination(CaptureMode::Tproxy, &[4180]);
        assert_eq!(routed(ends(peer, None)), Some(addr(peer)));
        assert_eq!(routed(ends(here, None)), None);
        assert_eq!(routed(ends("10.0.0.1:4180", None)), None, "a listener on all addresses");
        assert_eq!(Ends { local: None, ..ends(here, None) }.destination(CaptureMode::Tproxy, &[]), None);
    }
}
