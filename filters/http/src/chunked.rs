//! The chunked transfer coding (RFC 9112 section 7.1) as a state machine over bytes that it does not keep.

use thiserror::Error;

/// The longest chunk extension that is skipped.
const MAX_EXTENSION: u32 = 1024;
/// The longest trailer section that is skipped.
const MAX_TRAILERS: u32 = 16 * 1024;

/// What is wrong with a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ChunkError {
    /// A chunk does not start with a hexadecimal size.
    #[error("invalid chunk size")]
    Size,
    /// A line does not end in CR LF, or a chunk is not followed by CR LF.
    #[error("invalid line end in the chunked coding")]
    LineEnd,
    /// An extension or the trailer section is too long or has control characters.
    #[error("invalid chunk extension or trailer section")]
    Extra,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// At the first digit of a size.
    Start,
    Size,
    /// White space after a size.
    Pad,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
    Done,
}

/// What the next bytes are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Step {
    /// So many bytes of framing first.
    pub framing: usize,
    /// Then so many bytes of data.
    pub data: usize,
}

/// A position in a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunked {
    state: State,
    /// Of the current chunk, what is left.
    size: u64,
    /// Of the current extension or trailer section, what has passed.
    extra: u32,
}

impl Default for Chunked {
    fn default() -> Self {
        Self { state: State::Start, size: 0, extra: 0 }
    }
}

impl Chunked {
    /// Whether the last byte of the body has passed.
    pub(crate) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Goes over framing up to and including the next data, the end of the body, or the end of `bytes`. The trailer section is
    /// skipped; RFC 9110 section 6.5.1 allows that.
    ///
    /// # Errors
    /// When the bytes are not the chunked coding.
    pub(crate) fn step(&mut self, bytes: &[u8]) -> Result<Step, ChunkError> {
        let mut framing = 0;
        for &byte in bytes {
            match self.state {
                State::Data | State::Done => break,
                _ => self.framing(byte)?,
            }
            framing += 1;
        }
        let mut data = 0;
        if self.state == State::Data {
            data = usize::try_from(self.size).unwrap_or(usize::MAX).min(bytes.len() - framing);
            self.size -= data as u64;
            if self.size == 0 {
                self.state = State::DataCr;
            }
        }
        Ok(Step { framing, data })
    }

    fn framing(&mut self, byte: u8) -> Result<(), ChunkError> {
        self.state = match (self.state, byte) {
            (State::Start | State::Size, _) if byte.is_ascii_hexdigit() => {
                let digit = (byte as char).to_digit(16).ok_or(ChunkError::Size)?;
                // The top four bits must be free. 15 digits are more than any body has.
                if self.size >> 56 != 0 {
                    return Err(ChunkError::Size);
                }
                self.size = (self.size << 4) | u64::from(digit);
                State::Size
            }
            (State::Start, _) => return Err(ChunkError::Size),
            (State::Size | State::Pad, b'\r') | (State::Extension, b'\r') => State::SizeLf,
            (State::Size | State::Pad, b' ' | b'\t') => {
                self.count(MAX_EXTENSION)?;
                State::Pad
            }
            (State::Size | State::Pad, b';') => State::Extension,
            (State::Size | State::Pad, _) => return Err(ChunkError::Size),
            (State::Extension, b'\n') => return Err(ChunkError::LineEnd),
            (State::Extension, _) => {
                self.visible(byte, MAX_EXTENSION)?;
                State::Extension
            }
            (State::SizeLf, b'\n') => {
                self.extra = 0;
                if self.size == 0 { State::TrailerStart } else { State::Data }
            }
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Start,
            (State::TrailerStart, b'\r') => State::EndLf,
            (State::Trailer, b'\r') => State::TrailerLf,
            (State::TrailerStart | State::Trailer, b'\n') => return Err(ChunkError::LineEnd),
            (State::TrailerStart | State::Trailer, _) => {
                self.visible(byte, MAX_TRAILERS)?;
                State::Trailer
            }
            (State::TrailerLf, b'\n') => State::TrailerStart,
            (State::EndLf, b'\n') => State::Done,
            (State::SizeLf | State::DataCr | State::DataLf | State::TrailerLf | State::EndLf, _) => {
                return Err(ChunkError::LineEnd);
            }
            (State::Data | State::Done, _) => self.state,
        };
        Ok(())
    }

    fn visible(&mut self, byte: u8, most: u32) -> Result<(), ChunkError> {
        if byte.is_ascii_control() && byte != b'\t' {
            return Err(ChunkError::Extra);
        }
        self.count(most)
    }

    fn count(&mut self, most: u32) -> Result<(), ChunkError> {
        self.extra += 1;
        if self.extra > most { Err(ChunkError::Extra) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The data, how many bytes were used, and whether the end was reached.
    fn run(bytes: &[u8], piece: usize) -> Result<(Vec<u8>, usize, bool), ChunkError> {
        let (mut chunked, mut data, mut used) = (Chunked::default(), Vec::new(), 0);
        for part in bytes.chunks(piece.max(1)) {
            let mut at = 0;
            while at < part.len() && !chunked.is_done() {
                let step = chunked.step(&part[at..])?;
                at += step.framing;
                data.extend_from_slice(&part[at..at + step.data]);
                at += step.data;
            }
            used += at;
        }
        Ok((data, used, chunked.is_done()))
    }

    #[test]
    fn bodies_are_decoded_in_pieces_of_any_size() {
        let body = b"5;a=\"b\"\r\nhello\r\nA \r\n 123456789\r\n000\r\nTrailer: x\r\n\r\nsurplus";
        for piece in 1..=body.len() {
            assert_eq!(
                run(body, piece).unwrap(),
                (b"hello 123456789".to_vec(), body.len() - 7, true),
                "{piece}"
            );
        }
        assert_eq!(run(b"0\r\n\r\n", 9).unwrap(), (Vec::new(), 5, true));
        assert_eq!(run(b"5\r\nhel", 9).unwrap(), (b"hel".to_vec(), 6, false));
    }

    #[test]
    fn what_is_not_the_chunked_coding_is_refused() {
        let long = format!("5;{}\r\n", "x".repeat(2000));
        let trailers = format!("0\r\n{}", "a: b\r\n".repeat(5000));
        for body in [
            "g\r\n",
            "\r\n",
            "-1\r\n",
            "+1\r\n",
            "0x5\r\nhello",
            " 5\r\nhello",
            "5\nhello",
            "5\rhello",
            "5 5\r\nhello",
            "5\r\nhello0\r\n\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "5\r\nhelloX\n",
            "0\r\na\n\r\n",
            "5;\n\r\n",
            "5;\0\r\n",
            "fffffffffffffffff\r\n",
            "0\r\n\r0",
            &long,
            &trailers,
        ] {
            assert!(run(body.as_bytes(), usize::MAX).is_err(), "{body:?}");
            assert!(run(body.as_bytes(), 1).is_err(), "{body:?}");
        }
    }
}
