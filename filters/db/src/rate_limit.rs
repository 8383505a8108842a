//! `rate_limit` of databases: sessions by client as everywhere, and transactions by user, database and statement.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use metrics::{Counter, counter};
use qudag_core::bucket::{Buckets, Rate};
use qudag_filter_api::{BuildError, ConfigError, ConfigPath, Env, FilterError, FilterSpec, Svc, service_fn};
use qudag_filter_common::{Limit, RateLimit, RateLimitSettings, RateLimitState, RateLimited};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tower::ServiceExt;
use xxhash_rust::xxh3::xxh3_64;

use crate::kind::{Db, DbRequest};
use crate::session::Fingerprint;

/// How many users, and how many databases, are remembered. The bucket of one that was not seen for long may be forgotten, which fills it.
const NAMES: usize = 65_536;
/// How many statements may have a limit.
const STATEMENTS: usize = 1000;

/// Settings of `rate_limit` of databases.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DbRateLimit {
    /// The limit of sessions of each client: an IPv4 address, the /64 network of an IPv6 address, or all clients of Unix sockets together;
    /// null for none.
    pub per_client: Option<Limit>,
    /// The limit of sessions of all clients together; null for none.
    pub total: Option<Limit>,
    /// Limits of transactions, in pooled sessions.
    pub transactions: TransactionLimits,
}

impl Default for DbRateLimit {
    fn default() -> Self {
        Self { per_client: Some(Db::PER_CLIENT), total: None, transactions: TransactionLimits::default() }
    }
}

/// Limits of transactions. Where several hold for one, it needs a token of each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TransactionLimits {
    /// The limit of each user; null for none.
    pub per_user: Option<Limit>,
    /// The limit of each database; null for none.
    pub per_database: Option<Limit>,
    /// The limits of transactions that begin with a statement, by its fingerprint as `qudag-sidecar db statements` shows it.
    pub statements: BTreeMap<Fingerprint, Limit>,
}

impl TransactionLimits {
    fn is_none(&self) -> bool {
        self.per_user.is_none() && self.per_database.is_none() && self.statements.is_empty()
    }
}

impl DbRateLimit {
    /// The limits of sessions; `None` where there are none.
    fn sessions(&self) -> Option<RateLimit<Db>> {
        let Self { per_client, total, .. } = *self;
        let limits = per_client.is_some() || total.is_some();
        limits.then(|| RateLimitSettings { per_client, total }.into())
    }
}

/// What is left in the buckets. Knows no settings, so that it outlives every change of them.
#[derive(Debug)]
pub struct DbRateLimitState {
    sessions: Arc<RateLimitState>,
    transactions: TransactionBuckets,
}

/// Users and databases by a hash of their names, so that none costs more than another.
#[derive(Debug)]
struct TransactionBuckets {
    users: Mutex<Buckets<u64>>,
    databases: Mutex<Buckets<u64>>,
    statements: Mutex<Buckets<Fingerprint>>,
}

impl Default for TransactionBuckets {
    fn default() -> Self {
        Self {
            users: Mutex::new(Buckets::new(NAMES)),
            databases: Mutex::new(Buckets::new(NAMES)),
            // Those in use are at most half of what there is room for, so that none is forgotten.
            statements: Mutex::new(Buckets::new(2 * STATEMENTS)),
        }
    }
}

impl FilterSpec for DbRateLimit {
    type Kind = Db;
    type State = DbRateLimitState;
    const NAME: &'static str = "rate_limit";

    fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let Self { transactions, .. } = self;
        let sessions = self.sessions();
        if sessions.is_none() && transactions.is_none() {
            let hint = "set `per_client`, `total` or `transactions`, or `enabled: false`";
            return vec![at.error("nothing is limited").hint(hint)];
        }
        let mut errors: Vec<_> = sessions.iter().flat_map(|limits| limits.check(at)).collect();
        let at = at.key("transactions");
        for (key, limit) in
            [("per_user", &transactions.per_user), ("per_database", &transactions.per_database)]
        {
            errors.extend(limit.iter().flat_map(|limit| limit.check(&at.key(key))));
        }
        let at = at.key("statements");
        if transactions.statements.len() > STATEMENTS {
            let error = at.error(format!("{} statements are too many", transactions.statements.len()));
            errors.push(error.hint(format!("at most {STATEMENTS}")));
        }
        for (statement, limit) in &transactions.statements {
            errors.extend(limit.check(&at.key(statement.to_string())));
        }
        errors
    }

    fn state(
        &self,
        env: &Env,
        previous: Option<(&Self, Arc<DbRateLimitState>)>,
    ) -> Result<Arc<DbRateLimitState>, BuildError> {
        if let Some((_, state)) = previous {
            return Ok(state);
        }
        let sessions = RateLimit::<Db>::default().state(env, None)?;
        Ok(Arc::new(DbRateLimitState { sessions, transactions: TransactionBuckets::default() }))
    }

    fn wrap(&self, state: Arc<DbRateLimitState>, inner: Svc<Db>) -> Svc<Db> {
        // Counts sessions only: see `RateLimited::counts`.
        let inner = match self.sessions() {
            Some(limits) => limits.wrap(Arc::clone(&state.sessions), inner),
            None => inner,
        };
        if self.transactions.is_none() {
            return inner;
        }
        let gate = Arc::new(Gate::new(&self.transactions, state));
        service_fn::<Db, _, _>(move |request| {
            let admitted = match &request {
                DbRequest::Session(_) => Ok(()),
                DbRequest::Transaction(transaction) => {
                    let key = &transaction.session.pool.key;
                    let now = tokio::time::Instant::now().into_std();
                    gate.admit(&key.user, &key.database, transaction.statement, now)
                }
            };
            let inner = inner.clone();
            async move {
                admitted?;
                inner.oneshot(request).await
            }
        })
    }
}

/// The limits of one generation over the buckets of all.
struct Gate {
    per_user: Option<Rate>,
    per_database: Option<Rate>,
    statements: BTreeMap<Fingerprint, Rate>,
    limited: [Counter; 3],
    state: Arc<DbRateLimitState>,
}

impl Gate {
    fn new(limits: &TransactionLimits, state: Arc<DbRateLimitState>) -> Self {
        let limited = |scope: &'static str| counter!("qudag_sidecar_rate_limited_total", "kind" => "db", "scope" => scope);
        Self {
            per_user: limits.per_user.as_ref().map(Limit::rate),
            per_database: limits.per_database.as_ref().map(Limit::rate),
            statements: limits
                .statements
                .iter()
                .map(|(statement, limit)| (*statement, limit.rate()))
                .collect(),
            limited: ["statement", "user", "database"].map(limited),
            state,
        }
    }

    /// Takes a token of each limit that holds, or none: what one refuses is not held against the others.
    fn admit(
        &self,
        user: &[u8],
        database: &[u8],
        statement: Fingerprint,
        now: Instant,
    ) -> Result<(), FilterError> {
        let buckets = &self.state.transactions;
        let (mut statements, mut users, mut databases);
        let mut taken = Vec::new();
        let mut wanted = Vec::with_capacity(3);
        let [by_statement, by_user, by_database] = &self.limited;
        // Always in this order.
        if let Some(rate) = self.statements.get(&statement) {
            statements = buckets.statements.lock().unwrap_or_else(PoisonError::into_inner);
            wanted.push((statements.of(statement, now), rate, by_statement));
        }
        if let Some(rate) = &self.per_user {
            users = buckets.users.lock().unwrap_or_else(PoisonError::into_inner);
            wanted.push((users.of(xxh3_64(user), now), rate, by_user));
        }
        if let Some(rate) = &self.per_database {
            databases = buckets.databases.lock().unwrap_or_else(PoisonError::into_inner);
            wanted.push((databases.of(xxh3_64(database), now), rate, by_database));
        }
        for (bucket, rate, limited) in wanted {
            if let Err(retry_after) = bucket.take(rate, now) {
                taken.into_iter().for_each(|(bucket, rate): (&mut qudag_core::bucket::Bucket, &Rate)| {
                    bucket.give_back(rate, 1)
                });
                limited.increment(1);
                return Err(FilterError::RateLimited { retry_after });
            }
            taken.push((bucket, rate));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn read(json: &str) -> DbRateLimit {
        serde_json::from_str(json).unwrap()
    }

    fn problems(json: &str) -> Vec<String> {
        read(json).check(&ConfigPath::root()).iter().map(ToString::to_string).collect()
    }

    fn gate(json: &str, state: &Arc<DbRateLimitState>) -> Gate {
        Gate::new(&read(json).transactions, Arc::clone(state))
    }

    fn state() -> Arc<DbRateLimitState> {
        let sessions = RateLimit::<Db>::default().state(&qudag_filter_common::testing::env(), None).unwrap();
        Arc::new(DbRateLimitState { sessions, transactions: TransactionBuckets::default() })
    }

    const A: Fingerprint = Fingerprint(0xff);
    const B: Fingerprint = Fingerprint(1);

    #[tokio::test]
    async fn users_databases_and_statements_have_their_rates() {
        let (now, state) = (Instant::now(), state());
        let limits = r#"{"transactions": {"per_user": {"rate": 10, "burst": 3}, "per_database": {"rate": 10, "burst": 5},
            "statements": {"00000000000000ff": {"rate": 1, "burst": 1}}}}"#;
        let gate = gate(limits, &state);
        let ask = |user: &str, database: &str, statement, now| match gate.admit(
            user.as_bytes(),
            database.as_bytes(),
            statement,
            now,
        ) {
            Ok(()) => None,
            Err(FilterError::RateLimited { retry_after }) => Some(retry_after.as_millis()),
            Err(other) => panic!("{other}"),
        };
        assert_eq!(ask("ann", "one", A, now), None);
        // A statement over its rate costs the user nothing.
        for _ in 0..5 {
            assert_eq!(ask("ann", "one", A, now), Some(1000));
        }
        assert_eq!((ask("ann", "one", B, now), ask("ann", "two", B, now)), (None, None));
        assert_eq!(ask("ann", "two", B, now), Some(100));
        assert_eq!(ask("ann", "three", B, now), Some(100));
        // Nor does a database that is used up by others.
        for _ in 0..3 {
            assert_eq!(ask("bob", "one", B, now), None);
        }
        assert_eq!(ask("eve", "one", B, now), Some(100));
        assert_eq!(
            (ask("eve", "two", B, now), ask("eve", "two", B, now), ask("eve", "two", B, now)),
            (None, None, None)
        );
        assert_eq!(ask("ann", "one", A, now + Duration::from_millis(100)), Some(900));
        assert_eq!(ask("ann", "one", A, now + Duration::from_secs(1)), None);
    }

    #[tokio::test]
    async fn a_change_of_settings_keeps_what_was_used() {
        let (now, state) = (Instant::now(), state());
        let before = gate(r#"{"transactions": {"per_user": {"rate": 10, "burst": 1}}}"#, &state);
        before.admit(b"ann", b"one", A, now).unwrap();
        let after = gate(r#"{"transactions": {"per_user": {"rate": 1, "burst": 1}}}"#, &state);
        assert!(after.admit(b"ann", b"one", A, now).is_err());
        assert!(after.admit(b"bob", b"one", A, now).is_ok());
    }

    #[test]
    fn settings_are_read_and_checked() {
        assert_eq!(read("{}"), DbRateLimit::default());
        assert_eq!(read("{}").per_client, Some(Limit { rate: 100, burst: 200 }));
        assert_eq!(read(r#"{"per_client": null}"#).per_client, None);
        let all = r#"{"per_client": null, "total": null, "transactions": {"per_user": {"rate": 5}, "statements":
            {"0123456789abcdef": {"rate": 7}}}}"#;
        let settings = read(all);
        assert_eq!(settings.transactions.statements.keys().next(), Some(&Fingerprint(0x0123_4567_89ab_cdef)));
        assert_eq!(read(&serde_json::to_string(&settings).unwrap()), settings);
        assert!(problems(all).is_empty());
        assert_eq!(problems(r#"{"per_client": null}"#).len(), 1);
        assert_eq!(
            problems(
                r#"{"total": {"rate": 0}, "transactions": {"per_user": {"burst": 0}, "statements":
                {"0123456789abcdef": {"rate": 2000000}}}}"#
            ),
            [
                "total.rate: 0 is too small",
                "transactions.per_user.burst: 0 is too small",
                "transactions.statements.0123456789abcdef.rate: 2000000 is too large",
            ]
        );
        for wrong in ["ff", "0123456789ABCDEF0", "0123456789abcdeg", "+123456789abcdef"] {
            let text = format!(r#"{{"transactions": {{"statements": {{"{wrong}": {{}}}}}}}}"#);
            let why = serde_json::from_str::<DbRateLimit>(&text).unwrap_err().to_string();
            assert!(why.contains("16 hexadecimal digits"), "{why}");
        }
    }
}
