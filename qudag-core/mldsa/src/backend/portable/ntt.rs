//! The number-theoretic transform (FIPS 204, 7.5).

use super::field::{montgomery_reduce, multiply};
use crate::constants::{SCALE, ZETAS};
use crate::parameters::{L, N};
use crate::polynomial::Polynomial;

/// The transform of a polynomial (algorithm 41, NTT). Coefficients grow by at most 8q.
pub(super) fn ntt(Polynomial(w): &mut Polynomial) {
    let mut zetas = ZETAS.iter().skip(1);
    let mut len = N / 2;
    while len >= 1 {
        for (block, zeta) in w.chunks_exact_mut(2 * len).zip(zetas.by_ref()) {
            let (low, high) = block.split_at_mut(len);
            for (a, b) in low.iter_mut().zip(high) {
                let t = multiply(zeta.value, *b);
                *b = *a - t;
                *a += t;
            }
        }
        len /= 2;
    }
}

/// The polynomial of a transform, times 2³² (algorithm 42, NTT⁻¹), between −q and q. Coefficients are at most 3q/4 before, and grow by the
/// factor 256 at most.
pub(super) fn inverse_ntt(Polynomial(w): &mut Polynomial) {
    let mut zetas = ZETAS.iter().rev();
    let mut len = 1;
    while len < N {
        for (block, zeta) in w.chunks_exact_mut(2 * len).zip(zetas.by_ref()) {
            let (low, high) = block.split_at_mut(len);
            for (a, b) in low.iter_mut().zip(high) {
                let t = *a;
                *a = t + *b;
                *b = multiply(-zeta.value, t - *b);
            }
        }
        len *= 2;
    }
    for coefficient in w {
        *coefficient = multiply(SCALE.value, *coefficient);
    }
}

/// A row of Â ∘ ẑ − t̂₁ ∘ ĉ, times 2⁻³², between −3q/4 and 3q/4 (algorithms 48, MatrixVectorNTT, and 47, ScalarVectorNTT). Factors of the
/// key are at most 9q, z and c too: the sum of the products is below 126 q².
pub(super) fn multiply_row(
    a: &[Polynomial; L],
    z: &[Polynomial; L],
    t1: &Polynomial,
    c: &Polynomial,
) -> Polynomial {
    let mut sums = [0_i64; N];
    for (a, z) in a.iter().zip(z) {
        for ((sum, a), z) in sums.iter_mut().zip(&a.0).zip(&z.0) {
            *sum += i64::from(*a) * i64::from(*z);
        }
    }
    for ((sum, t1), c) in sums.iter_mut().zip(&t1.0).zip(&c.0) {
        *sum -= i64::from(*t1) * i64::from(*c);
    }
    Polynomial(sums.map(montgomery_reduce))
}
