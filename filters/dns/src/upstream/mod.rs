//! The end of the chain: servers that are asked, one after the other until one answers.

mod exchange;
mod health;
pub(crate) mod own;
mod server;
mod system;
mod trial;

use std::sync::Arc;
use std::time::Duration;

use qudag_filter_api::{ConfigError, ConfigPath, Host, Period, Resolve, Svc, service_fn};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use exchange::Ids;
use health::Health;
pub use server::Server;
use system::{RESOLV_CONF, SystemServers};

use crate::{Dns, DnsQuery};

/// The longest that a query may take.
const MAX_TIMEOUT: Duration = Duration::from_secs(10);
/// How many sockets to servers there may be. Further queries wait for one within their time.
const MAX_SOCKETS: usize = 512;

/// The servers that are asked what the filters cannot answer, in this order; the next one when one fails.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DnsUpstream {
    /// IP addresses or names, with a port where it is not 53. Without any, the servers of /etc/resolv.conf.
    pub servers: Vec<Server>,
    /// How long a query may take in all, at most 10s.
    pub timeout: Period,
    /// How long one server may take before the next one is asked as well; the first good answer counts.
    pub attempt_timeout: Period,
}

impl Default for DnsUpstream {
    fn default() -> Self {
        Self { servers: Vec::new(), timeout: Period::millis(1500), attempt_timeout: Period::millis(400) }
    }
}

impl DnsUpstream {
    /// Every problem of these settings.
    pub fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        for (i, server) in self.servers.iter().enumerate() {
            let at = at.key("servers").index(i);
            let unspecified = matches!(server.0.host, Host::Ip(ip) if ip.is_unspecified());
            if unspecified || server.0.port == 0 {
                errors
                    .push(at.error("not the address of a server").hint("such as 9.9.9.9 or 127.0.0.1:5353"));
            } else if self.servers.iter().take(i).any(|earlier| earlier == server) {
                errors.push(at.error("named twice").hint("name each server once"));
            }
        }
        if self.timeout.0 > MAX_TIMEOUT || self.timeout.0.is_zero() {
            errors.push(at.key("timeout").error("out of range").hint("1ms to 10s"));
        }
        if self.attempt_timeout > self.timeout || self.attempt_timeout.0.is_zero() {
            errors.push(at.key("attempt_timeout").error("out of range").hint("1ms to `timeout`"));
        }
        errors
    }
}

/// What is known of the servers, which outlives a reload.
#[derive(Debug)]
pub struct UpstreamState {
    health: Health,
    ids: Ids,
    sockets: Semaphore,
    system: SystemServers,
}

impl Default for UpstreamState {
    fn default() -> Self {
        Self {
            health: Health::default(),
            ids: Ids::default(),
            sockets: Semaphore::new(MAX_SOCKETS),
            system: SystemServers::new(RESOLV_CONF),
        }
    }
}

/// The terminal service of the chain.
pub fn terminal(settings: DnsUpstream, state: Arc<UpstreamState>, resolve: Arc<dyn Resolve>) -> Svc<Dns> {
    let upstream = Arc::new(Upstream { settings, state, resolve });
    service_fn::<Dns, _, _>(move |query: DnsQuery| {
        let upstream = Arc::clone(&upstream);
        async move { trial::answer(&upstream, query.parsed()).await }
    })
}

/// What a query needs.
struct Upstream {
    settings: DnsUpstream,
    state: Arc<UpstreamState>,
    resolve: Arc<dyn Resolve>,
}
