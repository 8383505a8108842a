//! The end of the chain: servers that are asked until one answers.

mod asks;
mod gate;
mod member;
mod message;
mod meters;
pub(crate) mod own;
mod probe;
mod rules;
mod server;
mod settings;
mod status;
mod system;
mod transport;
mod trial;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use qudag_core::budget::Budget;
use qudag_filter_api::{BuildError, Resolve, Svc, service_fn};
use tokio::time::Instant;

use gate::Gate;
use member::{Means, Member};
use message::{Failure, Randomness};
use rules::List;
pub use server::{Protocol, Server};
pub use settings::{Breaker, DnsUpstream, Hedge, Probe};
pub use status::ServerStatus;
use system::{RESOLV_CONF, SystemServers};
use transport::tls::Tls;

use crate::{Dns, DnsQuery};

/// The servers of all lists, in the order of the configuration.
type Members = Arc<[(List, Arc<Member>)]>;

/// What makes a server the same one over reloads: what it is called, and for encrypted ones whom it is verified with.
type Identity = (Server, u64);

/// What is known of the servers, which outlives a reload.
#[derive(Debug)]
pub struct UpstreamState {
    members: Mutex<HashMap<Identity, Weak<Member>>>,
    /// The generations that are alive, the newest last.
    generations: Mutex<Vec<Weak<Upstream>>>,
    random: Arc<Randomness>,
    gate: Arc<Gate>,
    /// Queries that were answered, while others are still listened to.
    listening: Arc<Gate>,
    system: SystemServers,
    /// When a query came last.
    last: Mutex<Option<Instant>>,
    /// Hedges and repetitions.
    extra: Mutex<Budget>,
}

impl Default for UpstreamState {
    fn default() -> Self {
        Self {
            members: Mutex::default(),
            generations: Mutex::default(),
            random: Arc::default(),
            gate: Arc::default(),
            listening: Arc::default(),
            system: SystemServers::new(RESOLV_CONF),
            last: Mutex::default(),
            extra: Mutex::new(Budget::new(Instant::now().into_std())),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl UpstreamState {
    /// Health and latency of each server in use, in the order of the configuration.
    pub fn servers(&self) -> Vec<ServerStatus> {
        let newest = lock(&self.generations).iter().rev().find_map(Weak::upgrade);
        let members = newest.map(|upstream| Arc::clone(&lock(&upstream.members)));
        members.iter().flat_map(|members| members.iter()).map(|(list, member)| member.status(*list)).collect()
    }

    /// A server as it is known from earlier, or a new one.
    fn member(&self, server: &Server, tls: Option<&Tls>) -> Arc<Member> {
        let authorities = match server.protocol().is_encrypted() {
            true => tls.map_or(0, |tls| tls.fingerprint),
            false => 0,
        };
        let mut members = lock(&self.members);
        let known = members.entry((server.clone(), authorities)).or_default();
        if let Some(member) = known.upgrade() {
            return member;
        }
        let member = Arc::new(Member::new(server.clone()));
        *known = Arc::downgrade(&member);
        members.retain(|_, member| member.strong_count() > 0);
        member
    }

    fn is_quiet(&self, now: Instant, after: Duration) -> bool {
        lock(&self.last).is_none_or(|last| now.saturating_duration_since(last) > after)
    }
}

/// The servers of a generation and how they are asked.
struct Upstream {
    settings: DnsUpstream,
    state: Arc<UpstreamState>,
    means: Arc<Means>,
    members: Mutex<Members>,
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Upstream {
    fn new(
        settings: DnsUpstream,
        state: Arc<UpstreamState>,
        resolve: Arc<dyn Resolve>,
    ) -> Result<Self, BuildError> {
        let encrypted = settings.named().any(|(_, _, server)| server.protocol().is_encrypted());
        let tls = match encrypted {
            true => Some(
                Tls::new(settings.ca_file.as_deref())
                    .map_err(|why| BuildError::new("filters.dns.dns_upstream.ca_file", why))?,
            ),
            false => None,
        };
        let random = Arc::clone(&state.random);
        let means = Arc::new(Means::new(&settings, resolve, tls, random));
        let members = members(&settings, &state, &means, &settings.servers);
        Ok(Self { settings, state, means, members: Mutex::new(members) })
    }

    /// The servers in use now.
    async fn members(&self) -> Members {
        if !self.settings.servers.is_empty() {
            return Arc::clone(&lock(&self.members));
        }
        let system = self.state.system.servers().await;
        let mut current = lock(&self.members);
        let listed =
            current.iter().filter(|(list, _)| *list == List::Servers).map(|(_, member)| &member.server);
        if !listed.eq(&system) {
            *current = members(&self.settings, &self.state, &self.means, &system);
        }
        Arc::clone(&current)
    }
}

fn members(settings: &DnsUpstream, state: &UpstreamState, means: &Means, first: &[Server]) -> Members {
    let lists = settings.lists().map(|(list, servers)| match list {
        List::Servers => (list, first),
        _ => (list, servers),
    });
    let servers =
        lists.into_iter().flat_map(|(list, servers)| servers.iter().map(move |server| (list, server)));
    servers.map(|(list, server)| (list, state.member(server, means.tls.as_ref()))).collect()
}

/// The terminal service of the chain.
///
/// # Errors
/// When a server is encrypted and there are no certificate authorities to verify it with.
pub fn terminal(
    settings: DnsUpstream,
    state: Arc<UpstreamState>,
    resolve: Arc<dyn Resolve>,
) -> Result<Svc<Dns>, BuildError> {
    let interval = settings.probe.interval.0;
    let upstream = Arc::new(Upstream::new(settings, Arc::clone(&state), resolve)?);
    let mut generations = lock(&state.generations);
    generations.retain(|generation| generation.strong_count() > 0);
    generations.push(Arc::downgrade(&upstream));
    drop(generations);
    // A chain that is built only to be looked at has no runtime.
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        drop(runtime.spawn(probe::run(Arc::downgrade(&upstream), interval)));
    }
    Ok(service_fn::<Dns, _, _>(move |query: DnsQuery| {
        let upstream = Arc::clone(&upstream);
        async move { trial::answer(upstream, query).await }
    }))
}

/// Asks a server one question, as the end of a chain with these settings would. Returns how long the answer took.
///
/// # Errors
/// Why there was none, for people. An error that the server answered with counts as an answer.
pub async fn try_server(
    settings: &DnsUpstream,
    server: &Server,
    resolve: Arc<dyn Resolve>,
) -> Result<Duration, String> {
    let only = DnsUpstream {
        servers: vec![server.clone()],
        alternative: Vec::new(),
        direct: Vec::new(),
        ..settings.clone()
    };
    let (name, rtype) = settings.probe.question().ok_or("there is no question to ask")?;
    let upstream = Upstream::new(only, Arc::default(), resolve).map_err(|why| why.why)?;
    let member = upstream.state.member(server, upstream.means.tls.as_ref());
    let asked = Arc::new(message::question(name, rtype));
    let start = Instant::now();
    let means = Arc::clone(&upstream.means);
    let mut outcome = Arc::clone(&member).ask(means, Arc::clone(&asked), 0, member::Again::default()).await;
    loop {
        match outcome {
            member::Outcome::Good(..) | member::Outcome::Failed(Failure::Code(..)) => {
                return Ok(start.elapsed());
            }
            member::Outcome::Failed(why) => return Err(why.text()),
            member::Outcome::Strange(open) => {
                outcome =
                    Arc::clone(&member).listen(Arc::clone(&upstream.means), Arc::clone(&asked), open).await;
            }
        }
    }
}
