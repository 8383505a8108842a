//! What the local node says: questions over multicast DNS, lines of multistream-select, and its identity.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qudag_filter_peer::libp2p::{Lines, PeerId, read_identity};
use qudag_filter_peer::mdns::asked;

fuzz_target!(|bytes: &[u8]| {
    let _ = asked(bytes);
    let (whole, pieces) = (lines(bytes, bytes.len().max(1)), lines(bytes, 1));
    assert_eq!(whole, pieces, "lines depend on how the bytes were cut");
    let (key, payload) = bytes.split_at(bytes.len().min(32));
    let _ = read_identity(payload, key);
    if let Ok(id) = PeerId::of_bytes(bytes) {
        assert_eq!(id.to_string().parse(), Ok(id));
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = text.parse::<PeerId>();
    }
});

/// The lines before the first that is none, and whether there was one.
fn lines(bytes: &[u8], piece: usize) -> (Vec<qudag_filter_peer::libp2p::Line>, bool) {
    let (mut lines, mut read) = (Lines::default(), Vec::new());
    for piece in bytes.chunks(piece) {
        lines.push(piece);
        loop {
            match lines.next() {
                Ok(Some(line)) => read.push(line),
                Ok(None) => break,
                Err(_) => return (read, true),
            }
        }
    }
    (read, false)
}
