//! A connection to a node while its layers are agreed on.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest message of Noise.
pub(super) const MOST: usize = 65_535;
/// How much is read at once.
const PIECE: usize = 4 << 10;

/// Messages with their length in two bytes before them, over a stream of bytes of which some may have been read already.
pub(super) struct Messages<S> {
    stream: S,
    come: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Messages<S> {
    pub(super) fn new(stream: S, come: Vec<u8>) -> Self {
        Self { stream, come }
    }

    pub(super) async fn send(&mut self, message: &[u8]) -> io::Result<()> {
        let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend(message);
        self.stream.write_all(&bytes).await
    }

    /// The next message. Nothing is lost when this is dropped.
    pub(super) async fn receive(&mut self) -> io::Result<Vec<u8>> {
        loop {
            if let Some((length, rest)) = self.come.split_first_chunk::<2>() {
                let length = usize::from(u16::from_be_bytes(*length));
                if let Some(message) = rest.get(..length) {
                    let message = message.to_vec();
                    self.come.drain(..length + 2);
                    return Ok(message);
                }
            }
            more(&mut self.stream, &mut self.come).await?;
        }
    }
}

/// Reads some more.
pub(super) async fn more<S: AsyncRead + Unpin>(stream: &mut S, come: &mut Vec<u8>) -> io::Result<()> {
    // Two messages at most: who reads takes the first one away before asking for more.
    if come.len() > 2 * MOST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut piece = [0; PIECE];
    let length = stream.read(&mut piece).await?;
    if length == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    come.extend_from_slice(piece.get(..length).unwrap_or_default());
    Ok(())
}
