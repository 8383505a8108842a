//! Commands, as clients send them: arrays of bulk strings, and inline commands.

use super::{LONGEST_LINE, Number, RespError};

/// The most arguments of a command; as in servers before version 7, and more than any program sends.
const MOST_ARGUMENTS: i64 = 1 << 20;
/// The longest argument that can be configured in servers (`proto-max-bulk-len`).
const LONGEST_ARGUMENT: i64 = 1 << 40;
/// How much of the first two arguments is kept. No name of a command is longer.
const KEPT: usize = 32;

/// The beginning of an argument in capital letters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Word {
    bytes: [u8; KEPT],
    length: usize,
}

impl Word {
    fn push(&mut self, bytes: &[u8]) {
        for (place, byte) in self.bytes.iter_mut().skip(self.length).zip(bytes) {
            *place = byte.to_ascii_uppercase();
        }
        self.length = self.length.saturating_add(bytes.len());
    }

    /// What is kept of it: all where it is not longer than [`KEPT`], otherwise nothing, since it is no name.
    fn get(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Before the first byte.
    #[default]
    Begin,
    /// In the number of arguments.
    Count(Number),
    /// Before the `$` of an argument.
    Dollar,
    /// In the length of an argument.
    Length(Number),
    /// In an argument, of which so many bytes are to come.
    Argument(u64),
    /// Before the CR, and before the LF, after an argument.
    Cr,
    Lf,
    /// In an inline command, of which so many bytes have come.
    Inline(usize),
}

/// What [`CommandScan::feed`] has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scanned {
    /// How many bytes belong to the command.
    pub taken: usize,
    /// Whether it is complete.
    pub complete: bool,
}

/// Finds the end of one command after another, and their names.
#[derive(Clone, Debug, Default)]
pub struct CommandScan {
    state: State,
    /// Arguments still to begin.
    left: u64,
    /// Arguments that have begun.
    begun: usize,
    words: [Word; 2],
}

impl CommandScan {
    /// Takes bytes up to the end of the command. After a complete one the next call begins the next.
    ///
    /// # Errors
    /// When the bytes are no command.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Scanned, RespError> {
        let mut rest = bytes;
        let taken = |rest: &[u8]| bytes.len() - rest.len();
        if self.state == State::Begin && !bytes.is_empty() {
            (self.left, self.begun, self.words) = (0, 0, <[Word; 2]>::default());
        }
        while let Some((&byte, after)) = rest.split_first() {
            match &mut self.state {
                State::Begin if byte == b'*' => {
                    self.state = State::Count(Number::default());
                    rest = after;
                }
                State::Begin => self.state = State::Inline(0),
                State::Count(number) => {
                    rest = after;
                    match number.feed(byte).map_err(|()| RespError::Count)? {
                        None => {}
                        Some(count) if count > MOST_ARGUMENTS => return Err(RespError::Count),
                        Some(count) if count <= 0 => {
                            self.state = State::Begin;
                            return Ok(Scanned { taken: taken(rest), complete: true });
                        }
                        Some(count) => {
                            self.left = count.unsigned_abs();
                            self.state = State::Dollar;
                        }
                    }
                }
                State::Dollar if byte == b'$' => {
                    self.left -= 1;
                    self.begun += 1;
                    self.state = State::Length(Number::default());
                    rest = after;
                }
                State::Dollar => return Err(RespError::NoBulk),
                State::Length(number) => {
                    rest = after;
                    match number.feed(byte).map_err(|()| RespError::Length)? {
                        None => {}
                        Some(length) if !(0..=LONGEST_ARGUMENT).contains(&length) => {
                            return Err(RespError::Length);
                        }
                        Some(length) => self.state = State::Argument(length.unsigned_abs()),
                    }
                }
                State::Argument(0) => self.state = State::Cr,
                State::Argument(left) => {
                    let here = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    let (argument, after) = rest.split_at(here);
                    *left -= here as u64;
                    if let Some(word) = self.words.get_mut(self.begun - 1) {
                        word.push(argument);
                    }
                    rest = after;
                }
                State::Cr if byte == b'\r' => {
                    self.state = State::Lf;
                    rest = after;
                }
                State::Lf if byte == b'\n' => {
                    rest = after;
                    if self.left == 0 {
                        self.state = State::Begin;
                        return Ok(Scanned { taken: taken(rest), complete: true });
                    }
                    self.state = State::Dollar;
                }
                State::Cr | State::Lf => return Err(RespError::NoEnd),
                State::Inline(length) => {
                    let end = rest.iter().position(|byte| *byte == b'\n');
                    *length += end.unwrap_or(rest.len());
                    if *length > LONGEST_LINE {
                        return Err(RespError::LongLine);
                    }
                    let Some(end) = end else { return Ok(Scanned { taken: bytes.len(), complete: false }) };
                    self.state = State::Begin;
                    return Ok(Scanned { taken: taken(rest) + end + 1, complete: true });
                }
            }
        }
        Ok(Scanned { taken: bytes.len(), complete: false })
    }

    /// Whether nothing was read of a command that is not complete.
    pub fn is_between(&self) -> bool {
        self.state == State::Begin
    }

    /// The name of the command in capital letters, once it is known; empty for what has none: an array without elements, and an inline
    /// command.
    pub fn name(&self) -> Option<&[u8]> {
        self.word(0)
    }

    /// Its first argument, likewise.
    pub fn first(&self) -> Option<&[u8]> {
        self.word(1)
    }

    fn word(&self, index: usize) -> Option<&[u8]> {
        let ended = match self.state {
            State::Begin => true,
            State::Argument(_) | State::Length(_) => self.begun > index + 1,
            _ => self.begun > index,
        };
        ended.then(|| self.words.get(index).map_or(&[][..], Word::get))
    }
}

/// The arguments of a complete command, its name first; none for an empty one, which servers do not answer.
///
/// # Errors
/// When the quotes of an inline command are wrong; and when this is no complete command.
pub fn arguments(command: &[u8]) -> Result<Vec<Vec<u8>>, RespError> {
    if command.first() != Some(&b'*') {
        let line = command.strip_suffix(b"\n").unwrap_or(command);
        return words(line.strip_suffix(b"\r").unwrap_or(line));
    }
    let mut rest = command.get(1..).unwrap_or_default();
    let mut found = Vec::new();
    for _ in 0..number(&mut rest)?.max(0) {
        rest = rest.strip_prefix(b"$").ok_or(RespError::NoBulk)?;
        let length = usize::try_from(number(&mut rest)?).map_err(|_| RespError::Length)?;
        let (argument, after) = rest.split_at_checked(length).ok_or(RespError::Length)?;
        found.push(argument.to_vec());
        rest = after.strip_prefix(b"\r\n").ok_or(RespError::NoEnd)?;
    }
    Ok(found)
}

fn number(rest: &mut &[u8]) -> Result<i64, RespError> {
    let mut number = Number::default();
    while let Some((&byte, after)) = rest.split_first() {
        *rest = after;
        if let Some(value) = number.feed(byte).map_err(|()| RespError::Length)? {
            return Ok(value);
        }
    }
    Err(RespError::Length)
}

/// The words of an inline command, as servers split it (`sdssplitargs`).
fn words(line: &[u8]) -> Result<Vec<Vec<u8>>, RespError> {
    let mut found = Vec::new();
    let mut bytes = line.iter().copied().peekable();
    loop {
        while bytes.next_if(u8::is_ascii_whitespace).is_some() {}
        if bytes.peek().is_none() {
            return Ok(found);
        }
        let mut word = Vec::new();
        loop {
            match bytes.next() {
                None => break,
                Some(byte) if byte.is_ascii_whitespace() => break,
                Some(quote @ (b'"' | b'\'')) => {
                    quoted(quote, &mut bytes, &mut word)?;
                    if bytes.peek().is_some_and(|byte| !byte.is_ascii_whitespace()) {
                        return Err(RespError::Quotes);
                    }
                    break;
                }
                Some(byte) => word.push(byte),
            }
        }
        found.push(word);
    }
}

fn quoted(quote: u8, bytes: &mut impl Iterator<Item = u8>, word: &mut Vec<u8>) -> Result<(), RespError> {
    loop {
        let byte = bytes.next().ok_or(RespError::Quotes)?;
        let escaped = match byte {
            _ if byte == quote => return Ok(()),
            b'\\' => bytes.next().ok_or(RespError::Quotes)?,
            _ => {
                word.push(byte);
                continue;
            }
        };
        match escaped {
            _ if quote == b'\'' => {
                if escaped != b'\'' {
                    word.push(b'\\');
                }
                word.push(escaped);
            }
            b'x' => {
                let mut digit = || {
                    let digit = bytes.next().and_then(|byte| char::from(byte).to_digit(16));
                    digit.and_then(|digit| u8::try_from(digit).ok()).ok_or(RespError::Quotes)
                };
                let (high, low) = (digit()?, digit()?);
                word.push(high << 4 | low);
            }
            b'n' => word.push(b'\n'),
            b'r' => word.push(b'\r'),
            b't' => word.push(b'\t'),
            b'b' => word.push(8),
            b'a' => word.push(7),
            other => word.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(bytes: &[u8]) -> Result<Vec<(usize, String, String)>, RespError> {
        let mut found = Vec::new();
        let (mut scan, mut rest) = (CommandScan::default(), bytes);
        let text = |word: Option<&[u8]>| String::from_utf8_lossy(word.unwrap()).into_owned();
        while !rest.is_empty() {
            let Scanned { taken, complete } = scan.feed(rest)?;
            if !complete {
                break;
            }
            found.push((taken, text(scan.name()), text(scan.first())));
            rest = &rest[taken..];
        }
        Ok(found)
    }

    #[test]
    fn commands_end_where_they_end() {
        let bytes = b"*1\r\n$4\r\nping\r\n*3\r\n$3\r\nSet\r\n$1\r\na\r\n$5\r\nb\r\n*1\r\n*0\r\n*-1\r\nPING x\r\n\r\n*2\r\n$6\r\nclient\r\n$5\r\nreply";
        let found = scan(bytes).unwrap();
        let found: Vec<_> = found.iter().map(|(taken, name, sub)| (*taken, &name[..], &sub[..])).collect();
        assert_eq!(
            found,
            [(14, "PING", ""), (31, "SET", "A"), (4, "", ""), (5, "", ""), (8, "", ""), (2, "", ""),]
        );
    }

    #[test]
    fn names_are_known_before_the_end() {
        let mut scan = CommandScan::default();
        assert!(!scan.feed(b"*3\r\n$3\r\nset").unwrap().complete);
        assert_eq!((scan.name(), scan.first()), (None, None));
        assert!(!scan.feed(b"\r\n$1\r\nk\r\n$1000000000\r\n").unwrap().complete);
        assert_eq!((scan.name(), scan.first()), (Some(&b"SET"[..]), Some(&b"K"[..])));
        assert!(!scan.feed(&[0; 100_000]).unwrap().complete);
        assert_eq!(scan.name(), Some(&b"SET"[..]));
    }

    #[test]
    fn what_is_no_command_is_an_error() {
        for (bytes, error) in [
            (&b"*x\r\n"[..], RespError::Count),
            (b"*\r\n", RespError::Count),
            (b"*1\n", RespError::Count),
            (b"*9999999\r\n", RespError::Count),
            (b"*99999999999999999999\r\n", RespError::Count),
            (b"*1\r\n+PING\r\n", RespError::NoBulk),
            (b"*1\r\n$-1\r\n", RespError::Length),
            (b"*1\r\n$4x\r\n", RespError::Length),
            (b"*1\r\n$4\r\nPINGxx", RespError::NoEnd),
            (b"*1\r\n$4\r\nPING\rx", RespError::NoEnd),
        ] {
            assert_eq!(scan(bytes), Err(error), "{}", bytes.escape_ascii());
        }
        assert_eq!(scan(&[b'a'; LONGEST_LINE + 1]), Err(RespError::LongLine));
    }

    #[test]
    fn arguments_are_as_servers_split_them() {
        let args = |bytes: &[u8]| {
            arguments(bytes).map(|args| {
                args.iter().map(|arg| arg.escape_ascii().to_string()).collect::<Vec<_>>().join("|")
            })
        };
        assert_eq!(args(b"*2\r\n$3\r\nget\r\n$4\r\na\r\nb\r\n").unwrap(), "get|a\\r\\nb");
        assert_eq!(args(b"  set a  b \r\n").unwrap(), "set|a|b");
        assert_eq!(args(b"set \"a b\\x41\\n\\\"\" 'c\\'\\n' ''\n").unwrap(), "set|a bA\\n\\\"|c\\'\\\\n|");
        assert_eq!(args(b"\r\n").unwrap(), "");
        assert_eq!(args(b"*0\r\n").unwrap(), "");
        for wrong in [&b"get \"a\r\n"[..], b"get 'a'b\r\n", b"get \"\\x4\"\r\n", b"get \"\\"] {
            assert_eq!(args(wrong), Err(RespError::Quotes), "{}", wrong.escape_ascii());
        }
    }
}
