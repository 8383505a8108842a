//! Keys and responses from bytes (FIPS 204, 7.1 and 7.2), sixteen coefficients at a time.

use std::arch::x86_64::*;

use super::vector::*;
use crate::parameters::{BETA, D, GAMMA1, K, L, T1_BYTES, Z_BYTES};
use crate::polynomial::Polynomial;

/// Polynomials of z (algorithm 19, BitUnpack), and whether all coefficients are below γ₁ − β.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
pub(super) fn z_decode(bytes: &[u8; L * Z_BYTES], z: &mut [Polynomial; L]) -> bool {
    // Two coefficients begin in byte 0 of five, and in the middle of byte 2.
    let places = places(20);
    let shifts = _mm512_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4);
    let mut greatest = splat(0);
    for (Polynomial(z), bytes) in z.iter_mut().zip(bytes.as_chunks::<Z_BYTES>().0) {
        for (z, bytes) in z.as_chunks_mut().0.iter_mut().zip(bytes.as_chunks().0) {
            let bits = _mm512_srlv_epi32(_mm512_permutexvar_epi8(places, load_40(bytes)), shifts);
            let bits = and(bits, splat(0xf_ffff));
            // γ₁ minus these bits is between −γ₁ + β + 1 and γ₁ − β − 1 if they are between β + 1 and 2γ₁ − β − 1.
            greatest = _mm512_max_epu32(greatest, subtract(bits, splat(BETA + 1)));
            store(z, subtract(splat(GAMMA1), bits));
        }
    }
    _mm512_cmpgt_epu32_mask(greatest, splat(2 * (GAMMA1 - BETA - 1))) == 0
}

/// Polynomials of t₁ · 2ᵈ (algorithm 18, SimpleBitUnpack).
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
pub(super) fn t1_decode(bytes: &[u8; K * T1_BYTES], t1: &mut [Polynomial; K]) {
    let places = places(10);
    let shifts = _mm512_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6, 0, 2, 4, 6, 0, 2, 4, 6);
    for (Polynomial(t1), bytes) in t1.iter_mut().zip(bytes.as_chunks::<T1_BYTES>().0) {
        for (t1, bytes) in t1.as_chunks_mut().0.iter_mut().zip(bytes.as_chunks().0) {
            let bits = _mm512_srlv_epi32(_mm512_permutexvar_epi8(places, load_20(bytes)), shifts);
            store(t1, shift_left::<D>(and(bits, splat(0x3ff))));
        }
    }
}

/// For each lane the four bytes in which its coefficient begins, when coefficients have so many bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn places(bits: i32) -> Vector {
    let first = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    let first = _mm512_srli_epi32::<3>(multiply_low(first, splat(bits)));
    let four = _mm512_mullo_epi32(first, splat(0x0101_0101));
    _mm512_add_epi8(four, splat(0x0302_0100))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load_40(bytes: &[u8; 40]) -> Vector {
    // SAFETY: the mask keeps the instruction from reading more than 40 bytes, which can be read behind the reference.
    unsafe { _mm512_maskz_loadu_epi8((1 << 40) - 1, bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn load_20(bytes: &[u8; 20]) -> Vector {
    // SAFETY: the mask keeps the instruction from reading more than 20 bytes, which can be read behind the reference.
    let bytes = unsafe { _mm256_maskz_loadu_epi8((1 << 20) - 1, bytes.as_ptr().cast()) };
    _mm512_zextsi256_si512(bytes)
}
