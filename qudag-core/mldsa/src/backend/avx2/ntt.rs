//! The number-theoretic transform (FIPS 204, 7.5), eight coefficients at a time.

use std::arch::x86_64::*;

use super::vector::*;
use crate::backend::simd::{LaneFactors, lane_factors, ntt_functions};

ntt_functions!("avx2");

/// Levels with partners in one vector, 4, 2 and 1 apart.
const LEVELS: usize = 3;
static FORWARD: [[LaneFactors<WIDTH>; LEVELS]; PAIRS] = lane_factors(&ZETAS);
static INVERSE: [[LaneFactors<WIDTH>; LEVELS]; PAIRS] = lane_factors(&INVERSE_ZETAS);

/// The levels of 32 coefficients with partners 16 and fewer apart.
#[inline]
#[target_feature(enable = "avx2")]
fn forward_block(block: usize, w: &mut [[i32; WIDTH]; COLUMNS], q: Modulus) {
    let sixteen = factor(&ZETAS[8 + block]);
    let (a, c) = forward(load(&w[0]), load(&w[2]), &sixteen, q);
    let (b, d) = forward(load(&w[1]), load(&w[3]), &sixteen, q);
    let (a, b) = forward(a, b, &factor(&ZETAS[16 + 2 * block]), q);
    let (c, d) = forward(c, d, &factor(&ZETAS[17 + 2 * block]), q);
    let (a, b) = forward_pair(&FORWARD[2 * block], a, b, q);
    let (c, d) = forward_pair(&FORWARD[2 * block + 1], c, d, q);
    for (to, vector) in w.iter_mut().zip([a, b, c, d]) {
        store(to, vector);
    }
}

/// The levels of 16 coefficients with partners 4 and fewer apart.
#[inline]
#[target_feature(enable = "avx2")]
fn forward_pair(factor: &[LaneFactors<WIDTH>; LEVELS], a: Vector, b: Vector, q: Modulus) -> (Vector, Vector) {
    let [four, two, one] = factor;
    let (a, b) = swap_four(a, b);
    let (a, b) = forward(a, b, &factors(&four.values, &four.inverses), q);
    let (a, b) = swap_two(a, b);
    let (a, b) = forward(a, b, &factors(&two.values, &two.inverses), q);
    let (a, b) = swap_one(a, b);
    let (a, b) = forward(a, b, &factors(&one.values, &one.inverses), q);
    // Now one vector holds the coefficients with even numbers and the other those with odd ones.
    swap_four(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b))
}

/// The reverse of [`forward_block`].
#[inline]
#[target_feature(enable = "avx2")]
fn inverse_block(block: usize, w: &mut [[i32; WIDTH]; COLUMNS], q: Modulus) {
    let (a, b) = inverse_pair(&INVERSE[2 * block], load(&w[0]), load(&w[1]), q);
    let (c, d) = inverse_pair(&INVERSE[2 * block + 1], load(&w[2]), load(&w[3]), q);
    let (a, b) = inverse(a, b, &factor(&INVERSE_ZETAS[16 + 2 * block]), q);
    let (c, d) = inverse(c, d, &factor(&INVERSE_ZETAS[17 + 2 * block]), q);
    let sixteen = factor(&INVERSE_ZETAS[8 + block]);
    let (a, c) = inverse(a, c, &sixteen, q);
    let (b, d) = inverse(b, d, &sixteen, q);
    for (to, vector) in w.iter_mut().zip([a, b, c, d]) {
        store(to, vector);
    }
}

/// The reverse of [`forward_pair`].
#[inline]
#[target_feature(enable = "avx2")]
fn inverse_pair(factor: &[LaneFactors<WIDTH>; LEVELS], a: Vector, b: Vector, q: Modulus) -> (Vector, Vector) {
    let [four, two, one] = factor;
    let (a, b) = swap_four(a, b);
    let (a, b) = (_mm256_castsi256_ps(a), _mm256_castsi256_ps(b));
    let even = _mm256_castps_si256(_mm256_shuffle_ps::<0b10_00_10_00>(a, b));
    let odd = _mm256_castps_si256(_mm256_shuffle_ps::<0b11_01_11_01>(a, b));
    let (a, b) = inverse(even, odd, &factors(&one.values, &one.inverses), q);
    let (a, b) = swap_one(a, b);
    let (a, b) = inverse(a, b, &factors(&two.values, &two.inverses), q);
    let (a, b) = swap_two(a, b);
    let (a, b) = inverse(a, b, &factors(&four.values, &four.inverses), q);
    swap_four(a, b)
}

/// The upper four lanes of a change places with the lower four of b.
#[inline]
#[target_feature(enable = "avx2")]
fn swap_four(a: Vector, b: Vector) -> (Vector, Vector) {
    (_mm256_permute2x128_si256::<0x20>(a, b), _mm256_permute2x128_si256::<0x31>(a, b))
}

/// Of every four lanes, the upper two of a change places with the lower two of b.
#[inline]
#[target_feature(enable = "avx2")]
fn swap_two(a: Vector, b: Vector) -> (Vector, Vector) {
    (_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b))
}

/// Lanes of a with odd numbers change places with lanes of b with even ones.
#[inline]
#[target_feature(enable = "avx2")]
fn swap_one(a: Vector, b: Vector) -> (Vector, Vector) {
    (
        _mm256_blend_epi32::<0b1010_1010>(a, _mm256_slli_epi64::<32>(b)),
        _mm256_blend_epi32::<0b1010_1010>(_mm256_srli_epi64::<32>(a), b),
    )
}
