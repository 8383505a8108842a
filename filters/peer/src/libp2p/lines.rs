//! multistream-select: both sides agree on a protocol, a line each
//! (<https://github.com/multiformats/multistream-select>).

use super::protobuf::{read_varint, write_varint};

/// The longest line that is read, as in rust-libp2p.
const MOST: usize = 16 << 10;
/// The bytes in which that many can be said.
const MOST_LENGTH: usize = 3;
/// The protocol itself.
const MULTISTREAM: &str = "/multistream/1.0.0";

/// A line of the other side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// It speaks multistream-select.
    Hello,
    /// It does not know the protocol that was proposed.
    No,
    /// A protocol.
    Protocol(String),
}

/// The bytes are no line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a line of multistream-select")]
pub struct NotALine;

/// Lines of the other side, from pieces.
#[derive(Clone, Debug, Default)]
pub struct Lines(Vec<u8>);

impl Lines {
    /// Takes what has come.
    pub fn push(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    /// The next line; `None` while more bytes are needed.
    ///
    /// # Errors
    /// When there can be none.
    #[expect(clippy::should_implement_trait, reason = "an iterator ends")]
    pub fn next(&mut self) -> Result<Option<Line>, NotALine> {
        let Some((length, rest)) = read_varint(&self.0) else {
            return if self.0.len() >= MOST_LENGTH { Err(NotALine) } else { Ok(None) };
        };
        if self.0.len() - rest.len() > MOST_LENGTH {
            return Err(NotALine);
        }
        let length = usize::try_from(length).map_err(|_| NotALine)?;
        if !(1..=MOST).contains(&length) {
            return Err(NotALine);
        }
        let Some(line) = rest.get(..length) else { return Ok(None) };
        let text =
            line.strip_suffix(b"\n").and_then(|line| std::str::from_utf8(line).ok()).ok_or(NotALine)?;
        let line = match text {
            MULTISTREAM => Line::Hello,
            "na" => Line::No,
            protocol => Line::Protocol(protocol.to_owned()),
        };
        let used = self.0.len() - rest.len() + length;
        self.0.drain(..used);
        Ok(Some(line))
    }

    /// What has come behind the last line.
    pub fn rest(self) -> Vec<u8> {
        self.0
    }
}

/// A line.
fn line(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len() + 3);
    write_varint(&mut bytes, text.len() + 1);
    bytes.extend(text.as_bytes());
    bytes.push(b'\n');
    bytes
}

/// Proposes a protocol, or agrees to it; both sides say the same.
pub(super) fn hello(protocol: &str) -> Vec<u8> {
    [line(MULTISTREAM), line(protocol)].concat()
}

/// Says that a protocol is not known.
pub(super) fn no() -> Vec<u8> {
    line("na")
}

/// Agrees to a protocol.
pub(super) fn yes(protocol: &str) -> Vec<u8> {
    line(protocol)
}

/// Says that multistream-select is spoken.
pub(super) fn header() -> Vec<u8> {
    line(MULTISTREAM)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_proposal_is_as_nodes_send_it() {
        assert_eq!(hello("/noise"), b"\x13/multistream/1.0.0\n\x07/noise\n");
        assert_eq!(no(), b"\x03na\n");
    }

    #[test]
    fn what_is_no_line_is_refused() {
        let next = |bytes: &[u8]| {
            let mut lines = Lines::default();
            lines.push(bytes);
            lines.next()
        };
        assert_eq!(next(b""), Ok(None));
        assert_eq!(next(b"\x00"), Err(NotALine));
        assert_eq!(next(b"\x02ab"), Err(NotALine));
        assert_eq!(next(b"\x02\xff\n"), Err(NotALine));
        assert_eq!(next(b"\xff\xff\xff"), Err(NotALine));
        assert_eq!(next(b"\x83\x80\x80\x00na\n"), Err(NotALine), "three is said in four bytes");
        assert_eq!(next(b"HTTP/1.1 400 Bad Request"), Ok(None));
    }

    proptest! {
        #[test]
        fn lines_are_read_from_any_pieces(
            protocols in prop::collection::vec("[a-z/0-9.]{3,300}", 1..5), piece in 1_usize..50,
        ) {
            let bytes: Vec<u8> = protocols.iter().flat_map(|protocol| line(protocol)).collect();
            let (mut lines, mut read) = (Lines::default(), Vec::new());
            for piece in bytes.chunks(piece) {
                lines.push(piece);
                while let Some(Line::Protocol(protocol)) = lines.next().unwrap() {
                    read.push(protocol);
                }
            }
            prop_assert_eq!(read, protocols);
            prop_assert!(lines.rest().is_empty());
        }
    }
}
