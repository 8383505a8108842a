//! Keeps the names in the zones of other servers where they should lead, by dynamic updates.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use metrics::{counter, gauge};
use qudag_filter_api::{HostPort, Resolve};
use qudag_filter_dns::SERVICE_TTL;
use qudag_filter_dns::update::{self, Key, Moved, Switched, UpdateError, Updater};
use qudag_filter_dns::wire::Name;
use serde::Serialize;
use tokio::sync::watch;

use crate::config::{BypassConfig, UpdateConfig, bypass_secret};
use crate::net::socket_addrs;

/// The pause after the first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What should be published.
#[derive(Clone, Default)]
struct Wanted {
    /// Counts the wishes.
    number: u64,
    config: Option<Arc<BypassConfig>>,
    direct: bool,
}

/// What the servers were last made to say.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Published {
    /// The wish that this answers.
    #[serde(skip)]
    pub number: u64,
    /// Whether the names should lead to the node itself.
    pub direct: bool,
    /// Whether every name leads there.
    pub complete: bool,
    /// How often it was tried.
    pub attempts: u32,
    /// The serial number of the zone afterwards, from the server that took the change.
    pub serial: Option<u32>,
    /// The names.
    pub names: Vec<NameStatus>,
}

/// What became of a name.
#[derive(Clone, Debug, Serialize)]
pub struct NameStatus {
    /// The name.
    pub name: String,
    /// `changed`, `already`, or why not.
    pub outcome: &'static str,
    /// The server that said so.
    pub server: Option<String>,
    /// More words, where it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Publishes the names, and does so again until it is done and after each change.
pub struct Publisher {
    resolve: Arc<dyn Resolve>,
    wanted: watch::Sender<Wanted>,
    published: watch::Sender<Published>,
}

impl Publisher {
    /// A publisher that has nothing to do yet.
    pub fn new(resolve: Arc<dyn Resolve>) -> Self {
        Self { resolve, wanted: watch::Sender::default(), published: watch::Sender::default() }
    }

    /// From now on the names of this configuration should lead to the sidecar, or to the node itself. Returns the wish's number.
    pub fn want(&self, config: &BypassConfig, direct: bool) -> u64 {
        let config = config.update.is_some().then(|| Arc::new(config.clone()));
        self.wanted.send_if_modified(|wanted| {
            if wanted.direct == direct && wanted.config == config {
                return false;
            }
            *wanted = Wanted { number: wanted.number + 1, config, direct };
            true
        });
        self.wanted.borrow().number
    }

    /// What the servers were last made to say; `None` where nothing is to be published.
    pub fn status(&self) -> Option<Published> {
        self.wanted.borrow().config.as_ref()?;
        Some(self.published.borrow().clone())
    }

    /// The first result for a wish or a later one, if it comes in time.
    pub async fn result(&self, number: u64, limit: Duration) -> Option<Published> {
        let mut published = self.published.subscribe();
        let result = async {
            published.wait_for(|published| published.number >= number).await.ok().map(|it| it.clone())
        };
        tokio::time::timeout(limit, result).await.ok().flatten()
    }

    /// Does what is wanted. Never returns.
    pub async fn follow(&self) {
        let mut wanted = self.wanted.subscribe();
        let (mut pause, mut attempts, mut last) = (FIRST_PAUSE, 0, 0);
        loop {
            let now = wanted.borrow_and_update().clone();
            let Some(config) = &now.config else {
                // The sender lives as long as `self`.
                let _ = wanted.changed().await;
                continue;
            };
            if now.number != last {
                (pause, attempts, last) = (FIRST_PAUSE, 0, now.number);
            }
            attempts += 1;
            let mut published = tokio::select! {
                published = publish(config, now.direct, self.resolve.as_ref()) => published,
                _ = wanted.changed() => continue,
            };
            published.number = now.number;
            published.attempts = attempts;
            report(&published);
            let wait = if published.complete {
                (pause, attempts) = (FIRST_PAUSE, 0);
                config.update.as_ref().map_or(LONGEST_PAUSE, |update| update.refresh.0)
            } else {
                let wait = pause;
                pause = (pause * 2).min(LONGEST_PAUSE);
                wait
            };
            self.published.send_replace(published);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = wanted.changed() => {}
            }
        }
    }
}

fn report(published: &Published) {
    gauge!("qudag_sidecar_bypass_published").set(f64::from(u8::from(published.complete)));
    for name in &published.names {
        counter!("qudag_sidecar_bypass_updates_total", "outcome" => name.outcome).increment(1);
        match &name.error {
            Some(why) => tracing::warn!(name = name.name, %why, "a name cannot be moved"),
            None if name.outcome == "changed" => {
                tracing::info!(
                    name = name.name,
                    direct = published.direct,
                    server = name.server,
                    "a name was moved"
                );
            }
            None => {}
        }
    }
}

/// Makes the servers say where the names lead, once.
pub(super) async fn publish(config: &BypassConfig, direct: bool, resolve: &dyn Resolve) -> Published {
    let mut published = Published { direct, complete: true, ..Published::default() };
    let Some(update) = &config.update else { return published };
    let updater = updater(update);
    let names = moved(config, update);
    let mut taken_by = None;
    for moved in &names {
        let status =
            |outcome, server, error| NameStatus { name: moved.name.to_string(), outcome, server, error };
        let result = match &updater {
            Ok(updater) => switch(updater, update, moved, direct, resolve).await,
            Err(why) => Err(("secret", why.clone())),
        };
        published.names.push(match result {
            Ok((server, switched)) => {
                taken_by = Some(server);
                let outcome = if switched == Switched::Changed { "changed" } else { "already" };
                status(outcome, Some(server.to_string()), None)
            }
            Err((label, why)) => {
                published.complete = false;
                status(label, None, Some(why))
            }
        });
    }
    if let (Some(server), Ok(updater)) = (taken_by, &updater) {
        published.serial = update::serial(server, &updater.zone, updater.timeout).await.ok();
    }
    published
}

fn updater(update: &UpdateConfig) -> Result<Updater, String> {
    let name = |text: &str| Name::from_text(text).map_err(|why| why.to_string());
    let key = Key::new(name(&update.key.name)?, update.key.algorithm, &bypass_secret(&update.key)?);
    Ok(Updater { zone: name(&update.zone)?, key, timeout: update.timeout.0, ttl: SERVICE_TTL })
}

/// The names of the zone.
fn moved(config: &BypassConfig, update: &UpdateConfig) -> Vec<Moved> {
    let zone = Name::from_text(&update.zone).ok();
    let names = config.names.iter().filter_map(|moved| {
        let name = Name::from_text(&moved.name).ok()?;
        let set = |addresses: &[std::net::IpAddr]| addresses.iter().copied().collect::<BTreeSet<_>>();
        zone.as_ref().is_some_and(|zone| name.is_within(zone)).then(|| Moved {
            name,
            sidecar: set(&moved.sidecar),
            node: set(&moved.node),
        })
    });
    names.collect()
}

/// Asks one server after the other until one has done it.
async fn switch(
    updater: &Updater,
    update: &UpdateConfig,
    moved: &Moved,
    direct: bool,
    resolve: &dyn Resolve,
) -> Result<(std::net::SocketAddr, Switched), (&'static str, String)> {
    let mut last = ("resolve", "no server".to_owned());
    for server in &update.servers {
        for addr in match addresses(server, resolve).await {
            Ok(addrs) => addrs,
            Err(why) => {
                last = ("resolve", why);
                continue;
            }
        } {
            match updater.switch(addr, moved, direct).await {
                Ok(switched) => return Ok((addr, switched)),
                Err(why) if why.elsewhere() => last = (why.label(), why.to_string()),
                Err(why) => return Err((UpdateError::label(&why), why.to_string())),
            }
        }
    }
    Err(last)
}

async fn addresses(server: &HostPort, resolve: &dyn Resolve) -> Result<Vec<std::net::SocketAddr>, String> {
    socket_addrs(server, resolve).await.map_err(|why| format!("{server}: {why}"))
}
