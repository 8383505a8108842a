//! Arithmetic modulo q, on representatives that are bounded rather than unique.

use crate::parameters::Q;

/// q⁻¹ modulo 2³² (FIPS 204, appendix A).
const Q_INVERSE: i32 = 58_728_449;

/// a · 2⁻³² modulo q, between −q and q, for |a| ≤ 2³¹ q (algorithm 49, MontgomeryReduce).
pub(crate) const fn montgomery_reduce(a: i64) -> i32 {
    let t = (a as i32).wrapping_mul(Q_INVERSE);
    ((a - t as i64 * Q as i64) >> 32) as i32
}

/// a · b · 2⁻³² modulo q.
pub(crate) const fn multiply(a: i32, b: i32) -> i32 {
    montgomery_reduce(a as i64 * b as i64)
}

/// The representative between −6,283,008 and 6,283,008 of a ≤ 2³¹ − 2²² − 1.
pub(crate) const fn reduce(a: i32) -> i32 {
    let t = (a + (1 << 22)) >> 23;
    a - t * Q
}

/// The representative between 0 and q − 1 of −q < a < q.
pub(crate) const fn non_negative(a: i32) -> i32 {
    a + ((a >> 31) & Q)
}

/// a · 2³² modulo q, for a between 0 and q − 1.
pub(crate) const fn to_montgomery(a: i64) -> i32 {
    ((a << 32) % Q as i64) as i32
}
