//! Kinds of traffic, their flows, and the type of every service in a chain.

use std::any::Any;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tower::util::BoxCloneSyncService;
use xxhash_rust::xxh3::xxh3_64;

use crate::{Address, Chain, FilterError};

/// A kind of traffic: what its filters receive and what they answer.
pub trait Kind: Sized + 'static {
    /// YAML key under `filters`, metric label and command-line name.
    const NAME: &'static str;
    /// One unit of traffic: a query, a call, a session, a stream to open.
    type Req: Flow + Send + 'static;
    /// What the unit is answered with.
    type Rsp: Send + 'static;
    /// A unit as it is shown to filters that may answer without waiting, with room for the answer;
    /// [`Infallible`](std::convert::Infallible) where there are none.
    type Glance<'a>: Flow;
    /// What listeners and the terminal service need besides the filters; swapped with them.
    type Settings: Send + Sync + 'static;

    /// The failure that a reply reports although it arrived (SERVFAIL, 503), as a static label.
    ///
    /// Breakers and retries treat such a reply like an error.
    fn failure(_reply: &Self::Rsp) -> Option<&'static str> {
        None
    }

    /// A copy of the request, if sending it a second time cannot do harm.
    fn replay(_request: &Self::Req) -> Option<Self::Req> {
        None
    }
}

/// What every request can say about the flow that it belongs to.
pub trait Flow {
    /// The key by which a percentage of traffic is chosen; equal for all requests of one flow.
    fn key(&self) -> FlowKey;
    /// The client's address, if it has one (a Unix socket client has none).
    fn client(&self) -> Option<IpAddr>;
    /// The upstream as the configuration names it; empty where a kind has a single upstream.
    fn target(&self) -> &str {
        ""
    }
    /// Where the target leads, for a target whose name does not say it. What a breaker knows of the target is void when this changes.
    fn target_address(&self) -> Option<&Address> {
        None
    }
}

/// A hash of what identifies a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey(u64);

impl FlowKey {
    /// The key of any stable byte string, a peer's or a client's name for instance.
    pub fn of(bytes: &[u8]) -> Self {
        Self(xxh3_64(bytes))
    }

    /// The key of a client: its IP address; on loopback, where every client has the same one, also its port.
    pub fn client(addr: SocketAddr) -> Self {
        let ip = addr.ip().to_canonical();
        if ip.is_loopback() {
            Self::of(addr.to_string().as_bytes())
        } else {
            Self::of(ip.to_string().as_bytes())
        }
    }

    /// This key's place in `0..10_000` for one filter. `salt` keeps the choices of filters independent.
    pub fn bucket(self, salt: u64) -> u16 {
        let mixed = xxh3_64(&[self.0.to_le_bytes(), salt.to_le_bytes()].concat());
        // The remainder is below 10 000.
        (mixed % 10_000) as u16
    }
}

/// A boxed service of a chain. Boxing at every filter boundary keeps builds short; it costs tens of
/// nanoseconds a call, once per request or connection and never per byte.
pub type Svc<K> = BoxCloneSyncService<<K as Kind>::Req, <K as Kind>::Rsp, FilterError>;

/// Boxes an async function as a service that is always ready.
pub fn service_fn<K, F, Fut>(f: F) -> Svc<K>
where
    K: Kind,
    F: Fn(K::Req) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<K::Rsp, FilterError>> + Send + 'static,
{
    BoxCloneSyncService::new(tower::service_fn(f))
}

/// One request's hold on the generation that serves it.
///
/// A generation drains when its last lease is dropped.
pub struct Lease<K: Kind> {
    /// The chain of this generation.
    pub chain: Chain<K>,
    /// The settings of this generation.
    pub settings: Arc<K::Settings>,
    /// The generation's number.
    pub generation: u64,
    /// Keeps the generation alive.
    pub hold: Arc<dyn Any + Send + Sync>,
}

impl<K: Kind> Clone for Lease<K> {
    fn clone(&self) -> Self {
        Self {
            chain: self.chain.clone(),
            settings: Arc::clone(&self.settings),
            generation: self.generation,
            hold: Arc::clone(&self.hold),
        }
    }
}

/// Where a listener gets the current generation's chain for its kind, at each request.
///
/// `None` when the current generation does not serve this kind any more.
pub type Chains<K> = Arc<dyn Fn() -> Option<Lease<K>> + Send + Sync>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_clients_differ_by_port_and_others_do_not() {
        let key = |s: &str| FlowKey::client(s.parse().unwrap());
        assert_ne!(key("127.0.0.1:1"), key("127.0.0.1:2"));
        assert_eq!(key("10.0.0.1:1"), key("10.0.0.1:2"));
        assert_eq!(key("[::ffff:10.0.0.1]:1"), key("10.0.0.1:1"));
    }
}
