//! The parameters of ML-DSA-65 (FIPS 204, table 1) and the sizes that follow from them (table 2).

/// The modulus, 2²³ − 2¹³ + 1.
pub(crate) const Q: i32 = 8_380_417;
/// Coefficients of a polynomial of R_q = ℤ_q\[X\]/(X²⁵⁶ + 1).
pub(crate) const N: usize = 256;
/// How many bits of t are dropped.
pub(crate) const D: u32 = 13;
/// How many coefficients of the challenge are ±1: τ.
pub(crate) const TAU: usize = 49;
/// Bytes of c̃: λ/4.
pub(crate) const C_TILDE_BYTES: usize = 48;
/// The range of the coefficients of y: γ₁.
pub(crate) const GAMMA1: i32 = 1 << 19;
/// The range of low-order rounding: γ₂ = (q − 1)/32.
pub(crate) const GAMMA2: i32 = (Q - 1) / 32;
/// Rows and columns of the matrix A: k and ℓ.
pub(crate) const K: usize = 6;
pub(crate) const L: usize = 5;
/// The range of the private key, η, and τ·η.
const ETA: i32 = 4;
pub(crate) const BETA: i32 = TAU as i32 * ETA;
/// The most hints that are 1: ω.
pub(crate) const OMEGA: usize = 55;

/// Bytes of a seed, ρ.
pub(crate) const SEED_BYTES: usize = 32;
/// Bytes of a polynomial of t₁: ten bits a coefficient.
pub(crate) const T1_BYTES: usize = N * 10 / 8;
/// Bytes of a polynomial of z: twenty bits a coefficient.
pub(crate) const Z_BYTES: usize = N * 20 / 8;
/// Bytes of a polynomial of w₁: four bits a coefficient.
pub(crate) const W1_BYTES: usize = N * 4 / 8;
/// Bytes of a public key.
pub const PUBLIC_KEY_BYTES: usize = SEED_BYTES + K * T1_BYTES;
/// Bytes of a signature.
pub const SIGNATURE_BYTES: usize = C_TILDE_BYTES + L * Z_BYTES + OMEGA + K;

const _: () = assert!(PUBLIC_KEY_BYTES == 1952 && SIGNATURE_BYTES == 3309, "table 2");
