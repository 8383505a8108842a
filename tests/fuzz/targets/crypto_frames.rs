//! The binary protocol of the crypto listener: requests and replies, received in pieces of any size.
#![no_main]

use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use qudag_core::offload::{
    Decoder, HEADER, Malformed, Operation, Operations, Reply, Request, encode_batch, encode_status,
};

/// Small, so that the fuzzer reaches it, with room for two keys.
const LIMIT: usize = 1 << 13;

fuzz_target!(|data: (u8, &[u8])| {
    let (piece, bytes) = data;
    let whole = decode(bytes, bytes.len().max(1));
    let pieces = decode(bytes, usize::from(piece).max(1));
    assert_eq!(whole, pieces, "frames depend on how the bytes were cut");
});

/// What can be read, and whether the stream ends well.
fn decode(bytes: &[u8], piece: usize) -> (Vec<bool>, bool) {
    let decoder = Decoder::new(LIMIT);
    let (mut received, mut readable) = (BytesMut::new(), Vec::new());
    for piece in bytes.chunks(piece) {
        received.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut received) {
                Ok(Some(frame)) => {
                    let (header, body) = (frame.header, frame.body.clone());
                    readable.push(match Request::read(frame) {
                        Ok(request) => {
                            rewritten(request).map(|again| assert_eq!(again[HEADER..], body)).is_ok()
                        }
                        Err(_) => false,
                    });
                    if let Ok(reply) = Reply::read(&header, &body) {
                        written_again(&reply, header.id);
                    }
                }
                Ok(None) => break,
                Err(_) => return (readable, true),
            }
        }
        assert!(decoder.missing(&received) > 0);
    }
    (readable, decoder.end(&received).is_err())
}

/// What was read is written as the same bytes.
fn rewritten(request: Request) -> Result<Vec<u8>, Malformed> {
    fn all<O>(operations: Operations<O>) -> Result<Vec<u8>, Malformed>
    where
        O: Operation,
        Operations<O>: Iterator<Item = Result<O, Malformed>>,
    {
        let operations = operations.collect::<Result<Vec<_>, _>>()?;
        let mut bytes = Vec::new();
        encode_batch(0, &operations, &mut bytes).expect("it was a request");
        Ok(bytes)
    }
    match request {
        Request::Keys(operations) => all(operations),
        Request::Signatures(operations) => all(operations),
        Request::Fingerprints(operations) => all(operations),
        Request::Hashes(operations) => all(operations),
        Request::Status => {
            let mut bytes = Vec::new();
            encode_status(0, &mut bytes);
            Ok(bytes)
        }
    }
}

fn written_again(reply: &Reply, id: u32) {
    let mut bytes = BytesMut::new();
    reply.encode(id, &mut bytes);
    let frame = Decoder::new(usize::MAX).decode(&mut bytes).expect("no limit").expect("a whole frame");
    assert!(bytes.is_empty());
    let again = Reply::read(&frame.header, &Bytes::copy_from_slice(&frame.body));
    assert_eq!(again.as_ref(), Ok(reply));
}
