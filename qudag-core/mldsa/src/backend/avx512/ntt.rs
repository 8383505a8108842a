//! The number-theoretic transform (FIPS 204, 7.5), sixteen coefficients at a time.

use std::arch::x86_64::*;

use super::vector::*;
use crate::backend::simd::{LaneFactors, lane_factors, ntt_functions};

ntt_functions!("avx512f");

/// Levels with partners in one vector, 8, 4, 2 and 1 apart.
const LEVELS: usize = 4;
/// Blocks of a group.
const BLOCKS: usize = GROUP / COLUMNS;
static FORWARD: [[LaneFactors<WIDTH>; LEVELS]; PAIRS] = lane_factors(&ZETAS);
static INVERSE: [[LaneFactors<WIDTH>; LEVELS]; PAIRS] = lane_factors(&INVERSE_ZETAS);

/// The levels of blocks of 32 coefficients with partners 16 and fewer apart.
#[inline]
#[target_feature(enable = "avx512f")]
fn forward_group(group: usize, w: &mut [[i32; WIDTH]; GROUP], q: Modulus) {
    let mut pairs = load_pairs(w);
    let own = BLOCKS * group;
    for (pair, zeta) in pairs.iter_mut().zip(&ZETAS[8 + own..]) {
        *pair = forward(pair.0, pair.1, &factor(zeta), q);
    }
    let zetas = &FORWARD[own..];
    for (pair, zetas) in pairs.iter_mut().zip(zetas) {
        let (a, b) = swap_eight(pair.0, pair.1);
        *pair = forward(a, b, &factors(&zetas[0]), q);
    }
    for (pair, zetas) in pairs.iter_mut().zip(zetas) {
        let (a, b) = swap_four(pair.0, pair.1);
        *pair = forward(a, b, &factors(&zetas[1]), q);
    }
    for (pair, zetas) in pairs.iter_mut().zip(zetas) {
        let (a, b) = swap_two(pair.0, pair.1);
        *pair = forward(a, b, &factors(&zetas[2]), q);
    }
    for (pair, zetas) in pairs.iter_mut().zip(zetas) {
        let (a, b) = swap_one(pair.0, pair.1);
        *pair = forward(a, b, &factors(&zetas[3]), q);
    }
    // Now one vector of a pair holds the coefficients with even numbers and the other those with odd ones.
    let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    for (to, (a, b)) in w.as_chunks_mut().0.iter_mut().zip(pairs) {
        let [low_half, high_half] = to;
        store(low_half, _mm512_permutex2var_epi32(a, low, b));
        store(high_half, _mm512_permutex2var_epi32(a, high, b));
    }
}

/// The reverse of [`forward_group`].
#[inline]
#[target_feature(enable = "avx512f")]
fn inverse_group(group: usize, w: &mut [[i32; WIDTH]; GROUP], q: Modulus) {
    let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    let odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    let mut pairs = load_pairs(w);
    for pair in &mut pairs {
        let (a, b) = *pair;
        *pair = (_mm512_permutex2var_epi32(a, even, b), _mm512_permutex2var_epi32(a, odd, b));
    }
    let own = BLOCKS * group;
    let zetas = &INVERSE[own..];
    for (pair, zetas) in pairs.iter_mut().zip(zetas) {
        let (a, b) = inverse(pair.0, pair.1, &factors(&zetas[3]), q);
        *pair = swap_one(a, b);
    }
    for (pair, zetas) in pairs.iter_mut().zip(zetas) {
        let (a, b) = inverse(pair.0, pair.1, &factors(&zetas[2]), q);
        *pair = swap_two(a, b);
    }
    for (pair, zetas) in pairs.iter_mut().zip(zetas) {
        let (a, b) = inverse(pair.0, pair.1, &factors(&zetas[1]), q);
        *pair = swap_four(a, b);
    }
    for (pair, zetas) in pairs.iter_mut().zip(zetas) {
        let (a, b) = inverse(pair.0, pair.1, &factors(&zetas[0]), q);
        *pair = swap_eight(a, b);
    }
    for (pair, zeta) in pairs.iter_mut().zip(&INVERSE_ZETAS[8 + own..]) {
        *pair = inverse(pair.0, pair.1, &factor(zeta), q);
    }
    for (to, (a, b)) in w.as_chunks_mut().0.iter_mut().zip(pairs) {
        let [low_half, high_half] = to;
        store(low_half, a);
        store(high_half, b);
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_pairs(w: &[[i32; WIDTH]; GROUP]) -> [(Vector, Vector); BLOCKS] {
    let mut pairs = [(splat(0), splat(0)); BLOCKS];
    for (pair, [a, b]) in pairs.iter_mut().zip(w.as_chunks().0) {
        *pair = (load(a), load(b));
    }
    pairs
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
