//! What an operator can see and do, whichever way the wish arrives: admin API, signal or file watch.

mod bypass;
mod crypto;
mod db;
mod lookup;
mod operate;
mod settings;

use std::time::{Duration, SystemTime};

use qudag_filter_api::{Address, Percent};
use qudag_filter_peer::CaptureStatus;
use serde::{Deserialize, Serialize};

use crate::redirect::RulesStatus;

pub use bypass::BypassState;
pub use db::{AllPools, Paused, PoolKind};
pub use lookup::{LookedUp, TracedFilter};
pub use operate::{Control, OnAdopted, Parts};
pub use settings::SettingStatus;

/// The state of the sidecar, as `status` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The program's version.
    pub version: &'static str,
    /// The process id.
    pub pid: u32,
    /// The neighbour's name.
    pub node: String,
    /// Seconds since the start.
    pub uptime_seconds: u64,
    /// The number of the generation in force; 1 at start, one more at each change.
    pub generation: u64,
    /// Superseded generations that still have work under way.
    pub draining_generations: usize,
    /// Whether everything is bypassed.
    pub bypass: bool,
    /// Whether the process is on its way out.
    pub draining: bool,
    /// Where the configuration came from, and what happened to the last attempt to change it.
    pub config: ConfigStatus,
    /// The capture of the node's connections; `null` without `listeners.peer.capture`.
    pub capture: Option<CaptureState>,
    /// What the operator has laid over the configuration.
    pub settings: Vec<SettingStatus>,
    /// The listeners with their real addresses.
    pub listeners: Vec<ListenerStatus>,
    /// The filters of every kind, in the order in which they run.
    pub filters: Vec<FilterStatus>,
}

/// The capture of the node's connections.
#[derive(Clone, Debug, Serialize)]
pub struct CaptureState {
    /// Whether the rules are in the kernel, as far as the sidecar manages them.
    pub rules: RulesStatus,
    /// How many connections were captured, and what became of them.
    pub connections: CaptureStatus,
}

/// Where the configuration in force came from.
#[derive(Clone, Debug, Serialize)]
pub struct ConfigStatus {
    /// The file, or `embedded`.
    pub source: String,
    /// What the sidecar started or runs with: `file`, `embedded`, `last_known_good` or `pass_through`.
    pub origin: ConfigOrigin,
    /// A hash of the text in force, hexadecimal.
    pub fingerprint: String,
    /// When it came into force, seconds since the Unix epoch.
    #[serde(serialize_with = "unix_seconds")]
    pub since: SystemTime,
    /// The latest refused change; `null` after the next accepted one.
    pub refused: Option<Refusal>,
}

/// Which of the boot steps gave the configuration in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ConfigOrigin {
    /// The file that was asked for.
    File,
    /// The defaults inside the program.
    Embedded,
    /// The copy of the last configuration that worked.
    LastKnownGood,
    /// The listeners of a configuration whose filters could not be built, all filters off.
    PassThrough,
}

/// A change that was not taken.
#[derive(Clone, Debug, Serialize)]
pub struct Refusal {
    /// When, seconds since the Unix epoch.
    #[serde(serialize_with = "unix_seconds")]
    pub at: SystemTime,
    /// Every problem, one line each, with place and hint.
    pub problems: Vec<String>,
}

/// A listener.
#[derive(Clone, Debug, Serialize)]
pub struct ListenerStatus {
    /// The kind of traffic.
    pub kind: &'static str,
    /// Its name within the kind.
    pub name: String,
    /// Where it really listens.
    #[serde(serialize_with = "display")]
    pub addr: Address,
}

/// A filter and its switch in force.
#[derive(Clone, Debug, Serialize)]
pub struct FilterStatus {
    /// The kind of traffic.
    pub kind: &'static str,
    /// The filter's name.
    pub name: &'static str,
    /// Whether it is in the chain.
    pub enabled: bool,
    /// The percentage of flows that passes through it.
    pub rollout: Percent,
    /// The layer that decided.
    pub layer: &'static str,
    /// Seconds until the deciding layer's value expires.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_in_seconds: Option<u64>,
}

/// What each layer says of one filter, highest layer first.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// The kind of traffic.
    pub kind: &'static str,
    /// The filter's name.
    pub name: &'static str,
    /// Whether it is in the chain.
    pub enabled: bool,
    /// The percentage of flows.
    pub rollout: Percent,
    /// The layers.
    pub layers: Vec<LayerOpinion>,
}

/// One layer's word.
#[derive(Clone, Debug, Serialize)]
pub struct LayerOpinion {
    /// The layer.
    pub layer: &'static str,
    /// Whether this is the layer that decides.
    pub decides: bool,
    /// `true`, `false`, or nothing to say.
    pub enabled: Option<bool>,
    /// The percentage, where the layer sets one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Percent>,
    /// Where the word comes from: a file, a variable, a place in the configuration, an expiry.
    pub reason: String,
}

/// A switch set by an operator, above the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Override {
    /// On or off.
    pub enabled: bool,
    /// The percentage of flows; the configured one where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Percent>,
    /// How long it holds; for ever where left out.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_period")]
    pub ttl: Option<Duration>,
}

/// What a flush of the DNS cache has done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Flushed {
    /// How many entries of this sidecar's own cache went.
    pub flushed: u64,
    /// How far it has come where a fleet shares a cache: `fleet` (everywhere), or `later` and `off` (here, and elsewhere when Redis can be
    /// reached, or when `dns_shared_cache` is on again).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fleet: Option<&'static str>,
}

/// An accepted change.
#[derive(Clone, Debug, Serialize)]
pub struct Applied {
    /// The generation in force after it.
    pub generation: u64,
    /// Whether a new generation came into force: always after a reload, and after a switch that differs from before.
    pub changed: bool,
    /// From the command to the swap, in milliseconds.
    pub took_ms: f64,
    /// The filters that the change names, with their switch in force now.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<FilterStatus>,
    /// The live settings that there are now, after a change of one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub settings: Vec<SettingStatus>,
    /// What the operator should know: a higher layer keeps the filter off, for instance.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// How far a rebuild of the DNS cache is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CacheRebuild {
    /// Whether it goes on.
    pub rebuilding: bool,
    /// Entries that are asked for again.
    pub total: u64,
    /// Those for which the servers had an answer so far.
    pub done: u64,
    /// Those for which they had none so far; they stay as they are.
    pub failed: u64,
}

/// Whether traffic should be sent here.
#[derive(Clone, Debug, Serialize)]
pub struct Readiness {
    /// Ready or not.
    pub ready: bool,
    /// Why not.
    pub reasons: Vec<String>,
}

/// Why a wish was not granted.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// The wish itself is wrong.
    #[error("{0}")]
    Invalid(String),
    /// The configuration was refused; the old one goes on.
    #[error("configuration refused, generation {generation} goes on:\n{}", problems.join("\n"))]
    Refused {
        /// The generation that goes on.
        generation: u64,
        /// Every problem, one line each.
        problems: Vec<String>,
    },
    /// Not now: the sidecar is stopping.
    #[error("{0}")]
    Unavailable(String),
}

fn unix_seconds<S: serde::Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    serializer.serialize_u64(since.as_secs())
}

fn display<T: std::fmt::Display, S: serde::Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// An optional duration, written with its unit.
mod optional_period {
    use std::time::Duration;

    use qudag_filter_api::Period;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(ttl: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        ttl.map(Period).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<Period>::deserialize(deserializer)?.map(|period| period.0))
    }
}
