//! Public keys, as they come and made ready for many signatures.

use crate::encoding::t1_decode;
use crate::hash::h;
use crate::ntt::{Polynomial, ntt};
use crate::parameters::{D, K, L, PUBLIC_KEY_BYTES, SEED_BYTES, T1_BYTES};
use crate::sampling::expand_a;

/// Bytes of tr.
pub(crate) const TR_BYTES: usize = 64;

/// A public key as it is written: ρ, and t₁ with ten bits a coefficient (algorithm 23, pkDecode). Any 1,952 bytes are one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PublicKey(pub [u8; PUBLIC_KEY_BYTES]);

/// A public key and what is the same for all signatures of it: 36.9 kB.
#[derive(Clone, Debug)]
pub struct ExpandedKey {
    /// Â.
    pub(crate) a: [[Polynomial; L]; K],
    /// NTT(t₁ · 2ᵈ).
    pub(crate) t1: [Polynomial; K],
    tr: [u8; TR_BYTES],
}

impl PublicKey {
    /// tr, the hash of the key (algorithm 8, step 6): 64 bytes.
    pub fn tr(&self) -> [u8; TR_BYTES] {
        let mut tr = [0; TR_BYTES];
        h(&[&self.0], &mut tr);
        tr
    }

    /// Makes the key ready for verifying.
    pub fn expand(&self) -> Box<ExpandedKey> {
        let (rho, t1) = self.0.split_first_chunk::<SEED_BYTES>().unwrap_or((&[0; SEED_BYTES], &[]));
        let mut pieces = t1.as_chunks::<T1_BYTES>().0.iter();
        let t1 = std::array::from_fn(|_| {
            let mut t1 = pieces.next().map_or(Polynomial::ZERO, t1_decode);
            for coefficient in &mut t1.0 {
                *coefficient <<= D;
            }
            ntt(&mut t1);
            t1
        });
        Box::new(ExpandedKey { a: expand_a(rho), t1, tr: self.tr() })
    }
}

impl ExpandedKey {
    /// tr, the hash of the key: 64 bytes.
    pub fn tr(&self) -> &[u8; TR_BYTES] {
        &self.tr
    }
}
