//! What every operation comes down to, wherever it is done.

mod cost;
mod meters;
mod sample;
mod verify;

use qudag_mldsa::PublicKey;

use crate::KeyId;

pub(crate) use cost::Cost;
pub(crate) use meters::Meters;
pub(crate) use sample::sample;
pub(crate) use verify::{BATCH, Found, KeptKey, Keys, NoKeys, Place, verify};

/// The hash of data (BLAKE3, extended to so many bytes).
pub(crate) fn hash(data: &[u8], length: u16) -> Box<[u8]> {
    let mut hash = vec![0; usize::from(length)].into_boxed_slice();
    blake3::Hasher::new().update(data).finalize_xof().fill(&mut hash);
    hash
}

impl KeyId {
    /// The name of a key.
    pub fn of(key: &PublicKey) -> Self {
        Self(blake3::hash(&key.0).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_blake3_at_any_length() {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        // The first of the test vectors of the BLAKE3 repository: no input.
        let empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262e00f03e7b69af26b7faaf09fcd333050338ddfe085b8cc869ca98b206c08243a";
        assert_eq!(hex(&hash(b"", 64)), empty);
        assert_eq!(hex(&hash(b"", 1)), "af");
        assert_eq!(hash(b"", 1_024).len(), 1_024);
    }
}
