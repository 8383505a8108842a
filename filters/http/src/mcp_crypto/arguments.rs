//! The arguments of the tool, under the names that nodes of several versions give them.

use data_encoding::{BASE64, HEXLOWER};
use qudag_filter_common::mldsa::{Algorithm, VerifyingKey, binary, public_key};
use serde_json::Value;

/// The text of an argument.
///
/// # Errors
/// When it is there and no string.
fn text<'a>(arguments: &'a Value, name: &str) -> Result<Option<&'a str>, String> {
    match arguments.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(format!("`{name}` is not a string")),
    }
}

/// What is to be done.
pub(super) fn operation(arguments: &Value) -> Option<&str> {
    arguments.get("operation").and_then(Value::as_str)
}

/// The algorithm of a signature. `ml-dsa` and nothing mean `default`.
pub(super) fn algorithm(arguments: &Value, default: Algorithm) -> Result<Algorithm, String> {
    match text(arguments, "algorithm")? {
        None | Some("ml-dsa") => Ok(default),
        Some(name) => name.parse().map_err(|why| format!("unknown `algorithm` {name:?}: {why}")),
    }
}

/// That a hash is meant which is made here.
pub(super) fn is_blake3(arguments: &Value) -> Result<(), String> {
    match text(arguments, "algorithm")? {
        None | Some("blake3") => Ok(()),
        Some(name) => Err(format!("unknown `algorithm` {name:?} of a hash: it is blake3")),
    }
}

/// What is signed or hashed: `data` in base64, or `message` as it is.
pub(super) fn data(arguments: &Value) -> Result<Vec<u8>, String> {
    match (text(arguments, "data")?, text(arguments, "message")?) {
        (Some(data), None) => binary(data, None).map_err(|_| "`data` is not base64".to_owned()),
        (None, Some(message)) => Ok(message.as_bytes().to_vec()),
        (Some(_), Some(_)) => Err("`data` and `message` are both there".to_owned()),
        (None, None) => Err("`data` is missing".to_owned()),
    }
}

/// A key and a signature; `None` where neither is there.
pub(super) fn signature(arguments: &Value) -> Result<Option<(VerifyingKey, Vec<u8>)>, String> {
    let key = match (text(arguments, "publicKey")?, text(arguments, "public_key")?) {
        (Some(_), Some(_)) => return Err("`publicKey` and `public_key` are both there".to_owned()),
        (key, other) => key.or(other),
    };
    match (key, text(arguments, "signature")?) {
        (None, None) => Ok(None),
        (Some(_), None) => Err("`signature` is missing".to_owned()),
        (None, Some(_)) => Err("`publicKey` is missing".to_owned()),
        (Some(key), Some(signature)) => {
            let key = public_key(key.as_bytes()).map_err(|why| format!("`publicKey`: {why}"))?;
            let signature = binary(signature, None).map_err(|_| "`signature` is not base64".to_owned())?;
            Ok(Some((VerifyingKey::new(key), signature)))
        }
    }
}

/// Bytes in the `format` that is asked for.
pub(super) fn written(arguments: &Value, bytes: &[u8]) -> Result<String, String> {
    match text(arguments, "format")? {
        None | Some("base64") => Ok(BASE64.encode(bytes)),
        Some("hex") => Ok(HEXLOWER.encode(bytes)),
        Some(format) => Err(format!("unknown `format` {format:?}: base64 and hex are")),
    }
}
