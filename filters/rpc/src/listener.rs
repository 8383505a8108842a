//! The settings of the RPC listener, and what is bound.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use qudag_core::rpc::LIMIT;
use qudag_filter_api::{
    Address, BuildError, ByteSize, Chains, ConfigError, ConfigPath, Env, HostPort, Period, service_fn,
};
use qudag_filter_common::{Front, ListenerSpec, Socket, Terminal};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::connection::Server;
use crate::{Rpc, RpcFilters, RpcSettings, node};

/// The smallest limit for frames.
const MIN_FRAME: ByteSize = ByteSize::kib(1);
/// The largest one: what the node reads.
const MAX_FRAME: ByteSize = ByteSize(LIMIT as u64);

/// `listeners.rpc`: framed JSON requests for the node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RpcListener {
    /// Where clients connect.
    pub bind: Address,
    /// The most client connections at once; others get an error frame.
    pub max_connections: u32,
    /// The most calls at once on one connection; further requests wait.
    pub max_in_flight: u32,
    /// How long a connection may be without a complete request while none is under way, and how long a client may leave a
    /// reply untaken.
    pub idle_timeout: Period,
    /// The longest request.
    pub max_frame: ByteSize,
    /// How long connecting to the node may take.
    pub connect_timeout: Period,
    /// How long one call of the node may take. `test_network` takes longest.
    pub request_timeout: Period,
}

impl Default for RpcListener {
    fn default() -> Self {
        Self {
            bind: Address::Tcp(HostPort::from(SocketAddr::from(([127, 0, 0, 1], 9190)))),
            max_connections: 256,
            max_in_flight: 16,
            idle_timeout: Period::secs(60),
            max_frame: MAX_FRAME,
            connect_timeout: Period::secs(1),
            request_timeout: Period::secs(30),
        }
    }
}

impl ListenerSpec for RpcListener {
    type Filters = RpcFilters;
    /// The terminal service has no state.
    type Upstream = ();

    fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        for (key, period) in [
            ("idle_timeout", self.idle_timeout),
            ("connect_timeout", self.connect_timeout),
            ("request_timeout", self.request_timeout),
        ] {
            if period.0.is_zero() {
                errors.push(at.key(key).error("must be longer than 0").hint("for instance 30s"));
            }
        }
        for (key, number) in
            [("max_connections", self.max_connections), ("max_in_flight", self.max_in_flight)]
        {
            if number == 0 {
                errors.push(at.key(key).error("nothing could be served").hint("at least 1"));
            }
        }
        if !(MIN_FRAME..=MAX_FRAME).contains(&self.max_frame) {
            let hint = format!("from {MIN_FRAME} to {MAX_FRAME}, which is what the node reads");
            errors.push(at.key("max_frame").error("out of range").hint(hint));
        }
        errors
    }

    fn binds(&self) -> Vec<(String, Address)> {
        vec![("rpc".to_owned(), self.bind.clone())]
    }

    fn settings(&self, env: &Env) -> RpcSettings {
        RpcSettings { listener: self.clone(), node: env.node.rpc.clone(), resolve: Arc::clone(&env.resolve) }
    }

    fn terminal(
        &self,
        _: &RpcFilters,
        settings: &Arc<RpcSettings>,
        _: &Env,
        previous: Option<&Arc<()>>,
    ) -> Result<Terminal<Self>, BuildError> {
        let settings = Arc::clone(settings);
        let service = service_fn::<Rpc, _, _>(move |call| node::send(call, Arc::clone(&settings)));
        Ok((service, previous.cloned().unwrap_or_default()))
    }

    fn bind(
        _: String,
        address: Address,
        chains: Chains<Rpc>,
        env: Env,
    ) -> BoxFuture<'static, io::Result<Box<dyn Front>>> {
        let server = Arc::new(Server::new(chains));
        Socket::front(address, env, move |stream, drain| Arc::clone(&server).connection(stream, drain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_without_an_effect_are_refused() {
        let at = ConfigPath::root();
        assert_eq!(RpcListener::default().check(&at), []);
        let settings: RpcListener = serde_json::from_str(
            r#"{"idle_timeout": "0s", "connect_timeout": "0s", "request_timeout": "0s", "max_connections": 0,
                "max_in_flight": 0, "max_frame": "11MiB"}"#,
        )
        .unwrap();
        assert_eq!(settings.check(&at).len(), 6);
        assert!(serde_json::from_str::<RpcListener>(r#"{"tls": true}"#).is_err());
    }
}
