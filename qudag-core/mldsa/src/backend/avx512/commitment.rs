//! The commitment w₁ (FIPS 204, 7.4), sixteen coefficients at a time.

use std::arch::x86_64::*;

use super::vector::*;
use crate::backend::simd::commitment_functions;

commitment_functions!("avx512f,avx512bw,avx512dq,avx512vl");

/// r₁ + 1 or − 1 modulo 16 where a hint is, by the sign of r₀ between −γ₂ and γ₂, or r₀ + q for the border of the highest interval.
#[inline]
#[target_feature(enable = "avx512f")]
fn correct(hints: Mask, r1: Vector, r0: Vector) -> Vector {
    let one = splat(1);
    let positive = _mm512_cmplt_epu32_mask(subtract(r0, one), splat(GAMMA2));
    let r1 = _mm512_mask_add_epi32(r1, hints & positive, r1, one);
    let r1 = _mm512_mask_sub_epi32(r1, hints & !positive, r1, one);
    and(r1, splat(15))
}

/// Four bits a coefficient (algorithm 28, w1Encode).
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
fn pack(w1: Vector) -> [u8; WIDTH / 2] {
    let bytes = _mm512_cvtepi64_epi8(_mm512_or_si512(w1, _mm512_srli_epi64::<28>(w1)));
    _mm_cvtsi128_si64(bytes).to_le_bytes()
}
