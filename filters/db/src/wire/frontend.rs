//! What a client sends after its start-up.

use super::cursor::Cursor;
use super::{Head, WireError};

/// Query.
pub const QUERY: u8 = b'Q';
/// Parse.
pub const PARSE: u8 = b'P';
/// Bind.
pub const BIND: u8 = b'B';
/// Describe.
pub const DESCRIBE: u8 = b'D';
/// Execute.
pub const EXECUTE: u8 = b'E';
/// Close.
pub const CLOSE: u8 = b'C';
/// FunctionCall.
pub const FUNCTION_CALL: u8 = b'F';
/// Flush.
pub const FLUSH: u8 = b'H';
/// Sync.
pub const SYNC: u8 = b'S';
/// CopyData.
pub const COPY_DATA: u8 = b'd';
/// CopyDone.
pub const COPY_DONE: u8 = b'c';
/// CopyFail.
pub const COPY_FAIL: u8 = b'f';
/// Terminate.
pub const TERMINATE: u8 = b'X';

/// `PQ_LARGE_MESSAGE_LIMIT`: `MaxAllocSize - 1`.
const LARGE: usize = 0x3fff_fffe;
/// `PQ_SMALL_MESSAGE_LIMIT`.
const SMALL: usize = 10_000;

/// The header of the message at the start of the bytes, with the limits of `SocketBackend` in `postgres.c`; `None` when more bytes are
/// needed.
///
/// # Errors
/// When no continuation of the bytes can be a message of a client.
pub fn head(bytes: &[u8]) -> Result<Option<Head>, WireError> {
    super::head(bytes, |kind| match kind {
        QUERY | PARSE | BIND | FUNCTION_CALL | COPY_DATA => Some(LARGE),
        DESCRIBE | EXECUTE | CLOSE | FLUSH | SYNC | COPY_DONE | COPY_FAIL | TERMINATE => Some(SMALL),
        _ => None,
    })
}

/// Parse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parse<'a> {
    /// The name of the statement; empty for the unnamed one.
    pub name: &'a [u8],
    /// The text.
    pub query: &'a [u8],
    /// Text and parameter types as they are sent: what makes two statements the same.
    pub rest: &'a [u8],
}

impl<'a> Parse<'a> {
    /// Reads a body.
    ///
    /// # Errors
    /// When it is not one.
    pub fn read(body: &'a [u8]) -> Result<Self, WireError> {
        let mut cursor = Cursor(body);
        let mut read = || {
            let name = cursor.string()?;
            let rest = cursor.0;
            let query = cursor.string()?;
            let types = usize::from(cursor.u16()?);
            (cursor.0.len() == types * 4).then_some(Self { name, query, rest })
        };
        read().ok_or(WireError::Body(PARSE))
    }
}

/// The names at the start of Bind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bind<'a> {
    /// The portal; empty for the unnamed one.
    pub portal: &'a [u8],
    /// The statement; empty for the unnamed one.
    pub statement: &'a [u8],
}

impl<'a> Bind<'a> {
    /// Reads the names; the rest of the body need not be there.
    ///
    /// # Errors
    /// When they do not end within the bytes.
    pub fn read(body: &'a [u8]) -> Result<Self, WireError> {
        let mut cursor = Cursor(body);
        let names = cursor.string().zip(cursor.string());
        names.map(|(portal, statement)| Self { portal, statement }).ok_or(WireError::Body(BIND))
    }

    /// The length of both names with the bytes that end them.
    pub fn names_len(&self) -> usize {
        self.portal.len() + self.statement.len() + 2
    }
}

/// What Describe and Close name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// A prepared statement.
    Statement(&'a [u8]),
    /// A portal.
    Portal(&'a [u8]),
}

impl<'a> Target<'a> {
    /// Reads the body of a Describe or Close, whose type byte is for the error.
    ///
    /// # Errors
    /// When it is neither a statement nor a portal, or more than a name.
    pub fn read(kind: u8, body: &'a [u8]) -> Result<Self, WireError> {
        let mut cursor = Cursor(body);
        let which = cursor.u8();
        match (which, cursor.string(), cursor.is_empty()) {
            (Some(b'S'), Some(name), true) => Ok(Self::Statement(name)),
            (Some(b'P'), Some(name), true) => Ok(Self::Portal(name)),
            _ => Err(WireError::Body(kind)),
        }
    }
}

/// Execute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Execute<'a> {
    /// The portal; empty for the unnamed one.
    pub portal: &'a [u8],
    /// The most rows to return; 0 for all.
    pub rows: u32,
}

impl<'a> Execute<'a> {
    /// Reads a body.
    ///
    /// # Errors
    /// When it is not one.
    pub fn read(body: &'a [u8]) -> Result<Self, WireError> {
        let mut cursor = Cursor(body);
        match (cursor.string(), cursor.u32(), cursor.is_empty()) {
            (Some(portal), Some(rows), true) => Ok(Self { portal, rows }),
            _ => Err(WireError::Body(EXECUTE)),
        }
    }
}

/// The text of a Query.
///
/// # Errors
/// When the body is not one string.
pub fn query(body: &[u8]) -> Result<&[u8], WireError> {
    let mut cursor = Cursor(body);
    cursor.string().filter(|_| cursor.is_empty()).ok_or(WireError::Body(QUERY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_decided_as_early_as_possible() {
        assert_eq!(head(b""), Ok(None));
        assert_eq!(head(b"Q\0\0\0"), Ok(None));
        assert_eq!(head(b"Q\0\0\0\x05"), Ok(Some(Head { kind: QUERY, len: 6 })));
        assert_eq!(head(b"p"), Err(WireError::Kind(b'p')));
        assert_eq!(head(b"G"), Err(WireError::Kind(b'G')));
        for length in [-1_i32, 0, 3, i32::MIN] {
            assert_eq!(head(&[b"S", &length.to_be_bytes()[..]].concat()), Err(WireError::Length(SYNC)));
        }
        let of = |kind: u8, length: i32| head(&[&[kind], &length.to_be_bytes()[..]].concat());
        assert!(of(QUERY, 0x3fff_fffe).is_ok_and(|head| head.is_some_and(Head::is_streamed)));
        assert_eq!(of(QUERY, 0x3fff_ffff), Err(WireError::Length(QUERY)));
        assert!(of(CLOSE, 10_000).is_ok_and(|head| head.is_some_and(|head| !head.is_streamed())));
        assert_eq!(of(CLOSE, 10_001), Err(WireError::Length(CLOSE)));
    }

    #[test]
    fn bodies_are_read_and_wrong_ones_refused() {
        let parse = Parse::read(b"s1\0SELECT $1\0\0\x01\0\0\0\x17").unwrap();
        assert_eq!((parse.name, parse.query), (&b"s1"[..], &b"SELECT $1"[..]));
        assert_eq!(parse.rest, b"SELECT $1\0\0\x01\0\0\0\x17");
        for wrong in [&b""[..], b"s", b"s\0", b"s\0q\0", b"s\0q\0\0", b"s\0q\0\0\x01", b"s\0q\0\0\0x"] {
            assert_eq!(Parse::read(wrong), Err(WireError::Body(PARSE)), "{wrong:?}");
        }
        let bind = Bind::read(b"p\0s1\0\0\0\0\0\0\0").unwrap();
        assert_eq!((bind.portal, bind.statement, bind.names_len()), (&b"p"[..], &b"s1"[..], 5));
        assert_eq!(Bind::read(b"p\0s1"), Err(WireError::Body(BIND)));
        assert_eq!(Target::read(CLOSE, b"Sx\0"), Ok(Target::Statement(b"x")));
        assert_eq!(Target::read(DESCRIBE, b"P\0"), Ok(Target::Portal(b"")));
        for wrong in [&b""[..], b"S", b"Sx", b"Xx\0", b"Sx\0y"] {
            assert_eq!(Target::read(CLOSE, wrong), Err(WireError::Body(CLOSE)), "{wrong:?}");
        }
        assert_eq!(Execute::read(b"p\0\0\0\0\x07"), Ok(Execute { portal: b"p", rows: 7 }));
        assert_eq!(Execute::read(b"p\0\0\0\0"), Err(WireError::Body(EXECUTE)));
        assert_eq!(query(b"SELECT 1\0"), Ok(&b"SELECT 1"[..]));
        assert_eq!(query(b"SELECT 1\0x"), Err(WireError::Body(QUERY)));
        assert_eq!(query(b"SELECT 1"), Err(WireError::Body(QUERY)));
    }
}
