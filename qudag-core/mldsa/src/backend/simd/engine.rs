//! The engine of a backend, which hands each step to the function of that name in one of the backend's modules.

/// Implements [`Engine`](crate::backend::Engine) for a type of which there is a value only where the processor has all that the functions
/// beside the macro's call use.
macro_rules! implement_engine {
    ($engine:ty, lanes: $lanes:literal) => {
        impl $crate::backend::Engine for $engine {
            const LANES: usize = $lanes;

            #[inline]
            fn permute(self, state: &mut State) {
                // SAFETY: `self` exists, so the processor has the features.
                unsafe { keccak::permute(state) }
            }

            #[inline]
            fn permute_lanes(self, lanes: &mut Lanes) {
                // SAFETY: as above.
                unsafe { keccak::permute_lanes(lanes) }
            }

            #[inline]
            fn absorb(self, lanes: &mut Lanes, blocks: &[Block; LANES]) {
                // SAFETY: as above.
                unsafe { keccak::absorb(lanes, blocks) }
            }

            #[inline]
            fn squeeze(self, lanes: &Lanes, blocks: &mut [Block; LANES]) {
                // SAFETY: as above.
                unsafe { keccak::squeeze(lanes, blocks) }
            }

            #[inline]
            fn reject(self, block: &Block, a: &mut Polynomial, filled: usize) -> usize {
                // SAFETY: as above.
                unsafe { sampling::reject(block, a, filled) }
            }

            #[inline]
            fn t1_decode(self, bytes: &[u8; K * T1_BYTES], t1: &mut [Polynomial; K]) {
                // SAFETY: as above.
                unsafe { encoding::t1_decode(bytes, t1) }
            }

            #[inline]
            fn z_decode(self, bytes: &[u8; L * Z_BYTES], z: &mut [Polynomial; L]) -> bool {
                // SAFETY: as above.
                unsafe { encoding::z_decode(bytes, z) }
            }

            #[inline]
            fn ntt(self, w: &mut Polynomial) {
                // SAFETY: as above.
                unsafe { ntt::ntt(w) }
            }

            #[inline]
            fn multiply_row(
                self,
                a: &[Polynomial; L],
                z: &[Polynomial; L],
                t1: &Polynomial,
                c: &Polynomial,
                w: &mut Polynomial,
            ) {
                // SAFETY: as above.
                unsafe { commitment::multiply_row(a, z, t1, c, w) }
            }

            #[inline]
            fn inverse_ntt(self, w: &mut Polynomial) {
                // SAFETY: as above.
                unsafe { ntt::inverse_ntt(w) }
            }

            #[inline]
            fn w1_encode(self, w: &Polynomial, hints: &[u8], w1: &mut [u8; W1_BYTES]) {
                // SAFETY: as above.
                unsafe { commitment::w1_encode(w, hints, w1) }
            }
        }
    };
}
pub(crate) use implement_engine;
