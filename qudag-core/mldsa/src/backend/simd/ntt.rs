//! The transform on vectors. Its upper levels combine whole vectors: three levels go over the eight vectors of a column, that are 32
//! coefficients apart, and those below over a block of 32 coefficients. Where two partners would be in one vector, lanes of two vectors
//! change places first, see `forward_group` of each backend.

use crate::constants::Twiddle;
use crate::parameters::N;

/// The factors of a level for the lanes of a vector.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct LaneFactors<const WIDTH: usize> {
    pub(crate) values: [i32; WIDTH],
    pub(crate) inverses: [i32; WIDTH],
}

/// The factors of the levels below the width of a vector, for each pair of vectors in order. The first of these levels has two factors a
/// pair, each next one twice as many.
#[allow(clippy::indexing_slicing, reason = "constants: they would not compile")]
pub(crate) const fn lane_factors<const WIDTH: usize, const LEVELS: usize, const PAIRS: usize>(
    twiddles: &[Twiddle; N],
) -> [[LaneFactors<WIDTH>; LEVELS]; PAIRS] {
    let mut factors = [[LaneFactors { values: [0; WIDTH], inverses: [0; WIDTH] }; LEVELS]; PAIRS];
    let mut pair = 0;
    while pair < PAIRS {
        let mut level = 0;
        while level < LEVELS {
            let of_pair = 2 << level;
            let mut lane = 0;
            while lane < WIDTH {
                let twiddle = twiddles[(PAIRS + pair) * of_pair + lane * of_pair / WIDTH];
                factors[pair][level].values[lane] = twiddle.value;
                factors[pair][level].inverses[lane] = twiddle.inverse;
                lane += 1;
            }
            level += 1;
        }
        pair += 1;
    }
    factors
}

macro_rules! ntt_functions {
    ($features:literal) => {
        use crate::constants::{INVERSE_ZETAS, SCALE, SCALE_AND_ZETA, ZETAS};
        use crate::parameters::N;
        use crate::polynomial::Polynomial;

        /// Vectors of 32 coefficients.
        const COLUMNS: usize = 32 / WIDTH;
        /// Vectors of the blocks that are worked on side by side. A single one would be waiting for its own results most of the time.
        const GROUP: usize = 8;
        /// Pairs of vectors of a polynomial.
        const PAIRS: usize = N / (2 * WIDTH);

        /// a + ζ · b and a − ζ · b.
        #[inline]
        #[target_feature(enable = $features)]
        fn forward(a: Vector, b: Vector, zeta: &Factor, q: Modulus) -> (Vector, Vector) {
            let t = multiply(b, zeta, q);
            (add(a, t), subtract(a, t))
        }

        /// a + b and (a − b) · ζ.
        #[inline]
        #[target_feature(enable = $features)]
        fn inverse(a: Vector, b: Vector, zeta: &Factor, q: Modulus) -> (Vector, Vector) {
            (add(a, b), multiply(subtract(a, b), zeta, q))
        }

        /// The transform of a polynomial (algorithm 41, NTT). Coefficients grow by at most 8q.
        #[target_feature(enable = $features)]
        pub(super) fn ntt(polynomial: &mut Polynomial) {
            let q = modulus();
            let w = polynomial.0.as_chunks_mut::<WIDTH>().0;
            for column in 0..COLUMNS {
                let mut v = [splat(0); 8];
                for (place, v) in v.iter_mut().enumerate() {
                    *v = load(&w[COLUMNS * place + column]);
                }
                let zeta = factor(&ZETAS[1]);
                for i in 0..4 {
                    (v[i], v[i + 4]) = forward(v[i], v[i + 4], &zeta, q);
                }
                for block in 0..2 {
                    let zeta = factor(&ZETAS[2 + block]);
                    for i in [4 * block, 4 * block + 1] {
                        (v[i], v[i + 2]) = forward(v[i], v[i + 2], &zeta, q);
                    }
                }
                for block in 0..4 {
                    let i = 2 * block;
                    (v[i], v[i + 1]) = forward(v[i], v[i + 1], &factor(&ZETAS[4 + block]), q);
                }
                for (place, v) in v.iter().enumerate() {
                    store(&mut w[COLUMNS * place + column], *v);
                }
            }
            for (group, w) in w.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
                forward_group(group, w, q);
            }
        }

        /// The polynomial of a transform, times 2³² (algorithm 42, NTT⁻¹), between −q and q. Coefficients are at most 3q/4 before.
        #[target_feature(enable = $features)]
        pub(super) fn inverse_ntt(polynomial: &mut Polynomial) {
            let q = modulus();
            let w = polynomial.0.as_chunks_mut::<WIDTH>().0;
            for (group, w) in w.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
                inverse_group(group, w, q);
            }
            for column in 0..COLUMNS {
                let mut v = [splat(0); 8];
                for (place, v) in v.iter_mut().enumerate() {
                    *v = load(&w[COLUMNS * place + column]);
                }
                for block in 0..4 {
                    let i = 2 * block;
                    (v[i], v[i + 1]) = inverse(v[i], v[i + 1], &factor(&INVERSE_ZETAS[4 + block]), q);
                }
                for block in 0..2 {
                    let zeta = factor(&INVERSE_ZETAS[2 + block]);
                    for i in [4 * block, 4 * block + 1] {
                        (v[i], v[i + 2]) = inverse(v[i], v[i + 2], &zeta, q);
                    }
                }
                let (scale, scale_and_zeta) = (factor(&SCALE), factor(&SCALE_AND_ZETA));
                for i in 0..4 {
                    let (a, b) = inverse(v[i], v[i + 4], &scale_and_zeta, q);
                    (v[i], v[i + 4]) = (multiply(a, &scale, q), b);
                }
                for (place, v) in v.iter().enumerate() {
                    store(&mut w[COLUMNS * place + column], *v);
                }
            }
        }
    };
}
pub(crate) use ntt_functions;
