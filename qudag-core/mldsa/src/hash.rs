//! What is hashed before anything is verified: the message representative μ.

use crate::backend::portable_permutation;
use crate::keccak::RATE_256;
use crate::key::TR_BYTES;
use crate::sponge::{Sponge, output};

/// Which text of the standard a signature follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Edition {
    /// FIPS 204 of August 2024 without pre-hashing: M′ begins with a byte 0, the length of the context and the context; the challenge is sampled from all of c̃
    /// (algorithms 3 and 8).
    Final,
    /// The initial public draft of August 2023, as QuDAG signs: M′ is the message alone, and the challenge is sampled from the first 32 bytes of c̃.
    Draft,
}

/// Bytes of μ.
pub(crate) const MU_BYTES: usize = 64;

/// The message representative μ: 64 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mu(pub [u8; MU_BYTES]);

/// A context is longer than 255 bytes, or the edition has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a context has at most 255 bytes, and the draft knows none")]
pub struct TooLong;

/// What comes before a message in M′, and its length: a byte 0 and the length of the context, which follows.
pub(crate) fn prefix(edition: Edition, context: &[u8]) -> Result<([u8; 2], usize), TooLong> {
    match edition {
        Edition::Final => Ok(([0, u8::try_from(context.len()).map_err(|_| TooLong)?], 2)),
        Edition::Draft if context.is_empty() => Ok(([0; 2], 0)),
        Edition::Draft => Err(TooLong),
    }
}

/// μ of a message, for a key by its hash tr (algorithm 7, step 6).
pub(crate) fn mu(
    tr: &[u8; TR_BYTES],
    edition: Edition,
    context: &[u8],
    message: &[u8],
) -> Result<Mu, TooLong> {
    let (prefix, length) = prefix(edition, context)?;
    let mut sponge = Sponge::<RATE_256>::new();
    for piece in [&tr[..], prefix.get(..length).unwrap_or_default(), context, message] {
        sponge.update(piece, portable_permutation);
    }
    Ok(Mu(output(&sponge.finish(portable_permutation))))
}
