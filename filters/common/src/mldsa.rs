//! ML-DSA-65 where configurations and requests name it: algorithms, public keys as they are written, and signatures of whole messages.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use data_encoding::{BASE64, BASE64_NOPAD, HEXLOWER_PERMISSIVE};
use qudag_mldsa::{Backend, Content, Edition, ExpandedKey, PUBLIC_KEY_BYTES, PublicKey, Rejected, verify};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What verifies the few signatures that come along with other traffic: the implementation that runs on every processor and needs no test before. It takes
/// tens of microseconds.
const BACKEND: Backend = Backend::Portable;

/// Which ML-DSA-65. The two verify nothing of each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Algorithm {
    /// The initial public draft of FIPS 204, which QuDAG nodes sign by.
    #[default]
    #[serde(rename = "ml-dsa-65-ipd")]
    Draft,
    /// FIPS 204 as it was published in August 2024, with an empty context.
    #[serde(rename = "ml-dsa-65")]
    Final,
}

impl Algorithm {
    /// The name: `ml-dsa-65-ipd` or `ml-dsa-65`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Draft => "ml-dsa-65-ipd",
            Self::Final => "ml-dsa-65",
        }
    }

    /// As the verifier names it.
    pub fn edition(self) -> Edition {
        match self {
            Self::Draft => Edition::Draft,
            Self::Final => Edition::Final,
        }
    }
}

impl FromStr for Algorithm {
    type Err = UnknownAlgorithm;

    fn from_str(name: &str) -> Result<Self, UnknownAlgorithm> {
        [Self::Draft, Self::Final].into_iter().find(|known| known.name() == name).ok_or(UnknownAlgorithm)
    }
}

/// The name of no algorithm that is verified here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the algorithms are ml-dsa-65-ipd and ml-dsa-65")]
pub struct UnknownAlgorithm;

/// Bytes that are no public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not 1,952 bytes.
    #[error("{0} bytes, where a public key of ML-DSA-65 has {PUBLIC_KEY_BYTES}")]
    Length(usize),
    /// Not 1,952 bytes as they are, and no text that stands for bytes either.
    #[error("neither {PUBLIC_KEY_BYTES} bytes nor base64 or hexadecimal digits")]
    Text,
}

/// Reads the text of binary data: hexadecimal digits, or base64 (RFC 4648 section 4) with or without its padding. Hexadecimal digits are valid base64 as well,
/// so `length`, where it is known, tells them apart; without it the text is base64. White space is of no meaning.
///
/// # Errors
/// When the text is neither.
pub fn binary(text: &str, length: Option<usize>) -> Result<Vec<u8>, NotBinary> {
    let text: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    if length.is_some_and(|length| text.len() == 2 * length)
        && let Ok(bytes) = HEXLOWER_PERMISSIVE.decode(&text)
    {
        return Ok(bytes);
    }
    BASE64.decode(&text).or_else(|_| BASE64_NOPAD.decode(&text)).map_err(|_| NotBinary)
}

/// A text that stands for no bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("neither base64 nor hexadecimal digits of the right number")]
pub struct NotBinary;

/// Reads a public key: the 1,952 bytes themselves, or base64 or hexadecimal digits of them.
///
/// # Errors
/// When it is none. Any 1,952 bytes are one.
pub fn public_key(bytes: &[u8]) -> Result<PublicKey, KeyError> {
    if let Ok(key) = bytes.try_into() {
        return Ok(PublicKey(key));
    }
    let text = str::from_utf8(bytes).map_err(|_| KeyError::Length(bytes.len()))?;
    let bytes = binary(text, Some(PUBLIC_KEY_BYTES)).map_err(|NotBinary| KeyError::Text)?;
    <[u8; PUBLIC_KEY_BYTES]>::try_from(bytes).map(PublicKey).map_err(|bytes| KeyError::Length(bytes.len()))
}

/// A public key that is made ready when it is first used, and kept ready from then on ([`ExpandedKey::BYTES`]).
pub struct VerifyingKey {
    key: PublicKey,
    expanded: OnceLock<Box<ExpandedKey>>,
}

impl VerifyingKey {
    /// A key that was not used yet.
    pub fn new(key: PublicKey) -> Self {
        Self { key, expanded: OnceLock::new() }
    }

    /// Verifies a signature of a whole message. There is one way to be right: out-of-range signatures that nodes on AVX2 accept are rejected.
    ///
    /// # Errors
    /// When it is none, with the reason.
    pub fn verify(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> Result<(), Rejected> {
        let edition = algorithm.edition();
        let key = self.expanded.get_or_init(|| self.key.expand(BACKEND));
        let mu = Content::Message { context: b"", message }.mu(key.tr(), edition)?;
        verify(BACKEND, key, edition, &mu, signature)
    }
}

impl PartialEq for VerifyingKey {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifyingKey").field("ready", &self.expanded.get().is_some()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;

    #[test]
    fn a_key_is_read_however_it_is_written() {
        let bytes: Vec<u8> = (0..PUBLIC_KEY_BYTES).map(|place| place as u8).collect();
        let key = PublicKey(bytes.as_slice().try_into().unwrap());
        let base64 = BASE64.encode(&bytes);
        let wrapped: String =
            base64.as_bytes().chunks(64).flat_map(|line| [str::from_utf8(line).unwrap(), "\r\n"]).collect();
        for text in [
            HEXLOWER.encode(&bytes),
            HEXLOWER.encode(&bytes).to_uppercase() + "\n",
            base64.trim_end_matches('=').to_owned(),
            base64,
            wrapped,
        ] {
            assert_eq!(public_key(text.as_bytes()).as_ref(), Ok(&key), "{text}");
        }
        assert_eq!(public_key(&bytes), Ok(key));
    }

    #[test]
    fn what_is_no_key_is_explained() {
        assert_eq!(public_key(&[0xff; 1951]), Err(KeyError::Length(1951)));
        assert_eq!(public_key(b"not a key!"), Err(KeyError::Text));
        assert_eq!(public_key(b""), Err(KeyError::Length(0)));
        assert_eq!(public_key(BASE64.encode(&[1; 32]).as_bytes()), Err(KeyError::Length(32)));
        assert_eq!(public_key(HEXLOWER.encode(&[1; 1312]).as_bytes()), Err(KeyError::Length(1968)));
    }

    #[test]
    fn algorithms_are_read_as_they_are_named() {
        for algorithm in [Algorithm::Draft, Algorithm::Final] {
            assert_eq!(algorithm.name().parse(), Ok(algorithm));
            assert_eq!(serde_json::to_value(algorithm).unwrap(), algorithm.name());
        }
        assert_eq!("ML-DSA-65".parse::<Algorithm>(), Err(UnknownAlgorithm));
    }
}
