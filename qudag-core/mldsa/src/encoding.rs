//! Keys, signatures and commitments as bytes (FIPS 204, 7.1 and 7.2).

use crate::ntt::Polynomial;
use crate::parameters::{
    C_TILDE_BYTES, GAMMA1, K, L, N, OMEGA, SIGNATURE_BYTES, T1_BYTES, W1_BYTES, Z_BYTES,
};

/// A polynomial of t₁: ten bits a coefficient (algorithm 18, SimpleBitUnpack).
pub(crate) fn t1_decode(bytes: &[u8; T1_BYTES]) -> Polynomial {
    let mut t1 = Polynomial::ZERO;
    for (four, bytes) in t1.0.chunks_exact_mut(4).zip(bytes.chunks_exact(5)) {
        let bits = bytes.iter().rev().fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
        for (place, coefficient) in four.iter_mut().enumerate() {
            *coefficient = (bits >> (10 * place) & 0x3ff) as i32;
        }
    }
    t1
}

/// A polynomial of z: γ₁ minus twenty bits a coefficient (algorithm 19, BitUnpack).
fn z_decode(bytes: &[u8]) -> Polynomial {
    let mut z = Polynomial::ZERO;
    for (two, bytes) in z.0.chunks_exact_mut(2).zip(bytes.chunks_exact(5)) {
        let bits = bytes.iter().rev().fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
        for (place, coefficient) in two.iter_mut().enumerate() {
            *coefficient = GAMMA1 - (bits >> (20 * place) & 0xf_ffff) as i32;
        }
    }
    z
}

/// The hints: for each polynomial, whether its coefficients are corrected.
pub(crate) type Hints = [[bool; N]; K];

/// The hints, or `None` where they are not written in the only right way (algorithm 21, HintBitUnpack).
fn hint_decode(y: &[u8]) -> Option<Hints> {
    let mut hints = [[false; N]; K];
    let (places, ends) = y.split_at_checked(OMEGA)?;
    let mut index = 0;
    for (hint, end) in hints.iter_mut().zip(ends) {
        let end = usize::from(*end);
        if end < index || end > OMEGA {
            return None;
        }
        let own = places.get(index..end)?;
        if !own.is_sorted_by(|one, next| one < next) {
            return None;
        }
        for place in own {
            *hint.get_mut(usize::from(*place))? = true;
        }
        index = end;
    }
    places.get(index..)?.iter().all(|rest| *rest == 0).then_some(hints)
}

/// A signature in its parts.
pub(crate) struct Signature<'a> {
    pub(crate) c_tilde: &'a [u8; C_TILDE_BYTES],
    pub(crate) z: [Polynomial; L],
    pub(crate) hints: Hints,
}

/// A signature, or `None` where its hints are malformed (algorithm 27, sigDecode).
pub(crate) fn signature_decode(bytes: &[u8; SIGNATURE_BYTES]) -> Option<Signature<'_>> {
    let (c_tilde, rest) = bytes.split_first_chunk()?;
    let (z, hints) = rest.split_at_checked(L * Z_BYTES)?;
    let hints = hint_decode(hints)?;
    let mut pieces = z.chunks_exact(Z_BYTES);
    let z = std::array::from_fn(|_| pieces.next().map_or(Polynomial::ZERO, z_decode));
    Some(Signature { c_tilde, z, hints })
}

/// The commitment w₁: four bits a coefficient (algorithm 28, w1Encode).
pub(crate) fn w1_encode(w1: &[[u8; N]; K]) -> [u8; K * W1_BYTES] {
    let mut out = [0; K * W1_BYTES];
    for (byte, two) in out.iter_mut().zip(w1.iter().flat_map(|row| row.chunks_exact(2))) {
        if let &[low, high] = two {
            *byte = low | high << 4;
        }
    }
    out
}
