//! Frames of the node's RPC: the length of the body as a big-endian `u32`, then the body.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::FrameError;

/// The largest body that the node reads (10 MiB). The node clamps longer ones and then reads garbage; here they are an error.
pub const LIMIT: usize = 10 << 20;

/// The length of the length.
pub const HEADER: usize = 4;

/// How much room is made for a body before its bytes arrive. A length alone is a claim; memory follows the bytes.
const ROOM: usize = 64 << 10;

/// Reads and writes frames of a limited length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codec {
    limit: usize,
}

impl Default for Codec {
    fn default() -> Self {
        Self::new(LIMIT)
    }
}

impl Codec {
    /// Frames of at most `limit` bytes of body.
    pub fn new(limit: usize) -> Self {
        Self { limit }
    }

    /// Takes the next frame's body out of what was received; `None` when more is needed.
    ///
    /// # Errors
    /// [`FrameError::TooLong`], as soon as the length is known, and at every further call.
    pub fn decode(&self, received: &mut BytesMut) -> Result<Option<Bytes>, FrameError> {
        let Some(header) = received.first_chunk::<HEADER>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*header)).unwrap_or(usize::MAX);
        if length > self.limit {
            return Err(FrameError::TooLong { length, limit: self.limit });
        }
        let missing = (HEADER + length).saturating_sub(received.len());
        if missing > 0 {
            received.reserve(missing.min(ROOM));
            return Ok(None);
        }
        received.advance(HEADER);
        Ok(Some(received.split_to(length).freeze()))
    }

    /// Whether the stream may end here, where `received` is what [`Codec::decode`] has left.
    ///
    /// # Errors
    /// [`FrameError::Truncated`] when a frame has begun.
    pub fn end(&self, received: &BytesMut) -> Result<(), FrameError> {
        FrameError::at_end(received.len())
    }

    /// Appends a frame.
    ///
    /// # Errors
    /// [`FrameError::TooLong`]; nothing is appended then.
    pub fn encode(&self, body: &[u8], to: &mut BytesMut) -> Result<(), FrameError> {
        let too_long = FrameError::TooLong { length: body.len(), limit: self.limit };
        if body.len() > self.limit {
            return Err(too_long);
        }
        let length = u32::try_from(body.len()).map_err(|_| too_long)?;
        to.reserve(HEADER + body.len());
        to.put_u32(length);
        to.put_slice(body);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_frame_is_what_the_node_reads() {
        let mut bytes = BytesMut::new();
        Codec::default().encode(b"{}", &mut bytes).unwrap();
        assert_eq!(&bytes[..], b"\0\0\0\x02{}");
        bytes.extend_from_slice(b"\0\0");
        assert_eq!(Codec::default().decode(&mut bytes).unwrap().unwrap(), &b"{}"[..]);
        assert_eq!(Codec::default().decode(&mut bytes), Ok(None));
        assert_eq!(Codec::default().end(&bytes), Err(FrameError::Truncated { received: 2 }));
        bytes.clear();
        assert_eq!(Codec::default().end(&bytes), Ok(()));
    }

    #[test]
    fn too_long_is_an_error_before_the_body_comes() {
        let codec = Codec::new(10);
        for length in [11_u32, u32::MAX] {
            let mut bytes = BytesMut::from(&length.to_be_bytes()[..]);
            let error = FrameError::TooLong { length: length as usize, limit: 10 };
            assert_eq!(codec.decode(&mut bytes), Err(error));
            assert_eq!(codec.decode(&mut bytes), Err(error));
        }
        let mut bytes = BytesMut::new();
        assert!(codec.encode(&[0; 11], &mut bytes).is_err());
        assert!(bytes.is_empty());
        codec.encode(&[0; 10], &mut bytes).unwrap();
        assert_eq!(codec.decode(&mut bytes).unwrap().unwrap().len(), 10);
    }

    #[test]
    fn a_length_alone_takes_no_memory() {
        let mut bytes = BytesMut::from(&(LIMIT as u32).to_be_bytes()[..]);
        assert_eq!(Codec::default().decode(&mut bytes), Ok(None));
        assert!(bytes.capacity() <= 2 * ROOM, "{}", bytes.capacity());
    }

    proptest! {
        #[test]
        fn chunks_do_not_matter(
            bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..10),
            cuts in proptest::collection::vec(1_usize..50, 1..20),
            tail in proptest::collection::vec(any::<u8>(), 0..4),
        ) {
            let codec = Codec::new(300);
            let mut stream = BytesMut::new();
            for body in &bodies {
                codec.encode(body, &mut stream).unwrap();
            }
            stream.extend_from_slice(&tail);
            let (mut received, mut decoded) = (BytesMut::new(), Vec::new());
            let mut cuts = cuts.iter().cycle();
            while !stream.is_empty() {
                let cut = (*cuts.next().unwrap()).min(stream.len());
                received.extend_from_slice(&stream.split_to(cut));
                while let Some(body) = codec.decode(&mut received).unwrap() {
                    decoded.push(body.to_vec());
                }
            }
            prop_assert_eq!(decoded, bodies);
            prop_assert_eq!(&received[..], &tail[..]);
        }

        #[test]
        fn garbage_never_panics_and_is_read_the_same_in_pieces(
            bytes in proptest::collection::vec(prop_oneof![3 => Just(0_u8), 1 => any::<u8>()], 0..200),
        ) {
            fn all(codec: Codec, received: &mut BytesMut, bodies: &mut Vec<Bytes>) -> Option<FrameError> {
                loop {
                    match codec.decode(received) {
                        Ok(Some(body)) => bodies.push(body),
                        Ok(None) => return None,
                        Err(error) => return Some(error),
                    }
                }
            }
            let codec = Codec::new(64);
            let (mut whole, mut pieces) = (Vec::new(), Vec::new());
            let mut received = BytesMut::from(&bytes[..]);
            let at_once = all(codec, &mut received, &mut whole);
            let (mut received, mut in_pieces) = (BytesMut::new(), None);
            for byte in bytes {
                received.put_u8(byte);
                in_pieces = in_pieces.or(all(codec, &mut received, &mut pieces));
            }
            prop_assert_eq!(whole, pieces);
            prop_assert_eq!(at_once, in_pieces);
        }
    }
}
