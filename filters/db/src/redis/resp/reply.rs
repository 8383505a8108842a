//! Replies, as servers send them.

use super::{LONGEST_LINE, Number, RespError};

/// How deep aggregates may lie in each other. Scripts nest as deep as Lua lets them, which is below that.
const DEEPEST: usize = 1024;
/// The longest string and the most elements that are believed.
const MOST: i64 = 1 << 40;
/// How much of the text of an error is kept.
const KEPT: usize = 256;

/// A reply that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The byte that it began with: its type.
    pub kind: u8,
    /// The beginning of its text, where it is an error (`-`), without the type.
    pub error: Vec<u8>,
}

impl Reply {
    /// Whether it is no answer to a command, but was sent of the server's own accord (RESP3).
    pub fn is_push(&self) -> bool {
        self.kind == b'>'
    }

    /// Whether it is an error.
    pub fn is_error(&self) -> bool {
        matches!(self.kind, b'-' | b'!')
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the type of a value.
    Type,
    /// In a line of which so many bytes have come, and whether the last one was CR.
    Line(usize, bool),
    /// In the length of a string, and of an aggregate of a type.
    Length(Number),
    Count(u8, Number),
    /// In a string, of which so many bytes are to come.
    Text(u64),
    Cr,
    Lf,
}

/// An aggregate that is not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Open {
    left: u64,
    /// Attributes come before the value that they belong to, and are no value themselves.
    attribute: bool,
}

/// Finds the end of one reply after another.
#[derive(Clone, Debug)]
pub struct ReplyScan {
    state: State,
    open: Vec<Open>,
    /// The type of the value at the top; 0 before it.
    kind: u8,
    error: Vec<u8>,
}

impl Default for ReplyScan {
    fn default() -> Self {
        Self { state: State::Type, open: Vec::new(), kind: 0, error: Vec::new() }
    }
}

impl ReplyScan {
    /// Takes bytes up to the end of a reply; the reply when it has ended, and how many bytes were taken.
    ///
    /// # Errors
    /// When the bytes are no reply. Nothing is known of the connection any more then.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(usize, Option<Reply>), RespError> {
        let mut rest = bytes;
        while let Some((&byte, after)) = rest.split_first() {
            let ended = match &mut self.state {
                State::Type => {
                    rest = after;
                    if self.open.is_empty() && byte != b'|' {
                        self.kind = byte;
                    }
                    self.state = match byte {
                        b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' => State::Line(0, false),
                        b'$' | b'!' | b'=' => State::Length(Number::default()),
                        b'*' | b'~' | b'%' | b'|' | b'>' => State::Count(byte, Number::default()),
                        _ => return Err(RespError::Type),
                    };
                    false
                }
                State::Line(length, cr) => {
                    let here = rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |end| end + 1);
                    let (line, after) = rest.split_at(here);
                    *length += here;
                    if *length > LONGEST_LINE {
                        return Err(RespError::LongLine);
                    }
                    if self.kind == b'-' && self.open.is_empty() {
                        let kept = KEPT.saturating_sub(self.error.len());
                        self.error.extend(line.iter().take(kept));
                    }
                    rest = after;
                    let before = if here > 1 { line.get(here - 2) == Some(&b'\r') } else { *cr };
                    match line.last() {
                        Some(b'\n') if before => true,
                        Some(b'\n') => return Err(RespError::NoEnd),
                        last => {
                            *cr = last == Some(&b'\r');
                            false
                        }
                    }
                }
                State::Length(number) => {
                    rest = after;
                    match number.feed(byte).map_err(|()| RespError::Length)? {
                        None => false,
                        Some(-1) => true,
                        Some(length) if (0..=MOST).contains(&length) => {
                            self.state = State::Text(length.unsigned_abs());
                            false
                        }
                        Some(_) => return Err(RespError::Length),
                    }
                }
                State::Count(kind, number) => {
                    rest = after;
                    let kind = *kind;
                    match number.feed(byte).map_err(|()| RespError::Count)? {
                        None => false,
                        Some(count) if !(-1..=MOST).contains(&count) => return Err(RespError::Count),
                        Some(count) => {
                            let attribute = kind == b'|';
                            let pairs = if matches!(kind, b'%' | b'|') { 2 } else { 1 };
                            let left = count.max(0).unsigned_abs() * pairs;
                            if left > 0 {
                                if self.open.len() >= DEEPEST {
                                    return Err(RespError::Depth);
                                }
                                self.open.push(Open { left, attribute });
                            }
                            self.state = State::Type;
                            left == 0 && !attribute
                        }
                    }
                }
                State::Text(0) => {
                    self.state = State::Cr;
                    false
                }
                State::Text(left) => {
                    let here = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    *left -= here as u64;
                    rest = rest.get(here..).unwrap_or_default();
                    false
                }
                State::Cr if byte == b'\r' => {
                    rest = after;
                    self.state = State::Lf;
                    false
                }
                State::Lf if byte == b'\n' => {
                    rest = after;
                    true
                }
                State::Cr | State::Lf => return Err(RespError::NoEnd),
            };
            if ended {
                self.state = State::Type;
                if self.value_ended() {
                    let mut error = std::mem::take(&mut self.error);
                    while error.last().is_some_and(|byte| matches!(byte, b'\r' | b'\n')) {
                        error.pop();
                    }
                    let kind = std::mem::take(&mut self.kind);
                    return Ok((bytes.len() - rest.len(), Some(Reply { kind, error })));
                }
            }
        }
        Ok((bytes.len(), None))
    }

    /// A value has ended; whether that was the one at the top.
    fn value_ended(&mut self) -> bool {
        while let Some(open) = self.open.last_mut() {
            open.left -= 1;
            if open.left > 0 {
                return false;
            }
            let attribute = open.attribute;
            self.open.pop();
            if attribute {
                // The value that it belongs to is still to come.
                return false;
            }
        }
        true
    }

    /// Whether nothing was read of a reply that is not complete.
    pub fn is_between(&self) -> bool {
        self.state == State::Type && self.open.is_empty() && self.kind == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(bytes: &[u8], piece: usize) -> Result<Vec<(usize, u8, String)>, RespError> {
        let mut scan = ReplyScan::default();
        let (mut found, mut length) = (Vec::new(), 0);
        for mut piece in bytes.chunks(piece) {
            while !piece.is_empty() {
                let (taken, reply) = scan.feed(piece)?;
                length += taken;
                piece = &piece[taken..];
                if let Some(Reply { kind, error }) = reply {
                    found.push((length, kind, String::from_utf8(error).unwrap()));
                    length = 0;
                    assert!(scan.is_between());
                }
            }
        }
        Ok(found)
    }

    #[test]
    fn replies_end_where_they_end_in_any_pieces() {
        let replies: &[(&[u8], u8, &str)] = &[
            (b"+OK\r\n", b'+', ""),
            (b"-ERR no\r\n", b'-', "ERR no"),
            (b":1000\r\n", b':', ""),
            (b"$5\r\na\r\nbc\r\n", b'$', ""),
            (b"$0\r\n\r\n", b'$', ""),
            (b"$-1\r\n", b'$', ""),
            (b"*-1\r\n", b'*', ""),
            (b"*0\r\n", b'*', ""),
            (b"*2\r\n*2\r\n:1\r\n*0\r\n$1\r\nx\r\n", b'*', ""),
            (b"_\r\n", b'_', ""),
            (b"#t\r\n", b'#', ""),
            (b",1.5e3\r\n", b',', ""),
            (b"(349\r\n", b'(', ""),
            (b"!8\r\nERR a\r\nb\r\n", b'!', ""),
            (b"=5\r\ntxt:a\r\n", b'=', ""),
            (b"%2\r\n+a\r\n:1\r\n+b\r\n%0\r\n", b'%', ""),
            (b"~1\r\n+a\r\n", b'~', ""),
            (b">3\r\n+message\r\n+c\r\n$1\r\nx\r\n", b'>', ""),
            (b"|1\r\n+ttl\r\n:5\r\n+OK\r\n", b'+', ""),
            (b"|0\r\n*1\r\n|1\r\n+a\r\n*1\r\n:1\r\n:2\r\n", b'*', ""),
        ];
        let bytes = replies.iter().map(|(bytes, ..)| *bytes).collect::<Vec<_>>().concat();
        let wanted: Vec<_> =
            replies.iter().map(|(bytes, kind, error)| (bytes.len(), *kind, (*error).to_owned())).collect();
        for piece in 1..bytes.len() {
            assert_eq!(scan(&bytes, piece).unwrap(), wanted, "in pieces of {piece}");
        }
    }

    #[test]
    fn what_is_no_reply_is_an_error() {
        for (bytes, error) in [
            (&b"OK\r\n"[..], RespError::Type),
            (b"+OK\n", RespError::NoEnd),
            (b"$?\r\n", RespError::Length),
            (b"$-2\r\n", RespError::Length),
            (b"*?\r\n", RespError::Count),
            (b"*-2\r\n", RespError::Count),
            (b"$1\r\nab\r\n", RespError::NoEnd),
        ] {
            assert_eq!(scan(bytes, 3), Err(error), "{}", bytes.escape_ascii());
        }
        assert_eq!(scan(&b"*1\r\n".repeat(DEEPEST + 1), 1000), Err(RespError::Depth));
        assert_eq!(scan(&[b'+'; LONGEST_LINE + 2], 1000), Err(RespError::LongLine));
    }
}
