//! Eight coefficients in a register.

use std::arch::x86_64::*;
use std::hint::black_box;

use crate::backend::simd::LaneFactors;
use crate::constants::{Q_INVERSE, Twiddle};
use crate::parameters::Q;

/// Coefficients, each in 32 bits.
pub(super) type Vector = __m256i;
/// Bits of hints, one a coefficient.
pub(super) type Mask = u8;
/// Coefficients of a vector.
pub(super) const WIDTH: usize = 8;

/// A factor of Montgomery multiplication: its lanes, those with odd numbers apart, and all times q⁻¹ modulo 2³².
#[derive(Clone, Copy)]
pub(super) struct Factor {
    value: Vector,
    odd: Vector,
    inverse: Vector,
}

/// q and q⁻¹ modulo 2³² in all lanes.
#[derive(Clone, Copy)]
pub(super) struct Modulus {
    q: Vector,
    inverse: Vector,
}

/// Hides the numbers from the compiler, which replaces multiplication by a constant with more and slower instructions.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn modulus() -> Modulus {
    Modulus { q: splat(black_box(Q)), inverse: splat(black_box(Q_INVERSE)) }
}

/// The same factor for all lanes.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn factor(twiddle: &Twiddle) -> Factor {
    let value = splat(twiddle.value);
    Factor { value, odd: value, inverse: splat(twiddle.inverse) }
}

/// A factor for each lane.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn factors(LaneFactors { values, inverses }: &LaneFactors<WIDTH>) -> Factor {
    let value = load(values);
    Factor { value, odd: odd(value), inverse: load(inverses) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load(from: &[i32; WIDTH]) -> Vector {
    // SAFETY: 32 bytes can be read behind the reference, and no alignment is asked for.
    unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn store(to: &mut [i32; WIDTH], vector: Vector) {
    // SAFETY: 32 bytes can be written behind the reference, and no alignment is asked for.
    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), vector) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn splat(value: i32) -> Vector {
    _mm256_set1_epi32(value)
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn add(a: Vector, b: Vector) -> Vector {
    _mm256_add_epi32(a, b)
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn subtract(a: Vector, b: Vector) -> Vector {
    _mm256_sub_epi32(a, b)
}

/// The lanes with odd numbers, where those with even numbers were.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn odd(a: Vector) -> Vector {
    _mm256_srli_epi64::<32>(a)
}

/// The 64-bit products of the lanes with even numbers.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn multiply_long(a: Vector, b: Vector) -> Vector {
    _mm256_mul_epi32(a, b)
}

/// Sums of 64-bit numbers.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn add_long(a: Vector, b: Vector) -> Vector {
    _mm256_add_epi64(a, b)
}

/// Differences of 64-bit numbers.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn subtract_long(a: Vector, b: Vector) -> Vector {
    _mm256_sub_epi64(a, b)
}

/// 64-bit sums, those of the lanes with even and with odd numbers, times 2⁻³² modulo q (algorithm 49, MontgomeryReduce).
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn montgomery_reduce(even: Vector, odd: Vector, Modulus { q, inverse }: Modulus) -> Vector {
    finish(q, even, _mm256_mul_epi32(even, inverse), odd, _mm256_mul_epi32(odd, inverse))
}

/// a · b · 2⁻³² modulo q.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn multiply(a: Vector, b: &Factor, Modulus { q, .. }: Modulus) -> Vector {
    let t = multiply_low(a, b.inverse);
    let odd_product = _mm256_mul_epi32(odd(a), b.odd);
    finish(q, _mm256_mul_epi32(a, b.value), t, odd_product, odd(t))
}

/// The upper halves of products after the multiples of q are subtracted that make their lower halves 0.
#[inline]
#[target_feature(enable = "avx2")]
fn finish(q: Vector, even: Vector, even_t: Vector, odd: Vector, odd_t: Vector) -> Vector {
    let even = _mm256_sub_epi64(even, _mm256_mul_epi32(even_t, q));
    let odd = _mm256_sub_epi64(odd, _mm256_mul_epi32(odd_t, q));
    _mm256_blend_epi32::<0b1010_1010>(_mm256_srli_epi64::<32>(even), odd)
}

/// The representative between 0 and q − 1 of −q < a < q.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn non_negative(a: Vector) -> Vector {
    // As an unsigned number, a negative one is the greater.
    _mm256_min_epu32(a, add(a, splat(Q)))
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn and(a: Vector, b: Vector) -> Vector {
    _mm256_and_si256(a, b)
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn shift_left<const BITS: i32>(a: Vector) -> Vector {
    _mm256_slli_epi32::<BITS>(a)
}

/// Of numbers that are not negative.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn shift_right<const BITS: i32>(a: Vector) -> Vector {
    _mm256_srli_epi32::<BITS>(a)
}

/// The lower halves of products.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn multiply_low(a: Vector, b: Vector) -> Vector {
    _mm256_mullo_epi32(a, b)
}
