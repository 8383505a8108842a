//! Signatures as data, for the tests of several crates (`tests/crypto` writes them).

use std::iter::from_fn;

use crate::{PUBLIC_KEY_BYTES, SIGNATURE_BYTES};

/// A signature of the initial public draft, with all that it takes to verify it.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// The public key.
    pub key: &'static [u8; PUBLIC_KEY_BYTES],
    /// What is signed.
    pub message: &'static [u8],
    /// The signature.
    pub signature: &'static [u8; SIGNATURE_BYTES],
}

/// One of QuDAG's fingerprints: a hash of data, and a signature of that hash by the draft.
#[derive(Clone, Copy, Debug)]
pub struct Fingerprint {
    /// The public key.
    pub key: &'static [u8; PUBLIC_KEY_BYTES],
    /// What is hashed.
    pub data: &'static [u8],
    /// The hash.
    pub fingerprint: &'static [u8; 64],
    /// The signature.
    pub signature: &'static [u8; SIGNATURE_BYTES],
}

/// Those of the library that QuDAG signs with: of different keys, and of messages of many lengths, the first of which is 0.
pub fn signatures() -> impl Iterator<Item = Sample> {
    read(include_bytes!("../tests/data/qudag-crypto.signatures"))
}

/// Such that only verifiers accept that do not look at the range of z.
pub fn out_of_range() -> impl Iterator<Item = Sample> {
    read(include_bytes!("../tests/data/out-of-range.signatures"))
}

/// Fingerprints as QuDAG's own library makes them, of data of different lengths.
pub fn fingerprints() -> impl Iterator<Item = Fingerprint> {
    let mut bytes = &include_bytes!("../tests/data/qudag-crypto.fingerprints")[..];
    from_fn(move || {
        let (key, data) = (take(&mut bytes)?, take_text(&mut bytes)?);
        let (fingerprint, signature) = (take(&mut bytes)?, take(&mut bytes)?);
        Some(Fingerprint { key, data, fingerprint, signature })
    })
}

/// Each is the public key, the length of the message in four bytes (little-endian), the message, the signature.
fn read(mut bytes: &'static [u8]) -> impl Iterator<Item = Sample> {
    from_fn(move || {
        let (key, message) = (take(&mut bytes)?, take_text(&mut bytes)?);
        Some(Sample { key, message, signature: take(&mut bytes)? })
    })
}

fn take<const N: usize>(bytes: &mut &'static [u8]) -> Option<&'static [u8; N]> {
    bytes.split_off(..N)?.try_into().ok()
}

fn take_text(bytes: &mut &'static [u8]) -> Option<&'static [u8]> {
    let length = u32::from_le_bytes(*take(bytes)?);
    bytes.split_off(..length as usize)
}
