//! `redis_pool` and `redis_backpressure`.

use std::sync::Arc;

use futures_util::future::Either;
use qudag_filter_api::{
    BuildError, ByteSize, ConfigError, ConfigPath, Env, FilterSpec, Period, Svc, service_fn,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tower::ServiceExt;

use super::kind::{Redis, RedisAnswer, RedisRequest};
use super::pools::Pools;
use crate::pool::desk::{Ages, Want};
use crate::pool::{Adaptive, DbBackpressure, Pressure, above_zero, within};

/// The most connections of any kind.
const MOST: usize = 100_000;

/// `redis_pool`: sessions share the connections to the server. Each complete batch of commands takes one and gives it back when all its
/// answers have come; a transaction keeps it. Sessions that subscribe, block or change what only a connection of their own can have get one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RedisPool {
    /// The most shared connections of one user, database and version of the protocol.
    #[schemars(range(min = 1, max = 100_000))]
    pub size: usize,
    /// The most shared connections of all together.
    #[schemars(range(min = 1, max = 100_000))]
    pub max_servers: usize,
    /// The most sessions with a connection of their own.
    #[schemars(range(min = 1, max = 100_000))]
    pub max_own: usize,
    /// How long a batch waits for a connection, unless `redis_backpressure` says otherwise.
    pub wait: Period,
    /// How long a client may do nothing between MULTI or WATCH and the end of its transaction, before its session is ended.
    pub idle_in_transaction: Period,
    /// How old a connection becomes at most.
    pub server_lifetime: Period,
    /// How long a connection may be idle before it is closed.
    pub server_idle: Period,
}

impl Default for RedisPool {
    fn default() -> Self {
        Self {
            size: 20,
            max_servers: 100,
            max_own: 1000,
            wait: Period::secs(10),
            idle_in_transaction: Period::secs(60),
            server_lifetime: Period::secs(3600),
            server_idle: Period::secs(600),
        }
    }
}

impl RedisPool {
    pub(crate) fn ages(&self) -> Ages {
        Ages { lifetime: self.server_lifetime.0, idle: self.server_idle.0 }
    }
}

impl FilterSpec for RedisPool {
    type Kind = Redis;
    type State = Pools;
    const NAME: &'static str = "redis_pool";

    fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        for (key, value) in
            [("size", self.size), ("max_servers", self.max_servers), ("max_own", self.max_own)]
        {
            within(&mut errors, at, key, value, MOST);
        }
        if self.max_servers < self.size {
            let error = at.key("max_servers").error("less than `size`");
            errors.push(error.hint(format!("at least {}", self.size)));
        }
        for (key, period) in [
            ("wait", self.wait),
            ("idle_in_transaction", self.idle_in_transaction),
            ("server_lifetime", self.server_lifetime),
            ("server_idle", self.server_idle),
        ] {
            above_zero(&mut errors, at, key, period);
        }
        errors
    }

    fn state(&self, _: &Env, previous: Option<(&Self, Arc<Pools>)>) -> Result<Arc<Pools>, BuildError> {
        let pools = previous.map_or_else(Pools::new, |(_, pools)| pools);
        Ok(pools)
    }

    fn wrap(&self, pools: Arc<Pools>, inner: Svc<Redis>) -> Svc<Redis> {
        let settings = Arc::new(self.clone());
        service_fn::<Redis, _, _>(move |request| match request {
            RedisRequest::Session(mut session) => {
                pools.set(&settings);
                session.pooled = Some(Arc::clone(&pools));
                Either::Left(inner.clone().oneshot(RedisRequest::Session(session)))
            }
            RedisRequest::Batch(batch) => {
                let pool = batch.pool;
                pools.set(&settings);
                pool.set(&settings);
                let want = Want {
                    who: batch.client.map(|client| client.ip()),
                    bytes: batch.bytes,
                    pressure: batch.pressure,
                };
                Either::Right(async move { pool.take(want).await.map(RedisAnswer::Server) })
            }
        })
    }
}

/// `redis_backpressure`: refuses early what would wait too long, and serves the newest first under overload, so that the server does useful
/// work at any load. Needs `redis_pool`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RedisBackpressure {
    /// How long a batch waits for a connection at most. A little less than what programs wait for an answer is right.
    pub wait: Period,
    /// How long whoever comes may have to wait in the order of arrival. Where it is longer for all of `standing`, the queue is overloaded:
    /// until it is empty the newest are served first.
    pub tolerable: Period,
    /// See `tolerable`.
    pub standing: Period,
    /// How long a batch waits while the queue is overloaded.
    pub age: Period,
    /// The most batches that wait for the connections of one user, database and version of the protocol.
    pub most: usize,
    /// The most bytes that they hold.
    pub bytes: ByteSize,
    /// A limit of batches under way that is found from how long they take.
    pub adaptive: Adaptive,
}

impl Default for RedisBackpressure {
    fn default() -> Self {
        Self {
            wait: Period::millis(500),
            tolerable: Period::millis(50),
            standing: Period::millis(100),
            age: Period::millis(10),
            most: 10_000,
            bytes: ByteSize(64 << 20),
            adaptive: Adaptive::default(),
        }
    }
}

impl RedisBackpressure {
    /// The keys are those of `db_backpressure`, and so is what is done with them.
    fn pressure(&self) -> Pressure {
        let Self { wait, tolerable, standing, age, most, bytes, ref adaptive } = *self;
        DbBackpressure { wait, tolerable, standing, age, most, bytes, adaptive: adaptive.clone() }
    }
}

impl FilterSpec for RedisBackpressure {
    type Kind = Redis;
    /// The queues belong to the pools.
    type State = ();
    const NAME: &'static str = "redis_backpressure";

    fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        self.pressure().check(at)
    }

    fn state(&self, _: &Env, _: Option<(&Self, Arc<()>)>) -> Result<Arc<()>, BuildError> {
        Ok(Arc::new(()))
    }

    fn wrap(&self, _: Arc<()>, inner: Svc<Redis>) -> Svc<Redis> {
        let pressure = Arc::new(self.pressure());
        service_fn::<Redis, _, _>(move |mut request| {
            if let RedisRequest::Batch(batch) = &mut request {
                batch.pressure = Some(Arc::clone(&pressure));
            }
            inner.clone().oneshot(request)
        })
    }
}

#[cfg(test)]
mod tests {
    use qudag_filter_common::testing::wrong_places;

    use super::*;

    fn wrong<S: FilterSpec>(settings: &str) -> Vec<String> {
        wrong_places(settings, S::check)
    }

    #[test]
    fn defaults_are_right_and_every_mistake_has_its_place() {
        assert!(wrong::<RedisPool>("{}").is_empty() && wrong::<RedisBackpressure>("{}").is_empty());
        for key in ["wait", "idle_in_transaction", "server_lifetime", "server_idle"] {
            assert_eq!(wrong::<RedisPool>(&format!(r#"{{"{key}": "0s"}}"#)), [key]);
        }
        assert_eq!(wrong::<RedisPool>(r#"{"size": 0, "max_own": 0}"#), ["size", "max_own"]);
        assert_eq!(wrong::<RedisPool>(r#"{"size": 200}"#), ["max_servers"]);
        assert_eq!(wrong::<RedisBackpressure>(r#"{"age": "2s"}"#), ["age"]);
        assert_eq!(wrong::<RedisBackpressure>(r#"{"most": 0, "bytes": "1KiB"}"#), ["most", "bytes"]);
        let adaptive = wrong::<RedisBackpressure>(r#"{"adaptive": {"min": 0, "tolerance": 1.0}}"#);
        assert_eq!(adaptive, ["adaptive.min", "adaptive.tolerance"]);
    }
}
