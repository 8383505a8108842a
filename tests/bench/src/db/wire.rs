//! Messages of PostgreSQL's protocol 3.0 as the generator needs them: built once before a load, read without keeping them
//! and without memory for each (PostgreSQL documentation, "Frontend/Backend Protocol", "Message Formats").

use std::io;
use std::ops::Range;

/// Digits of a row's number in a message, filled up with zeros, so that messages can be changed where they are.
const DIGITS: usize = 7;
/// How much of a message's body is looked at: the fields of an error, the first column of a row.
const KEPT: usize = 512;
/// No answer of this benchmark is near that long: what claims to be is no message.
const LONGEST: usize = 1 << 20;

/// The value that the row with a number has, so that an answer shows whose it is. The table is made by [`ROWS_SQL`].
pub fn token(number: u32) -> i64 {
    i64::from(number) * 7919 % 1_000_003
}

/// How many rows the table has that operations with a number read; their numbers begin with 1.
pub const ROWS: u32 = 100_000;

/// Makes that table.
pub const ROWS_SQL: &str = "create table token as select id::int, (id::bigint * 7919 % 1000003)::int as value from generate_series(1, 100000) id; \
     alter table token add primary key (id)";

/// What one operation must give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Fixed(i64),
    OfNumber,
}

/// One operation, as bytes.
#[derive(Clone, Debug)]
pub struct Operation {
    /// What each connection sends before its first operation, up to ReadyForQuery. Empty for nothing.
    pub prepare: Vec<u8>,
    /// What only those connections send in addition that are opened before a load.
    pub warm_up: Vec<u8>,
    message: Vec<u8>,
    /// Where the number of the row stands.
    number: Option<Range<usize>>,
    answer: Answer,
}

impl Operation {
    /// A simple query whose answer is always the same number. `first` is another one, without rows, for warming up.
    pub fn fixed(first: &str, sql: &str, answer: i64) -> Self {
        let (prepare, warm_up, message) = (Vec::new(), query(first), query(sql));
        Self { prepare, warm_up, message, number: None, answer: Answer::Fixed(answer) }
    }

    /// A row of the table by its number, as a simple query.
    pub fn simple() -> Self {
        let sql = format!("SELECT value FROM token WHERE id = {:0DIGITS$}", 0);
        let message = query(&sql);
        // The digits stand before the terminating zero.
        let end = message.len() - 1;
        let number = Some(end - DIGITS..end);
        let (prepare, warm_up) = (Vec::new(), Vec::new());
        Self { prepare, warm_up, message, number, answer: Answer::OfNumber }
    }

    /// The same by a named prepared statement: Bind, Describe, Execute, Sync, which is what libpq sends.
    pub fn prepared() -> Self {
        let mut prepare = Vec::new();
        // Name, text, no types given.
        message(&mut prepare, b'P', b"t\0SELECT value FROM token WHERE id = $1\0\0\0");
        message(&mut prepare, b'S', b"");
        let mut bytes = Vec::new();
        // Portal, statement, no format codes (text), one value of so many bytes, text results.
        let mut bind = b"\0t\0\0\0\0\x01".to_vec();
        bind.extend((DIGITS as u32).to_be_bytes());
        let from = bind.len() + HEADER;
        bind.extend([b'0'; DIGITS]);
        bind.extend([0, 0]);
        message(&mut bytes, b'B', &bind);
        message(&mut bytes, b'D', b"P\0");
        message(&mut bytes, b'E', b"\0\0\0\0\0");
        message(&mut bytes, b'S', b"");
        let (warm_up, number) = (Vec::new(), Some(from..from + DIGITS));
        Self { prepare, warm_up, message: bytes, number, answer: Answer::OfNumber }
    }

    /// The bytes of one operation, about the row with a number where it is about a row, and what must come back.
    pub fn about(&mut self, number: u32) -> (&[u8], i64) {
        if let Some(digits) = self.number.clone().and_then(|range| self.message.get_mut(range)) {
            let mut rest = number;
            for digit in digits.iter_mut().rev() {
                *digit = b'0' + (rest % 10) as u8;
                rest /= 10;
            }
        }
        let answer = match self.answer {
            Answer::Fixed(value) => value,
            Answer::OfNumber => token(number),
        };
        (&self.message, answer)
    }
}

/// Type and length in front of a body.
const HEADER: usize = 5;

fn message(into: &mut Vec<u8>, tag: u8, body: &[u8]) {
    into.push(tag);
    // The length counts itself.
    into.extend((body.len() as u32 + 4).to_be_bytes());
    into.extend(body);
}

fn query(sql: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    message(&mut bytes, b'Q', &[sql.as_bytes(), b"\0"].concat());
    bytes
}

/// StartupMessage of protocol 3.0 for a user without a password.
pub fn startup(user: &str, database: &str) -> Vec<u8> {
    let body = format!("\0\x03\0\0user\0{user}\0database\0{database}\0\0");
    let mut bytes = (body.len() as u32 + 4).to_be_bytes().to_vec();
    bytes.extend(body.as_bytes());
    bytes
}

/// An ErrorResponse, as much of it as counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its SQLSTATE.
    pub code: [u8; 5],
    /// Whether it is FATAL or PANIC, which ends the session.
    pub fatal: bool,
    /// Whether its HINT says that it is the sidecar's, or when to come again, which the server's own errors do not.
    pub ours: bool,
}

impl Refusal {
    /// Of the body of an ErrorResponse or of the beginning of one.
    fn of(body: &[u8]) -> Self {
        let mut refusal = Self { code: *b"?????", fatal: false, ours: false };
        for field in body.split(|byte| *byte == 0) {
            match field.split_first() {
                Some((b'C', code)) => refusal.code = code.try_into().unwrap_or(refusal.code),
                // The field `V` is never translated.
                Some((b'V', severity)) => refusal.fatal = matches!(severity, b"FATAL" | b"PANIC"),
                Some((b'S', severity)) => refusal.fatal |= matches!(severity, b"FATAL" | b"PANIC"),
                Some((b'H', hint)) => {
                    let says = |word: &[u8]| hint.windows(word.len()).any(|part| part == word);
                    refusal.ours = says(b"retry after") || says(b"qudag-sidecar");
                }
                _ => {}
            }
        }
        refusal
    }

    /// Its SQLSTATE as text.
    pub fn code(&self) -> &str {
        std::str::from_utf8(&self.code).unwrap_or("?????")
    }
}

/// What a message of the server means for one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// AuthenticationOk.
    LetIn,
    /// Another authentication request.
    AsksForPassword,
    /// DataRow: its first column as a number, if it is one.
    Row(Option<i64>),
    /// ErrorResponse.
    Error(Refusal),
    /// ReadyForQuery.
    Ready,
    /// Anything else, which says nothing here.
    Other,
}

/// Cuts what comes into messages, in whatever pieces it comes.
pub struct Reader {
    header: [u8; HEADER],
    /// Bytes of the header that are there.
    have: usize,
    /// Bytes of the body that are still to come.
    left: usize,
    body: [u8; KEPT],
    kept: usize,
}

impl Default for Reader {
    fn default() -> Self {
        Self { header: [0; HEADER], have: 0, left: 0, body: [0; KEPT], kept: 0 }
    }
}

impl Reader {
    /// Takes bytes up to the end of a message and says what it means; `None` when more is needed, all are taken then.
    ///
    /// # Errors
    /// When these are no messages.
    pub fn next(&mut self, bytes: &mut &[u8]) -> io::Result<Option<Said>> {
        if self.have < HEADER {
            let missing = self.header.get_mut(self.have..).unwrap_or_default();
            let (taken, rest) = bytes.split_at(missing.len().min(bytes.len()));
            for (to, from) in missing.iter_mut().zip(taken) {
                *to = *from;
            }
            self.have += taken.len();
            *bytes = rest;
            if self.have < HEADER {
                return Ok(None);
            }
            let [_, length @ ..] = self.header;
            let length = u32::from_be_bytes(length) as usize;
            if !(4..=LONGEST).contains(&length) {
                return Err(io::Error::other(format!("a message of {length} bytes")));
            }
            (self.left, self.kept) = (length - 4, 0);
        }
        let (taken, rest) = bytes.split_at(self.left.min(bytes.len()));
        let room = self.body.get_mut(self.kept..).unwrap_or_default();
        for (to, from) in room.iter_mut().zip(taken) {
            *to = *from;
        }
        self.kept = KEPT.min(self.kept + taken.len());
        self.left -= taken.len();
        *bytes = rest;
        if self.left > 0 {
            return Ok(None);
        }
        self.have = 0;
        let [tag, ..] = self.header;
        let body = self.body.get(..self.kept).unwrap_or_default();
        Ok(Some(match tag {
            b'R' if body == [0; 4] => Said::LetIn,
            b'R' => Said::AsksForPassword,
            b'D' => Said::Row(first_column(body)),
            b'E' => Said::Error(Refusal::of(body)),
            b'Z' => Said::Ready,
            _ => Said::Other,
        }))
    }
}

/// The first column of a DataRow: Int16 number of columns, then Int32 length and value of each.
fn first_column(body: &[u8]) -> Option<i64> {
    let length = u32::from_be_bytes(body.get(2..6)?.try_into().ok()?) as usize;
    std::str::from_utf8(body.get(6..6_usize.checked_add(length)?)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(stream: &[u8], piece: usize) -> io::Result<Vec<Said>> {
        let (mut reader, mut said) = (Reader::default(), Vec::new());
        for mut bytes in stream.chunks(piece) {
            while let Some(one) = reader.next(&mut bytes)? {
                said.push(one);
            }
            assert!(bytes.is_empty());
        }
        Ok(said)
    }

    #[test]
    fn messages_are_read_in_any_pieces() {
        let mut stream = b"R\0\0\0\x08\0\0\0\0T\0\0\0\x06\0\0D\0\0\0\x0c\0\x01\0\0\0\x0242".to_vec();
        let fields = [
            "SERROR",
            "VERROR",
            "C53300",
            &format!("M{}", "x".repeat(300)),
            "Hqudag-sidecar: retry after 20 ms",
            "",
            "",
        ];
        message(&mut stream, b'E', fields.join("\0").as_bytes());
        message(&mut stream, b'E', &[b"VFATAL\0C57P01\0M", &[b'y'; 3000][..], b"\0\0"].concat());
        message(&mut stream, b'D', b"\0\x01\xff\xff\xff\xff");
        message(&mut stream, b'Z', b"I");
        let ours = Refusal { code: *b"53300", fatal: false, ours: true };
        let servers = Refusal { code: *b"57P01", fatal: true, ours: false };
        let expected = [
            Said::LetIn,
            Said::Other,
            Said::Row(Some(42)),
            Said::Error(ours),
            Said::Error(servers),
            Said::Row(None),
            Said::Ready,
        ];
        for piece in [1, 2, 3, 7, 64, 5000] {
            assert_eq!(all(&stream, piece).unwrap(), expected, "in pieces of {piece}");
        }
        assert!(all(b"Z\0\0\0\x03", 8).is_err() && all(b"Z\xff\xff\xff\xff", 8).is_err());
        assert_eq!(all(b"R\0\0\0\x0c\0\0\0\x05abcd", 64).unwrap(), [Said::AsksForPassword]);
    }

    #[test]
    fn the_number_of_a_row_stands_in_its_message() {
        for mut operation in [Operation::simple(), Operation::prepared()] {
            let length = operation.about(1).0.len();
            let (bytes, answer) = operation.about(98_765);
            assert_eq!((bytes.len(), answer), (length, token(98_765)));
            assert!(bytes.windows(7).any(|part| part == b"0098765"));
        }
        let mut work = Operation::fixed("", "SELECT 1", 1);
        assert_eq!(work.about(5), (&b"Q\0\0\0\x0dSELECT 1\0"[..], 1));
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..2000), piece in 1_usize..100) {
            let _ = all(&bytes, piece);
        }
    }
}
