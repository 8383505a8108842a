//! The commitment w₁ on vectors.

macro_rules! commitment_functions {
    ($features:literal) => {
        use crate::parameters::{GAMMA2, L, N, W1_BYTES};
        use crate::polynomial::Polynomial;

        /// A row of Â ∘ ẑ − t̂₁ ∘ ĉ, times 2⁻³², between −3q/4 and 3q/4 (algorithms 48, MatrixVectorNTT, and 47, ScalarVectorNTT). Factors of
        /// the key are at most 9q, z and c too: the sum of the products is below 126 q².
        #[target_feature(enable = $features)]
        pub(super) fn multiply_row(
            a: &[Polynomial; L],
            z: &[Polynomial; L],
            t1: &Polynomial,
            c: &Polynomial,
            w: &mut Polynomial,
        ) {
            let q = modulus();
            for (i, w) in w.0.as_chunks_mut::<WIDTH>().0.iter_mut().enumerate() {
                let at = |polynomial: &Polynomial| load(&polynomial.0.as_chunks::<WIDTH>().0[i]);
                let (mut even_sum, mut odd_sum) = (splat(0), splat(0));
                for (a, z) in a.iter().zip(z) {
                    let (a, z) = (at(a), at(z));
                    even_sum = add_long(even_sum, multiply_long(a, z));
                    odd_sum = add_long(odd_sum, multiply_long(odd(a), odd(z)));
                }
                let (t1, c) = (at(t1), at(c));
                even_sum = subtract_long(even_sum, multiply_long(t1, c));
                odd_sum = subtract_long(odd_sum, multiply_long(odd(t1), odd(c)));
                store(w, montgomery_reduce(even_sum, odd_sum, q));
            }
        }

        /// A polynomial of the commitment as bytes, from coefficients between −q and q (algorithms 40, UseHint, and 28, w1Encode). `hints` are the
        /// places of the hints that are 1.
        #[target_feature(enable = $features)]
        pub(super) fn w1_encode(w: &Polynomial, hints: &[u8], w1: &mut [u8; W1_BYTES]) {
            let mut corrected: [Mask; N / WIDTH] = [0; N / WIDTH];
            for place in hints {
                corrected[usize::from(*place) / WIDTH] |= 1 << (usize::from(*place) % WIDTH);
            }
            let vectors = w.0.as_chunks::<WIDTH>().0.iter().zip(corrected);
            for ((r, hints), w1) in vectors.zip(w1.as_chunks_mut::<{ WIDTH / 2 }>().0) {
                *w1 = pack(use_hint(hints, non_negative(load(r))));
            }
        }

        /// High bits of coefficients between 0 and q − 1, corrected where the hint says so (algorithms 40, UseHint, and 36, Decompose).
        #[inline]
        #[target_feature(enable = $features)]
        fn use_hint(hints: Mask, r: Vector) -> Vector {
            // r₁ = ⌈r / 2γ₂ − 1/2⌉ modulo 16: 2γ₂ is 128 · 4092 and a little less, and 4092 divides as 2²² / 1025 does.
            let r1 = shift_right::<7>(add(r, splat(127)));
            let r1 = add(add(shift_left::<10>(r1), r1), splat(1 << 21));
            let r1 = and(shift_right::<22>(r1), splat(15));
            let r0 = subtract(r, multiply_low(r1, splat(2 * GAMMA2)));
            correct(hints, r1, r0)
        }
    };
}
pub(crate) use commitment_functions;
