//! Arithmetic modulo q, on representatives that are bounded rather than unique.

use crate::constants::Q_INVERSE;
use crate::parameters::Q;

/// a · 2⁻³² modulo q, between −q and q, for |a| ≤ 2³¹ q (algorithm 49, MontgomeryReduce).
pub(crate) fn montgomery_reduce(a: i64) -> i32 {
    let t = (a as i32).wrapping_mul(Q_INVERSE);
    ((a - i64::from(t) * i64::from(Q)) >> 32) as i32
}

/// a · b · 2⁻³² modulo q.
pub(crate) fn multiply(a: i32, b: i32) -> i32 {
    montgomery_reduce(i64::from(a) * i64::from(b))
}

/// The representative between 0 and q − 1 of −q < a < q.
pub(crate) fn non_negative(a: i32) -> i32 {
    a + ((a >> 31) & Q)
}
