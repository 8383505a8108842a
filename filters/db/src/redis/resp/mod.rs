//! The Redis serialization protocol, versions 2 and 3, as scanners: bytes go in as they come, and where a command or a reply ends comes
//! out. Nothing is collected: what is between the sockets stays as it is, however large it may be.
//!
//! Source: the protocol's specification, <https://redis.io/docs/latest/develop/reference/protocol-spec/>, and what servers do of it
//! (`networking.c`): strings and aggregates whose length is not known at their beginning (`$?`, `*?`) are sent by none, and are errors here.

mod command;
mod fuzz;
mod reply;

pub use command::{CommandScan, Scanned, arguments};
pub use fuzz::fuzz_resp;
pub use reply::{Reply, ReplyScan};

/// The longest line: an inline command, or a reply that is a line. Servers take inline commands of 64 KiB.
pub(crate) const LONGEST_LINE: usize = 64 << 10;

/// Why bytes are no RESP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RespError {
    /// The number of a command's arguments is no number, or too large.
    #[error("invalid multibulk length")]
    Count,
    /// An argument does not begin with its length.
    #[error("expected '$'")]
    NoBulk,
    /// A length is no number, or too large.
    #[error("invalid bulk length")]
    Length,
    /// A line does not end.
    #[error("too big inline request")]
    LongLine,
    /// Quotes of an inline command are not closed.
    #[error("unbalanced quotes in request")]
    Quotes,
    /// A string is not followed by CR LF.
    #[error("expected CR LF")]
    NoEnd,
    /// A reply is of no known type.
    #[error("unknown type of reply")]
    Type,
    /// Aggregates lie too deep in each other.
    #[error("nested too deeply")]
    Depth,
}

/// A decimal number and the CR LF after it, byte by byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Number {
    value: i64,
    negative: bool,
    digits: u8,
    /// CR was read.
    ending: bool,
}

impl Number {
    /// Takes a byte; the number when it has ended. `None` stands for no number.
    fn feed(&mut self, byte: u8) -> Result<Option<i64>, ()> {
        match byte {
            b'\n' if self.ending && self.digits > 0 => {
                Ok(Some(if self.negative { -self.value } else { self.value }))
            }
            _ if self.ending => Err(()),
            b'\r' => {
                self.ending = true;
                Ok(None)
            }
            b'-' if self.digits == 0 && !self.negative => {
                self.negative = true;
                Ok(None)
            }
            b'0'..=b'9' if self.digits < 18 => {
                self.value = self.value * 10 + i64::from(byte - b'0');
                self.digits += 1;
                Ok(None)
            }
            _ => Err(()),
        }
    }
}
