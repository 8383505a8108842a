//! The kind of traffic, its requests, and its chain.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use qudag_filter_api::{Address, Flow, FlowKey, Kind, chain};
use qudag_filter_common::{CircuitBreaker, Limit, RateLimit, SpliceOptions};

use super::filters::{RedisBackpressure, RedisPool};
use super::pool::Pool;
use super::pools::Pools;
use super::settings::RedisUpstream;
use super::taking::Lease;
use crate::auth::{SecureStream, ServerTls};
use crate::pool::Pressure;

/// Redis traffic. A connection asks once for how its session is to be carried; a pooled session asks again at each batch of commands.
pub struct Redis;

impl qudag_filter_common::RateLimited for Redis {
    /// A batch is often one command, and Redis is asked many small things.
    const PER_CLIENT: Limit = Limit { rate: 10_000, burst: 20_000 };

    /// Sessions that are passed through count, and batches of pooled ones.
    fn counts(request: &RedisRequest) -> bool {
        match request {
            RedisRequest::Session(session) => session.pooled.is_none(),
            RedisRequest::Batch(_) => true,
        }
    }
}

impl Kind for Redis {
    const NAME: &'static str = "redis";
    type Req = RedisRequest;
    type Rsp = RedisAnswer;
    type Glance<'a> = std::convert::Infallible;
    type Settings = RedisSettings;
}

/// What the chain is asked for.
#[derive(Debug)]
pub enum RedisRequest {
    /// A session.
    Session(RedisSession),
    /// A server for a batch of commands of a pooled session.
    Batch(RedisBatch),
}

/// What the chain answers.
#[derive(Debug)]
pub enum RedisAnswer {
    /// A connection to the server on which nothing was sent yet: the session is passed through. With the certificate for the client, where it
    /// begins with TLS.
    PassThrough(SecureStream, Option<Arc<ServerTls>>),
    /// The session is to be pooled.
    Pooled(Pooled),
    /// A server for a batch.
    Server(Lease),
    /// `redis_pool` is off now: the session gets a connection of its own.
    Own,
}

/// How a session is pooled.
#[derive(Debug)]
pub struct Pooled {
    pub(crate) upstream: Arc<RedisUpstream>,
    pub(crate) pools: Arc<Pools>,
}

/// A session that a client asks for.
#[derive(Clone, Debug)]
pub struct RedisSession {
    /// The client; `None` for a Unix socket.
    pub client: Option<SocketAddr>,
    /// The server, as configured.
    pub server: Arc<str>,
    /// Set by `redis_pool`.
    pub(crate) pooled: Option<Arc<Pools>>,
}

/// A batch of commands that came together.
#[derive(Clone, Debug)]
pub struct RedisBatch {
    /// The client; `None` for a Unix socket.
    pub client: Option<SocketAddr>,
    /// Whose connections are wanted.
    pub pool: Arc<Pool>,
    /// How many bytes of it are there.
    pub bytes: usize,
    /// Set by `redis_backpressure`.
    pub pressure: Option<Arc<Pressure>>,
}

fn key_of(client: Option<SocketAddr>) -> FlowKey {
    client.map_or_else(|| FlowKey::of(b"unix"), FlowKey::client)
}

impl Flow for RedisRequest {
    fn key(&self) -> FlowKey {
        match self {
            Self::Session(session) => key_of(session.client),
            Self::Batch(batch) => key_of(batch.client),
        }
    }

    fn client(&self) -> Option<IpAddr> {
        let client = match self {
            Self::Session(session) => session.client,
            Self::Batch(batch) => batch.client,
        };
        client.map(|addr| addr.ip().to_canonical())
    }

    fn target(&self) -> &str {
        match self {
            Self::Session(session) => &session.server,
            Self::Batch(batch) => batch.pool.server(),
        }
    }
}

/// What the listener and the terminal service read.
#[derive(Clone, Debug)]
pub struct RedisSettings {
    /// The server.
    pub server: Address,
    /// The server as a label.
    pub target: Arc<str>,
    /// The time to connect to the server, with resolving its name and logging in.
    pub connect_timeout: Duration,
    /// The time limits of a session that is passed through; the first one also holds for pooled ones.
    pub splice: SpliceOptions,
    /// How many sessions there are at a time.
    pub max_sessions: usize,
    /// Whether clients begin with TLS.
    pub encrypted: bool,
}

chain! {
    /// The filters of Redis sessions, in order.
    pub struct RedisFilters for Redis, states RedisStates {
        /// Refuses sessions that are passed through, and batches of pooled ones, over a rate.
        rate_limit: RateLimit<Redis>,
        /// Refuses batches early that would wait too long for a server.
        redis_backpressure: RedisBackpressure,
        /// Refuses at once while the server is known to be down.
        circuit_breaker: CircuitBreaker<Redis>,
        /// Lets sessions share connections to the server.
        redis_pool: RedisPool,
    }
}
