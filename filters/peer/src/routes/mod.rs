//! `route_table`: the routes with their addresses, compiled whenever something changes.

mod book;
mod follow;
mod table;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use qudag_filter_api::{
    Address, BuildError, ConfigError, ConfigPath, Env, FilterError, FilterSpec, Period, Resolve, Svc,
    service_fn,
};
use qudag_filter_common::{Stream, canonical, connect_addresses, connect_marked};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tower::ServiceExt;

use crate::kind::{Peer, PeerConnect, Route};
use crate::listener::CONNECT_LIMIT;

pub(crate) use book::{Bounds, Over};
pub use follow::NameStatus;
pub(crate) use follow::{Found, Names, Routes};

/// `route_table`: connections go to the addresses of a table that follows the names of routes and their sidecars, instead of resolving
/// them one by one. The table is compiled whenever a configuration, an address or what is known of one changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RouteTable {
    /// How long an answer is kept at least, whatever its time to live.
    pub min_ttl: Period,
    /// How long an answer is kept at most; also the longest wait after failures, where it is shorter than a minute.
    pub max_ttl: Period,
}

impl Default for RouteTable {
    fn default() -> Self {
        Self { min_ttl: Period::secs(1), max_ttl: Period::secs(300) }
    }
}

impl RouteTable {
    pub(crate) fn bounds(&self) -> Bounds {
        Bounds { min: self.min_ttl.0, max: self.max_ttl.0 }
    }
}

impl FilterSpec for RouteTable {
    type Kind = Peer;
    /// What is known of names belongs to the end of the chain, since captured connections need it without the filter as well.
    type State = ();
    const NAME: &'static str = "route_table";

    fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        for (key, period) in [("min_ttl", self.min_ttl), ("max_ttl", self.max_ttl)] {
            if !(Duration::from_secs(1)..=Duration::from_secs(86_400)).contains(&period.0) {
                errors.push(at.key(key).error(format!("{period} is out of range")).hint("1s to 1d"));
            }
        }
        if self.min_ttl.0 > self.max_ttl.0 {
            let error = at.key("min_ttl").error("more than `max_ttl`");
            errors.push(error.hint(format!("at most {}", self.max_ttl)));
        }
        errors
    }

    fn state(&self, _: &Env, _: Option<(&Self, Arc<()>)>) -> Result<Arc<()>, BuildError> {
        Ok(Arc::new(()))
    }

    fn wrap(&self, _: Arc<()>, inner: Svc<Peer>) -> Svc<Peer> {
        service_fn::<Peer, _, _>(move |mut request: PeerConnect| {
            request.follows = true;
            inner.clone().oneshot(request)
        })
    }
}

/// What a pool dials: addresses of the table, and whoever is told what came of it.
#[derive(Clone)]
pub(crate) struct Known {
    pub(crate) addresses: Arc<[SocketAddr]>,
    pub(crate) names: Arc<Names>,
}

impl Known {
    /// The addresses of a route's sidecar.
    pub(crate) fn of(routes: &Routes, route: &Route) -> Option<Self> {
        let addresses = routes.entry(route, |entry| Arc::clone(&entry.sidecar))?;
        Some(Self { addresses, names: Arc::clone(routes.names()) })
    }

    /// Whether an address is among them.
    pub(crate) fn has(&self, address: SocketAddr) -> bool {
        self.addresses.iter().any(|known| canonical(*known) == canonical(address))
    }

    /// Whether the addresses are the same, in whatever order.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.addresses, &other.addresses)
            || (self.addresses.len() == other.addresses.len()
                && self.addresses.iter().all(|address| other.addresses.contains(address)))
    }
}

/// Opens a connection past the tunnel.
pub(crate) async fn direct(
    request: &PeerConnect,
    resolve: &dyn Resolve,
    timeout: Duration,
    mark: Option<u32>,
) -> Result<Stream, FilterError> {
    if let Some(destination) = request.destination {
        return connect_marked(&Address::Tcp(destination.into()), resolve, timeout, mark).await;
    }
    let to = &request.route.to;
    let known = request.routes.as_ref().filter(|_| request.follows).and_then(|routes| {
        let addresses = routes.entry(&request.route, |entry| Arc::clone(&entry.to))?;
        Some((routes.names(), addresses)).filter(|(_, addresses)| !addresses.is_empty())
    });
    let (Some((names, tried)), Address::Tcp(place)) = (known, to) else {
        // Nothing is known yet.
        return connect_marked(to, resolve, timeout, mark).await;
    };
    let deadline = Instant::now() + timeout.min(CONNECT_LIMIT);
    let attempt = async |addresses: &[SocketAddr]| {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut bad = Vec::new();
        let connected = connect_addresses(to, addresses, left, mark, &mut |it| bad.push(it)).await;
        for address in bad {
            names.blame(Over::Tcp, address);
        }
        if let Some(address) = connected.as_ref().ok().and_then(Stream::peer_addr) {
            names.praise(Over::Tcp, address);
        }
        // What operators know is the whole time.
        connected.map_err(|why| match why {
            FilterError::Timeout { .. } => FilterError::Timeout { after: timeout },
            why => why,
        })
    };
    let why = match attempt(&tried).await {
        Ok(stream) => return Ok(stream),
        Err(why) => why,
    };
    match names.others(Over::Tcp, std::slice::from_ref(place), &tried, deadline).await {
        Some(new) => attempt(&new).await,
        None => Err(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_has_its_place() {
        let wrong = |settings: &str| {
            let settings: RouteTable = serde_json::from_str(settings).unwrap();
            let errors = settings.check(&ConfigPath::root());
            errors.into_iter().map(|error| error.at.to_string()).collect::<Vec<_>>()
        };
        assert!(wrong("{}").is_empty());
        for (key, value) in [("min_ttl", "999ms"), ("min_ttl", "301s"), ("max_ttl", "0s"), ("max_ttl", "25h")]
        {
            assert_eq!(
                wrong(&format!("{{\"{key}\": \"{value}\"}}")).first().map(String::as_str),
                Some(key),
                "{value}"
            );
        }
    }
}
