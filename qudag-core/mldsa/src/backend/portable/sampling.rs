//! Rejection sampling (FIPS 204, 7.3).

use crate::keccak::{Block, RATE_128};
use crate::parameters::Q;
use crate::polynomial::Polynomial;

/// A coefficient of three bytes, or `None` where it would be q or more (algorithm 14, CoeffFromThreeBytes).
#[inline]
pub(in crate::backend) fn coefficient_from_three_bytes(&[low, middle, high]: &[u8; 3]) -> Option<i32> {
    let value = i32::from_le_bytes([low, middle, high & 0x7f, 0]);
    (value < Q).then_some(value)
}

/// Appends the coefficients that a block of SHAKE128 holds to the first `filled` ones of a polynomial, and returns how many there are then
/// (algorithm 30, RejNTTPoly).
pub(super) fn reject(block: &Block, Polynomial(a): &mut Polynomial, mut filled: usize) -> usize {
    for three in block.0.as_chunks().0.iter().take(RATE_128 / 3) {
        if let (Some(value), Some(place)) = (coefficient_from_three_bytes(three), a.get_mut(filled)) {
            *place = value;
            filled += 1;
        }
    }
    filled
}
