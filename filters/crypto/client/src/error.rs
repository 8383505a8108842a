//! What can go wrong between a program and its sidecar.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use qudag_core::offload::{Malformed, Refusal, Unencodable};

/// Why the sidecar has not answered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens there.
    #[error("cannot connect to {path}: {source}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The sidecar has failed a moment ago and is not tried again yet.
    #[error("{why}; tried again in {again:?}")]
    Waiting {
        /// How it has failed.
        why: String,
        /// When it is tried again.
        again: Duration,
    },
    /// The connection broke off.
    #[error("the connection broke off: {0}")]
    Broken(#[from] io::Error),
    /// The answer took too long.
    #[error("no answer within {after:?}")]
    Timeout {
        /// The deadline.
        after: Duration,
    },
    /// What came is no answer to what was asked.
    #[error("not the answer to the request: {0}")]
    Protocol(&'static str),
    /// The sidecar refuses.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// One operation is longer than the sidecar takes.
    #[error("an operation of {length} bytes, where the sidecar takes at most {limit}")]
    TooLong {
        /// Its length in bytes.
        length: usize,
        /// The most that the sidecar takes.
        limit: usize,
    },
    /// An operation that is none. Nobody can do it.
    #[error(transparent)]
    Unencodable(#[from] Unencodable),
}

impl Error {
    /// Whether a connection is needed that does not have this fault: nothing was refused, the answer was lost.
    pub(crate) fn is_broken(&self) -> bool {
        matches!(self, Self::Broken(_))
    }
}

impl From<Malformed> for Error {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::Frame(why) | Malformed::Operation { why, .. } => Self::Protocol(why),
        }
    }
}
