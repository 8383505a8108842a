//! `listeners.redis` in the configuration.

use std::io;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use qudag_filter_api::{
    Address, BuildError, Chains, ConfigError, ConfigPath, Env, FilterError, Period, Resolve, Secret,
    service_fn,
};
use qudag_filter_common::{Front, ListenerSpec, SpliceOptions, Terminal, connect};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::credentials::Credentials;
use super::kind::{Pooled, Redis, RedisAnswer, RedisFilters, RedisRequest, RedisSettings};
use super::listener;
use crate::auth::{
    ClientTls, ClientTlsSettings, SecureStream, ServerTls, ServerTlsMode, ServerTlsSettings, TlsError,
    Within, connect_tls_at_once,
};
use crate::listening::{Database, check_limits, check_server, local};

/// The listener for Redis clients and the server that it leads to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RedisListener {
    /// Where programs connect.
    pub bind: Address,
    /// The Redis or Valkey server. A name is resolved at each connection.
    pub server: Address,
    /// The time to connect to the server, with resolving its name and logging in.
    pub connect_timeout: Period,
    /// How long an open session may make no progress while bytes wait to be written.
    pub stall_timeout: Period,
    /// How long an open session may be idle after one side has finished, where it is passed through.
    pub half_close_timeout: Period,
    /// How many sessions there are at a time; further ones are refused with an error.
    #[schemars(range(min = 1))]
    pub max_sessions: usize,
    /// The user that pooled sessions log in as which have not said AUTH themselves; with `password` only. Left out, the server's default
    /// user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The password for that. With it, whoever reaches this listener is let in. Without it, clients say AUTH where the server wants it, and
    /// the server decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// The certificate for TLS with clients, who all begin with TLS then; without it none does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClientTlsSettings>,
    /// TLS to the server: `disable`, or from the first byte on. There is nothing to agree on, so `prefer` is none of the modes.
    pub server_tls: ServerTlsSettings,
}

impl Default for RedisListener {
    fn default() -> Self {
        Self {
            bind: local(6380),
            server: local(6379),
            connect_timeout: Period::secs(5),
            stall_timeout: Period::secs(300),
            half_close_timeout: Period::secs(300),
            max_sessions: 1000,
            user: None,
            password: None,
            tls: None,
            server_tls: ServerTlsSettings { mode: ServerTlsMode::Disable, ca: None },
        }
    }
}

/// How the server is reached, and what logs in where a client says nothing.
#[derive(Clone)]
pub struct RedisUpstream {
    pub(crate) address: Address,
    /// As a label.
    pub(crate) name: Arc<str>,
    pub(crate) resolve: Arc<dyn Resolve>,
    pub(crate) connect_timeout: std::time::Duration,
    pub(crate) credentials: Option<Arc<Credentials>>,
    /// The certificate for clients.
    pub(crate) clients: Option<Arc<ServerTls>>,
    tls: Arc<ClientTls>,
    made_of: MadeOf,
}

/// The files that are followed.
#[derive(Clone, PartialEq)]
struct MadeOf {
    tls: Option<ClientTlsSettings>,
    server_tls: ServerTlsSettings,
}

impl std::fmt::Debug for RedisUpstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisUpstream").field("name", &self.name).finish_non_exhaustive()
    }
}

impl RedisUpstream {
    /// A new connection, with TLS where there is to be any.
    pub(crate) async fn connect(&self) -> Result<SecureStream, FilterError> {
        let deadline = Instant::now() + self.connect_timeout;
        let stream = connect(&self.address, &*self.resolve, self.connect_timeout).await?;
        let secured = connect_tls_at_once(stream, &self.address, &self.tls, deadline).await;
        secured.map_err(|why| match why {
            TlsError::Timeout => FilterError::Timeout { after: self.connect_timeout },
            why => FilterError::Upstream(why.to_string().into()),
        })
    }
}

impl ListenerSpec for RedisListener {
    type Filters = RedisFilters;
    type Upstream = RedisUpstream;

    fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let redis = Database { name: "Redis", port: 6379 };
        let mut errors: Vec<_> = check_server(at, &self.server, &self.bind, &redis).into_iter().collect();
        let periods = [
            ("connect_timeout", self.connect_timeout),
            ("stall_timeout", self.stall_timeout),
            ("half_close_timeout", self.half_close_timeout),
        ];
        errors.extend(check_limits(at, &periods, self.max_sessions));
        errors.extend(self.tls.iter().flat_map(|tls| tls.check(&at.key("tls"))));
        let server_tls = at.key("server_tls");
        if self.server_tls.mode == ServerTlsMode::Prefer {
            let error = server_tls.key("mode").error("Redis has no way to ask a server whether it has TLS");
            errors.push(error.hint("disable, require, verify_ca or verify_full"));
        } else {
            errors.extend(self.server_tls.check(&server_tls));
        }
        if self.user.is_some() && self.password.is_none() {
            errors.push(at.key("user").error("a user without a password").hint("set `password` as well"));
        }
        errors
    }

    fn binds(&self) -> Vec<(String, Address)> {
        vec![("redis".to_owned(), self.bind.clone())]
    }

    fn settings(&self, _: &Env) -> RedisSettings {
        RedisSettings {
            server: self.server.clone(),
            target: self.server.to_string().into(),
            connect_timeout: self.connect_timeout.0,
            splice: SpliceOptions { stall: self.stall_timeout.0, half_close: self.half_close_timeout.0 },
            max_sessions: self.max_sessions,
            encrypted: self.tls.is_some(),
        }
    }

    fn terminal(
        &self,
        filters: &RedisFilters,
        _: &Arc<RedisSettings>,
        env: &Env,
        previous: Option<&Arc<RedisUpstream>>,
    ) -> Result<Terminal<Self>, BuildError> {
        let credentials = match (&self.password, filters.redis_pool.enabled) {
            (Some(password), true) => {
                let password =
                    password.read().map_err(|why| BuildError::new("listeners.redis.password", why))?;
                let user = self.user.as_ref().map(String::as_bytes);
                Some(Arc::new(Credentials::new(user, password.into_bytes())))
            }
            _ => None,
        };
        let made_of = MadeOf { tls: self.tls.clone(), server_tls: self.server_tls.clone() };
        let (clients, tls) = match previous.filter(|previous| previous.made_of == made_of) {
            Some(previous) => (previous.clients.clone(), Arc::clone(&previous.tls)),
            None => {
                let clients = self.tls.as_ref().map(|tls| ServerTls::open(tls, Within::Redis)).transpose()?;
                (clients.map(Arc::new), Arc::new(ClientTls::open(&self.server_tls, Within::Redis)?))
            }
        };
        let upstream = Arc::new(RedisUpstream {
            address: self.server.clone(),
            name: self.server.to_string().into(),
            resolve: Arc::clone(&env.resolve),
            connect_timeout: self.connect_timeout.0,
            credentials,
            clients,
            tls,
            made_of,
        });
        let end = Arc::clone(&upstream);
        let server = service_fn::<Redis, _, _>(move |request| {
            let end = Arc::clone(&end);
            async move {
                match request {
                    RedisRequest::Session(session) => match session.pooled {
                        Some(pools) => Ok(RedisAnswer::Pooled(Pooled { pools, upstream: end })),
                        None => end
                            .connect()
                            .await
                            .map(|stream| RedisAnswer::PassThrough(stream, end.clients.clone())),
                    },
                    RedisRequest::Batch(_) => Ok(RedisAnswer::Own),
                }
            }
        });
        Ok((server, upstream))
    }

    fn bind(
        _: String,
        address: Address,
        chains: Chains<Redis>,
        env: Env,
    ) -> BoxFuture<'static, io::Result<Box<dyn Front>>> {
        listener::bind(address, chains, env)
    }
}

#[cfg(test)]
mod tests {
    use qudag_filter_common::testing::wrong_places;

    use super::*;

    fn wrong(settings: &str) -> Vec<String> {
        wrong_places(settings, RedisListener::check)
    }

    #[test]
    fn defaults_are_right_and_every_mistake_has_its_place() {
        assert!(wrong("{}").is_empty());
        assert_eq!(wrong(r#"{"server": "cache.example:0"}"#), ["server"]);
        assert_eq!(wrong(r#"{"server": "unix:/x", "bind": "unix:/x"}"#), ["server"]);
        for key in ["connect_timeout", "stall_timeout", "half_close_timeout"] {
            assert_eq!(wrong(&format!(r#"{{"{key}": "0s"}}"#)), [key]);
        }
        assert_eq!(wrong(r#"{"max_sessions": 0}"#), ["max_sessions"]);
        assert_eq!(wrong(r#"{"user": "ann"}"#), ["user"]);
        assert_eq!(wrong(r#"{"server_tls": {"mode": "prefer"}}"#), ["server_tls.mode"]);
        assert_eq!(wrong(r#"{"server_tls": {"ca": "/nowhere"}}"#), ["server_tls.mode"]);
        assert_eq!(
            wrong(r#"{"tls": {"certificate": "/nowhere", "key": "/no"}}"#),
            ["tls.certificate", "tls.key"]
        );
        assert!(serde_json::from_str::<RedisListener>(r#"{"servers": "x:1"}"#).is_err());
    }
}
