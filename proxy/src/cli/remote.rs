//! The commands that ask a running sidecar.

use qudag_filter_api::{Percent, Period};
use serde_json::{Map, Value, json};

use super::args::{
    CacheFlush, Common, CryptoCommand, DbCacheCommand, DbCommand, DbKind, DnsCommand, FiltersCommand,
    FlagsCommand, Format, Target,
};
use super::exit::{FAILED, Failure};
use super::{find, output, view};
use crate::admin::client::{Client, ClientError};
use crate::resolve::SystemResolver;

/// How a human sees an answer.
type View = fn(&Value, bool) -> String;

/// What to ask a sidecar.
pub(super) struct Ask {
    method: Method,
    path: String,
    view: View,
    /// Whether an answer reports a failure, although it is one.
    failed: fn(&Value) -> bool,
}

enum Method {
    Get,
    Post(Value),
}

impl Ask {
    fn get(path: impl Into<String>, view: View) -> Self {
        Self { method: Method::Get, path: path.into(), view, failed: |_| false }
    }

    fn post(path: impl Into<String>, body: Value, view: View) -> Self {
        Self { method: Method::Post(body), path: path.into(), view, failed: |_| false }
    }

    /// `status`
    pub(super) fn status() -> Self {
        Self::get("/status", view::status)
    }

    /// `reload`
    pub(super) fn reload() -> Self {
        Self::post("/reload", json!({}), view::applied)
    }

    /// `set`
    pub(super) fn set((key, value): (String, String), ttl: Option<Period>) -> Self {
        let mut body = json!({"key": key, "value": value});
        if let (Some(ttl), Some(body)) = (ttl, body.as_object_mut()) {
            body.insert("ttl".to_owned(), json!(ttl));
        }
        Self::post("/settings", body, view::applied)
    }

    /// `unset`: all of them where no key is given.
    pub(super) fn unset(key: Option<String>) -> Self {
        let body = key.map_or_else(|| json!({"all": true}), |key| json!({"key": key}));
        Self::post("/settings/reset", body, view::applied)
    }

    /// `drain`
    pub(super) fn drain() -> Self {
        Self::post("/drain", json!({}), view::draining)
    }

    /// `filters …`
    ///
    /// # Errors
    /// When a name cannot be one.
    pub(super) fn filters(command: FiltersCommand) -> Result<Self, Failure> {
        Ok(match command {
            FiltersCommand::List => Self::get("/filters", view::filters),
            FiltersCommand::Enable { name, rollout, ttl } => {
                Self::post(path(&["filters", &name, "enable"])?, switch(rollout, ttl), view::applied)
            }
            FiltersCommand::Disable { name, ttl } => {
                Self::post(path(&["filters", &name, "disable"])?, switch(None, ttl), view::applied)
            }
            FiltersCommand::Reset { name } => {
                Self::post(path(&["filters", &name, "reset"])?, json!({}), view::applied)
            }
        })
    }

    /// `flags …`
    ///
    /// # Errors
    /// When a name cannot be one.
    pub(super) fn flags(command: FlagsCommand) -> Result<Self, Failure> {
        let FlagsCommand::Explain { name } = command;
        Ok(Self::get(path(&["flags", &name])?, view::explanations))
    }

    /// `cache stats`
    pub(super) fn cache_stats() -> Self {
        Self::get("/cache", view::cache)
    }

    /// `cache flush …`
    pub(super) fn cache_flush(flush: CacheFlush) -> Self {
        let chosen = [("name", flush.name), ("suffix", flush.suffix), ("type", flush.rtype)];
        let body: Map<String, Value> = chosen
            .into_iter()
            .filter_map(|(key, value)| Some((key.to_owned(), Value::String(value?))))
            .collect();
        Self::post("/cache/flush", Value::Object(body), view::flushed)
    }

    /// `peers`
    pub(super) fn peers() -> Self {
        Self::get("/peers", view::peers)
    }

    /// `db …`
    pub(super) fn db(command: Option<DbCommand>) -> Self {
        let of = |kind: Option<DbKind>, database: Option<String>| {
            let named = [("kind", kind.map(|kind| kind.name().to_owned())), ("database", database)];
            let given = named.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?.into())));
            Value::Object(given.collect())
        };
        match command.unwrap_or(DbCommand::Pools) {
            DbCommand::Pools => Self::get("/db", view::db_pools),
            DbCommand::Clients => Self::get("/db", view::db_clients),
            DbCommand::Servers => Self::get("/db", view::db_servers),
            DbCommand::Queue => Self::get("/db", view::db_queue),
            DbCommand::Replicas => Self::get("/db", view::db_replicas),
            DbCommand::Load => Self::get("/db", view::db_load),
            DbCommand::Statements => Self::get("/db", view::db_statements),
            DbCommand::Cache { command: None } => Self::get("/db/cache", view::db_cache),
            DbCommand::Cache { command: Some(DbCacheCommand::Flush { rule, table }) } => {
                let chosen = [("rule", rule), ("table", table)];
                let body: Map<String, Value> = chosen
                    .into_iter()
                    .filter_map(|(key, value)| Some((key.to_owned(), Value::String(value?))))
                    .collect();
                Self::post("/db/cache/flush", Value::Object(body), view::flushed)
            }
            DbCommand::Pause { kind, database } => {
                Self::post("/db/pause", of(kind, database), view::db_paused)
            }
            DbCommand::Resume { kind, database } => {
                Self::post("/db/resume", of(kind, database), view::db_paused)
            }
        }
    }

    /// `crypto …` of a running sidecar
    pub(super) fn crypto(command: CryptoCommand) -> Self {
        let CryptoCommand::Selftest { backend, .. } = command else {
            return Self::get("/crypto", view::crypto);
        };
        let body = backend.map_or_else(|| json!({}), |backend| json!({"backend": backend.name()}));
        Self { failed: view::has_unsound, ..Self::post("/crypto/selftest", body, view::crypto) }
    }

    /// `dns …`
    pub(super) fn dns(command: DnsCommand) -> Self {
        let (name, rtype, trace, dnssec, cd) = match command {
            DnsCommand::Servers => return Self::get("/dns/servers", view::servers),
            DnsCommand::Lookup { name, rtype, trace, dnssec, cd } => (name, rtype, trace, dnssec, cd),
        };
        let body = json!({"name": name, "type": rtype, "trace": trace, "dnssec": dnssec, "cd": cd});
        Self {
            failed: |answer| answer.get("error").is_some(),
            ..Self::post("/dns/lookup", body, view::lookup)
        }
    }

    /// Asks, and prints the answer.
    ///
    /// # Errors
    /// When no sidecar answers, or it says no.
    pub(super) fn run(self, common: &Common, target: &Target, format: Format) -> Result<(), Failure> {
        let client = find::client(common, target)?;
        let answer = block_on(self.send(&client))??;
        output::answer(&answer, self.view, format)?;
        if (self.failed)(&answer) { Err(Failure::silent(FAILED)) } else { Ok(()) }
    }

    async fn send(&self, client: &Client) -> Result<Value, ClientError> {
        let resolve = SystemResolver::new();
        match &self.method {
            Method::Get => client.get(&self.path, &resolve).await,
            Method::Post(body) => client.post(&self.path, body, &resolve).await,
        }
    }
}

/// `config show` of the running sidecar.
///
/// # Errors
/// When no sidecar answers.
pub(super) fn show_config(common: &Common, target: &Target, origin: bool) -> Result<(), Failure> {
    let client = find::client(common, target)?;
    let path = if origin { "/config?origin=true" } else { "/config" };
    let text = block_on(async { client.get_text(path, &SystemResolver::new()).await })??;
    output::print(&text)
}

/// Runs a future on a runtime of its own.
///
/// # Errors
/// When the operating system gives no runtime.
pub(super) fn block_on<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|why| Failure::new(FAILED, format!("cannot start a runtime: {why}")))?;
    Ok(runtime.block_on(work))
}

fn switch(rollout: Option<Percent>, ttl: Option<Period>) -> Value {
    let mut wish = Map::new();
    if let Some(rollout) = rollout {
        wish.insert("rollout".to_owned(), json!(rollout));
    }
    if let Some(ttl) = ttl {
        wish.insert("ttl".to_owned(), json!(ttl));
    }
    Value::Object(wish)
}

/// A path of names that need no escape; the API knows no others.
fn path(segments: &[&str]) -> Result<String, Failure> {
    let plain = |name: &&str| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
    };
    match segments.iter().find(|name| !plain(name)) {
        None => Ok(format!("/{}", segments.join("/"))),
        Some(name) => Err(Failure::new(FAILED, format!("no filter {name:?}"))
            .hint("`qudag-sidecar filters list` shows the names")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_be_paths_are_refused_here() {
        for name in ["", "a/b", "../x", "a b", "a%2fb", "ä", "a?b"] {
            assert!(path(&["filters", name, "enable"]).is_err(), "{name}");
        }
        assert_eq!(
            path(&["filters", "dns.dns_cache", "enable"]).ok().unwrap(),
            "/filters/dns.dns_cache/enable"
        );
    }

    #[test]
    fn wishes_hold_what_was_said_and_nothing_else() {
        assert_eq!(switch(None, None), json!({}));
        let wish = switch(Percent::new(10.0), Some(Period::secs(90)));
        assert_eq!(wish, json!({"rollout": 10, "ttl": "1m 30s"}));
        let of = |ask: Ask| match ask.method {
            Method::Post(body) => body,
            Method::Get => panic!(),
        };
        let set = Ask::set(("a.b".into(), "5".into()), Some(Period::secs(90)));
        assert_eq!(of(set), json!({"key": "a.b", "value": "5", "ttl": "1m 30s"}));
        assert_eq!(of(Ask::unset(None)), json!({"all": true}));
        assert_eq!(of(Ask::unset(Some("a".into()))), json!({"key": "a"}));
        let flush = CacheFlush { name: None, suffix: Some("a".into()), rtype: None };
        let Method::Post(body) = Ask::cache_flush(flush).method else { panic!() };
        assert_eq!(body, json!({"suffix": "a"}));
    }
}
