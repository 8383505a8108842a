//! Pseudorandom sampling (FIPS 204, 7.3).

use crate::backend::Engine;
use crate::keccak::{Block, LANES, Lanes, RATE_128, RATE_256, SUFFIX, State};
use crate::parameters::{L, N, SEED_BYTES, TAU};
use crate::polynomial::Polynomial;
use crate::sponge::{add, output};

/// Polynomials of matrices Â (algorithm 32, ExpandA), as many at a time as the engine permutes states, whichever keys they are of. Each comes
/// with the seed ρ of its key and its place, row by row.
pub(crate) fn expand_a<'a, E: Engine>(
    engine: E,
    polynomials: impl Iterator<Item = (&'a [u8; SEED_BYTES], usize, &'a mut Polynomial)>,
) {
    let mut polynomials = polynomials.fuse();
    let mut blocks = [Block::ZERO; LANES];
    loop {
        let mut lanes = Lanes::ZERO;
        let mut group = [const { None }; LANES];
        for (lane, slot) in group.iter_mut().enumerate().take(E::LANES) {
            *slot = polynomials.next().map(|(rho, place, a)| {
                let mut state: State = [0; _];
                add(&mut state, 0, rho);
                // The column before the row.
                add(&mut state, SEED_BYTES, &[(place % L) as u8, (place / L) as u8, SUFFIX]);
                add(&mut state, RATE_128 - 1, &[0x80]);
                lanes.set(lane, &state);
                (a, 0)
            });
        }
        while group.iter().flatten().any(|(_, filled)| *filled < N) {
            engine.permute_lanes(&mut lanes);
            engine.squeeze(&lanes, &mut blocks);
            for (slot, block) in group.iter_mut().zip(&blocks) {
                if let Some((a, filled)) = slot {
                    *filled = engine.reject(block, a, *filled);
                }
            }
        }
        if group.iter().take(E::LANES).any(Option::is_none) {
            return;
        }
    }
}

/// A polynomial with τ coefficients ±1 and otherwise 0 (algorithm 29, SampleInBall), from the state of H after its input.
pub(crate) fn sample_in_ball<E: Engine>(engine: E, state: &mut State, Polynomial(c): &mut Polynomial) {
    *c = [0; N];
    let block: [u8; RATE_256] = output(state);
    let (signs, bytes) = block.split_first_chunk().unwrap_or((&[0; 8], &[]));
    let mut signs = u64::from_le_bytes(*signs);
    let mut i = N - TAU;
    let mut sample = |bytes: &[u8]| {
        for &j in bytes {
            if i == N {
                break;
            }
            let j = usize::from(j);
            if j > i {
                continue;
            }
            // What was at j is at i now; j was 0 or is moved, and becomes ±1.
            c.swap(i, j);
            if let Some(place) = c.get_mut(j) {
                *place = 1 - 2 * (signs & 1) as i32;
            }
            signs >>= 1;
            i += 1;
        }
        i < N
    };
    let mut more = sample(bytes);
    while more {
        engine.permute(state);
        more = sample(&output::<RATE_256>(state));
    }
}
