//! The kind of traffic, its requests, and its chain.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use qudag_filter_api::{Address, Flow, FlowKey, Kind, chain};
use qudag_filter_common::{CircuitBreaker, SpliceOptions, Stream};

use crate::pool::{Access, DbBackpressure, DbPool, Lease, Pools, Transaction};
use crate::query_cache::QueryCache;
use crate::replicas::{ReadReplicas, Replicas};
use crate::{DbRateLimit, StartupPacket};

/// Database traffic. A connection asks once for how its session is to be carried; a pooled session asks again at each transaction.
pub struct Db;

impl qudag_filter_common::RateLimited for Db {
    /// Sessions count; transactions have limits of their own ([`DbRateLimit`]).
    fn counts(request: &DbRequest) -> bool {
        matches!(request, DbRequest::Session(_))
    }
}

impl Kind for Db {
    const NAME: &'static str = "db";
    type Req = DbRequest;
    type Rsp = DbAnswer;
    type Glance<'a> = std::convert::Infallible;
    type Settings = DbSettings;
}

/// What the chain is asked for. CancelRequests do not pass through it.
#[derive(Debug)]
pub enum DbRequest {
    /// A session.
    Session(DbSession),
    /// A server for a transaction of a pooled session.
    Transaction(Transaction),
}

/// What the chain answers.
#[derive(Debug)]
pub enum DbAnswer {
    /// A connection to the server on which nothing was sent yet: the session is passed through.
    PassThrough(Stream),
    /// The session is to be pooled.
    Pooled(Pooled),
    /// A server for a transaction.
    Server(Lease),
    /// What a server has answered to the same before: no server is needed.
    Reply(Bytes),
    /// The session's own server, which it has, for a transaction.
    Own,
}

/// How a session is pooled.
#[derive(Debug)]
pub struct Pooled {
    pub(crate) pools: Arc<Pools>,
    pub(crate) settings: Arc<DbPool>,
    pub(crate) access: Arc<Access>,
    pub(crate) replicas: Option<Arc<Replicas>>,
}

/// A session that a client asks for.
#[derive(Clone, Debug)]
pub struct DbSession {
    /// The client; `None` for a Unix socket.
    pub client: Option<SocketAddr>,
    /// The packet that the connection began with. Only a StartupMessage names a user and a database.
    pub first: StartupPacket,
    /// The server, as configured.
    pub server: Arc<str>,
    /// Set by `db_pool`.
    pub(crate) pooled: Option<(Arc<Pools>, Arc<DbPool>)>,
    /// Set by `read_replicas`.
    pub(crate) replicas: Option<Arc<Replicas>>,
}

impl Flow for DbRequest {
    fn key(&self) -> FlowKey {
        match self {
            Self::Session(session) => session.key(),
            Self::Transaction(transaction) => transaction.session.key,
        }
    }

    fn client(&self) -> Option<IpAddr> {
        match self {
            Self::Session(session) => session.client(),
            Self::Transaction(transaction) => transaction.session.client.map(|addr| addr.ip().to_canonical()),
        }
    }

    fn target(&self) -> &str {
        match self {
            Self::Session(session) => session.target(),
            Self::Transaction(transaction) => transaction.pool().server(),
        }
    }
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
        /// Refuses sessions and transactions over a rate with SQLSTATE 53400.
        rate_limit: DbRateLimit,
        /// Gives replies to queries again that rules name.
        db_query_cache: QueryCache,
        /// Lets transactions that only read be carried out by replicas, and finds the primary.
        read_replicas: ReadReplicas,
        /// Refuses transactions early that would wait too long for a server, with SQLSTATE 53300.
        db_backpressure: DbBackpressure,
        /// Refuses sessions at once, with SQLSTATE 57P03, while the server is known to be down.
        circuit_breaker: CircuitBreaker<Db>,
        /// Lets sessions share connections to the server.
        db_pool: DbPool,
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
            pooled: None,
            replicas: None,
        };
        let key = |client, names| session(client, names).key();
        assert_eq!(key("10.0.0.1:1", Some(("a", "b"))), key("10.0.0.2:1", Some(("a", "b"))));
        assert_ne!(key("10.0.0.1:1", Some(("a", "bc"))), key("10.0.0.1:1", Some(("ab", "c"))));
        assert_eq!(key("10.0.0.1:1", None), key("10.0.0.1:2", None));
        assert_ne!(key("10.0.0.1:1", None), key("10.0.0.2:1", None));
    }
}
