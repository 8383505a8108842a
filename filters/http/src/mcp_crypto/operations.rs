//! What the sidecar does in place of the mock.

use std::fmt::Display;

use qudag_filter_common::mldsa::Algorithm;
use serde_json::{Map, Value, json};

use super::arguments::{algorithm, data, is_blake3, operation, signature, written};
use super::call::Asked;

/// Bytes of a fingerprint: BLAKE3 with so much output.
const FINGERPRINT: usize = 64;

/// What came of a call.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Outcome {
    /// It was done, with this result.
    Done(Value),
    /// It is not done here, nor by the node.
    Blocked(String),
    /// The arguments make no sense.
    Malformed(String),
}

impl Outcome {
    /// The metric label.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Done(result) => match result.get("valid").and_then(Value::as_bool) {
                Some(true) => "valid",
                Some(false) => "invalid",
                None => "done",
            },
            Self::Blocked(_) => "blocked",
            Self::Malformed(_) => "malformed",
        }
    }
}

/// The operation, of those that are known, as a metric label.
pub(super) fn label(asked: &Asked) -> &'static str {
    const KNOWN: [&str; 8] =
        ["verify", "hash", "fingerprint", "generate_keys", "generate_keypair", "sign", "encrypt", "decrypt"];
    let operation = operation(&asked.arguments);
    KNOWN.into_iter().find(|known| operation == Some(known)).unwrap_or("other")
}

/// Does what was asked for, if it can be done without a secret.
pub(super) fn perform(asked: &Asked, default: Algorithm) -> Outcome {
    if asked.in_batch {
        return Outcome::Malformed("this tool is called in a request by itself, not in a batch".to_owned());
    }
    let arguments = &asked.arguments;
    let result = match operation(arguments) {
        Some("verify") => verify(arguments, default),
        Some("hash") => hash(arguments),
        Some("fingerprint") => fingerprint(arguments, default),
        Some(other) => {
            return Outcome::Blocked(format!(
                "{other:?} is not answered: the node's tool only pretends to do it, and secrets do not belong here; \
                 verify, hash and fingerprint are done for real"
            ));
        }
        None => Err("`operation` is missing".to_owned()),
    };
    result.map_or_else(Outcome::Malformed, Outcome::Done)
}

/// Refuses, whatever was asked for.
pub(super) fn block() -> Outcome {
    Outcome::Blocked(
        "the node's tool for cryptography is blocked: it only pretends, and calls every signature valid"
            .to_owned(),
    )
}

fn verify(arguments: &Value, default: Algorithm) -> Result<Value, String> {
    let algorithm = algorithm(arguments, default)?;
    let (key, signature) = signature(arguments)?.ok_or("`signature` and `publicKey` are missing")?;
    let mut result = Map::new();
    judge(&mut result, algorithm, key.verify(algorithm, &data(arguments)?, &signature));
    Ok(result.into())
}

fn hash(arguments: &Value) -> Result<Value, String> {
    is_blake3(arguments)?;
    let hash = blake3::hash(&data(arguments)?);
    Ok(json!({"hash": written(arguments, hash.as_bytes())?, "algorithm": "blake3"}))
}

/// The fingerprint of data, and whether a signature is one of it.
fn fingerprint(arguments: &Value, default: Algorithm) -> Result<Value, String> {
    let mut fingerprint = [0; FINGERPRINT];
    blake3::Hasher::new().update(&data(arguments)?).finalize_xof().fill(&mut fingerprint);
    let algorithm = algorithm(arguments, default)?;
    let mut result = Map::new();
    result.insert("fingerprint".to_owned(), written(arguments, &fingerprint)?.into());
    result.insert("hash".to_owned(), "blake3".into());
    if let Some((key, signature)) = signature(arguments)? {
        judge(&mut result, algorithm, key.verify(algorithm, &fingerprint, &signature));
    }
    Ok(result.into())
}

/// Adds what is said of a signature.
fn judge(result: &mut Map<String, Value>, algorithm: Algorithm, verdict: Result<(), impl Display>) {
    result.insert("valid".to_owned(), verdict.is_ok().into());
    result.insert("algorithm".to_owned(), algorithm.name().into());
    if let Err(why) = verdict {
        result.insert("reason".to_owned(), why.to_string().into());
    }
}
