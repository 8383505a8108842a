//! `read_replicas` in the configuration.

use std::sync::Arc;

use qudag_filter_api::{
    Address, BuildError, ByteSize, ConfigError, ConfigPath, Env, FilterError, FilterSpec, Period, Svc,
    service_fn,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tower::ServiceExt;

use super::state::{Replicas, Running};
use super::topology::Rules;
use crate::kind::{Db, DbAnswer, DbRequest};
use crate::listening::has_no_port;
use crate::pool::Transaction;

/// How often a server is looked for.
const ATTEMPTS: u32 = 5;
/// The most replicas.
const MOST: usize = 32;

/// `read_replicas`: transactions that only read may be carried out by replicas that are not far behind, and writes follow the primary when
/// another server is promoted. Needs `db_pool`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ReadReplicas {
    /// The other servers of the cluster, at most 32: replicas of `listeners.postgres.server`, or what becomes primary after it.
    pub servers: Vec<Address>,
    /// How far a replica may be behind and still be read from; at least twice `probe`.
    pub max_lag: Period,
    /// How many bytes of the log it may be behind; null for any number.
    pub max_lag_bytes: Option<ByteSize>,
    /// How often each server is asked whether it is the primary, and how far it is.
    pub probe: Period,
    /// Which transactions go to replicas.
    pub route: Routing,
}

/// What sends a transaction to a replica.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Routing {
    /// The session's start-up: `options=-c qudag.target=replica`, or `listeners.postgres.read_only_bind`.
    pub start_up: bool,
    /// A transaction that begins with `BEGIN READ ONLY` or `START TRANSACTION READ ONLY`.
    pub read_only_transactions: bool,
    /// A text that begins with `/* qudag: replica */` or `/* qudag: primary */`.
    pub hint: bool,
    /// A SELECT that locks nothing and calls nothing but well-known functions that only compute.
    pub parser: bool,
}

impl Default for Routing {
    fn default() -> Self {
        Self { start_up: true, read_only_transactions: true, hint: true, parser: false }
    }
}

impl Default for ReadReplicas {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            max_lag: Period::secs(10),
            max_lag_bytes: None,
            probe: Period::secs(1),
            route: Routing::default(),
        }
    }
}

impl ReadReplicas {
    pub(super) fn rules(&self) -> Rules {
        Rules {
            max_lag: self.max_lag.0,
            max_lag_bytes: self.max_lag_bytes.map(|bytes| bytes.0),
            stale: self.probe.0.saturating_mul(3).max(std::time::Duration::from_secs(2)),
        }
    }
}

impl FilterSpec for ReadReplicas {
    type Kind = Db;
    type State = Replicas;
    const NAME: &'static str = "read_replicas";

    fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        let servers = at.key("servers");
        if self.servers.len() > MOST {
            errors.push(servers.error(format!("{} are too many", self.servers.len())).hint("at most 32"));
        }
        for (place, server) in self.servers.iter().enumerate() {
            if has_no_port(server) {
                let error = servers.index(place).error("port 0 cannot be dialled");
                errors.push(error.hint("the server's port, 5432 for instance"));
            } else if self.servers.iter().take(place).any(|before| before == server) {
                errors.push(servers.index(place).error("the same server again").hint("name it once"));
            }
        }
        let probe = self.probe.0;
        if !(50..=60_000).contains(&probe.as_millis()) {
            errors.push(at.key("probe").error(format!("{} is out of range", self.probe)).hint("50ms to 1m"));
        } else if self.max_lag.0 < probe * 2 {
            let error = at.key("max_lag").error("less than can be told by probes");
            errors.push(error.hint("at least twice `probe`"));
        } else if self.max_lag.0 > probe * 4000 {
            let error =
                at.key("max_lag").error(format!("{} is too much for such frequent probes", self.max_lag));
            errors.push(error.hint("at most 4000 times `probe`"));
        }
        errors
    }

    fn state(&self, _: &Env, previous: Option<(&Self, Arc<Replicas>)>) -> Result<Arc<Replicas>, BuildError> {
        Ok(Replicas::new(self.clone(), previous.map(|(_, state)| state).as_deref()))
    }

    fn wrap(&self, state: Arc<Replicas>, inner: Svc<Db>) -> Svc<Db> {
        let running = Running::of(&state);
        service_fn::<Db, _, _>(move |request| {
            let (running, inner) = (Arc::clone(&running), inner.clone());
            async move {
                let request = match request {
                    DbRequest::Session(mut session) => {
                        session.replicas = Some(Arc::clone(running.replicas()));
                        DbRequest::Session(session)
                    }
                    DbRequest::Transaction(transaction) if transaction.own => {
                        DbRequest::Transaction(transaction)
                    }
                    DbRequest::Transaction(transaction) => return carry(&running, &inner, transaction).await,
                };
                inner.oneshot(request).await
            }
        })
    }
}

/// A server for a transaction, which is looked for elsewhere when the one that it was to come from is no more what it was: nothing was
/// sent yet.
async fn carry(
    running: &Running,
    inner: &Svc<Db>,
    mut transaction: Transaction,
) -> Result<DbAnswer, FilterError> {
    let mut left = ATTEMPTS;
    loop {
        left -= 1;
        let route = running.route(&transaction).await?;
        transaction.route = Some(route.clone());
        let call = inner.clone().oneshot(DbRequest::Transaction(transaction.clone()));
        let begun = std::time::Instant::now();
        let mut call = std::pin::pin!(call);
        let mut reached = true;
        let answer = loop {
            break tokio::select! {
                biased;
                answer = &mut call => Some(answer),
                () = running.outdated(&route), if left > 0 => None,
                () = route.pool.unreachable(begun), if left > 0 && reached => {
                    reached = false;
                    if running.suspect(&route) {
                        None
                    } else {
                        continue;
                    }
                }
            };
        };
        let Some(answer) = answer else { continue };
        match answer {
            Ok(DbAnswer::Server(lease)) if left > 0 && lease.is_fenced() => {}
            Err(error) if running.failed(&route, &error) && left > 0 => {}
            answer => return answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use qudag_filter_common::testing::wrong_places;

    use super::*;

    fn wrong(settings: &str) -> Vec<String> {
        wrong_places(settings, ReadReplicas::check)
    }

    #[test]
    fn every_mistake_has_its_place() {
        for right in ["{}", r#"{"servers": ["a:1", "b:1"]}"#] {
            assert!(wrong(right).is_empty(), "{right}");
        }
        assert_eq!(wrong(r#"{"servers": ["a:1", "a:1", "b:0"]}"#), ["servers.1", "servers.2"]);
        assert_eq!(wrong(r#"{"servers": ["a:1"], "probe": "1ms"}"#), ["probe"]);
        assert_eq!(wrong(r#"{"servers": ["a:1"], "max_lag": "1s"}"#), ["max_lag"]);
        assert_eq!(wrong(r#"{"servers": ["a:1"], "max_lag": "10m", "probe": "100ms"}"#), ["max_lag"]);
    }
}
