//! The number-theoretic transform (FIPS 204, 7.5), with constants in Montgomery form (appendix A).

use crate::field::{multiply, reduce, to_montgomery};
use crate::parameters::{N, Q};

/// The coefficients of a polynomial, or of its transform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Polynomial(pub(crate) [i32; N]);

impl Polynomial {
    pub(crate) const ZERO: Self = Self([0; N]);
}

/// ζ, a 512th root of unity modulo q.
const ZETA: i64 = 1753;

/// ζ^BitRev₈(k) · 2³² modulo q (appendix B holds the same without the factor).
#[allow(clippy::indexing_slicing, reason = "a constant: it would not compile")]
const ZETAS: [i32; N] = {
    let mut zetas = [0; N];
    let mut k = 0;
    while k < N {
        let mut power = 1;
        let mut exponent = (k as u8).reverse_bits();
        let mut square = ZETA;
        while exponent > 0 {
            if exponent & 1 == 1 {
                power = power * square % Q as i64;
            }
            square = square * square % Q as i64;
            exponent >>= 1;
        }
        zetas[k] = to_montgomery(power);
        k += 1;
    }
    zetas
};

/// 2⁶⁴ / 256 modulo q: takes away the factor 256 of the inverse transform, and leaves a factor 2³².
const SCALE: i32 = {
    let montgomery = to_montgomery(1) as i64;
    // 256⁻¹ = q − (q − 1)/256, since 256 divides q − 1.
    let inverse = Q as i64 - (Q as i64 - 1) / 256;
    to_montgomery(montgomery * inverse % Q as i64)
};

/// The transform of a polynomial (algorithm 41, NTT). Coefficients grow by at most 8q.
pub(crate) fn ntt(Polynomial(w): &mut Polynomial) {
    let mut zetas = ZETAS.iter().skip(1);
    let mut len = N / 2;
    while len >= 1 {
        for (block, zeta) in w.chunks_exact_mut(2 * len).zip(zetas.by_ref()) {
            let (low, high) = block.split_at_mut(len);
            for (a, b) in low.iter_mut().zip(high) {
                let t = multiply(*zeta, *b);
                *b = *a - t;
                *a += t;
            }
        }
        len /= 2;
    }
}

/// The polynomial of a transform, times 2³² (algorithm 42, NTT⁻¹). Coefficients are at most q in absolute value before and after.
pub(crate) fn inverse_ntt(Polynomial(w): &mut Polynomial) {
    let mut zetas = ZETAS.iter().rev();
    let mut len = 1;
    while len < N {
        for (block, zeta) in w.chunks_exact_mut(2 * len).zip(zetas.by_ref()) {
            let (low, high) = block.split_at_mut(len);
            for (a, b) in low.iter_mut().zip(high) {
                let t = *a;
                *a = t + *b;
                *b = multiply(-*zeta, t - *b);
            }
        }
        len *= 2;
    }
    for coefficient in w {
        *coefficient = multiply(SCALE, *coefficient);
    }
}

/// Adds the product of two transforms, times 2⁻³² (algorithms 45, MultiplyNTT, and 44, AddNTT).
pub(crate) fn multiply_add(sum: &mut Polynomial, a: &Polynomial, b: &Polynomial) {
    for ((sum, a), b) in sum.0.iter_mut().zip(&a.0).zip(&b.0) {
        *sum += multiply(*a, *b);
    }
}

/// The difference of two transforms, reduced.
pub(crate) fn subtract(a: &mut Polynomial, b: &Polynomial) {
    for (a, b) in a.0.iter_mut().zip(&b.0) {
        *a = reduce(*a - *b);
    }
}
