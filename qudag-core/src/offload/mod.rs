//! `QDC1`: the binary protocol of the crypto listener, in which programs have signatures verified and data hashed in batches.
//!
//! A client sends the [`PREAMBLE`] `QDC1` and then request frames, as many at a time as it likes. The server's first frame is [`Reply::Welcome`]
//! with its limits, or [`Reply::Error`] when it does not take the connection; every other one is the reply to a request, with the
//! request's id. Replies come in any order. Numbers are unsigned and big-endian.
//!
//! # Frames
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | length of the body, without these 12 bytes |
//! | 4 | 4 | id of the request, which the client chooses; 0 in a frame that belongs to none |
//! | 8 | 1 | sort |
//! | 9 | 1 | flags: of a request 1 when another sidecar passes it on ([`Header::ROUTED`]), otherwise 0 |
//! | 10 | 2 | how many operations or results there are |
//! | 12 | | the body |
//!
//! # Requests
//!
//! | sort | request | body |
//! |---|---|---|
//! | 1 | register keys | a [`NewKey`] an operation |
//! | 2 | verify signatures | a [`Signature`] an operation |
//! | 3 | verify fingerprints | a [`Fingerprint`] an operation |
//! | 4 | hash data | a [`Digest`] an operation |
//! | 5 | status of the service | empty; 0 operations |
//!
//! Operations stand one behind the other:
//!
//! | operation | bytes | what |
//! |---|---|---|
//! | [`NewKey`] | 1,952 | the public key |
//! | [`Signature`] | 1 | [`Key`]: 0 its id, 1 the key itself |
//! | | 1 | [`Edition`]: 1 the initial public draft, 2 the final standard |
//! | | 1 | [`Content`]: 1 μ, 2 a message |
//! | | 1 | length of the context; 0 with μ |
//! | | 4 | length of the message; 64 with μ |
//! | | 4 | length of the signature |
//! | | 32 or 1,952 | the id or the key |
//! | | | the context |
//! | | | μ or the message |
//! | | | the signature |
//! | [`Fingerprint`] | 1 | [`Key`]: 0 its id, 1 the key itself |
//! | | 3 | 0 |
//! | | 4 | length of the data |
//! | | 4 | length of the signature |
//! | | 32 or 1,952 | the id or the key |
//! | | 64 | the fingerprint |
//! | | | the data |
//! | | | the signature |
//! | [`Digest`] | 2 | length of the hash, 1 to 1,024 |
//! | | 2 | 0 |
//! | | 4 | length of the data |
//! | | | the data |
//!
//! # Replies
//!
//! | sort | reply | body |
//! |---|---|---|
//! | 128 | [`Reply::Welcome`] | the longest body of a request (4), the most operations of a request (2), 0 (2), the most requests at once on this connection (4) |
//! | 129 | [`Reply::Keys`] | the id of each key (32), its BLAKE3 hash |
//! | 130 | [`Reply::Verdicts`] | a [`Verdict`] (1) an operation |
//! | 132 | [`Reply::Hashes`] | for each its length (2) and the hash |
//! | 133 | [`Reply::Status`] | JSON |
//! | 255 | [`Reply::Error`] | a [`Code`] (1), 0 (3), milliseconds after which to try again, 0 if unknown (4), a text in UTF-8 |
//!
//! | verdict | | |
//! |---|---|---|
//! | 0 | [`Verdict::Valid`] | the signature is of that key and content |
//! | 1 | [`Verdict::Length`] | it has not 3,309 bytes |
//! | 2 | [`Verdict::Context`] | a context with the draft |
//! | 3 | [`Verdict::Hints`] | its hints are malformed |
//! | 4 | [`Verdict::Range`] | its z is out of range |
//! | 5 | [`Verdict::Mismatch`] | it is of another key or content |
//! | 6 | [`Verdict::OtherData`] | the fingerprint is of other data |
//! | 7 | [`Verdict::UnknownKey`] | no key with that id is known (any more) |
//!
//! | code | | may be tried again |
//! |---|---|---|
//! | 1 | [`Code::Malformed`] | no |
//! | 2 | [`Code::TooLarge`] | no |
//! | 3 | [`Code::Refused`] | no |
//! | 4 | [`Code::RateLimited`] | after the time |
//! | 5 | [`Code::Overloaded`] | later |
//! | 6 | [`Code::Draining`] | on a new connection |
//! | 7 | [`Code::Timeout`] | later |
//! | 8 | [`Code::Internal`] | later |
//!
//! An error takes the place of a request's whole reply. One with id 0 belongs to no request that could be read; the connection ends after it.
//!
//! Nothing here hashes or verifies: this module knows bytes alone.

mod frame;
mod operation;
mod reply;
mod request;
#[cfg(test)]
mod tests;

pub use frame::{Decoder, Frame, HEADER, Header, PREAMBLE};
pub use operation::{
    Content, Digest, Edition, Fingerprint, Key, NewKey, Operation, Operations, Signature, Unencodable,
};
pub use reply::{Code, Limits, Refusal, Reply, Verdict};
pub use request::{Request, encode_batch, encode_routed, encode_status};

/// Bytes of a public key.
pub const PUBLIC_KEY_BYTES: usize = 1_952;
/// Bytes of a signature that can be valid.
pub const SIGNATURE_BYTES: usize = 3_309;
/// Bytes of the id of a key.
pub const KEY_ID_BYTES: usize = 32;
/// Bytes of a message representative μ.
pub const MU_BYTES: usize = 64;
/// Bytes of a fingerprint.
pub const FINGERPRINT_BYTES: usize = 64;
/// The longest hash, in bytes.
pub const MAX_HASH_BYTES: u16 = 1_024;

/// A frame's body that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// An operation cannot be read.
    #[error("operations[{operation}]: {why}")]
    Operation {
        /// Its place, from 0.
        operation: u16,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The frame as a whole is wrong.
    #[error("{0}")]
    Frame(&'static str),
}
