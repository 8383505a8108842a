//! AVX2: vectors of eight coefficients or four words.

mod commitment;
mod encoding;
mod keccak;
mod ntt;
mod sampling;
mod vector;

use super::simd::implement_engine;
use crate::keccak::{Block, LANES, Lanes, State};
use crate::parameters::{K, L, T1_BYTES, W1_BYTES, Z_BYTES};
use crate::polynomial::Polynomial;

/// The engine, which exists only where the processor has all that its functions use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// The engine if the processor can run it.
    pub(crate) fn detect() -> Option<Self> {
        let all = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2");
        all.then_some(Self(()))
    }
}

implement_engine!(Avx2, lanes: 4);
