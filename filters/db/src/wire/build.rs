//! Messages that the sidecar itself says, to clients and to servers.

use bytes::{BufMut, BytesMut};

use super::backend::{self, Status};
use super::{HEADER, frontend};

/// ParseComplete.
pub const PARSE_COMPLETE: &[u8] = b"1\0\0\0\x04";
/// CloseComplete.
pub const CLOSE_COMPLETE: &[u8] = b"3\0\0\0\x04";
/// Sync.
pub const SYNC: &[u8] = b"S\0\0\0\x04";
/// Flush.
pub const FLUSH: &[u8] = b"H\0\0\0\x04";
/// Terminate.
pub const TERMINATE: &[u8] = b"X\0\0\0\x04";

/// ReadyForQuery.
pub fn ready(status: Status) -> [u8; 6] {
    [backend::READY, 0, 0, 0, 5, status.byte()]
}

/// Writes a message: its type byte, its length, and what `body` writes. A body that would be too long for its length field is cut to
/// nothing; nothing that is built here comes near.
pub(crate) fn message(out: &mut BytesMut, kind: u8, body: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_slice(&[kind, 0, 0, 0, 4]);
    body(out);
    match i32::try_from(out.len() - start - 1) {
        Ok(length) => {
            if let Some(field) = out.get_mut(start + 1..start + HEADER) {
                field.copy_from_slice(&length.to_be_bytes());
            }
        }
        Err(_) => out.truncate(start + HEADER),
    }
}

/// Writes a string and the zero byte that ends it, without any zero byte in it.
pub(crate) fn string(out: &mut BytesMut, text: &[u8]) {
    if text.contains(&0) {
        out.extend(text.iter().filter(|byte| **byte != 0));
    } else {
        out.put_slice(text);
    }
    out.put_u8(0);
}

/// The header of a message whose body follows; `body` is its length in bytes.
pub fn header(out: &mut BytesMut, kind: u8, body: usize) {
    let length = i32::try_from(body + 4).unwrap_or(i32::MAX);
    out.put_u8(kind);
    out.put_i32(length);
}

/// Parse of a statement whose text and parameter types are already in the form of the wire.
pub fn parse(out: &mut BytesMut, name: &[u8], rest: &[u8]) {
    header(out, frontend::PARSE, name.len() + 1 + rest.len());
    out.put_slice(name);
    out.put_u8(0);
    out.put_slice(rest);
}

/// Close or Describe (`kind`) of a statement.
pub fn target(out: &mut BytesMut, kind: u8, name: &[u8]) {
    header(out, kind, name.len() + 2);
    out.put_u8(b'S');
    out.put_slice(name);
    out.put_u8(0);
}

/// Query.
pub fn query(out: &mut BytesMut, text: &[u8]) {
    message(out, frontend::QUERY, |out| string(out, text));
}

/// Parse of an unnamed statement without parameter types, Bind of these text parameters, Execute for at most one row, and Sync.
pub fn ask(out: &mut BytesMut, text: &[u8], parameters: &[&[u8]]) {
    message(out, frontend::PARSE, |out| {
        out.put_u8(0);
        string(out, text);
        out.put_u16(0);
    });
    message(out, frontend::BIND, |out| {
        // Unnamed portal and statement, all parameters as text.
        out.put_slice(&[0, 0, 0, 0]);
        out.put_u16(u16::try_from(parameters.len()).unwrap_or(u16::MAX));
        for parameter in parameters {
            out.put_u32(u32::try_from(parameter.len()).unwrap_or(u32::MAX));
            out.put_slice(parameter);
        }
        // All columns as text.
        out.put_u16(0);
    });
    message(out, frontend::EXECUTE, |out| {
        out.put_u8(0);
        out.put_u32(1);
    });
    out.put_slice(SYNC);
}

/// CopyFail.
pub fn copy_fail(out: &mut BytesMut, reason: &str) {
    message(out, frontend::COPY_FAIL, |out| string(out, reason.as_bytes()));
}

/// EmptyQueryResponse.
pub const EMPTY_QUERY: &[u8] = b"I\0\0\0\x04";

/// CommandComplete.
pub fn command_complete(out: &mut BytesMut, tag: &str) {
    message(out, backend::COMMAND_COMPLETE, |out| string(out, tag.as_bytes()));
}

/// AuthenticationOk.
pub const AUTHENTICATION_OK: &[u8] = b"R\0\0\0\x08\0\0\0\0";

/// NegotiateProtocolVersion: the newest minor version that is spoken, and the protocol options that are not known.
pub fn negotiate(out: &mut BytesMut, minor: u16, unknown: &[&[u8]]) {
    message(out, backend::NEGOTIATE, |out| {
        out.put_u32(u32::from(minor));
        out.put_u32(u32::try_from(unknown.len()).unwrap_or(u32::MAX));
        for name in unknown {
            string(out, name);
        }
    });
}

/// ParameterStatus.
pub fn parameter(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    message(out, backend::PARAMETER, |out| {
        string(out, name);
        string(out, value);
    });
}

/// BackendKeyData.
pub fn key_data(out: &mut BytesMut, process: u32, secret: &[u8]) {
    message(out, backend::KEY_DATA, |out| {
        out.put_u32(process);
        out.put_slice(secret);
    });
}

/// An ErrorResponse of the sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorResponse<'a> {
    /// Whether the connection ends with it (FATAL), or only the batch (ERROR).
    pub fatal: bool,
    /// The SQLSTATE.
    pub sqlstate: &'a str,
    /// The message.
    pub message: &'a str,
    /// DETAIL.
    pub detail: Option<&'a str>,
    /// HINT, by which errors of the sidecar are told from those of the server.
    pub hint: Option<&'a str>,
}

impl ErrorResponse<'_> {
    /// Writes it.
    pub fn write(&self, out: &mut BytesMut) {
        let severity: &[u8] = if self.fatal { b"FATAL" } else { b"ERROR" };
        message(out, backend::ERROR, |out| {
            let mut field = |code: u8, text: &[u8]| {
                out.put_u8(code);
                string(out, text);
            };
            field(b'S', severity);
            field(b'V', severity);
            field(b'C', self.sqlstate.as_bytes());
            field(b'M', self.message.as_bytes());
            if let Some(detail) = self.detail {
                field(b'D', detail.as_bytes());
            }
            if let Some(hint) = self.hint {
                field(b'H', hint.as_bytes());
            }
            out.put_u8(0);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::body;
    use proptest::prelude::*;

    fn written(write: impl FnOnce(&mut BytesMut)) -> BytesMut {
        let mut out = BytesMut::new();
        write(&mut out);
        out
    }

    fn from_server(bytes: &[u8]) -> &[u8] {
        let head = backend::head(bytes).unwrap().unwrap();
        assert_eq!(head.len, bytes.len());
        body(bytes, head).unwrap()
    }

    fn from_client(bytes: &[u8]) -> &[u8] {
        let head = frontend::head(bytes).unwrap().unwrap();
        assert_eq!(head.len, bytes.len());
        body(bytes, head).unwrap()
    }

    #[test]
    fn fixed_messages_are_whole() {
        assert!(from_server(PARSE_COMPLETE).is_empty() && from_server(CLOSE_COMPLETE).is_empty());
        assert!(
            from_client(SYNC).is_empty()
                && from_client(FLUSH).is_empty()
                && from_client(TERMINATE).is_empty()
        );
        assert_eq!(Status::read(from_server(&ready(Status::Failed))), Ok(Status::Failed));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            name in "[^\\x00]{0,80}", text in "[^\\x00]{0,300}", types in proptest::collection::vec(any::<[u8; 4]>(), 0..5),
            process: u32, secret in proptest::collection::vec(any::<u8>(), 4..=256),
        ) {
            let count = u16::try_from(types.len()).unwrap();
            let rest = [text.as_bytes(), b"\0", &count.to_be_bytes(), types.as_flattened()].concat();
            let bytes = written(|out| parse(out, name.as_bytes(), &rest));
            let read = frontend::Parse::read(from_client(&bytes)).unwrap();
            prop_assert_eq!((read.name, read.query, read.rest), (name.as_bytes(), text.as_bytes(), &rest[..]));
            let bytes = written(|out| target(out, frontend::CLOSE, name.as_bytes()));
            let read = frontend::Target::read(frontend::CLOSE, from_client(&bytes));
            prop_assert_eq!(read, Ok(frontend::Target::Statement(name.as_bytes())));
            let bytes = written(|out| query(out, text.as_bytes()));
            prop_assert_eq!(frontend::query(from_client(&bytes)), Ok(text.as_bytes()));
            let bytes = written(|out| parameter(out, name.as_bytes(), text.as_bytes()));
            prop_assert_eq!(backend::parameter(from_server(&bytes)), Ok((name.as_bytes(), text.as_bytes())));
            let bytes = written(|out| key_data(out, process, &secret));
            prop_assert_eq!(backend::key_data(from_server(&bytes)), Ok((process, &secret[..])));
        }

        #[test]
        fn an_error_is_one_message_whatever_its_texts(message in ".{0,80}", hint in ".{0,80}", fatal: bool) {
            let error = ErrorResponse { fatal, sqlstate: "53300", message: &message, detail: Some("d"), hint: Some(&hint) };
            let bytes = written(|out| error.write(out));
            let body = from_server(&bytes);
            let report = backend::Report::read(body);
            prop_assert_eq!((report.sqlstate, report.is_fatal()), (&b"53300"[..], fatal));
            let fields: Vec<_> = body.split(|byte| *byte == 0).collect();
            prop_assert_eq!(fields.len(), 6 + 2);
            prop_assert!(fields[5].starts_with(b"H"));
        }
    }
}
