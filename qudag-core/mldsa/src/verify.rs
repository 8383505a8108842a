//! Verification of one signature (FIPS 204, 6.3).

use crate::encoding::{signature_decode, w1_encode};
use crate::field::{non_negative, reduce};
use crate::hash::{Edition, Mu, h};
use crate::key::ExpandedKey;
use crate::ntt::{Polynomial, inverse_ntt, multiply_add, ntt, subtract};
use crate::parameters::{BETA, C_TILDE_BYTES, GAMMA1, K, N, SIGNATURE_BYTES};
use crate::rounding::use_hint;
use crate::sampling::sample_in_ball;

/// Why a signature is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// Not 3,309 bytes.
    #[error("a signature has 3309 bytes")]
    Length,
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

/// Verifies a signature of a message by its μ (algorithm 8, ML-DSA.Verify_internal, from step 8).
///
/// # Errors
/// When it is none, with the first reason that was found.
pub fn verify(key: &ExpandedKey, edition: Edition, mu: &Mu, signature: &[u8]) -> Result<(), Rejected> {
    let signature: &[u8; SIGNATURE_BYTES] = signature.try_into().map_err(|_| Rejected::Length)?;
    let mut signature = signature_decode(signature).ok_or(Rejected::Hints)?;
    if signature.z.iter().flat_map(|z| &z.0).any(|coefficient| coefficient.abs() >= GAMMA1 - BETA) {
        return Err(Rejected::Range);
    }
    let seed = match edition {
        Edition::Final => &signature.c_tilde[..],
        Edition::Draft => signature.c_tilde.get(..32).unwrap_or_default(),
    };
    let mut c = sample_in_ball(seed);
    ntt(&mut c);
    signature.z.iter_mut().for_each(ntt);
    let mut w1 = [[0; N]; K];
    for (((row, t1), hints), w1) in key.a.iter().zip(&key.t1).zip(&signature.hints).zip(&mut w1) {
        // w′ = NTT⁻¹(Â ∘ NTT(z) − NTT(c) ∘ NTT(t₁ · 2ᵈ)).
        let (mut w, mut ct1) = (Polynomial::ZERO, Polynomial::ZERO);
        for (a, z) in row.iter().zip(&signature.z) {
            multiply_add(&mut w, a, z);
        }
        multiply_add(&mut ct1, &c, t1);
        subtract(&mut w, &ct1);
        inverse_ntt(&mut w);
        for ((w1, w), hint) in w1.iter_mut().zip(&w.0).zip(hints) {
            *w1 = use_hint(*hint, non_negative(reduce(*w))) as u8;
        }
    }
    let mut c_tilde = [0; C_TILDE_BYTES];
    h(&[&mu.0, &w1_encode(&w1)], &mut c_tilde);
    if c_tilde == *signature.c_tilde { Ok(()) } else { Err(Rejected::Mismatch) }
}
