//! What can be wrong with frames that say their length first.

/// What is wrong with a frame. Nothing that follows it can be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The body is longer than the limit.
    #[error("a frame of {length} bytes, where at most {limit} are allowed")]
    TooLong {
        /// Bytes of the body, as the frame says.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// The stream ended within a frame.
    #[error("the stream ended after {received} bytes of a frame")]
    Truncated {
        /// The bytes of the frame that arrived, its header included.
        received: usize,
    },
}

impl FrameError {
    /// Whether a stream may end with so many bytes that belong to no whole frame.
    pub(crate) fn at_end(received: usize) -> Result<(), Self> {
        if received == 0 { Ok(()) } else { Err(Self::Truncated { received }) }
    }
}
