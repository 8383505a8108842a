//! Replies that the sidecars of a fleet share in Redis or Valkey, between the cache of each and the servers.
//!
//! The order is always: what Redis has, if it says so within a few milliseconds; then the servers; then, in the background, their reply to Redis.
//! Redis can only help: when it is slow, gone or talks nonsense, a query goes on as if the filter were off.

mod client;
mod counts;
mod entry;
mod follow;
mod link;
mod log;
mod rules;
mod state;
mod url;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use qudag_filter_api::{
    BuildError, ConfigError, ConfigPath, Env, FilterError, FilterSpec, Period, Secret, Svc, service_fn,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tower::ServiceExt;

use link::{Link, Look};
use rules::{Asked, aged};
pub use state::{OnFlush, Reach, SharedCacheState};
pub use url::RedisUrl;

use crate::wire::{flag2, rcode};
use crate::{Dns, DnsQuery, DnsReply, Source};

const NAME: &str = "dns_shared_cache";
/// The longest that a query may wait for Redis.
const MAX_TIMEOUT: Duration = Duration::from_secs(1);
/// The most replies that may wait to be written.
const MAX_QUEUE: usize = 65_536;
/// The longest prefix.
const MAX_PREFIX: usize = 64;
/// The shortest secret.
const LEAST_SECRET: usize = 16;

/// Replies that the sidecars of a fleet share in Redis or Valkey, never older than 300 seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DnsSharedCache {
    /// The server: `redis://HOST:PORT/DATABASE`, `rediss://…` with TLS, or `unix:PATH?db=DATABASE`.
    pub url: RedisUrl,
    /// The user (Redis 6 and later); without one the password is that of the default user.
    pub username: Option<String>,
    /// The password.
    pub password: Option<Secret>,
    /// A PEM file with the authorities that may sign the server's certificate; without one those of the host.
    pub ca: Option<PathBuf>,
    /// What all keys in Redis begin with. Sidecars with the same prefix share replies.
    pub prefix: String,
    /// How long a query waits for Redis at most, 1ms to 1s.
    pub timeout: Period,
    /// A secret of the fleet, at least 16 characters. With it, replies that were not written by a sidecar that knows it are refused.
    pub key: Option<Secret>,
    /// How many replies may wait to be written, 1 to 65536. Further ones are not shared.
    #[schemars(range(min = 1, max = 65_536))]
    pub max_queue: usize,
}

impl Default for DnsSharedCache {
    fn default() -> Self {
        Self {
            url: RedisUrl::default(),
            username: None,
            password: None,
            ca: None,
            prefix: "qudag:dns".to_owned(),
            timeout: Period::millis(20),
            key: None,
            max_queue: 1024,
        }
    }
}

impl DnsSharedCache {
    /// Whether a state for `other` settings serves these as well. The time limit belongs to the layer.
    fn same_state(&self, other: &Self) -> bool {
        Self { timeout: other.timeout, ..self.clone() } == *other
    }
}

impl FilterSpec for DnsSharedCache {
    type Kind = Dns;
    type State = SharedCacheState;
    const NAME: &'static str = NAME;

    fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        let mut wrong = |key: &str, problem: String, hint: &str| {
            errors.push(at.key(key).error(problem).hint(hint));
        };
        if self.username.is_some() && self.password.is_none() {
            wrong("username", "a user without a password".to_owned(), "set `password` as well");
        }
        if self.username.as_deref() == Some("") {
            wrong("username", "empty".to_owned(), "leave it out for the default user");
        }
        if let Some(Err(why)) = self.password.as_ref().map(Secret::read) {
            wrong("password", why, "`{ file: PATH }` or `{ env: NAME }`");
        }
        match self.key.as_ref().map(Secret::read) {
            Some(Err(why)) => wrong("key", why, "`{ file: PATH }` or `{ env: NAME }`"),
            Some(Ok(secret)) if secret.len() < LEAST_SECRET => {
                wrong(
                    "key",
                    "shorter than 16 characters".to_owned(),
                    "`openssl rand -hex 32` makes a good one",
                );
            }
            _ => {}
        }
        if let Some(ca) = &self.ca {
            if !self.url.tls {
                wrong(
                    "ca",
                    "the connection is not encrypted".to_owned(),
                    "`url: rediss://…`, or leave it out",
                );
            } else if let Err(why) = client::authorities(ca) {
                wrong("ca", why, "a PEM file with at least one certificate");
            }
        }
        let printable = self.prefix.bytes().all(|byte| byte.is_ascii_graphic());
        if self.prefix.is_empty() || self.prefix.len() > MAX_PREFIX || !printable {
            wrong("prefix", "not a prefix".to_owned(), "1 to 64 printable ASCII characters without spaces");
        }
        if self.timeout.0 < Duration::from_millis(1) || self.timeout.0 > MAX_TIMEOUT {
            wrong("timeout", "out of range".to_owned(), "1ms to 1s");
        }
        if !(1..=MAX_QUEUE).contains(&self.max_queue) {
            wrong("max_queue", "out of range".to_owned(), "1 to 65536");
        }
        errors
    }

    fn state(
        &self,
        env: &Env,
        previous: Option<(&Self, Arc<SharedCacheState>)>,
    ) -> Result<Arc<SharedCacheState>, BuildError> {
        if let Some((settings, state)) = &previous
            && self.same_state(settings)
        {
            return Ok(Arc::clone(state));
        }
        let previous = previous.as_ref().map(|(_, state)| state.as_ref());
        Ok(Arc::new(SharedCacheState::new(self, env, previous)?))
    }

    fn wrap(&self, state: Arc<SharedCacheState>, inner: Svc<Dns>) -> Svc<Dns> {
        let (link, timeout) = (state.link(), self.timeout.0);
        service_fn::<Dns, _, _>(move |query: DnsQuery| {
            let (link, inner) = (Arc::clone(&link), inner.clone());
            async move {
                match Asked::of(&query) {
                    Some(asked) => Box::pin(answer(&link, timeout, asked, query, inner)).await,
                    None => inner.oneshot(query).await,
                }
            }
        })
    }
}

async fn answer(
    link: &Link,
    timeout: Duration,
    asked: Asked,
    query: DnsQuery,
    inner: Svc<Dns>,
) -> Result<DnsReply, FilterError> {
    // Before anything is asked: what is asked now may be older than a flush that comes now.
    let flush = link.flush();
    let reply = |wire: Bytes, age| DnsReply { age, ..DnsReply::new(wire, Source::SharedCache) };
    let look = match query.is_from_servers() {
        true => Look::Miss("rebuild"),
        false => link.look(&asked, timeout).await,
    };
    let spare = match look {
        Look::Hit { reply: wire, age } => {
            link.hit();
            query.note(NAME, || format!("hit, {} s old", age.as_secs()));
            return Ok(reply(wire, age));
        }
        Look::Aging { reply: wire, age } => {
            link.miss("aging");
            query.note(NAME, || format!("found, {} s old: asking for a newer one", age.as_secs()));
            Some((wire, age, Instant::now()))
        }
        Look::Miss(why) => {
            link.miss(why);
            query.note(NAME, || format!("miss: {why}"));
            None
        }
    };
    let answer = inner.oneshot(query.clone()).await;
    if let Ok(reply) = &answer
        && worth_sharing(reply)
    {
        if let Some(flush) = flush
            && reply.age.is_zero()
            && reply.ede.is_none()
            && reply.also.is_none()
        {
            query.note(NAME, || "the reply is on its way to Redis".to_owned());
            link.offer(asked, reply.wire.clone(), flush);
        }
        return answer;
    }
    if let Some((wire, age, since)) = spare
        && link.flush() == flush
        // Again, because waiting for the servers took time.
        && let Some(wire) = aged(&asked, &wire, since.elapsed())
    {
        link.hit();
        query.note(NAME, || "no newer one is to be had: the one found before".to_owned());
        return Ok(reply(wire.into(), age + since.elapsed()));
    }
    answer
}

/// Whether a reply says something that others may want, as far as its header tells.
fn worth_sharing(reply: &DnsReply) -> bool {
    let truncated = reply.wire.get(2).is_none_or(|flags| flags & flag2::TC != 0);
    matches!(reply.rcode(), rcode::NOERROR | rcode::NXDOMAIN) && !truncated
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(yaml: &str) -> Vec<String> {
        let settings: DnsSharedCache =
            serde_json::from_str(yaml).unwrap_or_else(|why| panic!("{yaml}: {why}"));
        settings.check(&ConfigPath::root()).into_iter().map(|error| error.at.to_string()).collect()
    }

    #[test]
    fn settings_are_checked_whole() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            std::fs::write(dir.path().join(name), text).unwrap();
            format!(r#"{{"file": {:?}}}"#, dir.path().join(name))
        };
        let (short, long) = (file("short", "only 15 letters"), file("long", "sixteen letters!"));
        assert_eq!(problems("{}"), [""; 0]);
        let good = format!(
            r#"{{"username": "u", "password": {short}, "key": {long}, "timeout": "1s", "max_queue": 65536, "prefix": "a"}}"#
        );
        assert_eq!(problems(&good), [""; 0]);
        for (yaml, key) in [
            (r#"{"username": "u"}"#.to_owned(), "username"),
            (format!(r#"{{"username": "", "password": {short}}}"#), "username"),
            (r#"{"password": {"file": "/no/such/file"}}"#.to_owned(), "password"),
            (r#"{"key": {"env": "QUDAG_NO_SUCH_VARIABLE"}}"#.to_owned(), "key"),
            (format!(r#"{{"key": {short}}}"#), "key"),
            (r#"{"ca": "/etc/hosts"}"#.to_owned(), "ca"),
            (r#"{"url": "rediss://a", "ca": "/etc/hosts"}"#.to_owned(), "ca"),
            (r#"{"url": "rediss://a", "ca": "/no/such/file"}"#.to_owned(), "ca"),
            (r#"{"prefix": ""}"#.to_owned(), "prefix"),
            (r#"{"prefix": "a b"}"#.to_owned(), "prefix"),
            (format!(r#"{{"prefix": "{}"}}"#, "a".repeat(65)), "prefix"),
            (r#"{"timeout": "999us"}"#.to_owned(), "timeout"),
            (r#"{"timeout": "1001ms"}"#.to_owned(), "timeout"),
            (r#"{"max_queue": 0}"#.to_owned(), "max_queue"),
            (r#"{"max_queue": 65537}"#.to_owned(), "max_queue"),
        ] {
            assert_eq!(problems(&yaml), [key], "{yaml}");
        }
        assert_eq!(problems(r#"{"prefix": "", "timeout": "2s", "max_queue": 0}"#).len(), 3);
    }
}
