//! The framed RPC of the node, received in pieces of any size.
#![no_main]

use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use qudag_core::rpc::Codec;

/// Small, so that the fuzzer reaches it.
const LIMIT: usize = 1 << 12;

fuzz_target!(|data: (u8, &[u8])| {
    let (piece, bytes) = data;
    let codec = Codec::new(LIMIT);
    let whole = decode(&codec, bytes, bytes.len().max(1));
    let pieces = decode(&codec, bytes, usize::from(piece).max(1));
    assert_eq!(whole, pieces, "frames depend on how the bytes were cut");

    // What was read is written as the same bytes.
    let mut again = BytesMut::new();
    for frame in &whole.0 {
        assert!(frame.len() <= LIMIT);
        codec.encode(frame, &mut again).expect("it was a frame");
    }
    assert!(bytes.starts_with(&again));
});

/// The frames before the first error, and whether there was one, at the end of the stream at the latest.
fn decode(codec: &Codec, bytes: &[u8], piece: usize) -> (Vec<Bytes>, bool) {
    let (mut received, mut frames) = (BytesMut::new(), Vec::new());
    for piece in bytes.chunks(piece) {
        received.extend_from_slice(piece);
        loop {
            match codec.decode(&mut received) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, true),
            }
        }
    }
    (frames, codec.end(&received).is_err())
}
