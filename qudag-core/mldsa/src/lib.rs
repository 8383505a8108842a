//! Verification of ML-DSA-65 signatures by FIPS 204 ("Module-Lattice-Based Digital Signature Standard", August 2024) and by its initial
//! public draft of August 2023, which QuDAG nodes sign with. The two differ in little, see [`Edition`].
//!
//! Nothing here handles a secret, so nothing has to run in constant time. Names are those of the standard; where its Greek letters are
//! written out, `gamma1` is γ₁ and `c_tilde` is c̃.

mod backend;
mod batch;
mod constants;
mod encoding;
mod hash;
#[cfg(debug_assertions)]
mod illegal;
mod keccak;
mod key;
mod lanes;
mod parameters;
mod polynomial;
mod sampling;
mod self_test;
mod sponge;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod verify;

pub use backend::{BACKEND_VARIABLE, Backend, UnknownBackend};
pub use batch::{Content, Job, Key, Scratch, verify_batch};
pub use hash::{Edition, Mu, TooLong};
#[cfg(debug_assertions)]
pub use illegal::illegal_instruction;
pub use key::{ExpandedKey, PublicKey};
pub use parameters::{PUBLIC_KEY_BYTES, SIGNATURE_BYTES};
pub use self_test::{KNOWN_ANSWERS, KnownAnswer, SelfTestFailed, self_test};
pub use verify::{Rejected, matches_in_any_range, verify};

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests report by panicking")]
mod tests;
