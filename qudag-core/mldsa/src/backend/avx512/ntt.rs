//! The number-theoretic transform (FIPS 204, 7.5), sixteen coefficients at a time.

use std::arch::x86_64::*;

use super::vector::*;
use crate::backend::simd::{LaneFactors, lane_factors, ntt_functions};

ntt_functions!("avx512f");

/// Levels with partners in one vector, 8, 4, 2 and 1 apart.
const LEVELS: usize = 4;
static FORWARD: [[LaneFactors<WIDTH>; LEVELS]; PAIRS] = lane_factors(&ZETAS);
static INVERSE: [[LaneFactors<WIDTH>; LEVELS]; PAIRS] = lane_factors(&INVERSE_ZETAS);

/// The levels of 32 coefficients with partners 16 and fewer apart.
#[inline]
#[target_feature(enable = "avx512f")]
fn forward_block(block: usize, w: &mut [[i32; WIDTH]; COLUMNS], q: Modulus) {
    let (a, b) = forward(load(&w[0]), load(&w[1]), &factor(&ZETAS[8 + block]), q);
    let [eight, four, two, one] = &FORWARD[block];
    let (a, b) = swap_eight(a, b);
    let (a, b) = forward(a, b, &factors(&eight.values, &eight.inverses), q);
    let (a, b) = swap_four(a, b);
    let (a, b) = forward(a, b, &factors(&four.values, &four.inverses), q);
    let (a, b) = swap_two(a, b);
    let (a, b) = forward(a, b, &factors(&two.values, &two.inverses), q);
    let (a, b) = swap_one(a, b);
    let (a, b) = forward(a, b, &factors(&one.values, &one.inverses), q);
    // Now one vector holds the coefficients with even numbers and the other those with odd ones.
    let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    store(&mut w[0], _mm512_permutex2var_epi32(a, low, b));
    store(&mut w[1], _mm512_permutex2var_epi32(a, high, b));
}

/// The reverse of [`forward_block`].
#[inline]
#[target_feature(enable = "avx512f")]
fn inverse_block(block: usize, w: &mut [[i32; WIDTH]; COLUMNS], q: Modulus) {
    let (a, b) = (load(&w[0]), load(&w[1]));
    let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    let odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    let (a, b) = (_mm512_permutex2var_epi32(a, even, b), _mm512_permutex2var_epi32(a, odd, b));
    let [eight, four, two, one] = &INVERSE[block];
    let (a, b) = inverse(a, b, &factors(&one.values, &one.inverses), q);
    let (a, b) = swap_one(a, b);
    let (a, b) = inverse(a, b, &factors(&two.values, &two.inverses), q);
    let (a, b) = swap_two(a, b);
    let (a, b) = inverse(a, b, &factors(&four.values, &four.inverses), q);
    let (a, b) = swap_four(a, b);
    let (a, b) = inverse(a, b, &factors(&eight.values, &eight.inverses), q);
    let (a, b) = swap_eight(a, b);
    let (a, b) = inverse(a, b, &factor(&INVERSE_ZETAS[8 + block]), q);
    store(&mut w[0], a);
    store(&mut w[1], b);
}

/// The upper eight lanes of a change places with the lower eight of b.
#[inline]
#[target_feature(enable = "avx512f")]
fn swap_eight(a: Vector, b: Vector) -> (Vector, Vector) {
    (_mm512_shuffle_i64x2::<0b01_00_01_00>(a, b), _mm512_shuffle_i64x2::<0b11_10_11_10>(a, b))
}

/// Of every eight lanes, the upper four of a change places with the lower four of b.
#[inline]
#[target_feature(enable = "avx512f")]
fn swap_four(a: Vector, b: Vector) -> (Vector, Vector) {
    (
        _mm512_mask_shuffle_i64x2::<0b10_10_00_00>(a, 0b1100_1100, b, b),
        _mm512_mask_shuffle_i64x2::<0b11_11_01_01>(b, 0b0011_0011, a, a),
    )
}

/// Of every four lanes, the upper two of a change places with the lower two of b.
#[inline]
#[target_feature(enable = "avx512f")]
fn swap_two(a: Vector, b: Vector) -> (Vector, Vector) {
    (_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b))
}

/// Lanes of a with odd numbers change places with lanes of b with even ones.
#[inline]
#[target_feature(enable = "avx512f")]
fn swap_one(a: Vector, b: Vector) -> (Vector, Vector) {
    (
        _mm512_mask_shuffle_epi32::<0b10_10_00_00>(a, 0xaaaa, b),
        _mm512_mask_shuffle_epi32::<0b11_11_01_01>(b, 0x5555, a),
    )
}
