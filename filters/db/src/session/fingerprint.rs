//! Statements that differ only in their values are alike: their fingerprint is the same.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use xxhash_rust::xxh3::Xxh3;

use super::lexer::{Lexer, Token};

/// How much of a text is looked at.
const LOOKED: usize = 64 << 10;
/// How long a text without its values becomes.
const SHOWN: usize = 300;

/// What tells a statement from others, whatever its values are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub u64);

/// As it is shown and written in the configuration: 16 hexadecimal digits.
impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What is no fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a fingerprint of a statement: 16 hexadecimal digits")]
pub struct NoFingerprint;

impl std::str::FromStr for Fingerprint {
    type Err = NoFingerprint;

    fn from_str(text: &str) -> Result<Self, NoFingerprint> {
        let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = digits.then(|| u64::from_str_radix(text, 16).ok()).flatten();
        number.map(Self).ok_or(NoFingerprint)
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Fingerprint {
    fn schema_name() -> Cow<'static, str> {
        "Fingerprint".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9a-fA-F]{16}$" })
    }
}

impl Fingerprint {
    /// That of a text with standard strings.
    pub fn of_text(text: &str) -> Self {
        Self::of(text.as_bytes(), false)
    }

    /// That of a text. `escapes`: whether a backslash escapes in plain strings.
    pub(super) fn of(text: &[u8], escapes: bool) -> Self {
        let mut hash = Xxh3::new();
        without_values(text, escapes, |part| {
            hash.update(part);
            hash.update(b" ");
        });
        Self(hash.digest())
    }
}

/// A number of a text as its fingerprint is, that nobody can foresee who does not know `seed`.
pub(super) fn digest(text: &[u8], escapes: bool, seed: u64) -> u64 {
    let mut hash = Xxh3::with_seed(seed);
    without_values(text, escapes, |part| {
        hash.update(part);
        hash.update(b" ");
    });
    hash.digest()
}

/// A text without its values, for people: `select ? from t where id = ?`.
pub fn shape(text: &[u8], escapes: bool) -> String {
    shape_up_to(text, escapes, SHOWN)
}

/// The same, whole as far as the text is looked at.
pub(super) fn whole_shape(text: &[u8], escapes: bool) -> String {
    shape_up_to(text, escapes, usize::MAX)
}

fn shape_up_to(text: &[u8], escapes: bool, most: usize) -> String {
    let mut shape = Vec::new();
    without_values(text, escapes, |part| {
        let tight =
            matches!(part, b"," | b"." | b")" | b";") || matches!(shape.last(), None | Some(b'(' | b'.'));
        if shape.len() < most {
            if !tight {
                shape.push(b' ');
            }
            shape.extend_from_slice(part);
        }
    });
    let mut shape = String::from_utf8_lossy(&shape).into_owned();
    if shape.len() >= most {
        let end = (0..=most).rev().find(|end| shape.is_char_boundary(*end)).unwrap_or(0);
        shape.truncate(end);
        shape.push('…');
    }
    shape.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// The parts of a text; each value is `?`, and so is a list of values.
fn without_values(text: &[u8], escapes: bool, mut found: impl FnMut(&[u8])) {
    // A value was the last part, and a comma after it.
    let (mut value, mut comma) = (false, false);
    let mut lexer = Lexer::new(escapes);
    let mut each = |token: Token<'_>| {
        let byte;
        let part: &[u8] = match token {
            Token::String | Token::Other(b'0' | b'$') => b"?",
            Token::Unicode => b"\"?\"",
            Token::Word(word) => word,
            Token::Other(other) => {
                byte = [other];
                &byte
            }
        };
        match part {
            b"?" if comma => comma = false,
            b"?" => {
                found(part);
                value = true;
            }
            b"," if value && !comma => comma = true,
            _ => {
                if std::mem::take(&mut comma) {
                    found(b",");
                }
                value = false;
                found(part);
            }
        }
    };
    lexer.feed(text.get(..LOOKED).unwrap_or(text), &mut each);
    lexer.end(&mut each);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(text: &str) -> Fingerprint {
        Fingerprint::of(text.as_bytes(), false)
    }

    #[test]
    fn values_make_no_difference_and_everything_else_does() {
        let one = of("SELECT a FROM t WHERE id = 1 AND name = 'x'");
        for same in [
            "select a from t where id=42 and name='it''s'",
            "SELECT a -- why\n FROM t /* here */ WHERE id = $1 AND name = $2",
            "select a from t where id = 1e5 and name = $tag$ 'x' $tag$",
        ] {
            assert_eq!(of(same), one, "{same}");
        }
        for other in [
            "select b from t where id = 1 and name = 'x'",
            "select a from t where id = 1",
            "select a from t where id > 1 and name = 'x'",
        ] {
            assert_ne!(of(other), one, "{other}");
        }
        assert_eq!(of("select 1 in (1, 2, 3)"), of("select 5 in (7)"));
        assert_ne!(of("select 1, a"), of("select 1 a"));
    }

    #[test]
    fn what_is_shown_has_no_values() {
        let text = "SELECT a.b, count(*) FROM a WHERE id IN (1, 2,3) AND p = 'secret' AND q = E'sec\\'ret';";
        assert_eq!(
            shape(text.as_bytes(), false),
            "select a.b, count (*) from a where id in (?) and p = ? and q = ?;"
        );
        let long = format!("select {}", "ä, ".repeat(300));
        assert!(shape(long.as_bytes(), false).chars().count() <= SHOWN + 1);
    }

    proptest! {
        #[test]
        fn a_string_is_never_shown(secret in "[a-z]{8,20}", before in "[a-z =,(]{0,20}") {
            let text = format!("select x{before} '{secret}', $${secret}$$, e'{secret}'");
            let shown = shape(text.as_bytes(), false);
            prop_assert!(before.contains(&secret) || !shown.contains(&secret), "{}", shown);
        }

        #[test]
        fn any_bytes_are_looked_at(bytes in proptest::collection::vec(any::<u8>(), 0..300), escapes: bool) {
            let _ = (Fingerprint::of(&bytes, escapes), shape(&bytes, escapes));
        }
    }
}
