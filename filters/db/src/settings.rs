//! `listeners.postgres` in the configuration.

use std::io;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use qudag_filter_api::{Address, BuildError, Chains, ConfigError, ConfigPath, Env, Period, service_fn};
use qudag_filter_common::{Front, ListenerSpec, SpliceOptions, Terminal, connect};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::asking::{ProbeSettings, ProbeUser};
use crate::auth::{
    AuthSettings, ClientTls, ClientTlsSettings, ServerTls, ServerTlsSettings, Users, Way, Within,
};
use crate::listening::{Database, check_limits, check_server, has_no_port, local};
use crate::load::{Load, LoadStatus};
use crate::pool::{Access, Target};
use crate::{Db, DbAnswer, DbFilters, DbRequest, DbSettings, Pooled, listener};

/// The name of the bind for programs that only read.
const READ_ONLY: &str = "postgres-read-only";

/// The listener for PostgreSQL clients and the server that it leads to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PostgresListener {
    /// Where programs connect. For libpq a Unix socket is named `unix:FOLDER/.s.PGSQL.PORT`.
    pub bind: Address,
    /// Where programs connect that only read: their sessions go to replicas, see `read_replicas`. It has `max_sessions` of its own. Sessions that are not pooled are led to
    /// the server from here as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_only_bind: Option<Address>,
    /// The PostgreSQL server; the primary until another one is found, where `read_replicas` is on. A name is resolved at each session.
    pub server: Address,
    /// The time to connect to the server, with resolving its name.
    pub connect_timeout: Period,
    /// The time that a client has for its start-up packets.
    pub startup_timeout: Period,
    /// How long an open session may make no progress while bytes wait to be written.
    pub stall_timeout: Period,
    /// How long an open session may be idle after one side has finished.
    pub half_close_timeout: Period,
    /// How many sessions there are at a time; further ones are refused with SQLSTATE 53300.
    #[schemars(range(min = 1))]
    pub max_sessions: usize,
    /// The certificate for TLS with clients, in pooled sessions; without it they get no TLS. Other sessions agree on TLS with the server
    /// itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClientTlsSettings>,
    /// TLS to the server, in pooled sessions.
    pub server_tls: ServerTlsSettings,
    /// How clients prove who they are, in pooled sessions. In others the server asks them itself.
    pub auth: AuthSettings,
    /// What the sidecar asks servers itself, while sessions are pooled, and as whom.
    pub probe: ProbeSettings,
}

impl Default for PostgresListener {
    fn default() -> Self {
        Self {
            bind: local(6432),
            read_only_bind: None,
            server: local(5432),
            connect_timeout: Period::secs(5),
            startup_timeout: Period::secs(10),
            // A program may look at the first rows for a while before it reads on.
            stall_timeout: Period::secs(3600),
            half_close_timeout: Period::secs(300),
            max_sessions: 1000,
            tls: None,
            server_tls: ServerTlsSettings::default(),
            auth: AuthSettings::default(),
            probe: ProbeSettings::default(),
        }
    }
}

/// What pooled sessions need of the listener, which is made anew only when its settings change: it follows files and remembers users.
pub struct DbUpstream {
    made_of: MadeOf,
    access: Arc<Access>,
}

#[derive(PartialEq)]
struct MadeOf {
    server: Address,
    tls: Option<ClientTlsSettings>,
    server_tls: ServerTlsSettings,
    auth: AuthSettings,
    probe: ProbeSettings,
    connect_timeout: Period,
}

impl DbUpstream {
    /// How loaded the servers are.
    pub fn load(&self) -> Vec<LoadStatus> {
        self.access.load.status()
    }

    fn new(made_of: MadeOf, env: &Env, previous: Option<&Self>) -> Result<Self, BuildError> {
        let tls = Arc::new(ClientTls::open(&made_of.server_tls, Within::Postgres)?);
        let (server, resolve) = (made_of.server.clone(), Arc::clone(&env.resolve));
        let connect_timeout = made_of.connect_timeout.0;
        let way = Way {
            server: server.clone(),
            resolve: Arc::clone(&resolve),
            tls: Arc::clone(&tls),
            connect_timeout,
        };
        let users = Users::open(&made_of.auth, way).map(Arc::new).map_err(|error| error.why);
        let clients =
            made_of.tls.as_ref().map(|tls| ServerTls::open(tls, Within::Postgres)).transpose()?.map(Arc::new);
        let probe = made_of.probe.user.as_ref().zip(users.as_ref().ok()).map(|(user, users)| {
            let database = made_of.probe.database.as_bytes().into();
            Arc::new(ProbeUser { user: user.as_bytes().into(), database, users: Arc::clone(users) })
        });
        let target = Target::new(server, resolve, tls, connect_timeout, probe);
        let target = Arc::new(target);
        let load = Load::new(&made_of.probe.load, &target, previous.map(|it| &*it.access.load));
        let admins = made_of.auth.admins.clone();
        let access = Access { target, tls: clients, admins, users, load };
        Ok(Self { made_of, access: Arc::new(access) })
    }
}

impl ListenerSpec for PostgresListener {
    type Filters = DbFilters;
    type Upstream = DbUpstream;

    fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let postgres = Database { name: "PostgreSQL", port: 5432 };
        let server = check_server(at, &self.server, &self.bind, &postgres);
        let mut errors: Vec<_> = server.into_iter().collect();
        if let Some(bind) = &self.read_only_bind {
            let at = at.key("read_only_bind");
            if *bind == self.bind && !has_no_port(bind) {
                errors.push(at.error("the same as `bind`").hint("another port"));
            } else if *bind == self.server {
                errors.push(at.error("the listener would dial itself").hint("another port"));
            }
        }
        let periods = [
            ("connect_timeout", self.connect_timeout),
            ("startup_timeout", self.startup_timeout),
            ("stall_timeout", self.stall_timeout),
            ("half_close_timeout", self.half_close_timeout),
        ];
        errors.extend(check_limits(at, &periods, self.max_sessions));
        errors.extend(self.tls.iter().flat_map(|tls| tls.check(&at.key("tls"))));
        errors.extend(self.server_tls.check(&at.key("server_tls")));
        errors.extend(self.auth.check(&at.key("auth")));
        errors.extend(self.probe.check(&at.key("probe")));
        errors
    }

    fn binds(&self) -> Vec<(String, Address)> {
        let read_only = self.read_only_bind.iter().map(|bind| (READ_ONLY.to_owned(), bind.clone()));
        std::iter::once(("postgres".to_owned(), self.bind.clone())).chain(read_only).collect()
    }

    fn settings(&self, _: &Env) -> DbSettings {
        DbSettings {
            server: self.server.clone(),
            target: self.server.to_string().into(),
            connect_timeout: self.connect_timeout.0,
            startup_timeout: self.startup_timeout.0,
            splice: SpliceOptions { stall: self.stall_timeout.0, half_close: self.half_close_timeout.0 },
            max_sessions: self.max_sessions,
        }
    }

    fn terminal(
        &self,
        filters: &DbFilters,
        settings: &Arc<DbSettings>,
        env: &Env,
        previous: Option<&Arc<DbUpstream>>,
    ) -> Result<Terminal<Self>, BuildError> {
        let made_of = MadeOf {
            server: self.server.clone(),
            tls: self.tls.clone(),
            server_tls: self.server_tls.clone(),
            auth: self.auth.clone(),
            probe: self.probe.clone(),
            connect_timeout: self.connect_timeout,
        };
        let upstream = match previous {
            Some(previous) if previous.made_of == made_of => Arc::clone(previous),
            _ => Arc::new(DbUpstream::new(made_of, env, previous.map(|it| &**it))?),
        };
        if let (true, Err(why)) = (filters.db_pool.enabled, &upstream.access.users) {
            return Err(BuildError::new("listeners.postgres.auth", why));
        }
        let (settings, resolve, access) =
            (Arc::clone(settings), Arc::clone(&env.resolve), Arc::clone(&upstream.access));
        let server = service_fn::<Db, _, _>(move |request| {
            let (settings, resolve, access) =
                (Arc::clone(&settings), Arc::clone(&resolve), Arc::clone(&access));
            async move {
                match request {
                    DbRequest::Session(session) => match session.pooled {
                        Some((pools, settings)) => {
                            let replicas = session.replicas;
                            Ok(DbAnswer::Pooled(Pooled { pools, settings, access, replicas }))
                        }
                        None => {
                            let stream =
                                connect(&settings.server, &*resolve, settings.connect_timeout).await?;
                            Ok(DbAnswer::PassThrough(stream))
                        }
                    },
                    DbRequest::Transaction(transaction) if transaction.own => Ok(DbAnswer::Own),
                    DbRequest::Transaction(transaction) => {
                        let want = transaction.want();
                        // It is for all that the session does from now on.
                        let route = transaction.route.filter(|route| !route.reads);
                        let routed = route.is_some();
                        let pool =
                            route.map_or_else(|| Arc::clone(&transaction.session.pool), |route| route.pool);
                        let mut lease = pool.dedicated(want).await?;
                        lease.routed = routed;
                        Ok(DbAnswer::Server(lease))
                    }
                }
            }
        });
        Ok((server, upstream))
    }

    fn bind(
        name: String,
        address: Address,
        chains: Chains<Db>,
        env: Env,
    ) -> BoxFuture<'static, io::Result<Box<dyn Front>>> {
        listener::bind(address, name == READ_ONLY, chains, env)
    }
}

#[cfg(test)]
mod tests {
    use qudag_filter_common::testing::wrong_places;

    use super::*;

    fn wrong(settings: &str) -> Vec<String> {
        wrong_places(settings, PostgresListener::check)
    }

    #[test]
    fn defaults_are_right_and_every_mistake_has_its_place() {
        assert!(wrong("{}").is_empty());
        assert_eq!(wrong(r#"{"server": "db.example:0"}"#), ["server"]);
        assert_eq!(wrong(r#"{"server": "[::1]:1", "bind": "[::1]:1"}"#), ["server"]);
        assert_eq!(wrong(r#"{"server": "unix:/x", "bind": "unix:/x"}"#), ["server"]);
        for key in ["connect_timeout", "startup_timeout", "stall_timeout", "half_close_timeout"] {
            assert_eq!(wrong(&format!(r#"{{"{key}": "0s"}}"#)), [key]);
        }
        assert_eq!(wrong(r#"{"max_sessions": 0}"#), ["max_sessions"]);
        assert_eq!(wrong(r#"{"read_only_bind": "127.0.0.1:6432"}"#), ["read_only_bind"]);
        assert_eq!(wrong(r#"{"read_only_bind": "127.0.0.1:5432"}"#), ["read_only_bind"]);
        assert!(serde_json::from_str::<PostgresListener>(r#"{"servers": "x:1"}"#).is_err());
    }
}
