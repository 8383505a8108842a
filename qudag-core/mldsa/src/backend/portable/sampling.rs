//! Rejection sampling (FIPS 204, 7.3).

use crate::keccak::{Block, RATE_128};
use crate::parameters::{N, Q};
use crate::polynomial::Polynomial;

/// A coefficient of three bytes, or `None` where it would be q or more (algorithm 14, CoeffFromThreeBytes).
#[inline]
fn coefficient_from_three_bytes(&[low, middle, high]: &[u8; 3]) -> Option<i32> {
    let value = i32::from_le_bytes([low, middle, high & 0x7f, 0]);
    (value < Q).then_some(value)
}

/// Appends the coefficients that some bytes hold to the first `filled` ones of a polynomial as far as there is room, and returns how many there are
/// then.
#[inline]
pub(in crate::backend) fn reject_one_by_one(bytes: &[u8], a: &mut [i32; N], mut filled: usize) -> usize {
    for three in bytes.as_chunks().0 {
        if let (Some(value), Some(place)) = (coefficient_from_three_bytes(three), a.get_mut(filled)) {
            *place = value;
            filled += 1;
        }
    }
    filled
}

/// The coefficients of a block of SHAKE128 (algorithm 30, RejNTTPoly).
pub(super) fn reject(block: &Block, Polynomial(a): &mut Polynomial, filled: usize) -> usize {
    reject_one_by_one(block.0.get(..RATE_128).unwrap_or_default(), a, filled)
}
