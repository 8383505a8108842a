//! Pseudorandom sampling (FIPS 204, 7.3).

use shake::digest::{ExtendableOutput, Update, XofReader};
use shake::{Shake128, Shake256};

use crate::ntt::Polynomial;
use crate::parameters::{K, L, N, Q, SEED_BYTES, TAU};

/// The matrix Â, row by row (algorithm 32, ExpandA).
pub(crate) fn expand_a(rho: &[u8; SEED_BYTES]) -> [[Polynomial; L]; K] {
    std::array::from_fn(|r| std::array::from_fn(|s| rejection_sample(rho, s as u8, r as u8)))
}

/// A transform with coefficients that are evenly distributed (algorithm 30, RejNTTPoly, with algorithm 14, CoeffFromThreeBytes).
fn rejection_sample(rho: &[u8; SEED_BYTES], s: u8, r: u8) -> Polynomial {
    let mut hash = Shake128::default();
    hash.update(rho);
    hash.update(&[s, r]);
    let mut reader = hash.finalize_xof();
    let (mut a, mut j) = (Polynomial::ZERO, 0);
    // One block of SHAKE128 is 56 times three bytes.
    let mut block = [0; 168];
    loop {
        reader.read(&mut block);
        for bytes in block.chunks_exact(3) {
            let &[low, middle, high] = bytes else { continue };
            let value = i32::from_le_bytes([low, middle, high & 0x7f, 0]);
            if value < Q {
                let Some(place) = a.0.get_mut(j) else { return a };
                *place = value;
                j += 1;
            }
        }
        if j == N {
            return a;
        }
    }
}

/// A polynomial with τ coefficients ±1 and otherwise 0 (algorithm 29, SampleInBall).
pub(crate) fn sample_in_ball(seed: &[u8]) -> Polynomial {
    let mut hash = Shake256::default();
    hash.update(seed);
    let mut reader = hash.finalize_xof();
    let mut signs = [0; 8];
    reader.read(&mut signs);
    let mut signs = u64::from_le_bytes(signs);
    let mut c = Polynomial::ZERO;
    for i in N - TAU..N {
        let mut j = [0];
        reader.read(&mut j);
        while usize::from(j[0]) > i {
            reader.read(&mut j);
        }
        c.0.swap(i, usize::from(j[0]));
        // What was at j is at i now; j was 0 or is moved, and becomes ±1.
        if let Some(place) = c.0.get_mut(usize::from(j[0])) {
            *place = if signs & 1 == 1 { -1 } else { 1 };
        }
        signs >>= 1;
    }
    c
}
