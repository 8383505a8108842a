//! One whole state of the data plane, built in full before it takes over with a single swap.
//!
//! A unit of traffic holds the generation that it began with; the superseded generation drains when the last
//! unit is done.

mod fleet;
mod kinds;
mod listeners;
mod manager;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use metrics::gauge;
use qudag_filter_api::{
    BuildError, Chain, ChainSpec, Chains, Decide, Env, Lanes, Lease, Node, Resolve, Service, SlotInfo, Svc,
    Toggle,
};
use qudag_filter_common::{KindOf, ListenerSpec};

pub use kinds::Kinds;
pub use manager::{Manager, Refused};

use crate::config::{Config, Loaded};
use crate::control::{ConfigOrigin, FilterStatus};
use crate::flags::{Decision, Flags, Question};

/// The current generation, shared with every listener.
pub type Current = Arc<ArcSwap<Generation>>;

/// One whole state of the data plane.
pub struct Generation {
    /// 0 before the first configuration, then one more at each change.
    pub number: u64,
    /// The configuration that it was built from; `None` before the first.
    pub source: Option<Adopted>,
    /// The switches in force, in the order of the chains.
    pub switches: Switches,
    /// The names that a bypass moves, as this generation serves them.
    pub service: Arc<Service>,
    /// The chain of each kind that is served.
    pub kinds: Kinds,
}

impl Generation {
    /// Serves nothing.
    pub fn empty() -> Self {
        Self {
            number: 0,
            source: None,
            switches: Switches::default(),
            service: Arc::default(),
            kinds: Kinds::default(),
        }
    }
}

/// A configuration in force and how it came there.
#[derive(Clone)]
pub struct Adopted {
    /// The configuration.
    pub loaded: Arc<Loaded>,
    /// The boot step that gave it.
    pub origin: ConfigOrigin,
}

/// The settings of a listener's kind of traffic.
type KindSettings<L> = <KindOf<L> as qudag_filter_api::Kind>::Settings;

/// A kind's part of a generation.
pub struct Line<L: ListenerSpec> {
    chain: Chain<KindOf<L>>,
    settings: Arc<<KindOf<L> as qudag_filter_api::Kind>::Settings>,
    /// The states of the filters.
    pub states: <L::Filters as ChainSpec>::States,
    upstream: Arc<L::Upstream>,
}

impl<L: ListenerSpec> Line<L> {
    fn build(
        listener: &L,
        filters: &L::Filters,
        env: &Env,
        decide: &dyn Decide,
        previous: Option<&Self>,
    ) -> Result<Self, BuildError> {
        let settings = Arc::new(listener.settings(env));
        let upstream = previous.map(|line| &line.upstream);
        let (terminal, upstream) = listener.terminal(filters, &settings, env, upstream)?;
        let none = Default::default();
        let states = previous.map_or(&none, |line| &line.states);
        let (chain, states) = filters.build(env, decide, states, terminal)?;
        Ok(Self { chain, settings, states, upstream })
    }

    /// What the listener reads.
    pub fn settings(&self) -> &KindSettings<L> {
        &self.settings
    }

    /// What the end of the chain knows.
    pub fn upstream(&self) -> &Arc<L::Upstream> {
        &self.upstream
    }

    /// Whether a filter is on.
    pub fn has(&self, filter: &str) -> bool {
        self.chain.has(filter)
    }

    /// A copy of the chain, for a request that the sidecar makes itself.
    pub fn chain(&self) -> Svc<KindOf<L>> {
        self.chain.service()
    }
}

/// Where a listener of one kind gets the current chain from.
fn chains<L: ListenerSpec>(current: Current, line: fn(&Kinds) -> Option<&Line<L>>) -> Chains<KindOf<L>> {
    Arc::new(move || {
        let generation = current.load_full();
        let line = line(&generation.kinds)?;
        Some(Lease {
            chain: line.chain.clone(),
            settings: Arc::clone(&line.settings),
            generation: generation.number,
            hold: Arc::clone(&generation) as _,
        })
    })
}

/// The switches of all filters, decided once for a generation.
#[derive(Clone, Default, PartialEq)]
pub struct Switches {
    order: Vec<(SlotInfo, Decision)>,
    by_name: HashMap<(&'static str, &'static str), Toggle>,
}

impl Switches {
    /// Decides every slot of a configuration.
    fn of(config: &Config, decide: impl Fn(&SlotInfo) -> Decision) -> Self {
        let order: Vec<_> = Kinds::slots(config).into_iter().map(|slot| (slot, decide(&slot))).collect();
        let by_name = order.iter().map(|(slot, decision)| ((slot.kind, slot.filter), decision.toggle));
        Self { by_name: by_name.collect(), order }
    }

    /// Asks the flag layers about every slot.
    fn ask(flags: &Flags, loaded: &Loaded) -> Self {
        Self::of(&loaded.config, |slot| flags.decide(&question(slot, place(loaded, slot).as_deref())))
    }

    /// Nothing but pass-through.
    fn all_off(config: &Config) -> Self {
        Self::of(config, |_| Decision { toggle: Toggle::OFF, layer: "pass_through", expires: None })
    }

    /// Shows the switches as metrics: the percentage of flows through each filter.
    fn publish(&self) {
        for (slot, decision) in &self.order {
            let Toggle { enabled, rollout } = decision.toggle;
            let share = if enabled { rollout.get() } else { 0.0 };
            gauge!("qudag_sidecar_filter_rollout_percent", "kind" => slot.kind, "filter" => slot.filter)
                .set(share);
        }
    }

    /// The switches as `status` shows them.
    pub fn statuses(&self) -> impl Iterator<Item = FilterStatus> + '_ {
        self.order.iter().map(|(slot, decision)| FilterStatus {
            kind: slot.kind,
            name: slot.filter,
            enabled: decision.toggle.enabled,
            rollout: decision.toggle.rollout,
            layer: decision.layer,
            expires_in_seconds: decision
                .expires
                .map(|end| end.duration_since(std::time::SystemTime::now()).unwrap_or_default().as_secs()),
        })
    }
}

impl Decide for Switches {
    fn decide(&self, kind: &'static str, filter: &'static str, configured: Toggle) -> Toggle {
        self.by_name.get(&(kind, filter)).copied().unwrap_or(configured)
    }
}

/// Where the configuration mentions the switch of a slot.
pub fn place(loaded: &Loaded, slot: &SlotInfo) -> Option<String> {
    loaded.mentioned(&["filters", slot.kind, slot.filter, "enabled"])
}

/// The question that the flag layers are asked about a slot.
pub fn question<'a>(slot: &SlotInfo, place: Option<&'a str>) -> Question<'a> {
    Question { kind: slot.kind, filter: slot.filter, configured: slot.configured, place }
}

/// What filters get from a configuration.
fn env(config: &Config, resolve: &Arc<dyn Resolve>, service: Arc<Service>, lanes: &Lanes) -> Env {
    let node = &config.node;
    Env {
        node: Arc::new(Node {
            name: node.name.clone(),
            p2p: node.p2p.clone(),
            rpc: node.rpc.clone(),
            http: node.http.clone(),
        }),
        resolve: Arc::clone(resolve),
        service,
        lanes: lanes.clone(),
    }
}
