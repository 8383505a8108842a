//! Plain Rust, close to the standard's pseudo-code.

mod encoding;
mod field;
pub(in crate::backend) mod keccak;
mod ntt;
mod rounding;
pub(in crate::backend) mod sampling;

use super::Engine;
use crate::encoding::Hints;
use crate::keccak::{Block, LANES, Lanes, RATE_256, State};
use crate::key::ExpandedKey;
use crate::parameters::{K, L, N, T1_BYTES, W1_BYTES, Z_BYTES};
use crate::polynomial::Polynomial;
use crate::sponge::{add, output};

pub(crate) use keccak::permute;

/// The engine for all processors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

impl Engine for Portable {
    const LANES: usize = 1;

    fn permute(self, state: &mut State) {
        permute(state);
    }

    fn permute_lanes(self, lanes: &mut Lanes) {
        let mut state = lanes.get(0);
        permute(&mut state);
        lanes.set(0, &state);
    }

    fn absorb(self, lanes: &mut Lanes, [Block(bytes), ..]: &[Block; LANES]) {
        let mut state = lanes.get(0);
        add(&mut state, 0, bytes.get(..RATE_256).unwrap_or_default());
        lanes.set(0, &state);
    }

    fn squeeze(self, lanes: &Lanes, [Block(bytes), ..]: &mut [Block; LANES]) {
        *bytes = output(&lanes.get(0));
    }

    fn reject(self, block: &Block, a: &mut Polynomial, filled: usize) -> usize {
        sampling::reject(block, a, filled)
    }

    fn t1_decode(self, bytes: &[u8; K * T1_BYTES], t1: &mut [Polynomial; K]) {
        encoding::t1_decode(bytes, t1);
    }

    fn z_decode(self, bytes: &[u8; L * Z_BYTES], z: &mut [Polynomial; L]) -> bool {
        encoding::z_decode(bytes, z)
    }

    fn ntt(self, w: &mut Polynomial) {
        ntt::ntt(w);
    }

    fn commitment(
        self,
        key: &ExpandedKey,
        c: &Polynomial,
        z: &[Polynomial; L],
        hints: &Hints<'_>,
        w1: &mut [u8; K * W1_BYTES],
    ) {
        let rows = key.a.iter().zip(&key.t1).zip(hints.rows());
        for (((a, t1), hints), bytes) in rows.zip(w1.as_chunks_mut().0) {
            // w′ = NTT⁻¹(Â ∘ NTT(z) − NTT(c) ∘ NTT(t₁ · 2ᵈ)).
            let mut w = ntt::multiply_row(a, z, t1, c);
            ntt::inverse_ntt(&mut w);
            let mut corrected = [false; N];
            for place in hints {
                if let Some(corrected) = corrected.get_mut(usize::from(*place)) {
                    *corrected = true;
                }
            }
            let mut w1 = [0; N];
            for ((w1, w), hint) in w1.iter_mut().zip(&w.0).zip(corrected) {
                *w1 = rounding::use_hint(hint, field::non_negative(*w)) as u8;
            }
            *bytes = encoding::w1_encode(&w1);
        }
    }
}
