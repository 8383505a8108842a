//! A filter, as its settings.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{BuildError, ConfigError, ConfigPath, Env, Kind, Quick, Svc};

/// The settings of a filter, and how a running layer is made of them.
///
/// Settings live under `filters.KIND.NAME` beside `enabled` and `rollout`, which belong to the
/// [`Slot`](crate::Slot). Settings types carry `#[serde(default, deny_unknown_fields)]`.
pub trait FilterSpec:
    DeserializeOwned + Serialize + JsonSchema + Default + Clone + PartialEq + Send + Sync + 'static
{
    /// The traffic that it filters.
    type Kind: Kind;
    /// What outlives a reload or a toggle: a cache, a pool, a breaker.
    type State: Send + Sync + 'static;
    /// YAML key, metric label, file name and documentation page.
    const NAME: &'static str;

    /// Every problem of these settings, each with its place. Changes nothing; looks at files that the settings name.
    fn check(&self, _at: &ConfigPath) -> Vec<ConfigError> {
        Vec::new()
    }

    /// The state for these settings, taken over from `previous` where its settings allow.
    ///
    /// # Errors
    /// When something that the settings name cannot be opened or read.
    fn state(
        &self,
        env: &Env,
        previous: Option<(&Self, Arc<Self::State>)>,
    ) -> Result<Arc<Self::State>, BuildError>;

    /// The layer: a service that answers, delays, refuses, retries, or calls `inner`.
    fn wrap(&self, state: Arc<Self::State>, inner: Svc<Self::Kind>) -> Svc<Self::Kind>;

    /// The same filter as it is asked without waiting; `None` where every request has to wait for the layer.
    fn quick(&self, _state: &Arc<Self::State>) -> Option<Box<dyn Quick<Self::Kind>>> {
        None
    }
}
