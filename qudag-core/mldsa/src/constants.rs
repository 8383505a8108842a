//! The powers of ζ that transforms multiply by (FIPS 204, 7.5 and appendix B), in Montgomery form (appendix A).

use crate::parameters::{N, Q};

/// q⁻¹ modulo 2³² (FIPS 204, appendix A).
pub(crate) const Q_INVERSE: i32 = 58_728_449;

/// ζ, a 512th root of unity modulo q.
const ZETA: i64 = 1753;

/// A constant factor times 2³² modulo q, and that times q⁻¹ modulo 2³².
#[derive(Clone, Copy, Debug)]
pub(crate) struct Twiddle {
    pub(crate) value: i32,
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "for vectors"))]
    pub(crate) inverse: i32,
}

impl Twiddle {
    /// The factor a · 2³² for a between 0 and q − 1.
    const fn of(a: i64) -> Self {
        let value = to_montgomery(a);
        Self { value, inverse: value.wrapping_mul(Q_INVERSE) }
    }
}

/// a · 2³² modulo q, for a between 0 and q − 1.
const fn to_montgomery(a: i64) -> i32 {
    ((a << 32) % Q as i64) as i32
}

/// ζ to a power, modulo q.
const fn zeta_to(mut exponent: u32) -> i64 {
    let (mut power, mut square) = (1, ZETA);
    while exponent > 0 {
        if exponent & 1 == 1 {
            power = power * square % Q as i64;
        }
        square = square * square % Q as i64;
        exponent >>= 1;
    }
    power
}

/// ζ^BitRev₈(k).
#[allow(clippy::indexing_slicing, reason = "a constant: it would not compile")]
pub(crate) static ZETAS: [Twiddle; N] = {
    let mut zetas = [Twiddle::of(1); N];
    let mut k = 0;
    while k < N {
        zetas[k] = Twiddle::of(zeta_to((k as u8).reverse_bits() as u32));
        k += 1;
    }
    zetas
};

/// ζ^−BitRev₈(k).
#[cfg(target_arch = "x86_64")]
#[allow(clippy::indexing_slicing, reason = "a constant: it would not compile")]
pub(crate) static INVERSE_ZETAS: [Twiddle; N] = {
    let mut zetas = [Twiddle::of(1); N];
    let mut k = 0;
    while k < N {
        zetas[k] = Twiddle::of(zeta_to(512 - (k as u8).reverse_bits() as u32));
        k += 1;
    }
    zetas
};

/// 2³² / 256: takes away the factor 256 of the inverse transform, and leaves a factor 2³².
pub(crate) const SCALE: Twiddle = Twiddle::of(SCALE_VALUE);
/// The same times ζ^−BitRev₈(1), for the last level of the inverse transform.
#[cfg(target_arch = "x86_64")]
pub(crate) const SCALE_AND_ZETA: Twiddle = Twiddle::of(SCALE_VALUE * zeta_to(512 - 128) % Q as i64);

const SCALE_VALUE: i64 = {
    // 256⁻¹ = q − (q − 1)/256, since 256 divides q − 1.
    let inverse = Q as i64 - (Q as i64 - 1) / 256;
    to_montgomery(1) as i64 * inverse % Q as i64
};
