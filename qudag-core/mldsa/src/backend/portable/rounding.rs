//! Rounding and hints (FIPS 204, 7.4).

use super::field::non_negative;
use crate::parameters::{GAMMA2, N, Q};
use crate::polynomial::Polynomial;

/// How many values high bits have: m = (q − 1)/(2γ₂).
const M: i32 = (Q - 1) / (2 * GAMMA2);

/// r = r₁ · 2γ₂ + r₀ for 0 ≤ r < q, with the borders of the highest interval at its lower end (algorithm 36, Decompose).
pub(crate) fn decompose(r: i32) -> (i32, i32) {
    let mut r0 = r % (2 * GAMMA2);
    if r0 > GAMMA2 {
        r0 -= 2 * GAMMA2;
    }
    if r - r0 == Q - 1 { (0, r0 - 1) } else { ((r - r0) / (2 * GAMMA2), r0) }
}

/// The high bits of r as the hint corrects them (algorithm 40, UseHint).
fn use_hint(hint: bool, r: i32) -> i32 {
    let (r1, r0) = decompose(r);
    match (hint, r0 > 0) {
        (false, _) => r1,
        (true, true) => (r1 + 1) % M,
        (true, false) => (r1 + M - 1) % M,
    }
}

/// High bits of coefficients between −q and q. `hints` are the places of the hints that are 1.
pub(super) fn use_hints(Polynomial(w): &Polynomial, hints: &[u8]) -> [u8; N] {
    let mut corrected = [false; N];
    for place in hints {
        if let Some(corrected) = corrected.get_mut(usize::from(*place)) {
            *corrected = true;
        }
    }
    let mut w1 = [0; N];
    for ((w1, w), hint) in w1.iter_mut().zip(w).zip(corrected) {
        *w1 = use_hint(hint, non_negative(*w)) as u8;
    }
    w1
}
