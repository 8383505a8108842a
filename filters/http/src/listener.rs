//! The settings of the HTTP listener, and what is bound.

use std::io;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use qudag_filter_api::{
    Address, BuildError, ByteSize, Chains, ConfigError, ConfigPath, Env, HostPort, Period, service_fn,
};
use qudag_filter_common::{Front, ListenerSpec, Socket, Terminal};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::front::Server;
use crate::{Http, HttpFilters, HttpSettings, node};

/// The smallest limit for request heads; hyper reads no less at once.
const MIN_HEADER: ByteSize = ByteSize::kib(8);
/// The largest one.
const MAX_HEADER: ByteSize = ByteSize::mib(1);

/// `listeners.http`: HTTP/1.1 and HTTP/2 (prior knowledge) in front of the node's HTTP server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HttpListener {
    /// Where clients connect.
    pub bind: Address,
    /// The most client connections at once; others get 503.
    pub max_connections: u32,
    /// How long a client may take for the head of a request, from its first byte.
    pub header_timeout: Period,
    /// How long a client connection may be without a request.
    pub idle_timeout: Period,
    /// How long a body may pause: that of a request (408), and that of a response whose length is known.
    pub body_timeout: Period,
    /// The longest request head (431).
    pub max_header_bytes: ByteSize,
    /// The largest request body (413).
    pub max_body: ByteSize,
    /// How long connecting to the node may take (504).
    pub connect_timeout: Period,
    /// How long the node may take for the head of its response, from the last byte that was sent to it (504).
    pub first_byte_timeout: Period,
}

impl Default for HttpListener {
    fn default() -> Self {
        Self {
            bind: Address::Tcp(HostPort::from(std::net::SocketAddr::from(([127, 0, 0, 1], 8180)))),
            max_connections: 1024,
            header_timeout: Period::secs(10),
            idle_timeout: Period::secs(60),
            body_timeout: Period::secs(60),
            max_header_bytes: ByteSize::kib(64),
            max_body: ByteSize::mib(16),
            connect_timeout: Period::secs(1),
            first_byte_timeout: Period::secs(30),
        }
    }
}

impl ListenerSpec for HttpListener {
    type Filters = HttpFilters;
    /// The terminal service has no state: connections that are kept belong to `connection_pooling`.
    type Upstream = ();

    fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        for (key, period) in [
            ("header_timeout", self.header_timeout),
            ("idle_timeout", self.idle_timeout),
            ("body_timeout", self.body_timeout),
            ("connect_timeout", self.connect_timeout),
            ("first_byte_timeout", self.first_byte_timeout),
        ] {
            if period.0.is_zero() {
                errors.push(at.key(key).error("must be longer than 0").hint("for instance 10s"));
            }
        }
        if self.max_connections == 0 {
            errors.push(at.key("max_connections").error("no client could connect").hint("for instance 1024"));
        }
        if !(MIN_HEADER..=MAX_HEADER).contains(&self.max_header_bytes) {
            let hint = format!("from {MIN_HEADER} to {MAX_HEADER}");
            errors.push(at.key("max_header_bytes").error("out of range").hint(hint));
        }
        errors
    }

    fn binds(&self) -> Vec<(String, Address)> {
        vec![("http".to_owned(), self.bind.clone())]
    }

    fn settings(&self, env: &Env) -> HttpSettings {
        HttpSettings {
            listener: self.clone(),
            node: Address::Tcp(env.node.http.clone()),
            resolve: Arc::clone(&env.resolve),
        }
    }

    fn terminal(
        &self,
        _: &HttpFilters,
        settings: &Arc<HttpSettings>,
        _: &Env,
        previous: Option<&Arc<()>>,
    ) -> Result<Terminal<Self>, BuildError> {
        let settings = Arc::clone(settings);
        let service = service_fn::<Http, _, _>(move |call| node::send(call, Arc::clone(&settings)));
        Ok((service, previous.cloned().unwrap_or_default()))
    }

    fn bind(
        _: String,
        address: Address,
        chains: Chains<Http>,
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
        assert_eq!(HttpListener::default().check(&at), []);
        let settings: HttpListener = serde_json::from_str(
            r#"{"header_timeout": "0s", "idle_timeout": "0s", "body_timeout": "0s", "connect_timeout": "0s",
                "first_byte_timeout": "0s", "max_connections": 0, "max_header_bytes": "4KiB"}"#,
        )
        .unwrap();
        assert_eq!(settings.check(&at).len(), 7);
        assert!(serde_json::from_str::<HttpListener>(r#"{"tls": true}"#).is_err());
    }
}
