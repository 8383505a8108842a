//! A parser for HTTP/1 responses that opens no socket: bytes in, head and body out.
//!
//! It is more forgiving than a client library where that is harmless (line ends, missing reason phrases, bytes after the
//! body), because a hand-written server stands behind it, and as strict where two parties could disagree about the length.

use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version};
use thiserror::Error;

use crate::chunked::{ChunkError, Chunked};

/// The longest response head.
pub const MAX_HEAD: usize = 64 * 1024;
/// The most header lines in a response.
pub const MAX_HEADERS: usize = 100;
/// The most interim responses before the final one.
const MAX_INTERIM: u8 = 16;

/// What is wrong with a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ResponseError {
    /// The head is not HTTP/1.
    #[error("malformed response head")]
    Head,
    /// The head is longer than [`MAX_HEAD`], has more than [`MAX_HEADERS`] lines, or 1xx responses do not end.
    #[error("response head too large")]
    HeadTooLarge,
    /// Content-Length is not a number, or there are several that differ.
    #[error("invalid Content-Length in the response")]
    Length,
    /// A transfer coding other than chunked.
    #[error("unsupported Transfer-Encoding in the response")]
    Coding,
    /// The chunked coding is broken.
    #[error("{0} in the response")]
    Chunk(#[from] ChunkError),
    /// The connection was closed before the response was complete.
    #[error("connection closed in the middle of the response")]
    Short,
    /// The connection was closed before the first byte of a response.
    #[error("connection closed without a response")]
    Nothing,
}

/// How the length of a body is known (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    None,
    /// So many bytes.
    Length(u64),
    /// The chunked coding.
    Chunked,
    /// Until the connection is closed.
    UntilClose,
}

/// The head of a final response, or of 101.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The status.
    pub status: StatusCode,
    /// HTTP/1.0 or HTTP/1.1.
    pub version: Version,
    /// The header fields as received.
    pub headers: HeaderMap,
    /// How the body ends.
    pub framing: Framing,
    /// Whether the server means to keep the connection (RFC 9112 section 9.3) and the framing lets it.
    pub keep_alive: bool,
}

/// A part of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The head. Interim responses are skipped, except 101, after which the bytes belong to the other protocol.
    Head(Box<Head>),
    /// The next bytes of the body; never empty.
    Data(Bytes),
    /// The body is complete.
    End,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Head,
    Length(u64),
    Chunked(Chunked),
    UntilClose,
    /// Complete; [`Event::End`] is still to be said.
    Ending,
    Done,
}

/// One response. Bytes go into [`ResponseParser::buffer`], events come out of [`ResponseParser::next_event`].
#[derive(Debug)]
pub struct ResponseParser {
    buffer: BytesMut,
    state: State,
    /// The response to HEAD has no body, whatever its head says.
    to_head: bool,
    /// In a head, how far the search for its end has come.
    searched: usize,
    interim: u8,
    started: bool,
}

impl ResponseParser {
    /// A parser for the response to a request; `to_head` when its method was HEAD.
    pub fn new(to_head: bool) -> Self {
        Self { buffer: BytesMut::new(), state: State::Head, to_head, searched: 0, interim: 0, started: false }
    }

    /// Where received bytes are appended. After [`Event::End`]: what the server sent beyond its response; after 101: the first
    /// bytes of the other protocol.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Whether a byte of the response has arrived.
    pub fn has_started(&self) -> bool {
        self.started || !self.buffer.is_empty()
    }

    /// Whether the body is complete.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Ending | State::Done)
    }

    /// The number of body bytes still to come, where the framing says it.
    pub fn remaining(&self) -> Option<u64> {
        match self.state {
            State::Length(left) => Some(left),
            State::Ending | State::Done => Some(0),
            State::Head | State::Chunked(_) | State::UntilClose => None,
        }
    }

    /// The next part, if enough bytes are there.
    ///
    /// # Errors
    /// When the bytes are not a response; the connection is of no use then.
    pub fn next_event(&mut self) -> Result<Option<Event>, ResponseError> {
        loop {
            match &mut self.state {
                State::Head => match self.head()? {
                    None => return Ok(None),
                    Some(head)
                        if head.status.is_informational()
                            && head.status != StatusCode::SWITCHING_PROTOCOLS =>
                    {
                        self.interim += 1;
                        if self.interim > MAX_INTERIM {
                            return Err(ResponseError::HeadTooLarge);
                        }
                    }
                    Some(head) => {
                        self.state = match head.framing {
                            Framing::None | Framing::Length(0) => State::Ending,
                            Framing::Length(length) => State::Length(length),
                            Framing::Chunked => State::Chunked(Chunked::default()),
                            Framing::UntilClose => State::UntilClose,
                        };
                        return Ok(Some(Event::Head(Box::new(head))));
                    }
                },
                State::Length(left) => {
                    if self.buffer.is_empty() {
                        return Ok(None);
                    }
                    let now = usize::try_from(*left).unwrap_or(usize::MAX).min(self.buffer.len());
                    *left -= now as u64;
                    if *left == 0 {
                        self.state = State::Ending;
                    }
                    return Ok(Some(Event::Data(self.buffer.split_to(now).freeze())));
                }
                State::Chunked(chunked) => {
                    let step = chunked.step(&self.buffer)?;
                    let done = chunked.is_done();
                    self.buffer.advance(step.framing);
                    if done {
                        self.state = State::Ending;
                    } else if step.data > 0 {
                        return Ok(Some(Event::Data(self.buffer.split_to(step.data).freeze())));
                    } else {
                        return Ok(None);
                    }
                }
                State::UntilClose if self.buffer.is_empty() => return Ok(None),
                State::UntilClose => return Ok(Some(Event::Data(self.buffer.split().freeze()))),
                State::Ending => {
                    self.state = State::Done;
                    return Ok(Some(Event::End));
                }
                State::Done => return Ok(None),
            }
        }
    }

    /// The server closed the connection, and all its bytes have been taken out as events. `Some(End)` when that completes the body.
    ///
    /// # Errors
    /// When the response is not complete.
    pub fn closed(&mut self) -> Result<Option<Event>, ResponseError> {
        match self.state {
            State::UntilClose | State::Ending => {
                self.state = State::Done;
                Ok(Some(Event::End))
            }
            State::Done => Ok(None),
            State::Head if !self.has_started() => Err(ResponseError::Nothing),
            State::Head | State::Length(_) | State::Chunked(_) => Err(ResponseError::Short),
        }
    }

    fn head(&mut self) -> Result<Option<Head>, ResponseError> {
        let blank = self.buffer.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        if blank > 0 {
            self.started = true;
            self.buffer.advance(blank);
            self.searched = 0;
        }
        // Searched for first, so that a head that comes in many pieces is parsed once.
        if !self.head_is_complete() {
            return if self.buffer.len() > MAX_HEAD { Err(ResponseError::HeadTooLarge) } else { Ok(None) };
        }
        let mut lines = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut parsed = httparse::Response::new(&mut lines);
        let length = match httparse::ParserConfig::default()
            .allow_multiple_spaces_in_response_status_delimiters(true)
            .parse_response(&mut parsed, &self.buffer)
        {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Err(ResponseError::Head),
            Err(httparse::Error::TooManyHeaders) => return Err(ResponseError::HeadTooLarge),
            Err(_) => return Err(ResponseError::Head),
        };
        if length > MAX_HEAD {
            return Err(ResponseError::HeadTooLarge);
        }
        let status =
            parsed.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(ResponseError::Head)?;
        let version = if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
        let mut headers = HeaderMap::with_capacity(parsed.headers.len());
        for line in parsed.headers.iter() {
            let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| ResponseError::Head)?;
            let value = HeaderValue::from_bytes(line.value).map_err(|_| ResponseError::Head)?;
            headers.append(name, value);
        }
        self.buffer.advance(length);
        self.searched = 0;
        self.started = true;
        let framing = framing(status, version, &headers, self.to_head)?;
        // Both lengths at once: RFC 9112 section 6.3 lets Transfer-Encoding win and asks to close the connection.
        let clear = !(headers.contains_key(TRANSFER_ENCODING)
            && (headers.contains_key(CONTENT_LENGTH) || version == Version::HTTP_10));
        let keep_alive = keeps_alive(version, &headers) && framing != Framing::UntilClose && clear;
        Ok(Some(Head { status, version, headers, framing, keep_alive }))
    }

    fn head_is_complete(&mut self) -> bool {
        let from = self.searched;
        let rest = self.buffer.get(from..).unwrap_or_default();
        let mut found = false;
        for (at, _) in rest.iter().enumerate().filter(|(_, byte)| **byte == b'\n') {
            if matches!(rest.get(at + 1..), Some([b'\n', ..] | [b'\r', b'\n', ..])) {
                found = true;
                break;
            }
        }
        self.searched = self.buffer.len().saturating_sub(2).max(from);
        found
    }
}

/// RFC 9112 section 6.3, for responses.
fn framing(
    status: StatusCode,
    version: Version,
    headers: &HeaderMap,
    to_head: bool,
) -> Result<Framing, ResponseError> {
    let length = content_length(headers)?;
    if to_head
        || status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
    {
        return Ok(Framing::None);
    }
    let mut codings =
        tokens(headers, TRANSFER_ENCODING).filter(|coding| !coding.eq_ignore_ascii_case(b"identity"));
    match (codings.next(), codings.next()) {
        (Some(coding), None) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
        (Some(_), _) => Err(ResponseError::Coding),
        (None, _) => {
            debug_assert!(matches!(version, Version::HTTP_10 | Version::HTTP_11));
            Ok(length.map_or(Framing::UntilClose, Framing::Length))
        }
    }
}

/// The one value that every Content-Length line and list member has.
fn content_length(headers: &HeaderMap) -> Result<Option<u64>, ResponseError> {
    let mut length = None;
    for value in tokens(headers, CONTENT_LENGTH) {
        let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
        let number = std::str::from_utf8(value).ok().filter(|_| digits).and_then(|text| text.parse().ok());
        match (number, length) {
            (Some(number), None) => length = Some(number),
            (Some(number), Some(before)) if number == before => {}
            _ => return Err(ResponseError::Length),
        }
    }
    Ok(length)
}

fn keeps_alive(version: Version, headers: &HeaderMap) -> bool {
    let says = |option: &[u8]| tokens(headers, CONNECTION).any(|token| token.eq_ignore_ascii_case(option));
    !says(b"close") && (version == Version::HTTP_11 || says(b"keep-alive"))
}

/// The members of a list field, over all its lines.
fn tokens(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &[u8]> {
    headers
        .get_all(name)
        .into_iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Everything that came out: the head, the body, whether it ended, what was left over.
    type Outcome = Result<(Option<Head>, Vec<u8>, bool, Vec<u8>), ResponseError>;

    fn run(pieces: &[&[u8]], to_head: bool) -> Outcome {
        let mut parser = ResponseParser::new(to_head);
        let (mut head, mut body, mut ended) = (None, Vec::new(), false);
        let mut take = |event: Event| match event {
            Event::Head(event) => head = Some(*event),
            Event::Data(data) => {
                assert!(!data.is_empty());
                body.extend_from_slice(&data);
            }
            Event::End => ended = true,
        };
        for piece in pieces {
            parser.buffer().extend_from_slice(piece);
            while let Some(event) = parser.next_event()? {
                take(event);
            }
        }
        if let Some(event) = parser.closed()? {
            take(event);
        }
        Ok((head, body, ended, parser.buffer().to_vec()))
    }

    fn whole(bytes: &str) -> Outcome {
        run(&[bytes.as_bytes()], false)
    }

    #[test]
    fn the_malformed_reply_of_the_node_is_cut_at_its_length() {
        let (head, body, ended, surplus) =
            whole("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokConnection: keep-alive\r\n").unwrap();
        assert_eq!(head.unwrap().framing, Framing::Length(2));
        assert_eq!((body.as_slice(), ended), (&b"ok"[..], true));
        assert_eq!(surplus, b"Connection: keep-alive\r\n");
    }

    #[test]
    fn every_framing_is_understood() {
        let framing = |text: &str| whole(text).unwrap().0.unwrap().framing;
        assert_eq!(framing("HTTP/1.1 200 OK\r\n\r\nabc"), Framing::UntilClose);
        assert_eq!(framing("HTTP/1.1 204\r\nContent-Length: 9\r\n\r\n"), Framing::None);
        assert_eq!(framing("HTTP/1.1 304 x\nContent-Length: 9\n\n"), Framing::None);
        assert_eq!(framing("\r\nHTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n\r\na"), Framing::Length(1));
        assert_eq!(framing("HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n"), Framing::UntilClose);
        let (head, body, ended, _) = whole(
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\nTransfer-Encoding: Chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        )
        .unwrap();
        let head = head.unwrap();
        assert_eq!((head.framing, head.keep_alive), (Framing::Chunked, false));
        assert_eq!((body.as_slice(), ended), (&b"a"[..], true));
        let (head, body, ..) = run(&[b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n"], true).unwrap();
        assert_eq!((head.unwrap().framing, body.len()), (Framing::None, 0));
    }

    #[test]
    fn interim_responses_are_skipped_and_101_is_not() {
        let (head, body, ..) =
            whole("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
                .unwrap();
        assert_eq!((head.unwrap().status, body.as_slice()), (StatusCode::OK, &b"x"[..]));
        let (head, _, _, rest) = whole("HTTP/1.1 101 Switching\r\nUpgrade: a\r\n\r\n\x01\x02").unwrap();
        assert_eq!(
            (head.unwrap().status, rest.as_slice()),
            (StatusCode::SWITCHING_PROTOCOLS, &b"\x01\x02"[..])
        );
        assert_eq!(whole(&"HTTP/1.1 100 Continue\r\n\r\n".repeat(20)), Err(ResponseError::HeadTooLarge));
    }

    #[test]
    fn keep_alive_follows_version_and_connection() {
        let keep = |text: &str| whole(text).unwrap().0.unwrap().keep_alive;
        assert!(keep("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"));
        assert!(!keep("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: x, Close\r\n\r\n"));
        assert!(!keep("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n"));
        assert!(keep("HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n"));
        assert!(!keep("HTTP/1.1 200 OK\r\n\r\n"));
    }

    #[test]
    fn broken_responses_are_errors() {
        let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\n", "x".repeat(MAX_HEAD));
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(101));
        for (text, error) in [
            ("", ResponseError::Nothing),
            ("\r\n", ResponseError::Short),
            ("HTTP/1.1 200 OK\r\n", ResponseError::Short),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfour", ResponseError::Short),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc", ResponseError::Short),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz",
                ResponseError::Chunk(ChunkError::Size),
            ),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", ResponseError::Coding),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", ResponseError::Length),
            ("HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n", ResponseError::Length),
            ("HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n", ResponseError::Length),
            ("HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n", ResponseError::Length),
            ("HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", ResponseError::Head),
            ("Connection: keep-alive\r\n\r\n", ResponseError::Head),
            ("HTTP/2.0 200 OK\r\n\r\n", ResponseError::Head),
            ("HTTP/1.1 099 x\r\n\r\n", ResponseError::Head),
            (&long, ResponseError::HeadTooLarge),
            (&many, ResponseError::HeadTooLarge),
        ] {
            assert_eq!(whole(text), Err(error), "{:?}", text.get(..60).unwrap_or(text));
        }
    }

    fn cut<'a>(bytes: &'a [u8], places: &[prop::sample::Index]) -> Vec<&'a [u8]> {
        let mut places: Vec<usize> = places.iter().map(|place| place.index(bytes.len() + 1)).collect();
        places.extend([0, bytes.len()]);
        places.sort_unstable();
        places.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
    }

    fn response() -> impl Strategy<Value = Vec<u8>> {
        let line = prop_oneof![
            Just("Content-Length: 5\r\n".to_owned()),
            Just("content-length: 12\n".to_owned()),
            Just("Transfer-Encoding: chunked\r\n".to_owned()),
            Just("Connection: close\r\n".to_owned()),
            "[A-Za-z-]{1,12}: ?[ -~]{0,20}\r\n",
        ];
        let body = prop_oneof![
            Just(b"hello".to_vec()),
            Just(b"5\r\nhello\r\n3;x\r\nabc\r\n0\r\n\r\n".to_vec()),
            Just(b"helloConnection: keep-alive\r\n".to_vec()),
            prop::collection::vec(any::<u8>(), 0..64),
        ];
        let status = prop_oneof![Just(""), Just("HTTP/1.1 100 Continue\r\n\r\n"), Just("\r\n\n")];
        (status, 100u16..600, prop::collection::vec(line, 0..5), body).prop_map(
            |(before, code, lines, body)| {
                let mut bytes = format!("{before}HTTP/1.1 {code} X\r\n{}\r\n", lines.concat()).into_bytes();
                bytes.extend(body);
                bytes
            },
        )
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            bytes in prop_oneof![response(), prop::collection::vec(any::<u8>(), 0..200)],
            places in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
            to_head: bool,
        ) {
            prop_assert_eq!(run(&cut(&bytes, &places), to_head), run(&[&bytes], to_head));
        }
    }
}
