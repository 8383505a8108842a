//! What the tunnel's parts share: the identity, the pools, and how a generation wants them.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use qudag_filter_api::{BuildError, Env, Lane, Lanes, Resolve};
use quinn::ServerConfig;

use crate::capture::{Counts, Known};
use crate::connection_pooling::ConnectionPooling;
use crate::discovery::Discovery;
use crate::exchange::{Exchange, SidecarStatus};
use crate::identity::{Identity, IdentitySettings, PeerName};
use crate::kind::{PeerSettings, Sidecar};
use crate::pool::{self, PeerPool, PoolStatus, Pools, Settings, Target};
use crate::tunnel::transport;

/// What outlives a reload: the identity with its watched files, the connections to other sidecars, and what is known of captured ones.
#[derive(Clone, Default)]
pub struct Tunnels {
    identity: Option<(IdentitySettings, Arc<Identity>)>,
    pools: Arc<Pools>,
    /// The addresses of routes' names, for captured connections.
    pub(crate) known: Arc<Known>,
    /// The captured connections.
    pub(crate) captured: Arc<Counts>,
    exchange: Arc<Exchange>,
    discovery: Arc<Discovery>,
}

impl fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnels").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl Tunnels {
    /// Those of the next generation.
    ///
    /// # Errors
    /// When the identity cannot be read.
    pub(crate) fn next(
        previous: Option<&Arc<Self>>,
        identity: Option<&IdentitySettings>,
    ) -> Result<Self, BuildError> {
        let previous = previous.map(|tunnels| Self::clone(tunnels)).unwrap_or_default();
        let identity = match (identity, previous.identity.clone()) {
            (None, _) => None,
            (Some(new), Some((old, identity))) if *new == old => Some((old, identity)),
            (Some(new), _) => {
                let opened =
                    Identity::open(new).map_err(|why| BuildError::new("listeners.peer.identity", why))?;
                Some((new.clone(), opened))
            }
        };
        Ok(Self { identity, ..previous })
    }

    /// The way into the tunnel for a generation's requests; `None` without an identity.
    pub(crate) fn way(&self, pooling: &ConnectionPooling, settings: &PeerSettings, env: &Env) -> Option<Way> {
        let (_, identity) = self.identity.as_ref()?;
        self.exchange.tell(|state| {
            state.destinations = settings.destinations.keys().cloned().collect();
            state.destinations.sort();
        });
        Some(Way {
            identity: Arc::clone(identity),
            pools: Arc::clone(&self.pools),
            exchange: Arc::clone(&self.exchange),
            settings: pooling.pool_settings(),
            resolve: Arc::clone(&env.resolve),
            mark: settings.mark,
            lanes: env.lanes.clone(),
            server: Mutex::new(None),
        })
    }

    /// The own identity.
    pub fn identity(&self) -> Option<&Arc<Identity>> {
        self.identity.as_ref().map(|(_, identity)| identity)
    }

    /// How many captured connections are open, also after `capture` has left the configuration.
    pub fn captured_open(&self) -> u64 {
        self.captured.open()
    }

    /// What other sidecars tell.
    pub(crate) fn exchange(&self) -> &Arc<Exchange> {
        &self.exchange
    }

    /// What makes the nodes of other sidecars known to this one's.
    pub(crate) fn discovery(&self) -> &Arc<Discovery> {
        &self.discovery
    }

    /// What other sidecars have told.
    pub fn sidecars(&self) -> Vec<SidecarStatus> {
        self.exchange.statuses()
    }

    /// What is known of the connections to other sidecars.
    pub fn statuses(&self) -> Vec<PoolStatus> {
        self.pools.statuses()
    }
}

/// The way into the tunnel, and out of it at the other side, as one generation has it.
pub struct Way {
    pub(crate) identity: Arc<Identity>,
    pools: Arc<Pools>,
    pub(crate) exchange: Arc<Exchange>,
    settings: Settings,
    resolve: Arc<dyn Resolve>,
    /// What packets to other sidecars are marked with.
    mark: Option<u32>,
    lanes: Lanes,
    /// For connections from others, with the change of the identity that it was made for.
    server: Mutex<Option<(u64, Arc<ServerConfig>)>>,
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Way").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl Way {
    /// The connections to a sidecar.
    pub(crate) fn pool(&self, sidecar: &Sidecar) -> Arc<PeerPool> {
        let target = Target {
            to: sidecar.to.clone(),
            identity: Arc::clone(&self.identity),
            resolve: Arc::clone(&self.resolve),
            exchange: Arc::clone(&self.exchange),
            settings: self.settings,
            mark: self.mark,
            lanes: self.lanes.clone(),
        };
        self.pools.pool(&sidecar.name, sidecar.class, target)
    }

    /// The lane of the connections to a sidecar.
    pub(crate) fn lane(&self, sidecar: &Sidecar) -> Arc<Lane> {
        pool::lane(&self.lanes, &sidecar.name, sidecar.class)
    }

    /// The time limits of opening a stream.
    pub(crate) fn limits(&self) -> crate::tunnel::OpenLimits {
        self.settings.opening
    }

    /// What connections from others are taken with.
    pub(crate) fn server(
        &self,
        allowed: impl Fn(&PeerName) -> bool + Send + Sync + 'static,
    ) -> Arc<ServerConfig> {
        let version = *self.identity.changes().borrow();
        let mut server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, config)) = server.as_ref()
            && *of == version
        {
            return Arc::clone(config);
        }
        let mut config = ServerConfig::with_crypto(self.identity.server(Arc::new(allowed)));
        config.transport_config(transport::config(self.settings.transport));
        let config = Arc::new(config);
        *server = Some((version, Arc::clone(&config)));
        config
    }
}
