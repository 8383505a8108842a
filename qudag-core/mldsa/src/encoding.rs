//! Keys and signatures in their parts (FIPS 204, 7.2). The polynomials in them are decoded by the backends.

use crate::parameters::{C_TILDE_BYTES, K, L, OMEGA, SIGNATURE_BYTES, Z_BYTES};

/// The hints of a signature, as it holds them: the places of those that are 1, polynomial after polynomial in ascending order, and after how
/// many of them each polynomial ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hints<'a> {
    places: &'a [u8; OMEGA],
    ends: &'a [u8; K],
}

impl<'a> Hints<'a> {
    /// The hints, or `None` where they are not written in the only right way (algorithm 21, HintBitUnpack).
    pub(crate) fn decode(y: &'a [u8; OMEGA + K]) -> Option<Self> {
        let (places, ends) = (y.first_chunk::<OMEGA>()?, y.last_chunk::<K>()?);
        let mut index = 0;
        for end in ends {
            let own = places.get(index..usize::from(*end))?;
            if !own.is_sorted_by(|one, next| one < next) {
                return None;
            }
            index = usize::from(*end);
        }
        let hints = Self { places, ends };
        places.get(index..)?.iter().all(|rest| *rest == 0).then_some(hints)
    }

    /// For each polynomial the places of its hints that are 1.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &'a [u8]> {
        let (places, mut index) = (self.places, 0);
        self.ends.iter().map(move |end| {
            let own = places.get(index..usize::from(*end)).unwrap_or_default();
            index = usize::from(*end);
            own
        })
    }
}

/// A signature in its parts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signature<'a> {
    pub(crate) c_tilde: &'a [u8; C_TILDE_BYTES],
    pub(crate) z: &'a [u8; L * Z_BYTES],
    pub(crate) hints: Hints<'a>,
}

impl<'a> Signature<'a> {
    /// A signature, or `None` where its hints are malformed (algorithm 27, sigDecode).
    pub(crate) fn decode(bytes: &'a [u8; SIGNATURE_BYTES]) -> Option<Self> {
        let (c_tilde, rest) = bytes.split_first_chunk()?;
        let (z, hints) = rest.split_first_chunk()?;
        Some(Self { c_tilde, z, hints: Hints::decode(hints.first_chunk()?)? })
    }
}
