//! `db_query_cache` in the configuration.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::counter;
use qudag_filter_api::{
    BuildError, ByteSize, ConfigError, ConfigPath, Env, FilterSpec, Period, Svc, service_fn,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tower::ServiceExt;

use super::store::{LONGEST, Look, QueryCacheState};
use crate::kind::{Db, DbAnswer, DbRequest};
use crate::session::Fingerprint;

/// The most rules, and the most tables of one.
const RULES: usize = 1000;
const TABLES: usize = 100;
/// How long one who asks the same waits for another's reply before it asks itself.
const PATIENCE: Duration = Duration::from_secs(5);

/// `db_query_cache`: replies to queries that rules name are given again for a while, without a server. Needs `db_pool`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct QueryCache {
    /// Which queries; no other is kept.
    pub rules: Vec<CacheRule>,
    /// The memory that replies may take, at least 64KiB.
    pub max_bytes: ByteSize,
    /// The longest reply that is kept, at most `max_bytes`.
    pub max_reply: ByteSize,
}

/// Queries whose replies are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CacheRule {
    /// What it is called when it is flushed.
    pub name: String,
    /// The queries by their fingerprint, as `qudag-sidecar db statements` shows it; or by `statement`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
    /// One of the queries, with any values: all that differ from it in their values only are meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statement: Option<String>,
    /// The tables that they read, for flushing.
    pub tables: Vec<String>,
    /// How long a reply is given again, counted from when the server was asked; above 0s, at most 300s.
    pub ttl: Period,
}

impl Default for CacheRule {
    fn default() -> Self {
        Self {
            name: String::new(),
            fingerprint: None,
            statement: None,
            tables: Vec::new(),
            ttl: Period::secs(10),
        }
    }
}

impl Default for QueryCache {
    fn default() -> Self {
        Self { rules: Vec::new(), max_bytes: ByteSize::mib(32), max_reply: ByteSize::mib(1) }
    }
}

impl CacheRule {
    fn queries(&self) -> Option<Fingerprint> {
        let of_text = |text: &String| Fingerprint::of_text(text);
        self.fingerprint.or_else(|| self.statement.as_ref().map(of_text))
    }

    fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        if self.name.is_empty() {
            errors.push(at.key("name").error("no name").hint("a name for flushing"));
        }
        match (&self.fingerprint, &self.statement) {
            (None, None) => errors.push(at.error("no queries").hint("set `fingerprint` or `statement`")),
            (Some(_), Some(_)) => {
                let error = at.key("statement").error("there is a `fingerprint` already");
                errors.push(error.hint("one of them"));
            }
            _ => {}
        }
        if self.tables.len() > TABLES {
            errors.push(at.key("tables").error("too many").hint(format!("at most {TABLES}")));
        }
        if self.ttl.0.is_zero() || self.ttl.0 > LONGEST {
            errors.push(at.key("ttl").error(format!("{} is out of range", self.ttl)).hint("1ms to 300s"));
        }
        errors
    }
}

impl FilterSpec for QueryCache {
    type Kind = Db;
    type State = QueryCacheState;
    const NAME: &'static str = "db_query_cache";

    fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        let rules = at.key("rules");
        if self.rules.is_empty() {
            errors.push(rules.error("no rule").hint("the queries to keep, or `enabled: false`"));
        } else if self.rules.len() > RULES {
            errors.push(rules.error("too many rules").hint(format!("at most {RULES}")));
        }
        for (place, rule) in self.rules.iter().enumerate() {
            let at = rules.index(place);
            errors.extend(rule.check(&at));
            let before = self.rules.get(..place).unwrap_or_default();
            if before.iter().any(|other| other.name == rule.name) {
                errors.push(at.key("name").error("the same name again").hint("a name of its own"));
            } else if rule.queries().is_some() && before.iter().any(|other| other.queries() == rule.queries())
            {
                errors.push(at.error("another rule is for the same queries").hint("leave one out"));
            }
        }
        if !(64 << 10..=1 << 36).contains(&self.max_bytes.0) {
            let error = at.key("max_bytes").error(format!("{} is out of range", self.max_bytes));
            errors.push(error.hint("64KiB to 64GiB"));
        }
        if !(1..=self.max_bytes.0.min(1 << 30)).contains(&self.max_reply.0) {
            let error = at.key("max_reply").error(format!("{} is out of range", self.max_reply));
            errors.push(error.hint("at most `max_bytes`, and 1GiB"));
        }
        errors
    }

    /// With other settings the cache is empty.
    fn state(
        &self,
        _: &Env,
        _: Option<(&Self, Arc<QueryCacheState>)>,
    ) -> Result<Arc<QueryCacheState>, BuildError> {
        let most = usize::try_from(self.max_reply.0).unwrap_or(usize::MAX);
        Ok(Arc::new(QueryCacheState::new(self.max_bytes.0, most)))
    }

    fn wrap(&self, state: Arc<QueryCacheState>, inner: Svc<Db>) -> Svc<Db> {
        let rules: HashMap<_, _> =
            self.rules.iter().filter_map(|rule| Some((rule.queries()?, Arc::new(rule.clone())))).collect();
        let rules = Arc::new(rules);
        service_fn::<Db, _, _>(move |mut request| {
            let (state, rules, inner) = (Arc::clone(&state), Arc::clone(&rules), inner.clone());
            async move {
                if let DbRequest::Transaction(transaction) = &mut request
                    && !transaction.own
                    && let Some(question) = &transaction.question
                    && let Some(rule) = rules.get(&transaction.statement)
                {
                    let look = || state.look(question.key(), rule, transaction.changed, Instant::now());
                    let mut found = look();
                    let waited = match &mut found {
                        Look::Wait(flight) => {
                            // It ends by the end of the sender.
                            let _ = timeout(PATIENCE, flight.changed()).await;
                            true
                        }
                        _ => false,
                    };
                    if waited {
                        found = look();
                    }
                    let result = match (&found, waited) {
                        (Look::Hit(_), false) => "hit",
                        (Look::Hit(_), true) => "joined",
                        _ => "miss",
                    };
                    counter!("qudag_sidecar_db_cache_lookups_total", "result" => result).increment(1);
                    match found {
                        Look::Hit(reply) => return Ok(DbAnswer::Reply(reply)),
                        Look::Ask(filling) => transaction.filling = Some(Arc::new(filling)),
                        Look::Wait(_) => {}
                    }
                }
                inner.oneshot(request).await
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(settings: &str) -> Vec<String> {
        let settings: QueryCache = serde_json::from_str(settings).unwrap();
        let errors = settings.check(&ConfigPath::root());
        errors.into_iter().map(|error| error.at.to_string()).collect()
    }

    #[test]
    fn every_mistake_has_its_place() {
        let rule = r#"{"name": "a", "statement": "SELECT 1"}"#;
        assert!(wrong(&format!(r#"{{"rules": [{rule}]}}"#)).is_empty());
        assert_eq!(wrong("{}"), ["rules"]);
        assert_eq!(wrong(&format!(r#"{{"rules": [{rule}, {rule}]}}"#)), ["rules.1.name"]);
        let same = r#"{"name": "b", "statement": "select 2"}"#;
        assert_eq!(wrong(&format!(r#"{{"rules": [{rule}, {same}]}}"#)), ["rules.1"]);
        assert_eq!(wrong(r#"{"rules": [{"name": "a"}]}"#), ["rules.0"]);
        let long = r#"{"name": "a", "statement": "SELECT 1", "ttl": "301s"}"#;
        assert_eq!(wrong(&format!(r#"{{"rules": [{long}]}}"#)), ["rules.0.ttl"]);
        assert_eq!(
            wrong(&format!(r#"{{"rules": [{rule}], "max_bytes": "1KiB"}}"#)),
            ["max_bytes", "max_reply"]
        );
    }
}
