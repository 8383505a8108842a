//! The messages of a session, sans-io (PostgreSQL documentation, "Message Formats"; protocols 3.0 and 3.2).
//!
//! A message is a type byte, an Int32 length that counts itself and not the type byte, and a body. [`frontend`] and [`backend`] know
//! the types of their direction, how long each may be, and the few bodies that a pooler looks at; everything else passes through
//! unread. A message above [`STREAM`] is never held as a whole: its header says how many bytes are to be passed on.

pub mod auth;
pub mod backend;
pub mod build;
mod cursor;
pub mod frontend;
mod fuzz;

pub use fuzz::{fuzz_auth, fuzz_wire};

/// Type byte and length.
pub const HEADER: usize = 5;
/// The longest message that is waited for as a whole; longer ones are passed on in pieces.
pub const STREAM: usize = 64 << 10;

/// The header of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The type byte.
    pub kind: u8,
    /// The length of the whole message in bytes, with the type byte.
    pub len: usize,
}

impl Head {
    /// Whether the message is passed on in pieces.
    pub fn is_streamed(self) -> bool {
        self.len > STREAM
    }
}

/// Why bytes are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A type that does not exist in this direction, or not in this phase.
    #[error("invalid message type {0}")]
    Kind(u8),
    /// The length is below 4 or above the limit of the type.
    #[error("invalid length of message type {0}")]
    Length(u8),
    /// The body is not what the type demands.
    #[error("invalid body of message type {0}")]
    Body(u8),
}

/// Reads a header; `limit` tells the longest body of a type with its length field, or `None` for a type that does not exist.
fn head(bytes: &[u8], limit: impl Fn(u8) -> Option<usize>) -> Result<Option<Head>, WireError> {
    let Some((&kind, rest)) = bytes.split_first() else { return Ok(None) };
    let limit = limit(kind).ok_or(WireError::Kind(kind))?;
    let Some((length, _)) = rest.split_first_chunk() else { return Ok(None) };
    match usize::try_from(i32::from_be_bytes(*length)) {
        Ok(length) if (4..=limit).contains(&length) => Ok(Some(Head { kind, len: length + 1 })),
        _ => Err(WireError::Length(kind)),
    }
}

/// The whole message at the start of the bytes without its header, when all of it is there.
pub fn body(bytes: &[u8], head: Head) -> Option<&[u8]> {
    bytes.get(HEADER..head.len)
}
