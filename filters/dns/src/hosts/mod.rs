//! Names from a hosts file, answered before anything else.

mod table;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use qudag_filter_api::{
    BuildError, ConfigError, ConfigPath, Env, FilterSpec, Look, Period, Quick, Svc, service_fn,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tower::ServiceExt;

pub use table::Table;

use crate::dns_cache::HARD_LIMIT;
use crate::watched::{Watched, readable};
use crate::{Dns, DnsGlance, DnsQuery, DnsReply, Source};

/// Names from a hosts file: A, AAAA and PTR. The file is read again when it changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Hosts {
    /// The file, in the format of hosts(5).
    pub file: PathBuf,
    /// The time to live of the replies, at most 300s.
    pub ttl: Period,
}

impl Default for Hosts {
    fn default() -> Self {
        Self { file: "/etc/hosts".into(), ttl: Period::secs(60) }
    }
}

/// The contents of the file, which outlive a reload.
#[derive(Debug)]
pub struct HostsState {
    watched: Watched<Table>,
}

impl HostsState {
    /// How many names the file has.
    pub fn names(&self) -> usize {
        self.watched.contents().names()
    }
}

impl FilterSpec for Hosts {
    type Kind = Dns;
    type State = HostsState;
    const NAME: &'static str = "hosts";

    fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        if self.file.as_os_str().is_empty() {
            errors.push(at.key("file").error("no path").hint("name a file, such as /etc/hosts"));
        } else if let Err(why) = readable(&self.file) {
            let problem = format!("cannot read {}: {why}", self.file.display());
            errors.push(at.key("file").error(problem).hint("name a file that the sidecar may read"));
        }
        if self.ttl.0 > HARD_LIMIT {
            errors.push(at.key("ttl").error("longer than 300s").hint("0s to 300s"));
        } else if self.ttl.0.subsec_nanos() != 0 {
            errors.push(at.key("ttl").error("not a number of whole seconds").hint("0s to 300s"));
        }
        errors
    }

    fn state(
        &self,
        _env: &Env,
        previous: Option<(&Self, Arc<HostsState>)>,
    ) -> Result<Arc<HostsState>, BuildError> {
        if let Some((settings, state)) = previous
            && settings.file == self.file
        {
            return Ok(state);
        }
        let watched = Watched::open(&self.file, ()).map_err(|why| {
            BuildError::new("filters.dns.hosts.file", format!("cannot read {}: {why}", self.file.display()))
        })?;
        Ok(Arc::new(HostsState { watched }))
    }

    fn wrap(&self, state: Arc<HostsState>, inner: Svc<Dns>) -> Svc<Dns> {
        let ttl = seconds(self.ttl.0);
        let file: Arc<str> = self.file.display().to_string().into();
        service_fn::<Dns, _, _>(move |query: DnsQuery| {
            let table = state.watched.contents();
            let known = table.answer(query.parsed(), ttl);
            query.note(Self::NAME, || match &known {
                Some(_) => format!("answered: {file} has the name"),
                None => format!("not among the {} names of {file}", table.names()),
            });
            let inner = inner.clone();
            async move {
                match known {
                    Some(wire) => Ok(DnsReply::new(wire.into(), Source::Hosts)),
                    None => inner.oneshot(query).await,
                }
            }
        })
    }

    fn quick(&self, state: &Arc<HostsState>) -> Option<Box<dyn Quick<Dns>>> {
        Some(Box::new(Known { state: Arc::clone(state), ttl: seconds(self.ttl.0) }))
    }
}

/// The hosts file as it is asked without waiting.
struct Known {
    state: Arc<HostsState>,
    ttl: u32,
}

impl Quick<Dns> for Known {
    fn look(&self, glance: &mut DnsGlance<'_>) -> Look {
        let Some(wire) = self.state.watched.contents().answer(glance.parsed, self.ttl) else {
            return Look::Pass;
        };
        glance.source = Source::Hosts;
        glance.reply(&wire, None)
    }
}

/// Whole seconds, as TTLs have them.
pub(crate) fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}
