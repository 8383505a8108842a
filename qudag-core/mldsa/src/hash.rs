//! What is hashed before anything is verified: the message representative μ.

use shake::Shake256;
use shake::digest::{ExtendableOutput, Update, XofReader};

use crate::key::TR_BYTES;

/// Which text of the standard a signature follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Edition {
    /// FIPS 204 of August 2024 without pre-hashing: M′ begins with a byte 0, the length of the context and the context; the challenge is sampled from all of c̃
    /// (algorithms 3 and 8).
    Final,
    /// The initial public draft of August 2023, as QuDAG signs: M′ is the message alone, and the challenge is sampled from the first 32 bytes of c̃.
    Draft,
}

/// The message representative μ: 64 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mu(pub [u8; 64]);

/// A context is longer than 255 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a context has at most 255 bytes")]
pub struct TooLong;

/// The μ of a message that is read in pieces.
pub struct MuOf(Shake256);

impl MuOf {
    /// For a key by its hash tr, H(pk, 64). `context` is of [`Edition::Final`] alone.
    ///
    /// # Errors
    /// When the context is longer than 255 bytes, or the edition has none.
    pub fn new(tr: &[u8; TR_BYTES], edition: Edition, context: &[u8]) -> Result<Self, TooLong> {
        let mut hash = Shake256::default();
        hash.update(tr);
        match edition {
            Edition::Final => {
                let length = u8::try_from(context.len()).map_err(|_| TooLong)?;
                hash.update(&[0, length]);
                hash.update(context);
            }
            Edition::Draft if context.is_empty() => {}
            Edition::Draft => return Err(TooLong),
        }
        Ok(Self(hash))
    }

    /// More of the message.
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// μ of the whole message.
    pub fn finish(self) -> Mu {
        let mut mu = [0; 64];
        self.0.finalize_xof().read(&mut mu);
        Mu(mu)
    }
}

/// H(parts, length of `out`): SHAKE256 of all parts one after the other.
pub(crate) fn h(parts: &[&[u8]], out: &mut [u8]) {
    let mut hash = Shake256::default();
    for part in parts {
        hash.update(part);
    }
    hash.finalize_xof().read(out);
}
