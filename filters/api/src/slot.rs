//! A filter's place in the configuration: `{ enabled, rollout, …settings }`.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::value::StrDeserializer;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::units::Percent;

/// The two keys that every filter has, and the filter's own settings beside them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Slot<F> {
    /// Whether the filter is in the chain. Off means absent.
    pub enabled: bool,
    /// The share of flows that passes through the filter.
    pub rollout: Percent,
    /// The filter's own settings.
    #[serde(flatten)]
    pub settings: F,
}

/// Gives `enabled` and `rollout` to the slot and every other key to the filter's own type, so that
/// unknown keys stay errors and errors keep their place. `#[serde(flatten)]` loses both.
struct Peel<'a, A> {
    map: A,
    enabled: &'a Cell<Option<bool>>,
    rollout: &'a Cell<Option<Percent>>,
}

/// A key: one of the slot's own, with the unused seed handed back, or one for the filter's type.
enum Key<S, V> {
    Enabled(S),
    Rollout(S),
    Settings(V),
}

struct PeelKey<S>(S);

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for PeelKey<S> {
    type Value = Key<S, S::Value>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl<'de, S: DeserializeSeed<'de>> Visitor<'de> for PeelKey<S> {
    type Value = Key<S, S::Value>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a setting's name")
    }
    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<Self::Value, E> {
        match key {
            "enabled" => Ok(Key::Enabled(self.0)),
            "rollout" => Ok(Key::Rollout(self.0)),
            _ => self.0.deserialize(StrDeserializer::new(key)).map(Key::Settings),
        }
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Peel<'_, A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, mut seed: S) -> Result<Option<S::Value>, A::Error> {
        loop {
            seed = match self.map.next_key_seed(PeelKey(seed))? {
                None => return Ok(None),
                Some(Key::Settings(value)) => return Ok(Some(value)),
                Some(Key::Enabled(seed)) => {
                    self.enabled.set(Some(self.map.next_value()?));
                    seed
                }
                Some(Key::Rollout(seed)) => {
                    self.rollout.set(Some(self.map.next_value()?));
                    seed
                }
            };
        }
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}

impl<'de, F: Deserialize<'de>> Deserialize<'de> for Slot<F> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Whole<F>(std::marker::PhantomData<F>);

        impl<'de, F: Deserialize<'de>> Visitor<'de> for Whole<F> {
            type Value = Slot<F>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a filter: a map with `enabled`, `rollout` and the filter's settings")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                let (enabled, rollout) = (Cell::new(None), Cell::new(None));
                let peel = Peel { map, enabled: &enabled, rollout: &rollout };
                let settings = F::deserialize(serde::de::value::MapAccessDeserializer::new(peel))?;
                Ok(Slot {
                    enabled: enabled.get().unwrap_or_default(),
                    rollout: rollout.get().unwrap_or_default(),
                    settings,
                })
            }
        }

        deserializer.deserialize_map(Whole(std::marker::PhantomData))
    }
}

impl<F: JsonSchema> JsonSchema for Slot<F> {
    fn schema_name() -> Cow<'static, str> {
        format!("Slot_{}", F::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        // The whole filter in one object, so that `additionalProperties: false` covers the two keys as well.
        let mut schema = F::json_schema(generator);
        let enabled = generator.subschema_for::<bool>();
        let rollout = generator.subschema_for::<Percent>();
        let root = schema.ensure_object();
        root.entry("type").or_insert_with(|| "object".into());
        let properties = root.entry("properties").or_insert_with(|| serde_json::Map::new().into());
        if let Some(properties) = properties.as_object_mut() {
            let describe = |schema: Schema, text: &str, default: serde_json::Value| {
                let mut schema = schema.to_value();
                if let Some(object) = schema.as_object_mut() {
                    object.insert("description".into(), text.into());
                    object.insert("default".into(), default);
                }
                schema
            };
            properties.insert(
                "enabled".into(),
                describe(enabled, "Whether the filter is in the chain; off means absent.", false.into()),
            );
            properties.insert(
                "rollout".into(),
                describe(rollout, "The percentage of flows that passes through the filter.", 100.into()),
            );
        }
        schema
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(default, deny_unknown_fields)]
    struct Settings {
        size: u32,
    }

    fn parse(text: &str) -> Result<Slot<Settings>, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn the_slot_takes_its_keys_and_the_filter_the_rest() {
        let slot = parse(r#"{"size": 3, "rollout": 12.5, "enabled": true}"#).unwrap();
        assert_eq!(
            slot,
            Slot { enabled: true, rollout: Percent::new(12.5).unwrap(), settings: Settings { size: 3 } }
        );
        assert_eq!(
            parse("{}").unwrap(),
            Slot { enabled: false, rollout: Percent::ALL, settings: Settings::default() }
        );
    }

    #[test]
    fn unknown_keys_and_wrong_values_keep_their_place() {
        let error = parse("{\"enabled\": true,\n \"sise\": 3}").unwrap_err();
        assert_eq!(error.line(), 2);
        assert!(error.to_string().contains("unknown field `sise`, expected `size`"), "{error}");
        assert!(parse(r#"{"rollout": 101}"#).is_err());
        assert!(parse(r#"{"size": -1}"#).is_err());
    }

    #[test]
    fn what_is_printed_can_be_read_again() {
        let slot =
            Slot { enabled: true, rollout: Percent::new(10.0).unwrap(), settings: Settings { size: 9 } };
        let text = serde_json::to_string(&slot).unwrap();
        assert_eq!(text, r#"{"enabled":true,"rollout":10,"size":9}"#);
        assert_eq!(parse(&text).unwrap(), slot);
    }

    #[test]
    fn the_schema_forbids_unknown_keys_and_knows_both_of_its_own() {
        let schema = schemars::schema_for!(Slot<Settings>).to_value();
        assert_eq!(schema["additionalProperties"], false);
        for key in ["enabled", "rollout", "size"] {
            assert!(schema["properties"][key].is_object(), "{key}");
        }
    }
}
