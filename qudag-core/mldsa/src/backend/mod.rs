//! Implementations of what takes time, for several kinds of processors. They give the same results to the bit.

#[cfg(target_arch = "x86_64")]
#[allow(clippy::indexing_slicing, reason = "by constants and loops of fixed length, in arrays of fixed size")]
mod avx2;
#[cfg(target_arch = "x86_64")]
#[allow(clippy::indexing_slicing, reason = "by constants and loops of fixed length, in arrays of fixed size")]
mod avx512;
pub(crate) mod portable;
#[cfg(target_arch = "x86_64")]
mod simd;

use std::fmt;
use std::str::FromStr;

use crate::keccak::{Block, LANES, Lanes, State};
use crate::parameters::{K, L, T1_BYTES, W1_BYTES, Z_BYTES};
use crate::polynomial::Polynomial;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
pub(crate) use portable::Portable;
pub(crate) use portable::permute as portable_permutation;

/// The name of the environment variable that [`Backend::from_environment`] reads.
pub const BACKEND_VARIABLE: &str = "QUDAG_CRYPTO_BACKEND";

/// An implementation. One that the processor cannot run does the work of [`Backend::Portable`] instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Backend {
    /// Plain Rust, for all processors. It follows the standard's pseudo-code and is what the others are compared with.
    Portable,
    /// AVX2 with BMI1 and BMI2: eight coefficients or four hashes at a time.
    Avx2,
    /// AVX-512 with F, BW, DQ, VL and VBMI: sixteen coefficients or eight hashes at a time.
    Avx512,
}

/// Not the name of a backend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no backend: portable, avx2 and avx512 are")]
pub struct UnknownBackend(pub String);

impl Backend {
    /// All, the slowest first.
    pub const ALL: [Self; 3] = [Self::Portable, Self::Avx2, Self::Avx512];

    /// The name: `portable`, `avx2` or `avx512`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// Whether this processor can run it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => Avx2::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => Avx512::detect().is_some(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// Those that this processor can run, the slowest first.
    pub fn available() -> impl DoubleEndedIterator<Item = Self> {
        Self::ALL.into_iter().filter(|backend| backend.is_available())
    }

    /// The fastest that this processor can run.
    pub fn best() -> Self {
        Self::available().next_back().unwrap_or(Self::Portable)
    }

    /// The backend that the environment variable [`BACKEND_VARIABLE`] names, if it is set. Nothing else reads that variable: whoever wants it to
    /// count, as tests and benchmarks do, passes on what this returns.
    ///
    /// # Errors
    /// When it names none.
    pub fn from_environment() -> Result<Option<Self>, UnknownBackend> {
        match std::env::var_os(BACKEND_VARIABLE) {
            None => Ok(None),
            Some(name) => name.to_string_lossy().parse().map(Some),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Backend {
    type Err = UnknownBackend;

    fn from_str(name: &str) -> Result<Self, UnknownBackend> {
        let known = Self::ALL.into_iter().find(|backend| backend.name() == name);
        known.ok_or_else(|| UnknownBackend(name.to_owned()))
    }
}

/// What a backend has to do. A value of it is proof that the processor can.
pub(crate) trait Engine: Copy {
    /// How many states are permuted at once, at most [`LANES`].
    const LANES: usize;

    /// Keccak-f\[1600\] of one state.
    fn permute(self, state: &mut State);

    /// Keccak-f\[1600\] of the first `Self::LANES` states.
    fn permute_lanes(self, lanes: &mut Lanes);

    /// Adds a block of SHAKE256 to each of the first `Self::LANES` states.
    fn absorb(self, lanes: &mut Lanes, blocks: &[Block; LANES]);

    /// The next block of either SHAKE from each of the first `Self::LANES` states.
    fn squeeze(self, lanes: &Lanes, blocks: &mut [Block; LANES]);

    /// Appends the coefficients that a block of SHAKE128 holds to the first `filled` ones of a polynomial, and returns how many there are then
    /// (algorithms 30, RejNTTPoly, and 14, CoeffFromThreeBytes). What is behind them is undefined.
    fn reject(self, block: &Block, a: &mut Polynomial, filled: usize) -> usize;

    /// Polynomials of t₁ · 2ᵈ (algorithm 18, SimpleBitUnpack).
    fn t1_decode(self, bytes: &[u8; K * T1_BYTES], t1: &mut [Polynomial; K]);

    /// Polynomials of z (algorithm 19, BitUnpack), and whether all coefficients are below γ₁ − β.
    fn z_decode(self, bytes: &[u8; L * Z_BYTES], z: &mut [Polynomial; L]) -> bool;

    /// The transform of a polynomial (algorithm 41, NTT). Coefficients grow by at most 8q.
    fn ntt(self, w: &mut Polynomial);

    /// A row of Â ∘ ẑ − t̂₁ ∘ ĉ, times 2⁻³², between −3q/4 and 3q/4 (algorithms 48, MatrixVectorNTT, and 47, ScalarVectorNTT). Factors of the
    /// key are at most 9q, z and c too: the sum of the products is below 126 q².
    fn multiply_row(
        self,
        a: &[Polynomial; L],
        z: &[Polynomial; L],
        t1: &Polynomial,
        c: &Polynomial,
        w: &mut Polynomial,
    );

    /// The polynomial of a transform, times 2³² (algorithm 42, NTT⁻¹), between −q and q. Coefficients are at most 3q/4 before.
    fn inverse_ntt(self, w: &mut Polynomial);

    /// A polynomial of the commitment as bytes, from coefficients between −q and q (algorithms 40, UseHint, and 28, w1Encode). `hints` are the
    /// places of the hints that are 1.
    fn w1_encode(self, w: &Polynomial, hints: &[u8], w1: &mut [u8; W1_BYTES]);
}

/// Calls a function with the engine of a backend as its first argument.
macro_rules! with_engine {
    ($backend:expr, $function:path, $($argument:expr),* $(,)?) => {
        match $backend {
            #[cfg(target_arch = "x86_64")]
            $crate::Backend::Avx512 if let Some(engine) = $crate::backend::Avx512::detect() => {
                $function(engine, $($argument),*)
            }
            #[cfg(target_arch = "x86_64")]
            $crate::Backend::Avx2 if let Some(engine) = $crate::backend::Avx2::detect() => {
                $function(engine, $($argument),*)
            }
            _ => $function($crate::backend::Portable, $($argument),*),
        }
    };
}
pub(crate) use with_engine;
