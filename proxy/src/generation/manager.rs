//! Builds generations one at a time and swaps them in.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use metrics::{counter, gauge};
use qudag_filter_api::{Lanes, Resolve, Service};
use qudag_filter_common::Drain;
use tokio::runtime::Handle;

use super::listeners::Listeners;
use super::{Adopted, Current, Generation, Kinds, Switches, env, fleet};
use crate::bypass::{self, Serials};
use crate::config::{problems, restart_only_changes};
use crate::control::{ConfigOrigin, ListenerStatus};
use crate::flags::{Flags, KillFile};

/// A change was not taken; the generation before it goes on whole.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Refused(pub Vec<String>);

/// Builds and swaps generations.
pub struct Manager {
    current: Current,
    flags: Arc<Flags>,
    kill_file: Arc<KillFile>,
    serials: Serials,
    resolve: Arc<dyn Resolve>,
    data: Handle,
    lanes: Lanes,
    /// Held while a generation is built; a swap is made by its holder only.
    listeners: tokio::sync::Mutex<Listeners>,
    /// A copy of the listeners' statuses, so that `status` never waits for a build.
    statuses: ArcSwap<Vec<ListenerStatus>>,
    /// Their drains, which count the work under way.
    drains: ArcSwap<Vec<(&'static str, Drain)>>,
    retired: Mutex<Vec<Weak<Generation>>>,
}

impl Manager {
    /// A manager that serves nothing yet. Listeners, filters and their tasks run on `data`, connections that live long on `lanes`.
    pub fn new(
        flags: Arc<Flags>,
        kill_file: Arc<KillFile>,
        serials: Serials,
        resolve: Arc<dyn Resolve>,
        data: Handle,
        lanes: Lanes,
    ) -> Self {
        Self {
            current: Arc::new(ArcSwap::from_pointee(Generation::empty())),
            flags,
            kill_file,
            serials,
            resolve,
            data,
            lanes,
            listeners: tokio::sync::Mutex::default(),
            statuses: ArcSwap::default(),
            drains: ArcSwap::default(),
            retired: Mutex::default(),
        }
    }

    /// The runtime of the data plane.
    pub fn data(&self) -> &Handle {
        &self.data
    }

    /// The generation in force.
    pub fn current(&self) -> Arc<Generation> {
        self.current.load_full()
    }

    /// The listeners with their real addresses.
    pub fn listeners(&self) -> Vec<ListenerStatus> {
        self.statuses.load().as_ref().clone()
    }

    /// How many units of work each listener has under way, by its kind of traffic: connections, and queries.
    pub fn in_flight(&self) -> Vec<(&'static str, usize)> {
        // The listener's own loop is one unit.
        self.drains.load().iter().map(|(kind, drain)| (*kind, drain.in_flight().saturating_sub(1))).collect()
    }

    /// How many superseded generations still have work under way.
    pub fn draining(&self) -> usize {
        self.retired().len()
    }

    /// The superseded generations that still have work under way.
    fn retired(&self) -> MutexGuard<'_, Vec<Weak<Generation>>> {
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        retired.retain(|generation| generation.strong_count() > 0);
        retired
    }

    /// Makes a configuration the one in force. Returns the new generation's number.
    ///
    /// # Errors
    /// When anything of it cannot be built, or a field differs that only a restart can change. Nothing has changed then.
    pub async fn adopt(&self, adopted: Adopted) -> Result<u64, Refused> {
        let mut listeners = self.listeners.lock().await;
        let before = self.current();
        if let Some(old) = &before.source {
            let fixed = restart_only_changes(&old.loaded.config, &adopted.loaded.config);
            if !fixed.is_empty() {
                return Err(Refused(problems(&adopted.loaded, fixed).lines()));
            }
        }
        let kill_file = self.kill_file.path();
        self.kill_file.set_path(adopted.loaded.config.flags.kill_file.clone());
        let built = self.build(&mut listeners, &before, adopted).await;
        if built.is_err() {
            self.kill_file.set_path(kill_file);
        }
        built
    }

    /// Builds the configuration in force again, after a flag layer has changed. Returns the new generation's number, or the
    /// current one's if no switch differs.
    ///
    /// # Errors
    /// When a filter that is switched on cannot be built. Nothing has changed then.
    pub async fn rebuild(&self) -> Result<u64, Refused> {
        let mut listeners = self.listeners.lock().await;
        let before = self.current();
        let Some(adopted) = before.source.clone() else { return Ok(before.number) };
        if self.switches(&adopted) == before.switches && self.service(&adopted) == *before.service {
            return Ok(before.number);
        }
        self.build(&mut listeners, &before, adopted).await
    }

    fn switches(&self, adopted: &Adopted) -> Switches {
        match adopted.origin {
            ConfigOrigin::PassThrough => Switches::all_off(&adopted.loaded.config),
            _ => Switches::ask(&self.flags, &adopted.loaded),
        }
    }

    fn service(&self, adopted: &Adopted) -> Service {
        let direct = self.flags.everything_off().is_some();
        bypass::service(&adopted.loaded.config.bypass, direct, &self.serials)
    }

    async fn build(
        &self,
        listeners: &mut Listeners,
        before: &Arc<Generation>,
        adopted: Adopted,
    ) -> Result<u64, Refused> {
        let refused = |why: String| Refused(vec![why]);
        let loaded = Arc::clone(&adopted.loaded);
        let config = &loaded.config;
        let service = Arc::new(self.service(&adopted));
        let env = env(config, &self.resolve, Arc::clone(&service), &self.lanes);
        let switches = self.switches(&adopted);
        let kinds = {
            // Filters may start tasks; these belong to the data plane.
            let _data = self.data.enter();
            let config = bypass::with_fresh_names(config);
            Kinds::build(&config, &env, &switches, &before.kinds).map_err(|why| refused(why.to_string()))?
        };
        let bound = listeners.bind(config, &self.current, &env, &self.data).await.map_err(refused)?;

        let number = before.number + 1;
        let generation = Generation { number, source: Some(adopted), switches, service, kinds };
        let drain_timeout = config.runtime.drain_timeout.0;
        generation.switches.publish();
        self.current.store(Arc::new(generation));
        fleet::follow(&self.current);
        listeners.adopt(config, bound, drain_timeout, &self.data);
        self.statuses.store(Arc::new(listeners.statuses()));
        self.drains.store(Arc::new(listeners.drains()));
        gauge!("qudag_sidecar_generation").set(number as f64);
        self.retire(before, drain_timeout);
        Ok(number)
    }

    /// Forgets a superseded generation when its work is done, and says so when it is not done in time.
    fn retire(&self, generation: &Arc<Generation>, deadline: Duration) {
        let left = Arc::downgrade(generation);
        self.retired().push(Weak::clone(&left));
        let number = generation.number;
        drop(self.data.spawn(async move {
            tokio::time::sleep(deadline).await;
            if left.strong_count() > 0 {
                counter!("qudag_sidecar_generation_drain_overruns_total").increment(1);
                tracing::warn!(generation = number, "a superseded generation still has work under way");
            }
        }));
    }

    /// Stops every listener, waits for the work under way, and returns how many units were aborted at the deadline.
    pub async fn finish(&self) -> usize {
        let deadline =
            self.current().source.as_ref().map(|adopted| adopted.loaded.config.runtime.drain_timeout.0);
        let mut listeners = self.listeners.lock().await;
        listeners.finish(deadline.unwrap_or_default(), &self.data).await
    }
}
