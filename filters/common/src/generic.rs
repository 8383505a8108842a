//! Settings of a filter that serves any kind of traffic.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use qudag_filter_api::{ConfigError, ConfigPath, Period};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The settings `S` of a filter, for the kind of traffic `K`. Reads, prints and describes itself exactly as `S`.
pub struct ForKind<S, K> {
    /// The settings.
    pub settings: S,
    // A function's type: the kind is only named, so it has no say in whether the settings can be cloned, sent or shared.
    kind: PhantomData<fn() -> K>,
}

impl<S, K> ForKind<S, K> {
    /// The settings for a kind of traffic.
    pub fn new(settings: S) -> Self {
        Self { settings, kind: PhantomData }
    }
}

impl<S, K> From<S> for ForKind<S, K> {
    fn from(settings: S) -> Self {
        Self::new(settings)
    }
}

impl<S: Clone, K> Clone for ForKind<S, K> {
    fn clone(&self) -> Self {
        Self::new(self.settings.clone())
    }
}

impl<S: Default, K> Default for ForKind<S, K> {
    fn default() -> Self {
        Self::new(S::default())
    }
}

impl<S: PartialEq, K> PartialEq for ForKind<S, K> {
    fn eq(&self, other: &Self) -> bool {
        self.settings == other.settings
    }
}

impl<S: fmt::Debug, K> fmt::Debug for ForKind<S, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.settings.fmt(f)
    }
}

impl<S: Serialize, K> Serialize for ForKind<S, K> {
    fn serialize<T: Serializer>(&self, serializer: T) -> Result<T::Ok, T::Error> {
        self.settings.serialize(serializer)
    }
}

impl<'de, S: Deserialize<'de>, K> Deserialize<'de> for ForKind<S, K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        S::deserialize(deserializer).map(Self::new)
    }
}

impl<S: JsonSchema, K> JsonSchema for ForKind<S, K> {
    fn inline_schema() -> bool {
        S::inline_schema()
    }
    fn schema_name() -> Cow<'static, str> {
        S::schema_name()
    }
    fn schema_id() -> Cow<'static, str> {
        S::schema_id()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        S::json_schema(generator)
    }
}

/// An error when a number lies outside `least..=most`.
pub(crate) fn range<T: PartialOrd + fmt::Display>(
    at: ConfigPath,
    value: T,
    least: T,
    most: T,
) -> Option<ConfigError> {
    let outside = value < least || value > most;
    outside.then(|| {
        let side = if value < least { "too small" } else { "too large" };
        at.error(format!("{value} is {side}")).hint(format!("{least} to {most}"))
    })
}

/// An error when a time is longer than the one that limits it; both with their keys.
pub(crate) fn not_longer(
    at: &ConfigPath,
    (key, period): (&str, Period),
    (limit, most): (&str, Period),
) -> Option<ConfigError> {
    let error = || at.key(key).error(format!("{period} is longer than `{limit}`, {most}"));
    (period > most).then(|| error().hint(format!("at most {most}")))
}
