//! The permutation Keccak-f\[1600\] (FIPS 202, 3.3) for all kinds of words: it is a macro, because a function that uses vectors has to name the
//! processor's features itself.

/// The words of a state.
pub(crate) const WORDS: usize = 25;
/// Bytes of a block of SHAKE128.
pub(crate) const RATE_128: usize = 168;
/// Bytes of a block of SHAKE256.
pub(crate) const RATE_256: usize = 136;
/// What SHAKE appends to its input: the bits 1111 and the first 1 of the padding (FIPS 202, 6.2 and B.2).
pub(crate) const SUFFIX: u8 = 0x1f;

/// One state.
pub(crate) type State = [u64; WORDS];

/// How many states [`Lanes`] have.
pub(crate) const LANES: usize = 8;

/// Eight states, word by word.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub(crate) struct Lanes(pub(crate) [[u64; LANES]; WORDS]);

impl Lanes {
    pub(crate) const ZERO: Self = Self([[0; LANES]; WORDS]);

    /// The state of a lane below [`LANES`].
    #[allow(clippy::indexing_slicing, reason = "lanes are numbered by constants and loops below LANES")]
    pub(crate) fn get(&self, lane: usize) -> State {
        let mut state = [0; WORDS];
        for (word, words) in state.iter_mut().zip(&self.0) {
            *word = words[lane];
        }
        state
    }

    /// Sets the state of a lane below [`LANES`].
    #[allow(clippy::indexing_slicing, reason = "lanes are numbered by constants and loops below LANES")]
    pub(crate) fn set(&mut self, lane: usize, state: &State) {
        for (word, words) in state.iter().zip(&mut self.0) {
            words[lane] = *word;
        }
    }
}

/// A block of either rate, with room for whole vectors.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub(crate) struct Block(pub(crate) [u8; 192]);

impl Block {
    pub(crate) const ZERO: Self = Self([0; 192]);
}

/// The constants of the rounds (FIPS 202, 3.2.5).
pub(crate) const ROUND_CONSTANTS: [u64; 24] = [
    0x0000_0000_0000_0001,
    0x0000_0000_0000_8082,
    0x8000_0000_0000_808a,
    0x8000_0000_8000_8000,
    0x0000_0000_0000_808b,
    0x0000_0000_8000_0001,
    0x8000_0000_8000_8081,
    0x8000_0000_0000_8009,
    0x0000_0000_0000_008a,
    0x0000_0000_0000_0088,
    0x0000_0000_8000_8009,
    0x0000_0000_8000_000a,
    0x0000_0000_8000_808b,
    0x8000_0000_0000_008b,
    0x8000_0000_0000_8089,
    0x8000_0000_0000_8003,
    0x8000_0000_0000_8002,
    0x8000_0000_0000_0080,
    0x0000_0000_0000_800a,
    0x8000_0000_8000_000a,
    0x8000_0000_8000_8081,
    0x8000_0000_0000_8080,
    0x0000_0000_8000_0001,
    0x8000_0000_8000_8008,
];

/// The rounds on `$a`, 25 words A\[x, y\] at place x + 5y. Where it is used are the functions `xor3` (of three words), `rotate::<BITS>` to the
/// left, `chi` (a ⊕ ¬b ∧ c), and `iota` (a word and the constant).
macro_rules! keccak_f1600 {
    ($a:ident) => {
        for constant in &crate::keccak::ROUND_CONSTANTS {
            // θ: the parities of the columns, and the same rotated.
            let c0 = xor3(xor3($a[0], $a[5], $a[10]), $a[15], $a[20]);
            let c1 = xor3(xor3($a[1], $a[6], $a[11]), $a[16], $a[21]);
            let c2 = xor3(xor3($a[2], $a[7], $a[12]), $a[17], $a[22]);
            let c3 = xor3(xor3($a[3], $a[8], $a[13]), $a[18], $a[23]);
            let c4 = xor3(xor3($a[4], $a[9], $a[14]), $a[19], $a[24]);
            let (e0, e1, e2) = (rotate::<1>(c0), rotate::<1>(c1), rotate::<1>(c2));
            let (e3, e4) = (rotate::<1>(c3), rotate::<1>(c4));
            // ρ and π.
            let b0 = xor3($a[0], c4, e1);
            let b1 = rotate::<44>(xor3($a[6], c0, e2));
            let b2 = rotate::<43>(xor3($a[12], c1, e3));
            let b3 = rotate::<21>(xor3($a[18], c2, e4));
            let b4 = rotate::<14>(xor3($a[24], c3, e0));
            let b5 = rotate::<28>(xor3($a[3], c2, e4));
            let b6 = rotate::<20>(xor3($a[9], c3, e0));
            let b7 = rotate::<3>(xor3($a[10], c4, e1));
            let b8 = rotate::<45>(xor3($a[16], c0, e2));
            let b9 = rotate::<61>(xor3($a[22], c1, e3));
            let b10 = rotate::<1>(xor3($a[1], c0, e2));
            let b11 = rotate::<6>(xor3($a[7], c1, e3));
            let b12 = rotate::<25>(xor3($a[13], c2, e4));
            let b13 = rotate::<8>(xor3($a[19], c3, e0));
            let b14 = rotate::<18>(xor3($a[20], c4, e1));
            let b15 = rotate::<27>(xor3($a[4], c3, e0));
            let b16 = rotate::<36>(xor3($a[5], c4, e1));
            let b17 = rotate::<10>(xor3($a[11], c0, e2));
            let b18 = rotate::<15>(xor3($a[17], c1, e3));
            let b19 = rotate::<56>(xor3($a[23], c2, e4));
            let b20 = rotate::<62>(xor3($a[2], c1, e3));
            let b21 = rotate::<55>(xor3($a[8], c2, e4));
            let b22 = rotate::<39>(xor3($a[14], c3, e0));
            let b23 = rotate::<41>(xor3($a[15], c4, e1));
            let b24 = rotate::<2>(xor3($a[21], c0, e2));
            // χ and ι.
            $a = [
                iota(chi(b0, b1, b2), *constant),
                chi(b1, b2, b3),
                chi(b2, b3, b4),
                chi(b3, b4, b0),
                chi(b4, b0, b1),
                chi(b5, b6, b7),
                chi(b6, b7, b8),
                chi(b7, b8, b9),
                chi(b8, b9, b5),
                chi(b9, b5, b6),
                chi(b10, b11, b12),
                chi(b11, b12, b13),
                chi(b12, b13, b14),
                chi(b13, b14, b10),
                chi(b14, b10, b11),
                chi(b15, b16, b17),
                chi(b16, b17, b18),
                chi(b17, b18, b19),
                chi(b18, b19, b15),
                chi(b19, b15, b16),
                chi(b20, b21, b22),
                chi(b21, b22, b23),
                chi(b22, b23, b24),
                chi(b23, b24, b20),
                chi(b24, b20, b21),
            ];
        }
    };
}
pub(crate) use keccak_f1600;
