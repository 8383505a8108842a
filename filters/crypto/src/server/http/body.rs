//! The JSON of requests and replies. Bytes are base64 (RFC 4648 section 4, with padding), ids of keys are hexadecimal.

use std::fmt;
use std::marker::PhantomData;

use bytes::Bytes;
use data_encoding::{BASE64, HEXLOWER, HEXLOWER_PERMISSIVE};
use hyper::StatusCode;
use qudag_core::offload::{self as wire, Code};
use qudag_mldsa::{Edition, Mu, PublicKey};
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::problem::Problem;
use crate::server::convert;
use crate::{Content, CryptoReply, FingerprintCheck, HASH_BYTES, KeyId, KeyRef, Operations, SignatureCheck};

/// The length of a hash for which none is said.
const DEFAULT_HASH: u16 = 32;

/// What a body is a batch of.
#[derive(Clone, Copy, Debug)]
pub(super) enum Batch {
    Keys,
    Signatures,
    Fingerprints,
    Hashes,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    keys: Vec<Bytes64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Signatures {
    alg: Algorithm,
    operations: Vec<Object<Signature>>,
}

#[derive(Clone, Copy, Deserialize)]
enum Algorithm {
    #[serde(rename = "ml-dsa-65-ipd")]
    Draft,
    #[serde(rename = "ml-dsa-65")]
    Final,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Signature {
    key: Option<Bytes64>,
    key_id: Option<Id>,
    message: Option<Bytes64>,
    context: Option<Bytes64>,
    mu: Option<Bytes64>,
    signature: Bytes64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fingerprints {
    operations: Vec<Object<Fingerprint>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fingerprint {
    key: Option<Bytes64>,
    key_id: Option<Id>,
    data: Bytes64,
    fingerprint: Bytes64,
    signature: Bytes64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Hashes {
    operations: Vec<Object<Hash>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Hash {
    data: Bytes64,
    length: Option<u16>,
}

/// A JSON object. What is derived would take an array with the values in their order as well.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }

        deserializer.deserialize_map(Fields(PhantomData)).map(Self)
    }
}

/// Bytes in base64.
struct Bytes64(Vec<u8>);

/// The id of a key in hexadecimal.
struct Id(KeyId);

/// Reads a text with `decode`, without keeping it.
fn text<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    expected: &'static str,
    decode: fn(&[u8]) -> Result<T, String>,
) -> Result<T, D::Error> {
    struct Text<T>(&'static str, fn(&[u8]) -> Result<T, String>);

    impl<T> Visitor<'_> for Text<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
            (self.1)(text.as_bytes()).map_err(|why| E::custom(format!("not {}: {why}", self.0)))
        }
    }

    deserializer.deserialize_str(Text(expected, decode))
}

impl<'de> Deserialize<'de> for Bytes64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, "base64 with padding", |text| {
            BASE64.decode(text).map(Self).map_err(|why| why.to_string())
        })
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, "64 hexadecimal digits", |text| {
            let bytes = HEXLOWER_PERMISSIVE.decode(text).map_err(|why| why.to_string())?;
            let length = bytes.len();
            bytes.try_into().map(|id| Self(KeyId(id))).map_err(|_| format!("{length} bytes"))
        })
    }
}

/// Reads a body with at most so many operations.
pub(super) fn read(batch: Batch, body: &[u8], most: u32) -> Result<Operations, Problem> {
    Ok(match batch {
        Batch::Keys => {
            let keys = parse::<Keys>(body)?.keys;
            Operations::Keys(all("keys", keys, most, |key, at| exact(&key, at, "").map(PublicKey))?)
        }
        Batch::Signatures => {
            let Signatures { alg, operations } = parse(body)?;
            let edition = match alg {
                Algorithm::Draft => Edition::Draft,
                Algorithm::Final => Edition::Final,
            };
            let convert = |one: Object<Signature>, at: &str| one.0.convert(edition, at);
            Operations::Signatures(all("operations", operations, most, convert)?)
        }
        Batch::Fingerprints => {
            let operations = parse::<Fingerprints>(body)?.operations;
            Operations::Fingerprints(all("operations", operations, most, |one, at| one.0.convert(at))?)
        }
        Batch::Hashes => {
            let operations = parse::<Hashes>(body)?.operations;
            Operations::Hashes(all("operations", operations, most, |one, at| one.0.convert(at))?)
        }
    })
}

/// Reads any bytes as each sort of body: for `tests/fuzz`.
pub(crate) fn fuzz(body: &[u8]) {
    const MOST: u32 = 3;
    for batch in [Batch::Keys, Batch::Signatures, Batch::Fingerprints, Batch::Hashes] {
        match read(batch, body, MOST) {
            Ok(operations) => assert!((1..=MOST as usize).contains(&operations.len())),
            Err(problem) => assert!(problem.body().starts_with(b"{\"error\":{")),
        }
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let Object(parsed) = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let (place, why) = (error.path().to_string(), error.into_inner());
        let problem = Problem::malformed(why.to_string());
        // What is no JSON has a line and a column alone.
        if why.is_data() && place != "." { problem.at(place) } else { problem }
    })?;
    json.end().map_err(|why| Problem::malformed(why.to_string()))?;
    Ok(parsed)
}

/// Converts each item of the list called `name`, whose place an error needs.
fn all<O, T>(
    name: &str,
    items: Vec<O>,
    most: u32,
    convert: impl Fn(O, &str) -> Result<T, Problem>,
) -> Result<Vec<T>, Problem> {
    if items.is_empty() {
        return Err(Problem::malformed("a batch has at least one operation").at(name));
    }
    if items.len() > usize::try_from(most).unwrap_or(usize::MAX) {
        let why = format!("{} operations, where at most {most} are allowed", items.len());
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, Code::TooLarge.name(), why).at(name));
    }
    let items = items.into_iter().enumerate();
    items.map(|(place, item)| convert(item, &format!("{name}[{place}]"))).collect()
}

fn exact<const N: usize>(bytes: &Bytes64, at: &str, part: &str) -> Result<[u8; N], Problem> {
    let found = bytes.0.len();
    let wrong = |_| {
        Problem::malformed(format!("{N} bytes are needed, and {found} are here")).at(format!("{at}{part}"))
    };
    bytes.0.as_slice().try_into().map_err(wrong)
}

fn key(key: Option<Bytes64>, id: Option<Id>, at: &str) -> Result<KeyRef, Problem> {
    match (key, id) {
        (Some(key), None) => Ok(KeyRef::Public(Box::new(PublicKey(exact(&key, at, ".key")?)))),
        (None, Some(id)) => Ok(KeyRef::Id(id.0)),
        (None, None) => Err(Problem::malformed("`key` or `key_id` is missing").at(at)),
        (Some(_), Some(_)) => Err(Problem::malformed("`key` and `key_id` exclude each other").at(at)),
    }
}

impl Signature {
    fn convert(self, edition: Edition, at: &str) -> Result<SignatureCheck, Problem> {
        let content = match (self.message, self.mu, self.context) {
            (Some(message), None, context) => Content::Message {
                context: context.map(|context| context.0.into()).unwrap_or_default(),
                message: message.0.into(),
            },
            (None, Some(mu), None) => Content::Mu(Box::new(Mu(exact(&mu, at, ".mu")?))),
            (None, Some(_), Some(_)) => {
                return Err(
                    Problem::malformed("`mu` has the context in it already").at(format!("{at}.context"))
                );
            }
            (None, None, _) => return Err(Problem::malformed("`message` or `mu` is missing").at(at)),
            (Some(_), Some(_), _) => {
                return Err(Problem::malformed("`message` and `mu` exclude each other").at(at));
            }
        };
        let signature = self.signature.0.into();
        Ok(SignatureCheck { key: key(self.key, self.key_id, at)?, edition, content, signature })
    }
}

impl Fingerprint {
    fn convert(self, at: &str) -> Result<FingerprintCheck, Problem> {
        Ok(FingerprintCheck {
            key: key(self.key, self.key_id, at)?,
            data: self.data.0.into(),
            fingerprint: Box::new(exact(&self.fingerprint, at, ".fingerprint")?),
            signature: self.signature.0.into(),
        })
    }
}

impl Hash {
    fn convert(self, at: &str) -> Result<(Bytes, u16), Problem> {
        let length = self.length.unwrap_or(DEFAULT_HASH);
        if !HASH_BYTES.contains(&length) {
            let why = format!("a hash has {} to {} bytes", HASH_BYTES.start(), HASH_BYTES.end());
            return Err(Problem::malformed(why).at(format!("{at}.length")));
        }
        Ok((self.data.0.into(), length))
    }
}

#[derive(Serialize)]
struct RegisteredKeys {
    keys: Vec<RegisteredKey>,
}

#[derive(Serialize)]
struct RegisteredKey {
    key_id: String,
}

#[derive(Serialize)]
struct Results<T> {
    results: Vec<T>,
}

#[derive(Serialize)]
struct VerdictOf {
    valid: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

#[derive(Serialize)]
struct HashOf {
    hash: String,
}

/// A reply as JSON.
pub(super) fn write(reply: CryptoReply) -> serde_json::Result<Bytes> {
    let json = match reply {
        CryptoReply::Keys(ids) => {
            let keys = ids.iter().map(|id| RegisteredKey { key_id: HEXLOWER.encode(&id.0) }).collect();
            serde_json::to_vec(&RegisteredKeys { keys })
        }
        CryptoReply::Verdicts(verdicts) | CryptoReply::Routed(verdicts) => {
            let results = verdicts.into_iter().map(convert::verdict).map(|verdict| {
                let valid = verdict == wire::Verdict::Valid;
                VerdictOf { valid, reason: (!valid).then(|| verdict.name()) }
            });
            serde_json::to_vec(&Results { results: results.collect() })
        }
        CryptoReply::Hashes(hashes) => {
            let results = hashes.iter().map(|hash| HashOf { hash: BASE64.encode(hash) }).collect();
            serde_json::to_vec(&Results { results })
        }
        CryptoReply::Status(status) => serde_json::to_vec(&status),
    };
    json.map(Bytes::from)
}
