//! The handle through which every wish of an operator passes.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwapOption;
use metrics::{counter, gauge};
use qudag_filter_api::{Resolve, SlotInfo};
use qudag_filter_common::Watch;
use qudag_filter_dns::{CacheState, CacheStats, FlushSelector, Question, Rebuilt, ServerStatus};
use qudag_filter_peer::PeersStatus;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::{
    Applied, CacheRebuild, ConfigOrigin, ConfigStatus, ControlError, Explanation, FilterStatus, Flushed,
    LookedUp, Override, Readiness, Refusal, Status,
};
use crate::bypass::{Publisher, Verification};
use crate::config::{self, Config, Loaded, Source, last_good};
use crate::flags::{Flags, KillFile, Operator, names};
use crate::generation::{Adopted, Generation, Kinds, Manager, Refused, place, question};
use crate::redirect::Keeper;

/// How often files are looked at, should the kernel not tell that they changed.
const CONFIG_POLL: Duration = Duration::from_secs(1);
const KILL_FILE_POLL: Duration = Duration::from_millis(200);
/// How long live settings that do not fit are left alone.
const SETTINGS_AGAIN: Duration = Duration::from_secs(10);
/// How long a flush waits for the word that it has reached the fleet. It goes on without it.
const FLEET_FLUSH: Duration = Duration::from_millis(500);
/// A file that was written to a moment ago may not be complete.
const CONFIG_SETTLE: Duration = Duration::from_millis(50);

/// What the sidecar is operated through. Cheap to clone.
#[derive(Clone)]
pub struct Control(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) manager: Manager,
    pub(super) flags: Arc<Flags>,
    pub(super) operator: Arc<Operator>,
    kill_file: Arc<KillFile>,
    pub(super) publisher: Arc<Publisher>,
    pub(super) keeper: Arc<Keeper>,
    pub(super) resolve: Arc<dyn Resolve>,
    /// The latest verification and its task, which ends with the next one.
    pub(super) verification: Mutex<Option<(Verification, AbortOnDropHandle<()>)>>,
    source: Source,
    instance_dir: PathBuf,
    started: Instant,
    since: Mutex<SystemTime>,
    refused: ArcSwapOption<Refusal>,
    on_adopted: OnAdopted,
    /// Held from reading the configuration until it is in force, so that what was read last is what stays.
    pub(super) reloading: tokio::sync::Mutex<()>,
    pub(super) stop: CancellationToken,
}

/// Told of each configuration that comes into force.
pub type OnAdopted = Box<dyn Fn(&Config) + Send + Sync>;

/// What [`Control::new`] is made of.
pub struct Parts {
    /// Builds generations.
    pub manager: Manager,
    /// The flag layers.
    pub flags: Arc<Flags>,
    /// The layer of the operator's switches.
    pub operator: Arc<Operator>,
    /// The layer of the kill file.
    pub kill_file: Arc<KillFile>,
    /// Moves names in the zones of other servers.
    pub publisher: Arc<Publisher>,
    /// Installs and removes the rules that capture the node's connections.
    pub keeper: Arc<Keeper>,
    /// Finds servers that are given by name.
    pub resolve: Arc<dyn Resolve>,
    /// Where the configuration is read from.
    pub source: Source,
    /// Where the last configuration that worked is kept.
    pub instance_dir: PathBuf,
    /// Told of each configuration that comes into force, for parts that are no part of a generation.
    pub on_adopted: OnAdopted,
    /// Cancelled when the process shall end.
    pub stop: CancellationToken,
}

impl Control {
    /// A handle over the parts.
    pub fn new(parts: Parts) -> Self {
        let Parts {
            manager,
            flags,
            operator,
            kill_file,
            publisher,
            keeper,
            resolve,
            source,
            instance_dir,
            on_adopted,
            stop,
        } = parts;
        Self(Arc::new(Inner {
            manager,
            flags,
            operator,
            kill_file,
            publisher,
            keeper,
            resolve,
            verification: Mutex::default(),
            source,
            instance_dir,
            started: Instant::now(),
            since: Mutex::new(SystemTime::now()),
            refused: ArcSwapOption::empty(),
            on_adopted,
            reloading: tokio::sync::Mutex::default(),
            stop,
        }))
    }

    pub(super) fn generation(&self) -> Arc<Generation> {
        self.0.manager.current()
    }

    pub(super) fn loaded(&self) -> Result<Arc<Loaded>, ControlError> {
        let source = self.generation().source.as_ref().map(|adopted| Arc::clone(&adopted.loaded));
        source.ok_or_else(|| ControlError::Unavailable("no configuration is in force yet".to_owned()))
    }

    /// The state of everything.
    pub fn status(&self) -> Status {
        let generation = self.generation();
        let adopted = generation.source.as_ref();
        let since = *self.0.since.lock().unwrap_or_else(PoisonError::into_inner);
        Status {
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            node: adopted.map(|a| a.loaded.config.node.name.clone()).unwrap_or_default(),
            uptime_seconds: self.0.started.elapsed().as_secs(),
            generation: generation.number,
            draining_generations: self.0.manager.draining(),
            bypass: self.0.operator.bypassed(),
            draining: self.0.stop.is_cancelled(),
            config: ConfigStatus {
                source: self.0.source.to_string(),
                origin: adopted.map_or(ConfigOrigin::File, |a| a.origin),
                fingerprint: adopted.map(|a| a.loaded.fingerprint.clone()).unwrap_or_default(),
                since,
                refused: self.0.refused.load().as_deref().cloned(),
            },
            capture: self.capture_state(),
            settings: self.settings(),
            listeners: self.0.manager.listeners(),
            filters: generation.switches.statuses().collect(),
        }
    }

    /// Whether traffic should be sent here.
    pub fn ready(&self) -> Readiness {
        let mut reasons = Vec::new();
        if self.generation().source.is_none() {
            reasons.push("no configuration is in force yet".to_owned());
        }
        if self.0.stop.is_cancelled() {
            reasons.push("draining".to_owned());
        }
        Readiness { ready: reasons.is_empty(), reasons }
    }

    /// Takes a configuration into force, and keeps it as the last one that worked if it came from a file.
    ///
    /// # Errors
    /// When it cannot be built; nothing has changed then.
    pub async fn adopt(&self, loaded: Loaded, origin: ConfigOrigin) -> Result<u64, Refused> {
        let text = loaded.text.clone();
        let adopted = Adopted { loaded: Arc::new(loaded), origin };
        let number = self.0.manager.adopt(adopted.clone()).await?;
        (self.0.on_adopted)(&adopted.loaded.config);
        self.publish();
        *self.0.since.lock().unwrap_or_else(PoisonError::into_inner) = SystemTime::now();
        if origin == ConfigOrigin::File
            && let Err(why) = last_good::save(&self.0.instance_dir, &text)
        {
            tracing::warn!(%why, "the configuration in force cannot be kept as last-known-good");
        }
        Ok(number)
    }

    /// Records a refusal, made while the sidecar started or while it ran, until a change is accepted.
    pub fn record_refusal(&self, problems: Vec<String>) {
        for problem in &problems {
            tracing::error!(%problem, "configuration refused");
        }
        counter!("qudag_sidecar_reloads_total", "result" => "refused").increment(1);
        gauge!("qudag_sidecar_config_refused").set(1.0);
        self.0.refused.store(Some(Arc::new(Refusal { at: SystemTime::now(), problems })));
    }

    /// Reads the configuration again and takes it into force.
    ///
    /// # Errors
    /// When anything is wrong with it; the generation in force goes on whole.
    pub async fn reload(&self) -> Result<Applied, ControlError> {
        self.not_draining()?;
        let start = Instant::now();
        let _reloading = self.0.reloading.lock().await;
        let before = self.generation();
        let refuse = |problems: Vec<String>| {
            self.record_refusal(problems.clone());
            ControlError::Refused { generation: before.number, problems }
        };
        let loaded =
            config::load_with(&self.0.source, std::env::vars_os(), &self.0.operator.edits(SystemTime::now()))
                .map_err(|why| refuse(why.lines()))?;
        let origin = match self.0.source {
            Source::File(_) => ConfigOrigin::File,
            Source::Embedded => ConfigOrigin::Embedded,
        };
        let generation = self.adopt(loaded, origin).await.map_err(|why| refuse(why.0))?;
        counter!("qudag_sidecar_reloads_total", "result" => "accepted").increment(1);
        gauge!("qudag_sidecar_config_refused").set(0.0);
        self.0.refused.store(None);
        tracing::info!(generation, "configuration in force");
        Ok(Applied {
            generation,
            changed: true,
            took_ms: millis(start),
            filters: Vec::new(),
            settings: Vec::new(),
            notes: Vec::new(),
        })
    }

    /// Builds the switches anew after a flag layer has changed.
    async fn reswitch(&self, start: Instant, touched: &[SlotInfo]) -> Result<Applied, ControlError> {
        let before = self.generation().number;
        let generation = self
            .0
            .manager
            .rebuild()
            .await
            .map_err(|Refused(problems)| ControlError::Refused { generation: before, problems })?;
        self.publish();
        let touches = |filter: &FilterStatus| {
            touched.iter().any(|slot| slot.kind == filter.kind && slot.filter == filter.name)
        };
        let filters = self.generation().switches.statuses().filter(touches).collect();
        if generation != before {
            tracing::info!(generation, "switches in force");
        }
        Ok(Applied {
            generation,
            changed: generation != before,
            took_ms: millis(start),
            filters,
            settings: Vec::new(),
            notes: Vec::new(),
        })
    }

    /// Sets an operator's override for `NAME` (every kind that has it) or `KIND.NAME`.
    ///
    /// # Errors
    /// When there is no such filter, or it cannot be built.
    pub async fn set_override(&self, name: &str, wish: Override) -> Result<Applied, ControlError> {
        self.not_draining()?;
        let start = Instant::now();
        if wish.ttl.is_some_and(|ttl| ttl.is_zero()) {
            return Err(ControlError::Invalid(
                "a TTL of nothing has no effect; leave it out or say 10m".to_owned(),
            ));
        }
        let slots = self.slots(name)?;
        let mut notes = Vec::new();
        for slot in &slots {
            if let Err(why) = self.0.operator.set(&full_name(slot), wish) {
                notes.push(format!("the override holds but would not survive a restart: {why}"));
            }
        }
        let mut applied = match self.reswitch(start, &slots).await {
            Ok(applied) => applied,
            Err(why) => {
                // What cannot be built must not come back at the next rebuild.
                for slot in &slots {
                    let _ = self.0.operator.clear(&full_name(slot));
                }
                return Err(why);
            }
        };
        for filter in applied.filters.iter().filter(|filter| filter.enabled != wish.enabled) {
            notes.push(format!(
                "{}.{} stays off: the layer {} outranks an override",
                filter.kind, filter.name, filter.layer
            ));
        }
        applied.notes = notes;
        Ok(applied)
    }

    /// Takes an operator's override back.
    ///
    /// # Errors
    /// When there is no such filter.
    pub async fn clear_override(&self, name: &str) -> Result<Applied, ControlError> {
        let start = Instant::now();
        let slots = self.slots(name)?;
        let mut notes = Vec::new();
        for slot in &slots {
            match self.0.operator.clear(&full_name(slot)) {
                Ok(true) => {}
                Ok(false) => notes.push(format!("{} had no override", full_name(slot))),
                Err(why) => notes.push(format!("the override would come back after a restart: {why}")),
            }
        }
        let mut applied = self.reswitch(start, &slots).await?;
        applied.notes = notes;
        Ok(applied)
    }

    /// Bypasses everything, or stops doing so: every filter off, every listener a plain pass-through.
    ///
    /// # Errors
    /// When filters that come back cannot be built.
    pub async fn bypass(&self, on: bool) -> Result<Applied, ControlError> {
        let start = Instant::now();
        let mut notes = Vec::new();
        if let Err(why) = self.0.operator.bypass(on) {
            notes.push(format!("the bypass is {on} but would not survive a restart: {why}"));
        }
        gauge!("qudag_sidecar_bypass").set(f64::from(u8::from(on)));
        let mut applied = self.reswitch(start, &[]).await?;
        notes.extend(self.rules_changed(start).await);
        applied.notes = notes;
        self.verify(on, start, &applied);
        Ok(applied)
    }

    /// What each layer says of `NAME` or `KIND.NAME`.
    ///
    /// # Errors
    /// When there is no such filter.
    pub fn explain(&self, name: &str) -> Result<Vec<Explanation>, ControlError> {
        let loaded = self.loaded()?;
        let statuses: Vec<_> = self.generation().switches.statuses().collect();
        let explain = |slot: SlotInfo| {
            let status = statuses.iter().find(|f| f.kind == slot.kind && f.name == slot.filter)?;
            let layers = self.0.flags.explain(&question(&slot, place(&loaded, &slot).as_deref()));
            let (enabled, rollout) = (status.enabled, status.rollout);
            Some(Explanation { kind: slot.kind, name: slot.filter, enabled, rollout, layers })
        };
        Ok(self.slots(name)?.into_iter().filter_map(explain).collect())
    }

    fn slots(&self, name: &str) -> Result<Vec<SlotInfo>, ControlError> {
        let all = Kinds::slots(&self.loaded()?.config);
        let found: Vec<_> = all.iter().filter(|slot| names(name, slot.kind, slot.filter)).copied().collect();
        if found.is_empty() {
            let known: Vec<_> = all.iter().map(full_name).collect();
            return Err(ControlError::NotFound(format!(
                "no filter {name:?}; there are: {}",
                known.join(", ")
            )));
        }
        Ok(found)
    }

    fn cache(&self) -> Result<Arc<CacheState>, ControlError> {
        self.generation().dns_cache().ok_or_else(|| {
            ControlError::NotFound("there is no DNS cache: dns.dns_cache has not been on".to_owned())
        })
    }

    /// The state of the DNS cache.
    ///
    /// # Errors
    /// When there is none.
    pub fn cache_stats(&self) -> Result<CacheStats, ControlError> {
        Ok(self.cache()?.stats())
    }

    /// Removes entries from the DNS cache, and from those of the fleet if this sidecar shares one.
    ///
    /// # Errors
    /// When there is no cache.
    pub async fn cache_flush(&self, what: FlushSelector) -> Result<Flushed, ControlError> {
        let Some(shared) = self.generation().shared_cache() else {
            return Ok(Flushed { flushed: self.cache()?.flush(&what), fleet: None });
        };
        // Before our own, so that what is read from the shared one and kept here is not from before the flush.
        let reach = shared.flush(&what, FLEET_FLUSH);
        let flushed = self.cache().map_or(0, |cache| cache.flush(&what));
        Ok(Flushed { flushed, fleet: Some(reach.await.label()) })
    }

    /// Asks the servers again for everything that the DNS cache holds: for as long as `patience` here, then behind the scenes.
    ///
    /// # Errors
    /// When there is no cache, it is off, or it is being rebuilt already.
    pub async fn cache_rebuild(&self, patience: Duration) -> Result<CacheRebuild, ControlError> {
        self.not_draining()?;
        let cache = self.cache()?;
        let rebuilding = Arc::clone(&cache);
        let mut work = self.0.manager.data().spawn(async move { rebuilding.rebuild().await });
        match tokio::time::timeout(patience, &mut work).await {
            Ok(Ok(Ok(Rebuilt { total, done, failed }))) => {
                Ok(CacheRebuild { rebuilding: false, total, done, failed })
            }
            Ok(Ok(Err(why))) => Err(ControlError::Unavailable(why.to_string())),
            Ok(Err(broken)) => Err(ControlError::Unavailable(format!("the rebuild broke off: {broken}"))),
            Err(_) => {
                let stats = cache.stats();
                Ok(CacheRebuild {
                    rebuilding: stats.rebuilding,
                    total: stats.rebuild_total,
                    done: stats.rebuild_done,
                    failed: stats.rebuild_failed,
                })
            }
        }
    }

    /// What is known of the servers that DNS asks, in the order of the configuration.
    ///
    /// # Errors
    /// When DNS is not served.
    pub fn dns_servers(&self) -> Result<Vec<ServerStatus>, ControlError> {
        let generation = self.generation();
        let line = generation.kinds.dns.as_ref();
        let line =
            line.ok_or_else(|| ControlError::NotFound("DNS is not served: no listeners.dns".to_owned()))?;
        Ok(line.upstream().servers())
    }

    /// Which way connections to peers go, and why.
    ///
    /// # Errors
    /// When peer traffic is not served.
    pub fn peers(&self) -> Result<PeersStatus, ControlError> {
        let generation = self.generation();
        let line = generation.kinds.peer.as_ref();
        let line =
            line.ok_or_else(|| ControlError::NotFound("peers are not served: no listeners.peer".to_owned()))?;
        Ok(PeersStatus::new(line.settings(), line.upstream(), |filter| line.has(filter)))
    }

    /// Sends a query through the DNS chain.
    ///
    /// # Errors
    /// When DNS is not served, or the query makes no sense.
    pub async fn dns_lookup(&self, question: &Question) -> Result<LookedUp, ControlError> {
        let generation = self.generation();
        let line = generation.kinds.dns.as_ref();
        let line =
            line.ok_or_else(|| ControlError::NotFound("DNS is not served: no listeners.dns".to_owned()))?;
        let chain = qudag_filter_dns::service::before(line.settings().service.clone(), line.chain());
        let lookup = qudag_filter_dns::lookup(chain, question)
            .await
            .map_err(|why| ControlError::Invalid(why.to_string()))?;
        Ok(LookedUp::new(lookup, generation.switches.statuses()))
    }

    /// The configuration in force as YAML, secrets by reference only.
    ///
    /// # Errors
    /// When there is none yet.
    pub fn config_shown(&self, with_origin: bool) -> Result<String, ControlError> {
        Ok(config::show(&*self.loaded()?, with_origin))
    }

    /// Starts the end of the process.
    pub fn drain(&self) {
        self.0.stop.cancel();
    }

    /// Resolves when [`Control::drain`] was called.
    pub async fn draining(&self) {
        self.0.stop.cancelled().await;
    }

    pub(super) fn not_draining(&self) -> Result<(), ControlError> {
        if self.0.stop.is_cancelled() {
            return Err(ControlError::Unavailable("the sidecar is draining".to_owned()));
        }
        Ok(())
    }

    /// Closes the listeners and waits for the work under way. Returns how many units were aborted.
    pub async fn finish(&self) -> usize {
        self.0.manager.finish().await
    }

    /// Reloads when the configuration file changes. Never returns.
    pub async fn follow_config(&self) {
        let Source::File(path) = &self.0.source else { return std::future::pending().await };
        let mut watch = Watch::new(path.clone(), CONFIG_POLL, CONFIG_SETTLE);
        loop {
            watch.changed().await;
            if self.config_differs(path) {
                tracing::info!(file = %path.display(), "the configuration file has changed");
                // Recorded and logged there.
                let _ = self.reload().await;
            }
        }
    }

    /// Whether the file says something else than the configuration in force; a file that cannot be read does.
    fn config_differs(&self, path: &Path) -> bool {
        let text = std::fs::read_to_string(path).ok();
        let generation = self.generation();
        let same = generation.source.as_ref().is_some_and(|a| {
            a.origin == ConfigOrigin::File && Some(a.loaded.text.as_str()) == text.as_deref()
        });
        // Going back to the text in force also takes back an earlier refusal.
        !same || self.0.refused.load().is_some()
    }

    /// Switches when the kill file changes. Never returns.
    pub async fn follow_kill_file(&self) {
        let mut ticks = tokio::time::interval(KILL_FILE_POLL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.0.kill_file.read() {
                tracing::warn!(file = ?self.0.kill_file.path(), "the kill file has changed");
                self.reswitch_or_log().await;
            }
        }
    }

    /// Ends overrides and live settings in time. Never returns.
    pub async fn follow_expiry(&self) {
        // When settings that could not be taken over are tried again.
        let mut again = Instant::now();
        loop {
            let now = SystemTime::now();
            let ended = self.0.operator.expire(now);
            if let Err(why) = &ended {
                tracing::warn!(%why, "an ended override cannot be removed from the file");
            }
            if !matches!(ended, Ok(false)) {
                tracing::info!("what the operator set has ended");
                self.reswitch_or_log().await;
                again = Instant::now();
            }
            if self.edits_differ() && Instant::now() >= again {
                again = Instant::now() + SETTINGS_AGAIN;
                if let Err(why) = self.renew_edits().await {
                    tracing::warn!(%why, "live settings do not fit the configuration in force");
                }
            }
            let next = self.0.operator.next_end().and_then(|end| end.duration_since(now).ok());
            // New overrides may come at any time, and the clock may be set.
            let wait =
                next.unwrap_or(Duration::MAX).clamp(Duration::from_millis(5), Duration::from_millis(100));
            tokio::time::sleep(wait).await;
        }
    }

    async fn reswitch_or_log(&self) {
        if let Err(why) = self.reswitch(Instant::now(), &[]).await {
            tracing::error!(%why, "switches cannot be changed");
        }
    }
}

fn full_name(slot: &SlotInfo) -> String {
    format!("{}.{}", slot.kind, slot.filter)
}

pub(super) fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
