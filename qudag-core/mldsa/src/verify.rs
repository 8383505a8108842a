//! Verification of one signature (FIPS 204, 6.3).

use crate::backend::{Backend, Engine, with_engine};
use crate::encoding::Signature;
use crate::hash::{Edition, Mu, TooLong};
use crate::keccak::RATE_256;
use crate::key::ExpandedKey;
use crate::parameters::{C_TILDE_BYTES, K, L, SIGNATURE_BYTES, W1_BYTES};
use crate::polynomial::Polynomial;
use crate::sampling::sample_in_ball;
use crate::sponge::{Sponge, output};

/// Why a signature is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Rejected {
    /// Not 3,309 bytes.
    #[error("a signature has 3309 bytes")]
    Length,
    /// A context of more than 255 bytes, or one with a signature of the draft.
    #[error("a context has at most 255 bytes, and the draft knows none")]
    Context,
    /// Hints that are not in order, not all there, or followed by something.
    #[error("malformed hints")]
    Hints,
    /// A coefficient of z is γ₁ − β or more. QuDAG nodes on AVX2 do not look at that.
    #[error("z is out of range")]
    Range,
    /// The challenge is another one: the signature is of another message or key.
    #[error("the signature does not match")]
    Mismatch,
}

impl From<TooLong> for Rejected {
    fn from(_: TooLong) -> Self {
        Self::Context
    }
}

/// Verifies a signature of a message by its μ (algorithm 8, ML-DSA.Verify_internal, from step 8).
///
/// # Errors
/// When it is none, with the first reason that was found.
pub fn verify(
    backend: Backend,
    key: &ExpandedKey,
    edition: Edition,
    mu: &Mu,
    signature: &[u8],
) -> Result<(), Rejected> {
    with_engine!(backend, verify_with, key, edition, mu, signature)
}

fn verify_with<E: Engine>(
    engine: E,
    key: &ExpandedKey,
    edition: Edition,
    mu: &Mu,
    signature: &[u8],
) -> Result<(), Rejected> {
    let signature = parse(signature)?;
    let mut z = [const { Polynomial::ZERO }; L];
    if !engine.z_decode(signature.z, &mut z) {
        return Err(Rejected::Range);
    }
    if matches(engine, key, edition, mu, &signature, &mut z) { Ok(()) } else { Err(Rejected::Mismatch) }
}

/// Whether a verifier that does not look at the range of z accepts a signature, as QuDAG nodes on AVX2 do. Where [`verify`] says
/// [`Rejected::Range`] and this is true, somebody who has the key made a signature that nodes do not agree on.
pub fn matches_in_any_range(
    backend: Backend,
    key: &ExpandedKey,
    edition: Edition,
    mu: &Mu,
    signature: &[u8],
) -> bool {
    with_engine!(backend, matches_with, key, edition, mu, signature)
}

fn matches_with<E: Engine>(
    engine: E,
    key: &ExpandedKey,
    edition: Edition,
    mu: &Mu,
    signature: &[u8],
) -> bool {
    let mut z = [const { Polynomial::ZERO }; L];
    parse(signature).is_ok_and(|signature| {
        engine.z_decode(signature.z, &mut z);
        matches(engine, key, edition, mu, &signature, &mut z)
    })
}

/// Whether the challenge is that of the message and the commitment (algorithm 8, steps 8 to 13 without the range of z). z is transformed.
fn matches<E: Engine>(
    engine: E,
    key: &ExpandedKey,
    edition: Edition,
    mu: &Mu,
    signature: &Signature<'_>,
    z: &mut [Polynomial; L],
) -> bool {
    let permute = |state: &mut _| engine.permute(state);
    let mut sponge = Sponge::<RATE_256>::new();
    sponge.update(challenge_seed(edition, signature.c_tilde), permute);
    let mut c = Polynomial::ZERO;
    sample_in_ball(engine, &mut sponge.finish(permute), &mut c);
    let mut w1 = [0; K * W1_BYTES];
    commit(engine, key, &mut c, z, signature, &mut w1);
    let mut sponge = Sponge::<RATE_256>::new();
    sponge.update(&mu.0, permute);
    sponge.update(&w1, permute);
    let c_tilde: [u8; C_TILDE_BYTES] = output(&sponge.finish(permute));
    c_tilde == *signature.c_tilde
}

/// A signature in its parts.
pub(crate) fn parse(signature: &[u8]) -> Result<Signature<'_>, Rejected> {
    let signature: &[u8; SIGNATURE_BYTES] = signature.try_into().map_err(|_| Rejected::Length)?;
    Signature::decode(signature).ok_or(Rejected::Hints)
}

/// What the challenge is sampled from.
pub(crate) fn challenge_seed(edition: Edition, c_tilde: &[u8; C_TILDE_BYTES]) -> &[u8] {
    match edition {
        Edition::Final => c_tilde,
        Edition::Draft => c_tilde.first_chunk::<32>().map_or(&[], |seed| seed),
    }
}

/// The commitment as bytes (algorithm 8, steps 9, 10 and 12 up to w1Encode), from the challenge and the response, which are transformed.
#[inline]
pub(crate) fn commit<E: Engine>(
    engine: E,
    key: &ExpandedKey,
    c: &mut Polynomial,
    z: &mut [Polynomial; L],
    signature: &Signature<'_>,
    w1: &mut [u8; K * W1_BYTES],
) {
    engine.ntt(c);
    z.iter_mut().for_each(|z| engine.ntt(z));
    let mut w = Polynomial::ZERO;
    let rows = key.a.iter().zip(&key.t1).zip(signature.hints.rows());
    for (((a, t1), hints), w1) in rows.zip(w1.as_chunks_mut().0) {
        // w′ = NTT⁻¹(Â ∘ NTT(z) − NTT(c) ∘ NTT(t₁ · 2ᵈ)).
        engine.multiply_row(a, z, t1, c, &mut w);
        engine.inverse_ntt(&mut w);
        engine.w1_encode(&w, hints, w1);
    }
}
