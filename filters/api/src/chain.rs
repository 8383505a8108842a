//! From the settings of a kind's filters to its running chain.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use xxhash_rust::xxh3::xxh3_64;

use crate::metered::{Arm, Metered, Meters};
use crate::quick::{Chain, Quick, Step};
use crate::split::Split;
use crate::{BuildError, ConfigError, ConfigPath, Env, FilterSpec, Kind, Percent, Slot, Svc};

/// Whether a filter is on, and for how much of the traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Toggle {
    /// On or off.
    pub enabled: bool,
    /// The share of flows, when on.
    pub rollout: Percent,
}

impl Toggle {
    /// Off.
    pub const OFF: Self = Self { enabled: false, rollout: Percent::ALL };
}

/// Decides what a filter's switch is, above what its slot says.
pub trait Decide {
    /// The effective toggle of a filter whose slot says `configured`.
    fn decide(&self, kind: &'static str, filter: &'static str, configured: Toggle) -> Toggle;
}

/// The slots as they are.
impl Decide for () {
    fn decide(&self, _: &'static str, _: &'static str, configured: Toggle) -> Toggle {
        configured
    }
}

/// A slot as the configuration has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotInfo {
    /// The kind of traffic.
    pub kind: &'static str,
    /// The filter's name.
    pub filter: &'static str,
    /// Its switch as configured.
    pub configured: Toggle,
}

/// A filter's state and the settings that it was made for. Kept while the filter is off, so that a toggle
/// empties no cache and closes no connection.
pub struct Held<F: FilterSpec> {
    /// The settings.
    pub settings: F,
    /// The state.
    pub state: Arc<F::State>,
}

impl<F: FilterSpec> Clone for Held<F> {
    fn clone(&self) -> Self {
        Self { settings: self.settings.clone(), state: Arc::clone(&self.state) }
    }
}

/// The filters of a kind, in the order in which they run. Implemented by [`chain!`](crate::chain!).
pub trait ChainSpec:
    DeserializeOwned + Serialize + JsonSchema + Default + Clone + PartialEq + Send + Sync + 'static
{
    /// The traffic.
    type Kind: Kind;
    /// The states of the filters, by name.
    type States: Default + Clone + Send + Sync + 'static;

    /// Every problem of every filter's settings.
    fn check(&self, at: &ConfigPath) -> Vec<ConfigError>;

    /// The slots in order.
    fn slots(&self) -> Vec<SlotInfo>;

    /// The chain around `terminal`, and the states to hand to the next build.
    ///
    /// # Errors
    /// When the state of a filter cannot be made; nothing is half-built then.
    fn build(
        &self,
        env: &Env,
        decide: &dyn Decide,
        previous: &Self::States,
        terminal: Svc<Self::Kind>,
    ) -> Result<(Chain<Self::Kind>, Self::States), BuildError>;
}

/// A filter that is on, before it has its place in a chain.
pub struct Layer<K: Kind> {
    wrap: Box<dyn FnOnce(Svc<K>) -> Svc<K>>,
    quick: Option<Box<dyn Quick<K>>>,
    rollout: Percent,
    filter: &'static str,
}

/// A slot's state, if there is or was one, and its layer, `None` when the filter is off.
pub type Prepared<F> = (Option<Held<F>>, Option<Layer<<F as FilterSpec>::Kind>>);

/// Makes one slot's state and layer.
///
/// # Errors
/// When the state cannot be made.
pub fn prepare<F: FilterSpec>(
    slot: &Slot<F>,
    env: &Env,
    decide: &dyn Decide,
    previous: Option<&Held<F>>,
) -> Result<Prepared<F>, BuildError> {
    let configured = Toggle { enabled: slot.enabled, rollout: slot.rollout };
    let toggle = decide.decide(F::Kind::NAME, F::NAME, configured);
    if !toggle.enabled {
        return Ok((previous.cloned(), None));
    }
    let settings = slot.settings.clone();
    let state = match previous {
        Some(held) if held.settings == settings => Arc::clone(&held.state),
        _ => settings.state(env, previous.map(|held| (&held.settings, Arc::clone(&held.state))))?,
    };
    let held = Held { settings: settings.clone(), state: Arc::clone(&state) };
    let layer = Layer {
        quick: settings.quick(&state),
        wrap: Box::new(move |inner| settings.wrap(state, inner)),
        rollout: toggle.rollout,
        filter: F::NAME,
    };
    Ok((Some(held), Some(layer)))
}

/// The chain of layers, the first one outermost, around a terminal service.
pub fn assemble<K: Kind>(layers: Vec<Layer<K>>, terminal: Svc<K>) -> Chain<K> {
    let mut service = terminal.clone();
    let mut steps: Vec<_> = layers
        .into_iter()
        .rev()
        .map(|layer| {
            let step = layer.around(service.clone());
            service = step.service.clone();
            step
        })
        .collect();
    steps.reverse();
    Chain::new(steps, terminal)
}

impl<K: Kind> Layer<K> {
    fn around(self, inner: Svc<K>) -> Step<K> {
        let Self { wrap, quick, rollout, filter } = self;
        let salt = xxh3_64(filter.as_bytes());
        let meters = |arm| Meters::new(K::NAME, filter, arm);
        let with = meters(Arm::With);
        let mut service = Metered::<K>::boxed(Arc::clone(&with), inner.clone(), wrap);
        let without = (rollout != Percent::ALL).then(|| meters(Arm::Without));
        if let Some(without) = &without {
            let past = Metered::<K>::boxed(Arc::clone(without), inner, |inner| inner);
            service = Split::<K>::boxed(service, past, rollout, salt);
        }
        Step { filter, service, quick, rollout, salt, with, without }
    }
}

/// Declares the filters of a kind in the order in which they run.
///
/// ```ignore
/// chain! {
///     /// The filters of the DNS chain.
///     pub struct DnsFilters for Dns, states DnsStates {
///         /// Names from the hosts file.
///         hosts: Hosts,
///         /// Replies from earlier queries.
///         dns_cache: DnsCache,
///     }
///     terminal {
///         /// The servers that are asked.
///         dns_upstream: DnsUpstream,
///     }
/// }
/// ```
///
/// Each line under the first block becomes a [`Slot`]; its name must be the filter's [`FilterSpec::NAME`]. Lines under
/// `terminal` (optional) are settings of the terminal service: they stand beside the filters in YAML but cannot be switched off. Their
/// types have a `check(&self, &ConfigPath) -> Vec<ConfigError>`.
#[macro_export]
macro_rules! chain {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident for $kind:ty, states $states:ident {
            $($(#[$doc:meta])* $filter:ident: $spec:ty,)+
        }
        $(terminal { $($(#[$tdoc:meta])* $terminal:ident: $tspec:ty,)+ })?
    ) => {
        $(#[$meta])*
        #[derive(
            Clone, Debug, Default, PartialEq,
            $crate::macro_support::serde::Serialize,
            $crate::macro_support::serde::Deserialize,
            $crate::macro_support::schemars::JsonSchema,
        )]
        #[serde(default, deny_unknown_fields, crate = "qudag_filter_api::macro_support::serde")]
        #[schemars(crate = "qudag_filter_api::macro_support::schemars")]
        $vis struct $name {
            $($(#[$doc])* pub $filter: $crate::Slot<$spec>,)+
            $($($(#[$tdoc])* pub $terminal: $tspec,)+)?
        }

        /// The states of the filters, by name; `None` where a filter was never on.
        #[derive(Clone, Default)]
        $vis struct $states {
            $($(#[$doc])* pub $filter: Option<$crate::Held<$spec>>,)+
        }

        impl $crate::ChainSpec for $name {
            type Kind = $kind;
            type States = $states;

            fn check(&self, at: &$crate::ConfigPath) -> Vec<$crate::ConfigError> {
                let mut errors = Vec::new();
                $(errors.extend($crate::FilterSpec::check(&self.$filter.settings, &at.key(stringify!($filter))));)+
                $($(errors.extend(self.$terminal.check(&at.key(stringify!($terminal))));)+)?
                errors
            }

            fn slots(&self) -> Vec<$crate::SlotInfo> {
                $(const { assert!(
                    $crate::same_name(<$spec as $crate::FilterSpec>::NAME, stringify!($filter)),
                    "a slot is named as its filter",
                ) };)+
                vec![$($crate::SlotInfo {
                    kind: <$kind as $crate::Kind>::NAME,
                    filter: stringify!($filter),
                    configured: $crate::Toggle { enabled: self.$filter.enabled, rollout: self.$filter.rollout },
                },)+]
            }

            fn build(
                &self,
                env: &$crate::Env,
                decide: &dyn $crate::Decide,
                previous: &Self::States,
                terminal: $crate::Svc<$kind>,
            ) -> Result<($crate::Chain<$kind>, Self::States), $crate::BuildError> {
                let mut states = $states::default();
                let mut layers = Vec::new();
                $(
                    let (held, layer) = $crate::prepare(&self.$filter, env, decide, previous.$filter.as_ref())?;
                    states.$filter = held;
                    layers.extend(layer);
                )+
                Ok(($crate::assemble(layers, terminal), states))
            }
        }
    };
}

/// Whether two names are the same, at compile time.
#[doc(hidden)]
pub const fn same_name(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() != b.len() {
        return false;
    }
    let mut i = 0;
    while i < a.len() {
        #[allow(clippy::indexing_slicing, reason = "bounded by the loop, and evaluated by the compiler")]
        if a[i] != b[i] {
            return false;
        }
        i += 1;
    }
    true
}
