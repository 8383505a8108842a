//! What another sidecar tells over its control stream, received in pieces of any size, and the header before it.
#![no_main]

use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use qudag_filter_peer::exchange::message::{Intake, MAX_FRAME, Message, Violation};
use qudag_filter_peer::tunnel::header::Header;

fuzz_target!(|data: (u8, &[u8])| {
    let (piece, bytes) = data;
    let now = Instant::now();
    let whole = read(bytes, bytes.len().max(1), now);
    let pieces = read(bytes, usize::from(piece).max(1), now);
    // A violation is found at another piece, and what came whole before it may be lost with it.
    match whole.1 {
        None => assert_eq!(whole, pieces, "messages depend on how the bytes were cut"),
        Some(violation) => assert_eq!(pieces.1, Some(violation)),
    }
    for message in &whole.0 {
        let again = message.encode();
        assert!(again.len() <= MAX_FRAME + 2);
        assert_eq!(
            read(&again, again.len(), now).0,
            [message.clone()],
            "what was read is not written as the same"
        );
    }
    if let Ok(Some((header, length))) = Header::decode(bytes) {
        assert_eq!(header.encode(), bytes[..length]);
    }
});

/// The messages before the first violation.
fn read(bytes: &[u8], piece: usize, now: Instant) -> (Vec<Message>, Option<Violation>) {
    let (mut intake, mut messages) = (Intake::new(now), Vec::new());
    for piece in bytes.chunks(piece) {
        match intake.take(piece, now) {
            Ok(more) => messages.extend(more),
            Err(violation) => return (messages, Some(violation)),
        }
        assert!(intake.waiting() <= MAX_FRAME + 1);
    }
    (messages, None)
}
