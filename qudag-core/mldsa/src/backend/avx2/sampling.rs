//! Rejection sampling (FIPS 204, 7.3), eight candidates at a time.

use std::arch::x86_64::*;

use super::vector::*;
use crate::backend::portable::sampling::reject_one_by_one;
use crate::keccak::{Block, RATE_128};
use crate::parameters::Q;
use crate::polynomial::Polynomial;

/// Vectors of candidates of a block.
const PARTS: usize = RATE_128 / 3 / WIDTH;

/// Appends the coefficients that a block of SHAKE128 holds to the first `filled` ones of a polynomial, and returns how many there are then
/// (algorithms 30, RejNTTPoly, and 14, CoeffFromThreeBytes).
#[target_feature(enable = "avx2")]
pub(super) fn reject(block: &Block, Polynomial(a): &mut Polynomial, mut filled: usize) -> usize {
    // The upper half of the vector begins with byte 8.
    #[rustfmt::skip]
    let places = _mm256_setr_epi8(
        0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1,
        4, 5, 6, -1, 7, 8, 9, -1, 10, 11, 12, -1, 13, 14, 15, -1,
    );
    let mut values = [splat(0); PARTS];
    let mut greatest = splat(0);
    for (values, bytes) in values.iter_mut().zip(block.0.as_chunks().0) {
        *values = and(_mm256_shuffle_epi8(load_24(bytes), places), splat(0x7f_ffff));
        greatest = _mm256_max_epi32(greatest, *values);
    }
    let all_good = _mm256_movemask_epi8(_mm256_cmpgt_epi32(splat(Q), greatest)) == -1;
    let to = a.get_mut(filled..).and_then(|rest| rest.first_chunk_mut::<{ PARTS * WIDTH }>());
    // One of 1,024 candidates is rejected, so that whole blocks are mostly good.
    if let (true, Some(to)) = (all_good, to) {
        for (to, values) in to.as_chunks_mut().0.iter_mut().zip(values) {
            store(to, values);
        }
        return filled + PARTS * WIDTH;
    }
    for (values, bytes) in values.into_iter().zip(block.0.as_chunks::<24>().0) {
        let good = _mm256_cmpgt_epi32(splat(Q), values);
        let to = a.get_mut(filled..).and_then(|rest| rest.first_chunk_mut());
        if let (-1, Some(to)) = (_mm256_movemask_epi8(good), to) {
            store(to, values);
            filled += WIDTH;
        } else {
            filled = reject_one_by_one(bytes, a, filled);
        }
    }
    filled
}

/// Bytes 0 to 15 and 8 to 23.
#[inline]
#[target_feature(enable = "avx2")]
fn load_24(bytes: &[u8; 24]) -> Vector {
    // SAFETY: both times 16 of the 24 bytes behind the reference are read, and no alignment is asked for.
    unsafe {
        let low = _mm_loadu_si128(bytes.as_ptr().cast());
        _mm256_set_m128i(_mm_loadu_si128(bytes.as_ptr().add(8).cast()), low)
    }
}
