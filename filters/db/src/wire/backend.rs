//! What a server sends after the authentication.

use bytes::{BufMut, BytesMut};

use super::cursor::Cursor;
use super::{Head, WireError};

/// ParseComplete.
pub const PARSE_COMPLETE: u8 = b'1';
/// BindComplete.
pub const BIND_COMPLETE: u8 = b'2';
/// CloseComplete.
pub const CLOSE_COMPLETE: u8 = b'3';
/// NotificationResponse.
pub const NOTIFICATION: u8 = b'A';
/// CommandComplete.
pub const COMMAND_COMPLETE: u8 = b'C';
/// DataRow.
pub const DATA_ROW: u8 = b'D';
/// ErrorResponse.
pub const ERROR: u8 = b'E';
/// CopyInResponse.
pub const COPY_IN: u8 = b'G';
/// CopyOutResponse.
pub const COPY_OUT: u8 = b'H';
/// EmptyQueryResponse.
pub const EMPTY_QUERY: u8 = b'I';
/// BackendKeyData.
pub const KEY_DATA: u8 = b'K';
/// NoticeResponse.
pub const NOTICE: u8 = b'N';
/// ParameterStatus.
pub const PARAMETER: u8 = b'S';
/// RowDescription.
pub const ROW_DESCRIPTION: u8 = b'T';
/// FunctionCallResponse.
pub const FUNCTION_RESULT: u8 = b'V';
/// CopyBothResponse.
pub const COPY_BOTH: u8 = b'W';
/// ReadyForQuery.
pub const READY: u8 = b'Z';
/// CopyDone.
pub const COPY_DONE: u8 = b'c';
/// CopyData.
pub const COPY_DATA: u8 = b'd';
/// NoData.
pub const NO_DATA: u8 = b'n';
/// PortalSuspended.
pub const SUSPENDED: u8 = b's';
/// ParameterDescription.
pub const PARAMETER_DESCRIPTION: u8 = b't';
/// NegotiateProtocolVersion.
pub const NEGOTIATE: u8 = b'v';

/// The limit of libpq for types that are short by their nature (`VALID_LONG_MESSAGE_TYPE` in `fe-protocol3.c`).
const SHORT: usize = 30_000;
/// How much of a long ErrorResponse must be there: its severity and SQLSTATE are its first fields (`send_message_to_frontend`).
const ERROR_START: usize = 256;

/// The header of the message at the start of the bytes; `None` when more bytes are needed.
///
/// # Errors
/// When no continuation of the bytes can be a message of a server.
pub fn head(bytes: &[u8]) -> Result<Option<Head>, WireError> {
    super::head(bytes, |kind| match kind {
        DATA_ROW
        | COPY_DATA
        | ROW_DESCRIPTION
        | PARAMETER_DESCRIPTION
        | FUNCTION_RESULT
        | NOTIFICATION
        | ERROR
        | NOTICE => Some(i32::MAX as usize),
        PARSE_COMPLETE | BIND_COMPLETE | CLOSE_COMPLETE | COMMAND_COMPLETE | COPY_IN | COPY_OUT
        | EMPTY_QUERY | KEY_DATA | PARAMETER | COPY_BOTH | READY | COPY_DONE | NO_DATA | SUSPENDED
        | NEGOTIATE => Some(SHORT),
        _ => None,
    })
}

/// Whether enough of a message is there to decide about it: a message that is passed on in pieces is decided by its header, but an
/// ErrorResponse by its first fields.
pub fn is_decidable(available: usize, head: Head) -> bool {
    if !head.is_streamed() {
        available >= head.len
    } else if head.kind == ERROR {
        available >= super::HEADER + ERROR_START
    } else {
        available >= super::HEADER
    }
}

/// The transaction status of a ReadyForQuery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// `I`: not in a transaction block.
    Idle,
    /// `T`: in a transaction block.
    Transaction,
    /// `E`: in a failed transaction block.
    Failed,
}

impl Status {
    /// Reads the body of a ReadyForQuery.
    ///
    /// # Errors
    /// When it is not one of the three.
    pub fn read(body: &[u8]) -> Result<Self, WireError> {
        match body {
            b"I" => Ok(Self::Idle),
            b"T" => Ok(Self::Transaction),
            b"E" => Ok(Self::Failed),
            _ => Err(WireError::Body(READY)),
        }
    }

    /// The byte on the wire.
    pub fn byte(self) -> u8 {
        match self {
            Self::Idle => b'I',
            Self::Transaction => b'T',
            Self::Failed => b'E',
        }
    }
}

/// The two fields of an ErrorResponse or NoticeResponse that decide something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report<'a> {
    /// The severity, not translated (`V`; `S` of servers before 9.6).
    pub severity: &'a [u8],
    /// The SQLSTATE (`C`).
    pub sqlstate: &'a [u8],
}

impl<'a> Report<'a> {
    /// Reads a body, or as much of it as is there.
    pub fn read(body: &'a [u8]) -> Self {
        let mut cursor = Cursor(body);
        let mut report = Self::default();
        let mut translated: &[u8] = b"";
        while let Some(code) = cursor.u8().filter(|code| *code != 0) {
            let Some(value) = cursor.string() else { break };
            match code {
                b'V' => report.severity = value,
                b'S' => translated = value,
                b'C' => report.sqlstate = value,
                _ => {}
            }
        }
        if report.severity.is_empty() {
            report.severity = translated;
        }
        report
    }

    /// Whether the server closes the connection after it.
    pub fn is_fatal(&self) -> bool {
        matches!(self.severity, b"FATAL" | b"PANIC")
    }
}

/// An ErrorResponse of a server, as it came, with FATAL for its severity: what fails for good before a session has begun.
pub fn as_fatal(response: &[u8]) -> BytesMut {
    let mut fields = BytesMut::new();
    let mut cursor = Cursor(response.get(super::HEADER..).unwrap_or_default());
    while let Some(code) = cursor.u8().filter(|code| *code != 0) {
        let Some(value) = cursor.string() else { break };
        fields.put_u8(code);
        fields.put_slice(if matches!(code, b'S' | b'V') { b"FATAL" } else { value });
        fields.put_u8(0);
    }
    fields.put_u8(0);
    let mut out = BytesMut::new();
    super::build::header(&mut out, ERROR, fields.len());
    out.put_slice(&fields);
    out
}

/// The values of the first DataRow among messages of a server, a NULL as an empty one; `None` when there is none.
pub fn first_row(mut messages: &[u8]) -> Option<Vec<&[u8]>> {
    loop {
        let head = head(messages).ok().flatten()?;
        let body = super::body(messages, head)?;
        if head.kind == DATA_ROW {
            let mut cursor = Cursor(body);
            let columns = cursor.u16()?;
            return (0..columns)
                .map(|_| match i32::from_be_bytes(cursor.u32()?.to_be_bytes()) {
                    -1 => Some(&b""[..]),
                    length => cursor.take(usize::try_from(length).ok()?),
                })
                .collect();
        }
        messages = messages.get(head.len..)?;
    }
}

/// Name and value of a ParameterStatus.
///
/// # Errors
/// When the body is not two strings.
pub fn parameter(body: &[u8]) -> Result<(&[u8], &[u8]), WireError> {
    let mut cursor = Cursor(body);
    let pair = cursor.string().zip(cursor.string());
    pair.filter(|_| cursor.is_empty()).ok_or(WireError::Body(PARAMETER))
}

/// Process id and secret key of a BackendKeyData: 4 bytes in protocol 3.0, 4 to 256 in protocol 3.2.
///
/// # Errors
/// When the body is too short or too long for them.
pub fn key_data(body: &[u8]) -> Result<(u32, &[u8]), WireError> {
    let mut cursor = Cursor(body);
    let process = cursor.u32().filter(|_| (4..=256).contains(&cursor.0.len()));
    process.map(|process| (process, cursor.0)).ok_or(WireError::Body(KEY_DATA))
}

/// The columns of a DataRow; `None` for NULL.
///
/// # Errors
/// When the body is not that many columns.
pub fn columns(body: &[u8]) -> Result<Vec<Option<&[u8]>>, WireError> {
    let mut cursor = Cursor(body);
    let mut read = || {
        let columns = (0..cursor.u16()?).map(|_| match cursor.u32()? {
            u32::MAX => Some(None),
            length => Some(Some(cursor.take(usize::try_from(length).ok()?)?)),
        });
        let columns = columns.collect::<Option<Vec<_>>>()?;
        cursor.is_empty().then_some(columns)
    };
    read().ok_or(WireError::Body(DATA_ROW))
}

/// The tag of a CommandComplete.
///
/// # Errors
/// When the body is not one string.
pub fn command_tag(body: &[u8]) -> Result<&[u8], WireError> {
    let mut cursor = Cursor(body);
    cursor.string().filter(|_| cursor.is_empty()).ok_or(WireError::Body(COMMAND_COMPLETE))
}

/// The newest minor version that the server speaks and how many start-up options it does not know, of a NegotiateProtocolVersion.
///
/// # Errors
/// When the body is not that many strings.
pub fn negotiate(body: &[u8]) -> Result<(u32, u32), WireError> {
    let mut cursor = Cursor(body);
    let mut read = || {
        let (minor, options) = cursor.u32().zip(cursor.u32())?;
        for _ in 0..options {
            cursor.string()?;
        }
        cursor.is_empty().then_some((minor, options))
    };
    read().ok_or(WireError::Body(NEGOTIATE))
}

/// Process id, channel and payload of a NotificationResponse.
///
/// # Errors
/// When the body is not that.
pub fn notification(body: &[u8]) -> Result<(u32, &[u8], &[u8]), WireError> {
    let mut cursor = Cursor(body);
    match (cursor.u32(), cursor.string(), cursor.string(), cursor.is_empty()) {
        (Some(process), Some(channel), Some(payload), true) => Ok((process, channel, payload)),
        _ => Err(WireError::Body(NOTIFICATION)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_have_the_limits_of_libpq() {
        let of = |kind: u8, length: i32| head(&[&[kind], &length.to_be_bytes()[..]].concat());
        assert!(of(DATA_ROW, i32::MAX).is_ok_and(|head| head.is_some_and(Head::is_streamed)));
        assert_eq!(of(READY, 30_001), Err(WireError::Length(READY)));
        assert_eq!(of(READY, 3), Err(WireError::Length(READY)));
        assert_eq!(of(b'Q', 4), Err(WireError::Kind(b'Q')));
        let long = |kind| Head { kind, len: 100_000 };
        assert!(
            is_decidable(5, long(DATA_ROW))
                && !is_decidable(260, long(ERROR))
                && is_decidable(261, long(ERROR))
        );
        let short = Head { kind: DATA_ROW, len: 100 };
        assert!(!is_decidable(99, short) && is_decidable(100, short));
    }

    #[test]
    fn bodies_are_read() {
        for status in [Status::Idle, Status::Transaction, Status::Failed] {
            assert_eq!(Status::read(&[status.byte()]), Ok(status));
        }
        assert!(Status::read(b"X").is_err() && Status::read(b"").is_err() && Status::read(b"II").is_err());
        let report = Report::read("SFATAL\u{df}\0VFATAL\0C57P01\0Mgone\0\0".as_bytes());
        assert_eq!((report.sqlstate, report.is_fatal()), (&b"57P01"[..], true));
        let old = Report::read(b"SERROR\0C42601\0Mcut");
        assert_eq!((old.severity, old.sqlstate, old.is_fatal()), (&b"ERROR"[..], &b"42601"[..], false));
        assert_eq!(parameter(b"TimeZone\0UTC\0"), Ok((&b"TimeZone"[..], &b"UTC"[..])));
        assert!(parameter(b"TimeZone\0UTC\0x").is_err() && parameter(b"TimeZone\0UTC").is_err());
        assert_eq!(key_data(&[0, 0, 0, 7, 1, 2, 3, 4]), Ok((7, &[1, 2, 3, 4][..])));
        assert_eq!(key_data(&[1; 36]).map(|(_, key)| key.len()), Ok(32));
        assert!(key_data(&[1; 7]).is_err() && key_data(&[1; 261]).is_err());
        let row = b"\0\x03\0\0\0\x01a\xff\xff\xff\xff\0\0\0\0";
        assert_eq!(columns(row), Ok(vec![Some(&b"a"[..]), None, Some(b"")]));
        assert!(columns(&row[..row.len() - 1]).is_err() && columns(b"\0\0\0").is_err());
        assert_eq!(command_tag(b"INSERT 0 1\0"), Ok(&b"INSERT 0 1"[..]));
        assert_eq!(negotiate(b"\0\0\0\x02\0\0\0\x01_pq_.x\0"), Ok((2, 1)));
        assert!(negotiate(b"\0\0\0\x02\xff\xff\xff\xff_pq_.x\0").is_err());
        assert_eq!(notification(b"\0\0\0\x05c\0p\0"), Ok((5, &b"c"[..], &b"p"[..])));
    }
}
