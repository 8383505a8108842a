//! Has signatures verified and data hashed by the sidecar, over its Unix socket and the binary protocol `QDC1`
//! ([`qudag_core::offload`] describes it). Without a sidecar, or when it refuses, the program does the work itself, if it chooses so.
//!
//! ```no_run
//! use qudag_offload_client::{Client, Content, Edition, Key, Signature, Verdict};
//!
//! # fn some(_: &str) -> Vec<u8> { Vec::new() }
//! # fn main() -> Result<(), qudag_offload_client::Error> {
//! let (key, message, signature) = (some("key"), some("message"), some("signature"));
//! let mut client = Client::connect("/run/qudag-sidecar/crypto.sock")?;
//! let answer = client.verify(&[Signature {
//!     key: Key::Public(&key[..]),
//!     edition: Edition::Draft,
//!     content: Content::Message { context: &[][..], message: &message[..] },
//!     signature: &signature[..],
//! }])?;
//! println!("{:?}, said by {}", answer.value, answer.by);
//! assert_eq!(answer.value, [Verdict::Valid]);
//! # Ok(())
//! # }
//! ```
//!
//! Blocking, without a runtime and without threads; a client belongs to one thread at a time. All that it asks for can be asked for twice, so a
//! request that broke off with its connection is sent once more on a new one.

mod client;
mod connection;
mod error;
mod in_process;

pub use client::{Answer, By, Client, Fallback, Options};
pub use error::Error;
pub use qudag_core::offload::{
    Code, Content, Digest, Edition, FINGERPRINT_BYTES, Fingerprint, KEY_ID_BYTES, Key, MAX_HASH_BYTES,
    MU_BYTES, PUBLIC_KEY_BYTES, Refusal, SIGNATURE_BYTES, Signature, Unencodable, Verdict,
};
