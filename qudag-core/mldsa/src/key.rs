//! Public keys, as they come and made ready for many signatures.

use crate::backend::{Backend, Engine, with_engine};
use crate::keccak::RATE_256;
use crate::parameters::{K, L, PUBLIC_KEY_BYTES, SEED_BYTES, T1_BYTES};
use crate::polynomial::Polynomial;
use crate::sampling::expand_a;
use crate::sponge::{Sponge, output};

/// Bytes of tr.
pub(crate) const TR_BYTES: usize = 64;

/// A public key as it is written: ρ, and t₁ with ten bits a coefficient (algorithm 23, pkDecode). Any 1,952 bytes are one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PublicKey(pub [u8; PUBLIC_KEY_BYTES]);

/// A public key and what is the same for all signatures of it: [`ExpandedKey::BYTES`] bytes. Every backend can use what another one expanded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpandedKey {
    /// Â.
    pub(crate) a: [[Polynomial; L]; K],
    /// NTT(t₁ · 2ᵈ).
    pub(crate) t1: [Polynomial; K],
    tr: [u8; TR_BYTES],
}

impl PublicKey {
    /// tr, the hash of the key (algorithm 8, step 6): 64 bytes.
    pub fn tr(&self, backend: Backend) -> [u8; TR_BYTES] {
        with_engine!(backend, tr, self)
    }

    /// Makes the key ready for verifying.
    pub fn expand(&self, backend: Backend) -> Box<ExpandedKey> {
        let mut key = Box::new(ExpandedKey::ZERO);
        with_engine!(backend, expand, &[Some(self)], std::slice::from_mut(&mut *key));
        key.tr = self.tr(backend);
        key
    }

    fn parts(&self) -> (&[u8; SEED_BYTES], &[u8; K * T1_BYTES]) {
        let (rho, t1) = self.0.split_first_chunk().unwrap_or((&[0; SEED_BYTES], &[]));
        (rho, t1.first_chunk().unwrap_or(&[0; K * T1_BYTES]))
    }
}

/// tr of a key.
fn tr<E: Engine>(engine: E, key: &PublicKey) -> [u8; TR_BYTES] {
    let permute = |state: &mut _| engine.permute(state);
    let mut sponge = Sponge::<RATE_256>::new();
    sponge.update(&key.0, permute);
    output(&sponge.finish(permute))
}

/// Sets all but tr of the expanded keys that stand beside a key.
pub(crate) fn expand<E: Engine>(engine: E, keys: &[Option<&PublicKey>], expanded: &mut [ExpandedKey]) {
    let polynomials = keys.iter().zip(&mut *expanded).flat_map(|(key, expanded)| {
        let a = expanded.a.as_flattened_mut().iter_mut().enumerate();
        key.iter().zip([a]).flat_map(|(key, a)| a.map(|(place, a)| (key.parts().0, place, a)))
    });
    expand_a(engine, polynomials);
    for (key, expanded) in keys.iter().zip(expanded) {
        if let Some(key) = key {
            engine.t1_decode(key.parts().1, &mut expanded.t1);
            expanded.t1.iter_mut().for_each(|t1| engine.ntt(t1));
        }
    }
}

impl ExpandedKey {
    /// What a value takes in memory: 36.9 kB.
    pub const BYTES: usize = size_of::<Self>();

    pub(crate) const ZERO: Self = Self {
        a: [const { [const { Polynomial::ZERO }; L] }; K],
        t1: [const { Polynomial::ZERO }; K],
        tr: [0; TR_BYTES],
    };

    /// tr, the hash of the key: 64 bytes.
    pub fn tr(&self) -> &[u8; TR_BYTES] {
        &self.tr
    }
}
