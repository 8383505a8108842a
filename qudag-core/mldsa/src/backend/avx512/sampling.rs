//! Rejection sampling (FIPS 204, 7.3), sixteen candidates at a time.

use std::arch::x86_64::*;

use super::vector::*;
use crate::backend::portable::sampling::coefficient_from_three_bytes;
use crate::keccak::{Block, RATE_128};
use crate::parameters::{N, Q};
use crate::polynomial::Polynomial;

/// Appends the coefficients that a block of SHAKE128 holds to the first `filled` ones of a polynomial, and returns how many there are then
/// (algorithms 30, RejNTTPoly, and 14, CoeffFromThreeBytes).
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
pub(super) fn reject(block: &Block, Polynomial(a): &mut Polynomial, mut filled: usize) -> usize {
    let places = _mm512_setr_epi32(0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36, 39, 42, 45);
    let places = _mm512_add_epi8(multiply_low(places, splat(0x0001_0101)), splat(0x0002_0100));
    for part in 0..4 {
        if filled == N {
            return N;
        }
        let bytes = &block.0[48 * part..];
        // The last part has room for candidates that are not of the block.
        let offered: Mask = if part < 3 { 0xffff } else { 0xff };
        let Some(to) = a.get_mut(filled..).and_then(|rest| rest.first_chunk_mut()) else {
            return reject_one_by_one(&block.0[48 * part..RATE_128], a, filled);
        };
        let Some(bytes) = bytes.first_chunk() else { return filled };
        let values = and(_mm512_permutexvar_epi8(places, load_48(bytes)), splat(0x7f_ffff));
        let good = _mm512_mask_cmplt_epi32_mask(offered, values, splat(Q));
        // Storing what was compressed is quicker than compressing into memory; what is behind the good ones is overwritten.
        store(to, if good == 0xffff { values } else { _mm512_maskz_compress_epi32(good, values) });
        filled += good.count_ones() as usize;
    }
    filled
}

/// The same for few places or few bytes.
#[cold]
fn reject_one_by_one(bytes: &[u8], a: &mut [i32; N], mut filled: usize) -> usize {
    for three in bytes.as_chunks().0 {
        if let (Some(value), Some(place)) = (coefficient_from_three_bytes(three), a.get_mut(filled)) {
            *place = value;
            filled += 1;
        }
    }
    filled
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load_48(bytes: &[u8; 48]) -> Vector {
    // SAFETY: the mask keeps the instruction from reading more than 48 bytes, which can be read behind the reference.
    unsafe { _mm512_maskz_loadu_epi8((1 << 48) - 1, bytes.as_ptr().cast()) }
}
