//! Plain Rust, close to the standard's pseudo-code.

mod encoding;
pub(crate) mod field;
pub(in crate::backend) mod keccak;
mod ntt;
pub(crate) mod rounding;
pub(in crate::backend) mod sampling;

use super::Engine;
use crate::keccak::{Block, LANES, Lanes, RATE_256, State};
use crate::parameters::{K, L, T1_BYTES, W1_BYTES, Z_BYTES};
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

    fn multiply_row(
        self,
        a: &[Polynomial; L],
        z: &[Polynomial; L],
        t1: &Polynomial,
        c: &Polynomial,
        w: &mut Polynomial,
    ) {
        *w = ntt::multiply_row(a, z, t1, c);
    }

    fn inverse_ntt(self, w: &mut Polynomial) {
        ntt::inverse_ntt(w);
    }

    fn w1_encode(self, w: &Polynomial, hints: &[u8], w1: &mut [u8; W1_BYTES]) {
        *w1 = encoding::w1_encode(&rounding::use_hints(w, hints));
    }
}
