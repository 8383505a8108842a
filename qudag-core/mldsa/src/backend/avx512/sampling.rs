//! Rejection sampling (FIPS 204, 7.3), sixteen candidates at a time.

use std::arch::x86_64::*;

use super::vector::*;
use crate::backend::portable::sampling::reject_one_by_one;
use crate::keccak::{Block, RATE_128};
use crate::parameters::{N, Q};
use crate::polynomial::Polynomial;

/// Candidates of a block.
const CANDIDATES: usize = RATE_128 / 3;
/// Vectors of candidates of a block, of which the last one is half full.
const PARTS: usize = CANDIDATES.div_ceil(WIDTH);

/// Appends the coefficients that a block of SHAKE128 holds to the first `filled` ones of a polynomial, and returns how many there are then
/// (algorithms 30, RejNTTPoly, and 14, CoeffFromThreeBytes).
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
pub(super) fn reject(block: &Block, Polynomial(a): &mut Polynomial, filled: usize) -> usize {
    let places = _mm512_setr_epi32(0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36, 39, 42, 45);
    let places = _mm512_add_epi8(multiply_low(places, splat(0x0001_0101)), splat(0x0002_0100));
    let mut values = [splat(0); PARTS];
    for (values, bytes) in values.iter_mut().zip(block.0.as_chunks().0) {
        *values = and(_mm512_permutexvar_epi8(places, load_48(bytes)), splat(0x7f_ffff));
    }
    // The last part has room for candidates that are not of the block.
    values[PARTS - 1] = _mm512_maskz_mov_epi32(0xff, values[PARTS - 1]);
    let greatest = values.into_iter().fold(splat(0), |greatest, values| _mm512_max_epi32(greatest, values));
    let all_good = _mm512_cmpge_epi32_mask(greatest, splat(Q)) == 0;
    let to = a.get_mut(filled..).and_then(|rest| rest.first_chunk_mut::<{ PARTS * WIDTH }>());
    // One of 1,024 candidates is rejected, so that whole blocks are mostly good. What is stored behind the good ones is overwritten.
    if let (true, Some(to)) = (all_good, to) {
        for (to, values) in to.as_chunks_mut().0.iter_mut().zip(values) {
            store(to, values);
        }
        return filled + CANDIDATES;
    }
    reject_some(block, &values, a, filled)
}

/// The same where some are rejected, or where there is little room.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn reject_some(block: &Block, values: &[Vector; PARTS], a: &mut [i32; N], mut filled: usize) -> usize {
    for (part, values) in values.iter().enumerate() {
        if filled == N {
            return N;
        }
        let offered: Mask = if part < PARTS - 1 { 0xffff } else { 0xff };
        let Some(to) = a.get_mut(filled..).and_then(|rest| rest.first_chunk_mut()) else {
            return reject_one_by_one(&block.0[3 * WIDTH * part..RATE_128], a, filled);
        };
        let good = _mm512_mask_cmplt_epi32_mask(offered, *values, splat(Q));
        // Storing what was compressed is quicker than compressing into memory.
        store(to, _mm512_maskz_compress_epi32(good, *values));
        filled += good.count_ones() as usize;
    }
    filled
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load_48(bytes: &[u8; 48]) -> Vector {
    // SAFETY: the mask keeps the instruction from reading more than 48 bytes, which can be read behind the reference.
    unsafe { _mm512_maskz_loadu_epi8((1 << 48) - 1, bytes.as_ptr().cast()) }
}
