//! The number-theoretic transform (FIPS 204, 7.5), eight coefficients at a time.

use std::arch::x86_64::*;

use super::vector::*;
use crate::backend::simd::{LaneFactors, lane_factors, ntt_functions};

ntt_functions!("avx2");

/// Levels with partners in one vector, 4, 2 and 1 apart.
const LEVELS: usize = 3;
static FORWARD: [[LaneFactors<WIDTH>; LEVELS]; PAIRS] = lane_factors(&ZETAS);
static INVERSE: [[LaneFactors<WIDTH>; LEVELS]; PAIRS] = lane_factors(&INVERSE_ZETAS);

/// The levels of blocks of 32 coefficients with partners 16 and fewer apart.
#[inline]
#[target_feature(enable = "avx2")]
fn forward_group(group: usize, w: &mut [[i32; WIDTH]; GROUP], q: Modulus) {
    let mut v = load_group(w);
    for (block, zeta) in [0, 4].into_iter().zip(&ZETAS[8 + 2 * group..]) {
        for i in [block, block + 1] {
            (v[i], v[i + 2]) = forward(v[i], v[i + 2], &factor(zeta), q);
        }
    }
    for (i, zeta) in [0, 2, 4, 6].into_iter().zip(&ZETAS[16 + 4 * group..]) {
        (v[i], v[i + 1]) = forward(v[i], v[i + 1], &factor(zeta), q);
    }
    let zetas = &FORWARD[4 * group..];
    for (i, zetas) in [0, 2, 4, 6].into_iter().zip(zetas) {
        let (a, b) = swap_four(v[i], v[i + 1]);
        (v[i], v[i + 1]) = forward(a, b, &factors(&zetas[0]), q);
    }
    for (i, zetas) in [0, 2, 4, 6].into_iter().zip(zetas) {
        let (a, b) = swap_two(v[i], v[i + 1]);
        (v[i], v[i + 1]) = forward(a, b, &factors(&zetas[1]), q);
    }
    for (i, zetas) in [0, 2, 4, 6].into_iter().zip(zetas) {
        let (a, b) = swap_one(v[i], v[i + 1]);
        (v[i], v[i + 1]) = forward(a, b, &factors(&zetas[2]), q);
    }
    // Now one vector of a pair holds the coefficients with even numbers and the other those with odd ones.
    for i in [0, 2, 4, 6] {
        let (a, b) = (v[i], v[i + 1]);
        (v[i], v[i + 1]) = swap_four(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    }
    for (to, vector) in w.iter_mut().zip(v) {
        store(to, vector);
    }
}

/// The reverse of [`forward_group`].
#[inline]
#[target_feature(enable = "avx2")]
fn inverse_group(group: usize, w: &mut [[i32; WIDTH]; GROUP], q: Modulus) {
    let mut v = load_group(w);
    for i in [0, 2, 4, 6] {
        let (a, b) = swap_four(v[i], v[i + 1]);
        let (a, b) = (_mm256_castsi256_ps(a), _mm256_castsi256_ps(b));
        v[i] = _mm256_castps_si256(_mm256_shuffle_ps::<0b10_00_10_00>(a, b));
        v[i + 1] = _mm256_castps_si256(_mm256_shuffle_ps::<0b11_01_11_01>(a, b));
    }
    let zetas = &INVERSE[4 * group..];
    for (i, zetas) in [0, 2, 4, 6].into_iter().zip(zetas) {
        let (a, b) = inverse(v[i], v[i + 1], &factors(&zetas[2]), q);
        (v[i], v[i + 1]) = swap_one(a, b);
    }
    for (i, zetas) in [0, 2, 4, 6].into_iter().zip(zetas) {
        let (a, b) = inverse(v[i], v[i + 1], &factors(&zetas[1]), q);
        (v[i], v[i + 1]) = swap_two(a, b);
    }
    for (i, zetas) in [0, 2, 4, 6].into_iter().zip(zetas) {
        let (a, b) = inverse(v[i], v[i + 1], &factors(&zetas[0]), q);
        (v[i], v[i + 1]) = swap_four(a, b);
    }
    for (i, zeta) in [0, 2, 4, 6].into_iter().zip(&INVERSE_ZETAS[16 + 4 * group..]) {
        (v[i], v[i + 1]) = inverse(v[i], v[i + 1], &factor(zeta), q);
    }
    for (block, zeta) in [0, 4].into_iter().zip(&INVERSE_ZETAS[8 + 2 * group..]) {
        for i in [block, block + 1] {
            (v[i], v[i + 2]) = inverse(v[i], v[i + 2], &factor(zeta), q);
        }
    }
    for (to, vector) in w.iter_mut().zip(v) {
        store(to, vector);
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_group(w: &[[i32; WIDTH]; GROUP]) -> [Vector; GROUP] {
    let mut v = [splat(0); GROUP];
    for (v, from) in v.iter_mut().zip(w) {
        *v = load(from);
    }
    v
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
