//! `db_query_cache` in the configuration.

use std::sync::Arc;
use std::time::Instant;

use metrics::counter;
use qudag_filter_api::{
    BuildError, ByteSize, ConfigError, ConfigPath, Env, FilterSpec, Period, Svc, service_fn,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::timeout_at;
use tower::ServiceExt;

use super::Asked;
use super::rules::Rule;
use super::store::{Filling, LONGEST, Look, QueryCacheState};
use crate::kind::{Db, DbAnswer, DbRequest};
use crate::session::Fingerprint;

/// The most rules, and the most names in a list of one.
const RULES: usize = 1000;
const NAMES: usize = 100;
/// The longest `wait`.
const WAIT: u64 = 60;

/// `db_query_cache`: replies to queries that rules name are given again for a while, without a server. Needs `db_pool`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct QueryCache {
    /// Which queries; no other is kept.
    pub rules: Vec<CacheRule>,
    /// The memory that replies may take, 64KiB to 64GiB.
    pub max_bytes: ByteSize,
    /// The longest reply that is kept, at most `max_bytes` and 1GiB.
    pub max_reply: ByteSize,
    /// How long one who asks the same as another waits for the other's reply before it asks for itself, at most 60s.
    pub wait: Period,
    /// Whether a transaction that passes through the sidecar and changes a table makes it forget what was read from that table.
    pub flush_on_write: bool,
}

/// Queries whose replies are kept: by one of `fingerprint`, `statement`, `pattern` and `reads`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CacheRule {
    /// What it is called when it is flushed.
    pub name: String,
    /// The query by its fingerprint, as `qudag-sidecar db statements` shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
    /// The query with any values: all that differ from it in their values only are meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statement: Option<String>,
    /// The queries whose text without values, as `qudag-sidecar db statements` shows it, is like this; `*` stands for anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// The queries that read from tables and views of this list, and from no others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reads: Vec<String>,
    /// What else the queries read, without being seen in their texts: the tables of views and functions, for flushing.
    pub tables: Vec<String>,
    /// Functions that the queries may call: such as change nothing. Those that are known to compute only need not be named.
    pub functions: Vec<String>,
    /// How long a reply is given again, counted from when the server was asked; above 0s, at most 300s.
    pub ttl: Period,
    /// The longest reply that is kept, where it is less than that of the filter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_reply: Option<ByteSize>,
    /// The memory that its replies may take; that of the filter where it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<ByteSize>,
}

impl Default for CacheRule {
    fn default() -> Self {
        Self {
            name: String::new(),
            fingerprint: None,
            statement: None,
            pattern: None,
            reads: Vec::new(),
            tables: Vec::new(),
            functions: Vec::new(),
            ttl: Period::secs(10),
            max_reply: None,
            max_bytes: None,
        }
    }
}

impl Default for QueryCache {
    fn default() -> Self {
        Self {
            rules: Vec::new(),
            max_bytes: ByteSize::mib(32),
            max_reply: ByteSize::mib(1),
            wait: Period::secs(5),
            flush_on_write: true,
        }
    }
}

impl CacheRule {
    /// The one statement that it is for.
    pub(super) fn queries(&self) -> Option<Fingerprint> {
        let of_text = |text: &String| Fingerprint::of_text(text);
        self.fingerprint.or_else(|| self.statement.as_ref().map(of_text))
    }

    fn check(&self, at: &ConfigPath, filter: &QueryCache) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        if self.name.is_empty() {
            errors.push(at.key("name").error("no name").hint("a name for flushing"));
        }
        let ways = [
            self.fingerprint.is_some(),
            self.statement.is_some(),
            self.pattern.is_some(),
            !self.reads.is_empty(),
        ];
        match ways.iter().filter(|way| **way).count() {
            1 => {}
            0 => errors.push(
                at.error("no queries").hint("set one of `fingerprint`, `statement`, `pattern` and `reads`"),
            ),
            _ => errors.push(
                at.error("more than one way of saying which queries")
                    .hint("one of `fingerprint`, `statement`, `pattern` and `reads`"),
            ),
        }
        for (key, names) in [("reads", &self.reads), ("tables", &self.tables), ("functions", &self.functions)]
        {
            if names.len() > NAMES {
                errors.push(at.key(key).error("too many").hint(format!("at most {NAMES}")));
            }
        }
        if self.ttl.0.is_zero() || self.ttl.0 > LONGEST {
            errors.push(at.key("ttl").error(format!("{} is out of range", self.ttl)).hint("1ms to 300s"));
        }
        for (key, size, most) in
            [("max_reply", self.max_reply, filter.max_reply), ("max_bytes", self.max_bytes, filter.max_bytes)]
        {
            if let Some(size) = size.filter(|size| size.0 == 0 || size.0 > most.0) {
                let error = at.key(key).error(format!("{size} is out of range"));
                errors.push(error.hint(format!("above 0, at most the {most} of the filter")));
            }
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
        if self.rules.len() > RULES {
            errors.push(rules.error("too many rules").hint(format!("at most {RULES}")));
        }
        for (place, rule) in self.rules.iter().enumerate() {
            let at = rules.index(place);
            errors.extend(rule.check(&at, self));
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
        if self.wait.0.as_secs() > WAIT {
            let error = at.key("wait").error(format!("{} is out of range", self.wait));
            errors.push(error.hint(format!("at most {WAIT}s")));
        }
        errors
    }

    /// With other settings the cache is empty.
    fn state(
        &self,
        _: &Env,
        _: Option<(&Self, Arc<QueryCacheState>)>,
    ) -> Result<Arc<QueryCacheState>, BuildError> {
        Ok(Arc::new(QueryCacheState::new(self)))
    }

    fn wrap(&self, state: Arc<QueryCacheState>, inner: Svc<Db>) -> Svc<Db> {
        // While the filter was off nobody has looked at what was written.
        state.begin();
        let wait = self.wait.0;
        service_fn::<Db, _, _>(move |mut request| {
            let (state, inner) = (Arc::clone(&state), inner.clone());
            async move {
                if let DbRequest::Transaction(transaction) = &mut request {
                    transaction.session.pool.cache.put(&state);
                    let asked = transaction.asked.take().filter(|asked| state.knows(asked));
                    if let Some(asked) = asked.filter(|_| !transaction.own) {
                        match ask(&state, &asked, transaction.changed, wait).await {
                            Found::Reply(reply) => return Ok(DbAnswer::Reply(reply)),
                            Found::Leads(filling) => transaction.filling = Some(Arc::new(filling)),
                            Found::Nothing => {}
                        }
                    }
                }
                inner.oneshot(request).await
            }
        })
    }
}

/// What a transaction finds in the cache.
enum Found {
    Reply(bytes::Bytes),
    /// Nothing; its own reply is to be kept.
    Leads(Filling),
    /// Nothing, and others are asking.
    Nothing,
}

/// Looks for a reply, waiting for that of another for a while.
async fn ask(
    state: &Arc<QueryCacheState>,
    asked: &Asked,
    changed: Option<Instant>,
    wait: std::time::Duration,
) -> Found {
    let deadline = Instant::now() + wait;
    let rule = &asked.named.rule;
    let mut waited = false;
    let (found, result) = loop {
        match state.look(asked, changed, Instant::now()) {
            Look::Hit(reply) => break (Found::Reply(reply), if waited { "joined" } else { "hit" }),
            Look::Ask(filling) => break (Found::Leads(filling), "miss"),
            Look::Wait(mut flight) => {
                waited = true;
                match timeout_at(deadline.into(), flight.changed()).await {
                    // Kept, or given up: then another leads.
                    Ok(Err(_)) => {}
                    Ok(Ok(())) | Err(_) => break (Found::Nothing, "alone"),
                }
            }
        }
    };
    Rule::count(if matches!(found, Found::Reply(_)) { &rule.hits } else { &rule.misses });
    counter!("qudag_sidecar_db_cache_lookups_total", "result" => result).increment(1);
    found
}

#[cfg(test)]
mod tests {
    use qudag_filter_common::testing::wrong_places;

    use super::*;

    fn wrong(settings: &str) -> Vec<String> {
        wrong_places(settings, QueryCache::check)
    }

    #[test]
    fn every_mistake_has_its_place() {
        let rule = r#"{"name": "a", "statement": "SELECT 1"}"#;
        assert!(wrong(&format!(r#"{{"rules": [{rule}]}}"#)).is_empty());
        assert!(wrong("{}").is_empty());
        assert_eq!(wrong(&format!(r#"{{"rules": [{rule}, {rule}]}}"#)), ["rules.1.name"]);
        let same = r#"{"name": "b", "statement": "select 2"}"#;
        assert_eq!(wrong(&format!(r#"{{"rules": [{rule}, {same}]}}"#)), ["rules.1"]);
        for (rule, place) in [
            (r#"{"name": "a"}"#, "rules.0"),
            (r#"{"name": "a", "statement": "SELECT 1", "pattern": "*"}"#, "rules.0"),
            (r#"{"name": "a", "statement": "SELECT 1", "reads": ["t"]}"#, "rules.0"),
            (r#"{"statement": "SELECT 1"}"#, "rules.0.name"),
            (r#"{"name": "a", "statement": "SELECT 1", "ttl": "301s"}"#, "rules.0.ttl"),
            (r#"{"name": "a", "statement": "SELECT 1", "ttl": "0s"}"#, "rules.0.ttl"),
            (r#"{"name": "a", "pattern": "*", "max_reply": "2MiB"}"#, "rules.0.max_reply"),
            (r#"{"name": "a", "pattern": "*", "max_bytes": "33MiB"}"#, "rules.0.max_bytes"),
        ] {
            assert_eq!(wrong(&format!(r#"{{"rules": [{rule}]}}"#)), [place], "{rule}");
        }
        assert_eq!(
            wrong(&format!(r#"{{"rules": [{rule}], "max_bytes": "1KiB"}}"#)),
            ["max_bytes", "max_reply"]
        );
        assert_eq!(wrong(r#"{"wait": "61s"}"#), ["wait"]);
        let many: Vec<_> = (0..=NAMES).map(|n| format!("t{n}")).collect();
        let rule = serde_json::json!({"name": "a", "reads": many});
        assert_eq!(wrong(&format!(r#"{{"rules": [{rule}]}}"#)), ["rules.0.reads"]);
    }
}
