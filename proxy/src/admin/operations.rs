//! What the API can do, apart from HTTP: [`Control`], or a double of it in tests.

use std::future::Future;
use std::time::Duration;

use qudag_filter_crypto::Backend;
use qudag_filter_dns::{FlushSelector, Question};
use serde::Deserialize;
use serde_json::Value;

use crate::control::{
    Applied, CacheRebuild, Control, ControlError, Explanation, Flushed, Override, PoolKind, Readiness,
    SettingStatus, Status,
};

/// How long an answer waits for a rebuild of the cache to be done.
const REBUILD_PATIENCE: Duration = Duration::from_millis(250);

/// What the routes call.
pub trait Operations: Clone + Send + Sync + 'static {
    /// The state of the sidecar.
    fn status(&self) -> Status;
    /// Whether traffic should be sent here.
    fn ready(&self) -> Readiness;
    /// Reads the configuration again.
    fn reload(&self) -> impl Future<Output = Result<Applied, ControlError>> + Send;
    /// Sets a switch above the configuration.
    fn set_override(
        &self,
        filter: &str,
        wish: Override,
    ) -> impl Future<Output = Result<Applied, ControlError>> + Send;
    /// Leaves a filter to the layers below.
    fn clear_override(&self, filter: &str) -> impl Future<Output = Result<Applied, ControlError>> + Send;
    /// Takes all filters out of the chains, or puts them back.
    fn bypass(&self, on: bool) -> impl Future<Output = Result<Applied, ControlError>> + Send;
    /// Where the bypass stands.
    fn bypass_state(&self) -> Value;
    /// What each layer says of a filter.
    ///
    /// # Errors
    /// When there is no such filter.
    fn explain(&self, filter: &str) -> Result<Vec<Explanation>, ControlError>;
    /// The counts of the DNS cache.
    ///
    /// # Errors
    /// When there is no DNS cache.
    fn cache_stats(&self) -> Result<Value, ControlError>;
    /// Drops entries of the DNS cache; fails when there is none, or the selection cannot be read.
    fn cache_flush(&self, what: &Flush) -> impl Future<Output = Result<Flushed, ControlError>> + Send;
    /// Asks the servers again for everything that the DNS cache holds. Returns when it is done, or after a moment.
    fn cache_rebuild(&self) -> impl Future<Output = Result<CacheRebuild, ControlError>> + Send;
    /// What is known of the servers that DNS asks.
    ///
    /// # Errors
    /// When DNS is not served.
    fn dns_servers(&self) -> Result<Value, ControlError>;
    /// Which way connections to peers go, and why.
    ///
    /// # Errors
    /// When peer traffic is not served.
    fn peers(&self) -> Result<Value, ControlError>;
    /// The database pools.
    ///
    /// # Errors
    /// When there are none.
    fn db(&self) -> Result<Value, ControlError>;
    /// Holds transactions and commands of a database, or of all, back, or lets them go on; of one kind, or of both.
    ///
    /// # Errors
    /// When there are no pools of it.
    fn db_pause(
        &self,
        paused: bool,
        kind: Option<PoolKind>,
        database: Option<&str>,
    ) -> Result<Value, ControlError>;
    /// Which implementation verifies signatures, and what is held for that.
    ///
    /// # Errors
    /// When cryptography is not served.
    fn crypto(&self) -> Result<Value, ControlError>;
    /// Tests the implementations, or one of them, and returns the same. Fails when there are none to test.
    fn crypto_selftest(
        &self,
        backend: Option<Backend>,
    ) -> impl Future<Output = Result<Value, ControlError>> + Send;
    /// What the query cache holds.
    ///
    /// # Errors
    /// When there is none.
    fn db_cache(&self) -> Result<Value, ControlError>;
    /// Drops replies of the query cache: of a rule, of a table, or all.
    ///
    /// # Errors
    /// When there is no cache or no such rule, or both are named.
    fn db_cache_flush(&self, rule: Option<&str>, table: Option<&str>) -> Result<Value, ControlError>;
    /// Asks the sidecar's own DNS chain.
    fn dns_lookup(&self, question: &Question) -> impl Future<Output = Result<Value, ControlError>> + Send;
    /// The configuration in force, as YAML without secrets.
    ///
    /// # Errors
    /// When there is none yet.
    fn config_shown(&self, with_origin: bool) -> Result<String, ControlError>;
    /// The operator's live settings.
    fn settings(&self) -> Vec<SettingStatus>;
    /// Lays a value over the configuration.
    fn set(
        &self,
        key: &str,
        value: &str,
        ttl: Option<Duration>,
    ) -> impl Future<Output = Result<Applied, ControlError>> + Send;
    /// Takes a live setting back, or all of them.
    fn unset(&self, key: Option<&str>) -> impl Future<Output = Result<Applied, ControlError>> + Send;
    /// Begins the end of the process.
    fn drain(&self);
}

/// Which entries of the DNS cache: those of a name, those under a suffix, those of a record type, or all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flush {
    /// All types of one name.
    pub name: Option<String>,
    /// A name and everything below it.
    pub suffix: Option<String>,
    /// All names of one type: `A`, `AAAA`, `TXT`.
    #[serde(rename = "type")]
    pub rtype: Option<String>,
}

impl Flush {
    fn selector(&self) -> Result<FlushSelector, ControlError> {
        let invalid = |why: String| ControlError::Invalid(why);
        match (&self.name, &self.suffix, &self.rtype) {
            (None, None, None) => Ok(FlushSelector::All),
            (Some(name), None, None) => FlushSelector::name(name).map_err(|why| invalid(why.to_string())),
            (None, Some(suffix), None) => {
                FlushSelector::suffix(suffix).map_err(|why| invalid(why.to_string()))
            }
            (None, None, Some(rtype)) => FlushSelector::rtype(rtype).map_err(invalid),
            _ => Err(invalid("give one of name, suffix and type, or none for everything".to_owned())),
        }
    }
}

impl Operations for Control {
    fn status(&self) -> Status {
        self.status()
    }

    fn ready(&self) -> Readiness {
        self.ready()
    }

    async fn reload(&self) -> Result<Applied, ControlError> {
        self.reload().await
    }

    async fn set_override(&self, filter: &str, wish: Override) -> Result<Applied, ControlError> {
        self.set_override(filter, wish).await
    }

    async fn clear_override(&self, filter: &str) -> Result<Applied, ControlError> {
        self.clear_override(filter).await
    }

    async fn bypass(&self, on: bool) -> Result<Applied, ControlError> {
        self.bypass(on).await
    }

    fn bypass_state(&self) -> Value {
        json(self.bypass_state())
    }

    fn explain(&self, filter: &str) -> Result<Vec<Explanation>, ControlError> {
        self.explain(filter)
    }

    fn cache_stats(&self) -> Result<Value, ControlError> {
        self.cache_stats().map(json)
    }

    async fn cache_flush(&self, what: &Flush) -> Result<Flushed, ControlError> {
        self.cache_flush(what.selector()?).await
    }

    async fn cache_rebuild(&self) -> Result<CacheRebuild, ControlError> {
        self.cache_rebuild(REBUILD_PATIENCE).await
    }

    fn dns_servers(&self) -> Result<Value, ControlError> {
        self.dns_servers().map(json)
    }

    fn peers(&self) -> Result<Value, ControlError> {
        self.peers().map(json)
    }

    fn db(&self) -> Result<Value, ControlError> {
        self.db().map(json)
    }

    fn db_pause(
        &self,
        paused: bool,
        kind: Option<PoolKind>,
        database: Option<&str>,
    ) -> Result<Value, ControlError> {
        self.db_pause(paused, kind, database).map(json)
    }

    fn crypto(&self) -> Result<Value, ControlError> {
        self.crypto().map(json)
    }

    async fn crypto_selftest(&self, backend: Option<Backend>) -> Result<Value, ControlError> {
        self.crypto_selftest(backend).await.map(json)
    }

    fn db_cache(&self) -> Result<Value, ControlError> {
        self.db_cache().map(json)
    }

    fn db_cache_flush(&self, rule: Option<&str>, table: Option<&str>) -> Result<Value, ControlError> {
        self.db_cache_flush(rule, table).map(json)
    }

    async fn dns_lookup(&self, question: &Question) -> Result<Value, ControlError> {
        self.dns_lookup(question).await.map(json)
    }

    fn config_shown(&self, with_origin: bool) -> Result<String, ControlError> {
        self.config_shown(with_origin)
    }

    fn settings(&self) -> Vec<SettingStatus> {
        self.settings()
    }

    async fn set(&self, key: &str, value: &str, ttl: Option<Duration>) -> Result<Applied, ControlError> {
        self.set(key, value, ttl).await
    }

    async fn unset(&self, key: Option<&str>) -> Result<Applied, ControlError> {
        self.unset(key).await
    }

    fn drain(&self) {
        self.drain();
    }
}

fn json(value: impl serde::Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}
