//! Watches the bytes of HTTP/1 requests for what two parsers could understand differently.
//!
//! hyper normalises requests: it drops a Content-Length beside a Transfer-Encoding, accepts bare LF and repeated lengths. What
//! it passes on is safe, but the client's intention was not clear, and RFC 9112 sections 2.2, 5.1, 5.2 and 6.3 say that
//! such a request is refused. So the bytes are looked at before hyper gets them.

use crate::chunked::Chunked;

/// The longest value of a header field that is looked at.
const MAX_VALUE: usize = 32;
const CONTENT_LENGTH: &[u8] = b"content-length";
const TRANSFER_ENCODING: &[u8] = b"transfer-encoding";

/// What makes a request unacceptable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Violation {
    /// In a head. The bytes before `at`, an offset in the bytes that were scanned, do not complete the head.
    Head {
        /// The offset.
        at: usize,
    },
    /// In the framing of a chunked body, at or after `at`.
    Body {
        /// The offset.
        at: usize,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Between requests.
    Start,
    StartLf,
    RequestLine,
    RequestLineLf,
    LineStart,
    Name,
    Value,
    ValueLf,
    EndLf,
    Body(u64),
    Chunked(Chunked),
}

/// A field whose value matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Length,
    Coding,
    Other,
}

/// The first bytes of something.
#[derive(Clone, Copy, Debug, Default)]
struct Short {
    bytes: [u8; MAX_VALUE],
    /// Counts on beyond the end of `bytes`.
    length: usize,
}

impl Short {
    fn push(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.length) {
            *place = byte;
        }
        self.length = self.length.saturating_add(1);
    }

    /// All the bytes, unless there were too many.
    fn get(&self) -> Option<&[u8]> {
        self.bytes.get(..self.length)
    }
}

/// A position in the requests of a connection.
#[derive(Debug)]
pub(crate) struct Scanner {
    state: State,
    /// The last eight bytes of the request line.
    version: [u8; 8],
    text: Short,
    field: Field,
    length: Option<u64>,
    chunked: bool,
    heads: u64,
}

struct Bad;

impl Scanner {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Start,
            version: [0; 8],
            text: Short::default(),
            field: Field::Other,
            length: None,
            chunked: false,
            heads: 0,
        }
    }

    /// Whether nothing of a request has come since the last one was complete.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.state, State::Start | State::StartLf)
    }

    /// How many heads were complete so far.
    pub(crate) fn heads(&self) -> u64 {
        self.heads
    }

    /// Goes over the next bytes of the connection.
    ///
    /// # Errors
    /// At the first violation; the scanner is of no use afterwards.
    pub(crate) fn scan(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            match &mut self.state {
                State::Body(left) => {
                    let now = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    *left -= now as u64;
                    at += now;
                    if *left == 0 {
                        self.state = State::Start;
                    }
                }
                State::Chunked(chunked) => {
                    let step = chunked.step(rest).map_err(|_| Violation::Body { at })?;
                    at += step.framing + step.data;
                    if chunked.is_done() {
                        self.state = State::Start;
                    }
                }
                _ => {
                    let Some(&byte) = rest.first() else { break };
                    self.head(byte).map_err(|Bad| Violation::Head { at })?;
                    at += 1;
                }
            }
        }
        Ok(())
    }

    fn head(&mut self, byte: u8) -> Result<(), Bad> {
        self.state = match (self.state, byte) {
            // RFC 9112 section 2.2: empty lines before a request are ignored.
            (State::Start, b'\r') => State::StartLf,
            (State::StartLf, b'\n') => State::Start,
            (State::Start, _) if !byte.is_ascii_control() => {
                (self.length, self.chunked) = (None, false);
                self.line(byte);
                State::RequestLine
            }
            (State::RequestLine, b'\r') => State::RequestLineLf,
            (State::RequestLine, _) if !byte.is_ascii_control() => {
                self.line(byte);
                State::RequestLine
            }
            (State::RequestLineLf, b'\n') if matches!(&self.version, b"HTTP/1.1" | b"HTTP/1.0") => {
                State::LineStart
            }
            (State::LineStart, b'\r') => State::EndLf,
            (State::LineStart | State::Name, _) if is_token(byte) => {
                if self.state == State::LineStart {
                    self.text = Short::default();
                }
                self.text.push(byte.to_ascii_lowercase());
                State::Name
            }
            (State::Name, b':') => {
                self.field = match self.text.get() {
                    Some(CONTENT_LENGTH) => Field::Length,
                    Some(TRANSFER_ENCODING) => Field::Coding,
                    _ => Field::Other,
                };
                self.text = Short::default();
                State::Value
            }
            (State::Value, b'\r') => State::ValueLf,
            (State::Value, _) if !byte.is_ascii_control() || byte == b'\t' => {
                if self.field != Field::Other {
                    self.text.push(byte);
                }
                State::Value
            }
            (State::ValueLf, b'\n') => {
                self.value()?;
                State::LineStart
            }
            (State::EndLf, b'\n') => {
                self.heads += 1;
                match (self.chunked, self.length) {
                    (true, _) => State::Chunked(Chunked::default()),
                    (false, Some(length)) if length > 0 => State::Body(length),
                    (false, _) => State::Start,
                }
            }
            // Everything else: bare CR or LF, control characters, folded lines, white space around names, another version.
            _ => return Err(Bad),
        };
        Ok(())
    }

    fn line(&mut self, byte: u8) {
        self.version.rotate_left(1);
        if let Some(last) = self.version.last_mut() {
            *last = byte;
        }
    }

    fn value(&mut self) -> Result<(), Bad> {
        let value = || self.text.get().map(<[u8]>::trim_ascii).ok_or(Bad);
        match self.field {
            Field::Other => {}
            Field::Length => {
                let digits = value()?;
                if self.length.is_some() || self.chunked || !digits.iter().all(u8::is_ascii_digit) {
                    return Err(Bad);
                }
                let number = std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok());
                self.length = Some(number.ok_or(Bad)?);
            }
            Field::Coding => {
                let known = value()?.eq_ignore_ascii_case(b"chunked");
                if !known || self.chunked || self.length.is_some() || &self.version != b"HTTP/1.1" {
                    return Err(Bad);
                }
                self.chunked = true;
            }
        }
        Ok(())
    }
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Requests that must be refused with 400 and never reach the node, each with a name.
#[cfg(test)]
pub(crate) const SMUGGLING: &[(&str, &str)] = &[
    (
        "CL.TE",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
    ),
    (
        "TE.CL",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n8\r\nSMUGGLED\r\n0\r\n\r\n",
    ),
    ("two lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"),
    ("list of lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 6\r\n\r\nhello!"),
    ("signed length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello"),
    ("negative length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\nhello"),
    ("hexadecimal length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\nhello"),
    ("empty length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\nhello"),
    ("huge length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\nhello"),
    ("length before a space", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 5\r\n\r\nhello"),
    ("unknown coding", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    ("identity coding", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n"),
    ("gzip, chunked", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    (
        "chunked, identity",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    ),
    (
        "two codings",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
    ),
    (
        "coding after a vertical tab",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    ),
    ("coding before a space", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
    ("coding after a space", "POST / HTTP/1.1\r\n Transfer-Encoding: chunked\r\nHost: a\r\n\r\n0\r\n\r\n"),
    (
        "coding in a folded line",
        "POST / HTTP/1.1\r\nHost: a\r\nX: a\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    ("coding folded", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"),
    ("coding in HTTP/1.0", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("bare CR in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: a\rContent-Length: 5\r\n\r\n"),
    ("bare LF after a line", "GET / HTTP/1.1\r\nHost: a\nX: a\r\n\r\n"),
    ("bare LF at the end", "GET / HTTP/1.1\r\nHost: a\r\n\n"),
    ("bare LF after the request line", "GET / HTTP/1.1\nHost: a\r\n\r\n"),
    ("NUL in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n"),
    ("NUL in a name", "GET / HTTP/1.1\r\nHost: a\r\nX\0: b\r\n\r\n"),
    ("no colon", "GET / HTTP/1.1\r\nHost: a\r\nXa\r\n\r\n"),
    ("empty name", "GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n"),
    ("tab in the request line", "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("no version", "GET /\r\n\r\n"),
    ("version 1.2", "GET / HTTP/1.2\r\nHost: a\r\n\r\n"),
    ("version 0.9", "GET / HTTP/0.9\r\n\r\n"),
    ("lower-case version", "GET / http/1.1\r\nHost: a\r\n\r\n"),
    ("space in the target", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("two spaces", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("no target", "GET  HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("no host", "GET / HTTP/1.1\r\n\r\n"),
    ("two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
    ("host with a path", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    ("host with user", "GET / HTTP/1.1\r\nHost: u@b\r\n\r\n"),
    ("target with user", "GET http://u@b/ HTTP/1.1\r\nHost: b\r\n\r\n"),
    ("relative target", "GET a HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("other scheme", "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    (
        "chunk size with a sign",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "chunk size with 0x",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "chunk line with bare LF",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;\nhello\r\n0\r\n\r\n",
    ),
    (
        "chunk size too long",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\n",
    ),
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scan(bytes: &[u8], piece: usize) -> Result<Scanner, Violation> {
        let mut scanner = Scanner::new();
        for (index, part) in bytes.chunks(piece).enumerate() {
            scanner.scan(part).map_err(|violation| match violation {
                Violation::Head { at } => Violation::Head { at: at + index * piece },
                // The pieces decide how exactly the place is known.
                Violation::Body { .. } => Violation::Body { at: 0 },
            })?;
        }
        Ok(scanner)
    }

    #[test]
    fn good_requests_pass_and_their_ends_are_found() {
        for request in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "\r\n\r\nGET / HTTP/1.0\r\n\r\n",
            "POST /x?y HTTP/1.1\r\nHost: a\r\nContent-Length:  5\t\r\nX:\tp\t\u{e9}\r\n\r\nhel\0o",
            "POST / HTTP/1.1\r\ntransfer-encoding: Chunked\r\nHost: a\r\n\r\n5;a=b\r\n\r\n\r\n\r\r\n0\r\nT: x\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        ] {
            let twice = request.repeat(2);
            for piece in 1..=twice.len() {
                let scanner = scan(twice.as_bytes(), piece).unwrap_or_else(|v| panic!("{request:?}: {v:?}"));
                assert!(scanner.is_idle() && scanner.heads() == 2, "{request:?} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn what_hyper_would_mend_is_found() {
        // The others are for hyper and for the front to refuse.
        let elsewhere = [
            "space in the target",
            "two spaces",
            "no target",
            "no host",
            "two hosts",
            "host with a path",
            "host with user",
            "target with user",
            "relative target",
            "other scheme",
        ];
        for (name, request) in SMUGGLING {
            assert_eq!(scan(request.as_bytes(), request.len()).is_ok(), elsewhere.contains(name), "{name}");
        }
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            which in 0..SMUGGLING.len(),
            noise in proptest::collection::vec(any::<u8>(), 0..40),
            at: prop::sample::Index,
            piece in 1_usize..40,
        ) {
            let mut bytes = SMUGGLING[which].1.as_bytes().to_vec();
            let at = at.index(bytes.len() + 1);
            bytes.splice(at..at, noise);
            let whole = scan(&bytes, bytes.len());
            let pieces = scan(&bytes, piece);
            prop_assert_eq!(whole.as_ref().err(), pieces.as_ref().err());
            if let Err(Violation::Head { at }) = whole {
                prop_assert!(scan(&bytes[..at], bytes.len()).is_ok());
            }
        }
    }
}
