//! A serde deserializer over the [tree](super::tree) whose errors know the innermost place.

use std::fmt;

use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, Expected, IntoDeserializer, MapAccess, SeqAccess,
    Unexpected, VariantAccess, Visitor,
};

use super::suggest;
use super::tree::{Entry, Node, Origin, Value};

/// What went wrong, as far as finding what to leave out is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The value is wrong.
    Value,
    /// The key is wrong.
    Key,
    /// A key is missing; the path's last step names it.
    Missing,
    /// Nothing is left of the value, because all of it was dropped.
    Consequence,
}

/// An error with its path and place.
#[derive(Clone, Debug)]
pub(super) struct DeError {
    pub(super) message: String,
    pub(super) hint: Option<String>,
    pub(super) fault: Fault,
    /// Where; set by the innermost map, list or enum that the error passes on its way out.
    pub(super) at: Option<Origin>,
    /// Set where the value is, or should have been, a reference to a secret.
    pub(super) secret: Option<Origin>,
    /// The keys that were expected, to which a slot adds its own.
    expected: Option<&'static [&'static str]>,
    /// From the inside out.
    steps: Vec<String>,
}

impl DeError {
    fn new(fault: Fault, message: String, hint: Option<String>) -> Self {
        Self { message, hint, fault, at: None, secret: None, expected: None, steps: Vec::new() }
    }

    /// The path from the root.
    pub(super) fn path(&self) -> Vec<String> {
        self.steps.iter().rev().cloned().collect()
    }

    /// The path of what must go for the rest to be readable.
    pub(super) fn culprit(&self) -> Vec<String> {
        let mut path = self.path();
        if self.fault == Fault::Missing {
            path.pop();
        }
        path
    }

    /// Passing the entry or element `step` whose key or value was written at `origin`.
    fn passing(mut self, step: impl Into<String>, origin: &Origin) -> Self {
        if self.at.is_none() {
            self.at = Some(origin.clone());
        }
        self.steps.push(step.into());
        self
    }

    fn wrong(seen: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let expected = expectation(expected);
        let found = match seen {
            Unexpected::Bool(value) => value.to_string(),
            Unexpected::Unsigned(number) => format!("the number {number}"),
            Unexpected::Signed(number) => format!("the number {number}"),
            Unexpected::Float(number) => format!("the number {number}"),
            Unexpected::Str(text) => format!("the text {text:?}"),
            Unexpected::Unit => "nothing".to_owned(),
            Unexpected::Seq => "a list".to_owned(),
            Unexpected::Map => "a map".to_owned(),
            ref other => other.to_string(),
        };
        let hint = match seen {
            Unexpected::Unit if expected.starts_with("a map") || expected.starts_with("a filter") => {
                Some("write `{}` for the defaults, or remove the key".to_owned())
            }
            Unexpected::Unit => Some("give a value or remove the key".to_owned()),
            Unexpected::Unsigned(n) if expected.starts_with("a duration") => {
                Some(format!("add the unit: {n}s for seconds, {n}ms for milliseconds"))
            }
            Unexpected::Unsigned(n) if expected.starts_with("a size") => {
                Some(format!("add the unit: {n}B, {n}KiB or {n}MiB"))
            }
            Unexpected::Bool(_) | Unexpected::Unsigned(_) | Unexpected::Signed(_) | Unexpected::Float(_)
                if expected == "text" =>
            {
                Some("put it in quotes".to_owned())
            }
            Unexpected::Str(_) if expected.contains("number") || expected == TRUTH => {
                Some(format!("write {expected}, without quotes"))
            }
            _ => None,
        };
        Self::new(Fault::Value, format!("expected {expected}, found {found}"), hint)
    }
}

const TRUTH: &str = "true or false";

/// What serde's own visitors expect, for people who do not write Rust.
fn expectation(expected: &dyn Expected) -> String {
    let text = expected.to_string();
    let whole = |low: &str, high: &str| format!("a whole number from {low} to {high}");
    let (low, integer) = match text.strip_prefix("a nonzero ") {
        Some(integer) => ("1", integer),
        None => ("0", text.as_str()),
    };
    match integer {
        "u8" => whole(low, "255"),
        "u16" => whole(low, "65535"),
        "u32" => whole(low, "4294967295"),
        "u64" | "usize" => format!("a whole number, {low} or more"),
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "a boolean" => TRUTH.to_owned(),
        "a string" => "text".to_owned(),
        "path string" => "a path".to_owned(),
        "a sequence" => "a list".to_owned(),
        _ if text.starts_with("struct ") => "a map of settings".to_owned(),
        _ if text.starts_with("enum ") => "one of its names".to_owned(),
        _ => text,
    }
}

impl fmt::Display for DeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for DeError {}

impl de::Error for DeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        let message = message.to_string();
        // The units say what they expect behind their complaint.
        match message.rsplit_once(", expected ") {
            Some((what, right)) => Self::new(Fault::Value, what.to_owned(), Some(format!("write {right}"))),
            None => Self::new(Fault::Value, message, None),
        }
    }

    fn invalid_type(seen: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::wrong(seen, expected)
    }

    fn invalid_value(seen: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::wrong(seen, expected)
    }

    fn invalid_length(length: usize, expected: &dyn Expected) -> Self {
        let message = format!("expected {}, found {length} elements", expectation(expected));
        Self::new(Fault::Value, message, None)
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let hint = suggest::hint(variant, expected.iter().copied());
        Self::new(Fault::Value, format!("`{variant}` is not possible here"), Some(hint))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let hint = suggest::hint(field, expected.iter().copied());
        let mut error = Self::new(Fault::Key, format!("unknown key `{field}`"), Some(hint));
        error.expected = Some(expected);
        error
    }

    fn missing_field(field: &'static str) -> Self {
        let mut error =
            Self::new(Fault::Missing, format!("key `{field}` is missing"), Some(format!("add `{field}: …`")));
        error.steps.push(field.to_owned());
        error
    }
}

/// Reads a node.
#[derive(Clone, Copy)]
pub(super) struct NodeDe<'a>(pub(super) &'a Node);

impl<'de> Deserializer<'de> for NodeDe<'_> {
    type Error = DeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
        match &self.0.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Int(number) => match (u64::try_from(*number), i64::try_from(*number)) {
                (Ok(number), _) => visitor.visit_u64(number),
                (_, Ok(number)) => visitor.visit_i64(number),
                _ => visitor.visit_i128(*number),
            },
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Text(text) => visitor.visit_str(text),
            Value::List(items) => {
                let mut list = List { items: items.iter().enumerate() };
                let value = visitor.visit_seq(&mut list)?;
                let left = list.items.filter(|(_, item)| !item.dropped).count();
                if left > 0 {
                    let message = format!("{left} more elements than expected");
                    return Err(DeError::new(Fault::Value, message, None));
                }
                Ok(value)
            }
            Value::Map(entries) => {
                visitor.visit_map(Map { entries: entries.iter(), value: None, slot: false })
            }
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
        match &self.0.value {
            Value::Map(entries) => {
                visitor.visit_map(Map { entries: entries.iter(), value: None, slot: true })
            }
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DeError> {
        match &self.0.value {
            // A derived struct would take a list for its fields in order.
            Value::List(_) => Err(de::Error::invalid_type(Unexpected::Seq, &visitor)),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DeError> {
        match self.0.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DeError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DeError> {
        let secret = name == "Secret";
        let alive = |entries: &[Entry]| entries.iter().filter(|entry| !entry.node.dropped).count();
        let result = match &self.0.value {
            _ if secret && !matches!(self.0.value, Value::Map(_)) => Err(DeError::new(
                Fault::Value,
                "a secret is given by reference, never as a value".to_owned(),
                Some("write `{ file: PATH }` or `{ env: NAME }`".to_owned()),
            )),
            Value::Text(variant) => visitor.visit_enum(variant.as_str().into_deserializer()),
            Value::Map(entries) if alive(entries) == 1 => {
                match entries.iter().find(|entry| !entry.node.dropped) {
                    Some(entry) => visitor.visit_enum(Variant(entry)),
                    None => self.deserialize_any(visitor),
                }
            }
            Value::Map(entries) if alive(entries) == 0 && !entries.is_empty() => {
                Err(DeError::new(Fault::Consequence, String::new(), None))
            }
            Value::Map(entries) => Err(DeError::new(
                Fault::Value,
                format!("expected exactly one of its keys, found {}", alive(entries)),
                Some(suggest::list(variants.iter().copied())),
            )),
            Value::Bool(value) => Err(DeError::new(
                Fault::Value,
                format!("{value} is not possible here"),
                Some(suggest::list(variants.iter().copied())),
            )),
            _ => Err(DeError::new(
                Fault::Value,
                format!("{} is not possible here", self.0.kind()),
                Some(suggest::list(variants.iter().copied())),
            )),
        };
        result.map_err(|mut error| {
            if secret {
                error.secret = Some(self.0.origin.clone());
            }
            error
        })
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        seq tuple tuple_struct identifier ignored_any
    }
}

struct List<I> {
    items: I,
}

impl<'de, 'a, I: Iterator<Item = (usize, &'a Node)>> SeqAccess<'de> for List<I> {
    type Error = DeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, DeError> {
        let Some((index, node)) = self.items.find(|(_, item)| !item.dropped) else { return Ok(None) };
        seed.deserialize(NodeDe(node))
            .map(Some)
            .map_err(|error| error.passing(index.to_string(), &node.origin))
    }
}

struct Map<'a> {
    entries: std::slice::Iter<'a, Entry>,
    value: Option<&'a Entry>,
    /// Whether `deserialize_map` asked. A derived struct never does; if an unknown field is complained about all the same,
    /// a [`Slot`](qudag_filter_api::Slot) has peeled off its own two keys.
    slot: bool,
}

/// The keys of a slot, besides those of its filter.
const SLOT_KEYS: [&str; 2] = ["enabled", "rollout"];

impl<'de> MapAccess<'de> for Map<'_> {
    type Error = DeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, DeError> {
        self.value = self.entries.find(|entry| !entry.node.dropped);
        let Some(entry) = self.value else { return Ok(None) };
        let key: de::value::StrDeserializer<'_, DeError> = entry.key.as_str().into_deserializer();
        seed.deserialize(key).map(Some).map_err(|mut error| {
            if let Some(expected) = error.expected.take()
                && self.slot
            {
                let all = SLOT_KEYS.into_iter().chain(expected.iter().copied());
                error.hint = Some(suggest::hint(&entry.key, all));
            }
            error.fault = Fault::Key;
            error.passing(entry.key.as_str(), &entry.origin)
        })
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, DeError> {
        let Some(entry) = self.value.take() else {
            return Err(de::Error::custom("a value without a key"));
        };
        seed.deserialize(NodeDe(&entry.node)).map_err(|error| {
            // What is missing is nowhere; the key that should hold it is the best place.
            let at = if error.fault == Fault::Missing { &entry.origin } else { &entry.node.origin };
            error.passing(entry.key.as_str(), at)
        })
    }
}

/// A variant with contents, written as a map of one key.
struct Variant<'a>(&'a Entry);

impl<'de, 'a> EnumAccess<'de> for Variant<'a> {
    type Error = DeError;
    type Variant = Contents<'a>;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Contents<'a>), DeError> {
        let name: de::value::StrDeserializer<'_, DeError> = self.0.key.as_str().into_deserializer();
        match seed.deserialize(name) {
            Ok(variant) => Ok((variant, Contents(self.0))),
            Err(mut error) => {
                error.fault = Fault::Key;
                Err(error.passing(self.0.key.as_str(), &self.0.origin))
            }
        }
    }
}

struct Contents<'a>(&'a Entry);

impl Contents<'_> {
    fn passing(&self, error: DeError) -> DeError {
        error.passing(self.0.key.as_str(), &self.0.node.origin)
    }
}

impl<'de> VariantAccess<'de> for Contents<'_> {
    type Error = DeError;

    fn unit_variant(self) -> Result<(), DeError> {
        match self.0.node.value {
            Value::Null => Ok(()),
            _ => {
                let message = format!("`{}` takes no settings", self.0.key);
                let hint = Some(format!("write just `{}`", self.0.key));
                Err(self.passing(DeError::new(Fault::Value, message, hint)))
            }
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, DeError> {
        seed.deserialize(NodeDe(&self.0.node)).map_err(|error| self.passing(error))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, DeError> {
        NodeDe(&self.0.node).deserialize_any(visitor).map_err(|error| self.passing(error))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DeError> {
        NodeDe(&self.0.node).deserialize_struct("", fields, visitor).map_err(|error| self.passing(error))
    }
}
