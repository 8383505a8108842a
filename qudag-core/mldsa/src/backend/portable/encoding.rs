//! Keys and responses from bytes, and commitments to bytes (FIPS 204, 7.1 and 7.2).

use crate::parameters::{BETA, D, GAMMA1, K, L, N, T1_BYTES, W1_BYTES, Z_BYTES};
use crate::polynomial::Polynomial;

/// The coefficients of five bytes, with so many bits each.
fn unpack<const COUNT: usize>(bytes: &[u8; 5]) -> [i32; COUNT] {
    let bits = bytes.iter().rev().fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
    let each = 40 / COUNT;
    std::array::from_fn(|place| (bits >> (each * place) & ((1 << each) - 1)) as i32)
}

/// Polynomials of t₁ · 2ᵈ: ten bits a coefficient of t₁ (algorithm 18, SimpleBitUnpack).
pub(super) fn t1_decode(bytes: &[u8; K * T1_BYTES], t1: &mut [Polynomial; K]) {
    for (Polynomial(t1), bytes) in t1.iter_mut().zip(bytes.as_chunks::<T1_BYTES>().0) {
        for (four, bytes) in t1.as_chunks_mut().0.iter_mut().zip(bytes.as_chunks().0) {
            *four = unpack::<4>(bytes).map(|bits| bits << D);
        }
    }
}

/// Polynomials of z: γ₁ minus twenty bits a coefficient (algorithm 19, BitUnpack), and whether all coefficients are below γ₁ − β.
pub(super) fn z_decode(bytes: &[u8; L * Z_BYTES], z: &mut [Polynomial; L]) -> bool {
    for (Polynomial(z), bytes) in z.iter_mut().zip(bytes.as_chunks::<Z_BYTES>().0) {
        for (two, bytes) in z.as_chunks_mut().0.iter_mut().zip(bytes.as_chunks().0) {
            *two = unpack::<2>(bytes).map(|bits| GAMMA1 - bits);
        }
    }
    z.iter().flat_map(|z| &z.0).all(|coefficient| coefficient.abs() < GAMMA1 - BETA)
}

/// A polynomial of the commitment w₁: four bits a coefficient (algorithm 28, w1Encode).
pub(super) fn w1_encode(w1: &[u8; N]) -> [u8; W1_BYTES] {
    let mut bytes = [0; W1_BYTES];
    for (byte, [low, high]) in bytes.iter_mut().zip(w1.as_chunks().0) {
        *byte = low | high << 4;
    }
    bytes
}
