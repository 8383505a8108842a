//! The commitment w₁ (FIPS 204, 7.4), eight coefficients at a time.

use std::arch::x86_64::*;

use super::vector::*;
use crate::backend::simd::commitment_functions;

commitment_functions!("avx2");

/// r₁ + 1 or − 1 modulo 16 where a hint is, by the sign of r₀ between −γ₂ and γ₂, or r₀ + q for the border of the highest interval.
#[inline]
#[target_feature(enable = "avx2")]
fn correct(hints: Mask, r1: Vector, r0: Vector) -> Vector {
    let bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    let hints = _mm256_cmpeq_epi32(and(splat(i32::from(hints)), bits), bits);
    let positive = and(_mm256_cmpgt_epi32(r0, splat(0)), _mm256_cmpgt_epi32(splat(GAMMA2 + 1), r0));
    // All bits are set where the condition is true, which is −1.
    let step = subtract(splat(-1), add(positive, positive));
    and(add(r1, and(step, hints)), splat(15))
}

/// Four bits a coefficient (algorithm 28, w1Encode).
#[inline]
#[target_feature(enable = "avx2")]
fn pack(w1: Vector) -> [u8; WIDTH / 2] {
    let bytes = _mm256_or_si256(w1, _mm256_srli_epi64::<28>(w1));
    let low = _mm_set_epi8(-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 8, 0);
    let high = _mm_set_epi8(-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 8, 0, -1, -1);
    let low = _mm_shuffle_epi8(_mm256_castsi256_si128(bytes), low);
    let high = _mm_shuffle_epi8(_mm256_extracti128_si256::<1>(bytes), high);
    _mm_cvtsi128_si32(_mm_or_si128(low, high)).to_le_bytes()
}
