//! Elements of R_q and their transforms.

use crate::parameters::N;

/// The coefficients of a polynomial, or of its transform. Representatives modulo q are bounded rather than unique.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(align(64))]
pub(crate) struct Polynomial(pub(crate) [i32; N]);

impl Polynomial {
    pub(crate) const ZERO: Self = Self([0; N]);
}
