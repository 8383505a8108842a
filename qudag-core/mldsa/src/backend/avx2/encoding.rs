//! Keys and responses from bytes (FIPS 204, 7.1 and 7.2), eight coefficients at a time.

use std::arch::x86_64::*;

use super::vector::*;
use crate::parameters::{BETA, D, GAMMA1, K, L, T1_BYTES, Z_BYTES};
use crate::polynomial::Polynomial;

/// Polynomials of z (algorithm 19, BitUnpack), and whether all coefficients are below γ₁ − β.
#[target_feature(enable = "avx2")]
pub(super) fn z_decode(bytes: &[u8; L * Z_BYTES], z: &mut [Polynomial; L]) -> bool {
    // Two coefficients begin in byte 0 of five, and in the middle of byte 2. The upper half of the vector begins with byte 4.
    #[rustfmt::skip]
    let places = _mm256_setr_epi8(
        0, 1, 2, -1, 2, 3, 4, -1, 5, 6, 7, -1, 7, 8, 9, -1,
        6, 7, 8, -1, 8, 9, 10, -1, 11, 12, 13, -1, 13, 14, 15, -1,
    );
    let shifts = _mm256_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4);
    let mut greatest = splat(0);
    for (Polynomial(z), bytes) in z.iter_mut().zip(bytes.as_chunks::<Z_BYTES>().0) {
        for (z, bytes) in z.as_chunks_mut().0.iter_mut().zip(bytes.as_chunks().0) {
            let (low, high) = load_20(bytes);
            let bits = _mm256_shuffle_epi8(_mm256_set_m128i(high, low), places);
            let bits = and(_mm256_srlv_epi32(bits, shifts), splat(0xf_ffff));
            // γ₁ minus these bits is between −γ₁ + β + 1 and γ₁ − β − 1 if they are between β + 1 and 2γ₁ − β − 1.
            greatest = _mm256_max_epu32(greatest, subtract(bits, splat(BETA + 1)));
            store(z, subtract(splat(GAMMA1), bits));
        }
    }
    let limit = splat(2 * (GAMMA1 - BETA - 1));
    let in_range = _mm256_cmpeq_epi32(_mm256_max_epu32(greatest, limit), limit);
    _mm256_movemask_epi8(in_range) == -1
}

/// Polynomials of t₁ · 2ᵈ (algorithm 18, SimpleBitUnpack).
#[target_feature(enable = "avx2")]
pub(super) fn t1_decode(bytes: &[u8; K * T1_BYTES], t1: &mut [Polynomial; K]) {
    // Four coefficients begin in bytes 0 to 3 of five. The second load begins with byte 4.
    #[rustfmt::skip]
    let places = _mm256_setr_epi8(
        0, 1, -1, -1, 1, 2, -1, -1, 2, 3, -1, -1, 3, 4, -1, -1,
        5, 6, -1, -1, 6, 7, -1, -1, 7, 8, -1, -1, 8, 9, -1, -1,
    );
    #[rustfmt::skip]
    let second_places = _mm256_setr_epi8(
        6, 7, -1, -1, 7, 8, -1, -1, 8, 9, -1, -1, 9, 10, -1, -1,
        11, 12, -1, -1, 12, 13, -1, -1, 13, 14, -1, -1, 14, 15, -1, -1,
    );
    let shifts = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
    for (Polynomial(t1), bytes) in t1.iter_mut().zip(bytes.as_chunks::<T1_BYTES>().0) {
        for (t1, bytes) in t1.as_chunks_mut::<{ 2 * WIDTH }>().0.iter_mut().zip(bytes.as_chunks().0) {
            let (low, high) = load_20(bytes);
            let halves = [(low, places), (high, second_places)];
            for (t1, (bytes, places)) in t1.as_chunks_mut().0.iter_mut().zip(halves) {
                let bits = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), places);
                let bits = and(_mm256_srlv_epi32(bits, shifts), splat(0x3ff));
                store(t1, shift_left::<{ D as i32 }>(bits));
            }
        }
    }
}

/// Bytes 0 to 15 and 4 to 19.
#[inline]
#[target_feature(enable = "avx2")]
fn load_20(bytes: &[u8; 20]) -> (__m128i, __m128i) {
    // SAFETY: both times 16 of the 20 bytes behind the reference are read, and no alignment is asked for.
    unsafe { (_mm_loadu_si128(bytes.as_ptr().cast()), _mm_loadu_si128(bytes.as_ptr().add(4).cast())) }
}
