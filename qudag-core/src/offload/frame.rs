//! Frames: where they begin and end.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::FrameError;

/// What a client sends first.
pub const PREAMBLE: [u8; 4] = *b"QDC1";
/// Bytes in front of a body.
pub const HEADER: usize = 12;

/// What stands in front of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the body.
    pub length: u32,
    /// The request's id.
    pub id: u32,
    /// What the body is.
    pub sort: u8,
    /// [`Header::ROUTED`] or 0.
    pub flags: u8,
    /// How many operations or results the body has.
    pub count: u16,
}

impl Header {
    /// The flag of a request that another sidecar passes on for its program. Whoever gets it does the work and passes it on to nobody.
    pub const ROUTED: u8 = 1;

    /// Whether another sidecar has passed this request on.
    pub fn is_routed(&self) -> bool {
        self.flags & Self::ROUTED != 0
    }

    /// Reads a header.
    pub fn read(bytes: &[u8; HEADER]) -> Self {
        let mut bytes = &bytes[..];
        Self {
            length: bytes.get_u32(),
            id: bytes.get_u32(),
            sort: bytes.get_u8(),
            flags: bytes.get_u8(),
            count: bytes.get_u16(),
        }
    }

    /// Writes a header.
    pub fn write(&self, to: &mut impl BufMut) {
        to.put_u32(self.length);
        to.put_u32(self.id);
        to.put_u8(self.sort);
        to.put_u8(self.flags);
        to.put_u16(self.count);
    }

    /// Bytes of the body, as a size in memory.
    pub fn body(&self) -> usize {
        usize::try_from(self.length).unwrap_or(usize::MAX)
    }
}

/// A whole frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its header.
    pub header: Header,
    /// Its body, which shares the memory into which it was received.
    pub body: Bytes,
}

/// Takes frames of limited length out of what was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoder {
    limit: usize,
}

impl Decoder {
    /// For bodies of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { limit }
    }

    /// The header of the next frame; `None` until it is there as a whole. Takes nothing.
    ///
    /// # Errors
    /// [`FrameError::TooLong`].
    pub fn header(&self, received: &[u8]) -> Result<Option<Header>, FrameError> {
        let Some(header) = received.first_chunk().map(Header::read) else { return Ok(None) };
        let length = header.body();
        if length > self.limit {
            return Err(FrameError::TooLong { length, limit: self.limit });
        }
        Ok(Some(header))
    }

    /// Takes the next frame; `None` until it is there as a whole. Makes no room: how much is needed, [`Decoder::missing`] says.
    ///
    /// # Errors
    /// [`FrameError::TooLong`], as soon as the header is there, and at every further call.
    pub fn decode(&self, received: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        let Some(header) = self.header(received)? else { return Ok(None) };
        if received.len() - HEADER < header.body() {
            return Ok(None);
        }
        received.advance(HEADER);
        Ok(Some(Frame { header, body: received.split_to(header.body()).freeze() }))
    }

    /// How many bytes are missing at least until the next frame is there as a whole.
    pub fn missing(&self, received: &[u8]) -> usize {
        let whole = received.first_chunk().map_or(HEADER, |header| HEADER + Header::read(header).body());
        whole.saturating_sub(received.len())
    }

    /// Whether the stream may end here, where `received` is what [`Decoder::decode`] has left.
    ///
    /// # Errors
    /// [`FrameError::Truncated`] when a frame has begun.
    pub fn end(&self, received: &[u8]) -> Result<(), FrameError> {
        FrameError::at_end(received.len())
    }
}
