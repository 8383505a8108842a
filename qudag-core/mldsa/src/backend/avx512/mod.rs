//! AVX-512: vectors of sixteen coefficients or eight words.

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
pub(crate) struct Avx512(());

impl Avx512 {
    /// The engine if the processor can run it.
    pub(crate) fn detect() -> Option<Self> {
        let all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vbmi")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2");
        all.then_some(Self(()))
    }
}

implement_engine!(Avx512, lanes: 8);
