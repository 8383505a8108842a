//! The settings of the crypto listener, and what is bound.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use qudag_filter_api::{Address, BuildError, ByteSize, Chains, ConfigError, ConfigPath, Env, Period};
use qudag_filter_common::{Front, ListenerSpec, Socket, Terminal};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::server::Server;
use crate::terminal::{self, Alone};
use crate::{Crypto, CryptoFilters, CryptoSettings};

/// The smallest limit for requests: room for a signature, its key and a short message, in base64.
const MIN_REQUEST: ByteSize = ByteSize::kib(16);
/// The largest one.
const MAX_REQUEST: ByteSize = ByteSize::mib(64);
/// The most operations that a request may be allowed to have.
const MAX_OPERATIONS: u32 = 65_536;

/// `listeners.crypto`: batches of cryptographic operations for programs on this machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CryptoListener {
    /// Where programs connect: a Unix socket (mode 0600), or TCP.
    pub bind: Address,
    /// The most connections at once.
    pub max_connections: u32,
    /// The most requests at once on one connection; further ones wait.
    pub max_in_flight: u32,
    /// The longest request.
    pub max_request: ByteSize,
    /// The most operations in a request.
    #[schemars(range(min = 1, max = 65_536))]
    pub max_operations: u32,
    /// What all requests that are being read or answered may take together; a connection whose request does not fit waits.
    pub max_memory: ByteSize,
    /// How long a connection may be without a complete request while none is under way, and how long a program may leave a reply
    /// untaken.
    pub idle_timeout: Period,
}

impl Default for CryptoListener {
    fn default() -> Self {
        Self {
            bind: Address::Unix(PathBuf::from("/run/qudag-sidecar/crypto.sock")),
            max_connections: 256,
            max_in_flight: 64,
            max_request: ByteSize::mib(16),
            max_operations: 4_096,
            max_memory: ByteSize::mib(128),
            idle_timeout: Period::secs(60),
        }
    }
}

impl ListenerSpec for CryptoListener {
    type Filters = CryptoFilters;
    type Upstream = Alone;

    fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        if self.idle_timeout.0.is_zero() {
            errors.push(at.key("idle_timeout").error("must be longer than 0").hint("for instance 60s"));
        }
        for (key, number) in
            [("max_connections", self.max_connections), ("max_in_flight", self.max_in_flight)]
        {
            if number == 0 {
                errors.push(at.key(key).error("nothing could be served").hint("at least 1"));
            }
        }
        if !(1..=MAX_OPERATIONS).contains(&self.max_operations) {
            let hint = format!("from 1 to {MAX_OPERATIONS}");
            errors.push(at.key("max_operations").error("out of range").hint(hint));
        }
        if !(MIN_REQUEST..=MAX_REQUEST).contains(&self.max_request) {
            let hint = format!("from {MIN_REQUEST} to {MAX_REQUEST}");
            errors.push(at.key("max_request").error("out of range").hint(hint));
        }
        if self.max_memory < self.max_request {
            let hint = format!("at least `max_request`, {}", self.max_request);
            errors.push(at.key("max_memory").error("the longest request would never fit").hint(hint));
        }
        errors
    }

    fn binds(&self) -> Vec<(String, Address)> {
        vec![("crypto".to_owned(), self.bind.clone())]
    }

    fn settings(&self, _: &Env) -> CryptoSettings {
        CryptoSettings { listener: self.clone() }
    }

    fn terminal(
        &self,
        _: &CryptoFilters,
        _: &Arc<CryptoSettings>,
        _: &Env,
        previous: Option<&Arc<Alone>>,
    ) -> Result<Terminal<Self>, BuildError> {
        let alone = previous.cloned().unwrap_or_else(|| Arc::new(Alone::new()));
        Ok((terminal::service(Arc::clone(&alone)), alone))
    }

    fn bind(
        _: String,
        address: Address,
        chains: Chains<Crypto>,
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
        assert_eq!(CryptoListener::default().check(&at), []);
        let settings: CryptoListener = serde_json::from_str(
            r#"{"idle_timeout": "0s", "max_connections": 0, "max_in_flight": 0, "max_request": "65MiB", "max_operations": 0,
                "max_memory": "64MiB"}"#,
        )
        .unwrap();
        assert_eq!(settings.check(&at).len(), 6);
        assert!(serde_json::from_str::<CryptoListener>(r#"{"tls": true}"#).is_err());
    }
}
