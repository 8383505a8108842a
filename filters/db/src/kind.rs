//! The kind of traffic, its request, and its chain.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use qudag_filter_api::{Address, Flow, FlowKey, Kind, chain};
use qudag_filter_common::{CircuitBreaker, RateLimit, SpliceOptions, Stream};

use crate::StartupPacket;

/// Database traffic: a session to be opened, answered with a connection to the server on which nothing was sent yet.
pub struct Db;

impl Kind for Db {
    const NAME: &'static str = "db";
    type Req = DbSession;
    type Rsp = Stream;
    type Glance<'a> = std::convert::Infallible;
    type Settings = DbSettings;
}

/// A session that a client asks for. CancelRequests do not pass through the chain.
#[derive(Clone, Debug)]
pub struct DbSession {
    /// The client; `None` for a Unix socket.
    pub client: Option<SocketAddr>,
    /// The packet that the connection began with. Only a StartupMessage names a user and a database.
    pub first: StartupPacket,
    /// The server, as configured.
    pub server: Arc<str>,
}

impl Flow for DbSession {
    /// Equal for all sessions of a user and a database; by client where they are not known, because they
    /// come encrypted.
    fn key(&self) -> FlowKey {
        match (&self.first, self.client) {
            (StartupPacket::Startup(message), _) => {
                FlowKey::of(&[&message.user[..], &[0], &message.database].concat())
            }
            (_, Some(client)) => FlowKey::client(client),
            (_, None) => FlowKey::of(b"unix"),
        }
    }

    fn client(&self) -> Option<IpAddr> {
        self.client.map(|addr| addr.ip().to_canonical())
    }

    fn target(&self) -> &str {
        &self.server
    }
}

/// What the listener and the terminal service read.
#[derive(Clone, Debug)]
pub struct DbSettings {
    /// The server.
    pub server: Address,
    /// The server as a label.
    pub target: Arc<str>,
    /// The time to connect to the server, with resolving its name, and then for its answer to a request for encryption.
    pub connect_timeout: Duration,
    /// The time that a client has for its start-up packets.
    pub startup_timeout: Duration,
    /// The time limits of an open session.
    pub splice: SpliceOptions,
    /// How many sessions there are at a time.
    pub max_sessions: usize,
}

chain! {
    /// The filters of database sessions, in order.
    pub struct DbFilters for Db, states DbStates {
        /// Refuses sessions over a rate with SQLSTATE 53400.
        rate_limit: RateLimit<Db>,
        /// Refuses sessions at once, with SQLSTATE 57P03, while the server is known to be down.
        circuit_breaker: CircuitBreaker<Db>,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StartupMessage;

    #[test]
    fn sessions_of_a_user_and_database_are_one_flow_and_others_are_the_clients() {
        let session = |client: &str, names: Option<(&str, &str)>| DbSession {
            client: client.parse().ok(),
            first: match names {
                Some((user, database)) => StartupPacket::Startup(StartupMessage {
                    user: user.into(),
                    database: database.into(),
                    ..StartupMessage::default()
                }),
                None => StartupPacket::SslRequest,
            },
            server: "db".into(),
        };
        let key = |client, names| session(client, names).key();
        assert_eq!(key("10.0.0.1:1", Some(("a", "b"))), key("10.0.0.2:1", Some(("a", "b"))));
        assert_ne!(key("10.0.0.1:1", Some(("a", "bc"))), key("10.0.0.1:1", Some(("ab", "c"))));
        assert_eq!(key("10.0.0.1:1", None), key("10.0.0.1:2", None));
        assert_ne!(key("10.0.0.1:1", None), key("10.0.0.2:1", None));
    }
}
