//! A server as far as its connections differ from each other: every answer says in what state its connection is.

use bytes::BytesMut;

pub(super) const OUT_OF_RANGE: &[u8] = b"-ERR DB index is out of range\r\n";
pub(super) const PROTOCOL_ERROR: &[u8] = b"-ERR Protocol error: invalid bulk length\r\n";

/// Which answers a client wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    On,
    Off,
    /// Not the next one.
    Skip,
}

/// One connection of the server.
#[derive(Debug, Default)]
pub(super) struct ModelServer {
    database: u32,
    /// The commands of a transaction, as words.
    queued: Option<Vec<Vec<Vec<u8>>>>,
    /// One of them was wrong.
    broken: bool,
    watching: bool,
    /// What subscribers, monitors and the like have.
    special: bool,
    mode: Mode,
    came: Vec<u8>,
    /// What it says.
    pub(super) out: BytesMut,
    pub(super) closed: bool,
}

impl ModelServer {
    pub(super) fn new(database: u32) -> Self {
        Self { database, ..Self::default() }
    }

    /// Whether it carries a transaction.
    pub(super) fn is_pinned(&self) -> bool {
        self.queued.is_some() || self.watching
    }

    /// Whether nobody can tell it from a new one.
    pub(super) fn is_as_new(&self, database: u32) -> bool {
        self.database == database
            && !self.is_pinned()
            && !self.special
            && self.mode == Mode::On
            && !self.closed
            && self.came.is_empty()
            && self.out.is_empty()
    }

    /// Carries out what has come.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        self.came.extend_from_slice(bytes);
        while !self.closed {
            match first(&self.came) {
                None => break,
                Some(Err(())) => {
                    self.out.extend_from_slice(PROTOCOL_ERROR);
                    self.closed = true;
                }
                Some(Ok((words, length))) => {
                    self.came.drain(..length);
                    if words.is_empty() {
                        continue;
                    }
                    let mode = self.mode;
                    let before = self.out.len();
                    let answer = self.answer(&words);
                    self.out.extend_from_slice(&answer);
                    match (mode, self.mode) {
                        // That it wants answers again is answered.
                        (Mode::Off, Mode::On) | (Mode::On, Mode::On) => {}
                        (Mode::Skip, _) => {
                            self.out.truncate(before);
                            self.mode = Mode::On;
                        }
                        (_, Mode::Off | Mode::Skip) => self.out.truncate(before),
                    }
                }
            }
        }
    }

    fn state(&self) -> String {
        format!("{} {} {}", self.database, u8::from(self.watching), u8::from(self.special))
    }

    fn answer(&mut self, words: &[Vec<u8>]) -> Vec<u8> {
        const OK: &[u8] = b"+OK\r\n";
        let name = words.first().map(|name| name.to_ascii_uppercase()).unwrap_or_default();
        let name = String::from_utf8_lossy(&name).into_owned();
        let queues =
            !matches!(&name[..], "MULTI" | "EXEC" | "DISCARD" | "WATCH" | "QUIT" | "RESET" | "NONSENSE");
        if let (true, Some(queued)) = (queues, &mut self.queued) {
            queued.push(words.to_vec());
            return b"+QUEUED\r\n".to_vec();
        }
        let answer: &[u8] = match (&name[..], words.len()) {
            ("MULTI", _) if self.queued.is_some() => b"-ERR MULTI calls can not be nested\r\n",
            ("MULTI", _) if self.database == 1 => b"-NOPERM no transactions here\r\n",
            ("MULTI", _) => {
                self.queued = Some(Vec::new());
                OK
            }
            ("WATCH", _) if self.queued.is_some() => b"-ERR WATCH inside MULTI is not allowed\r\n",
            ("WATCH", _) => {
                self.watching = true;
                OK
            }
            ("UNWATCH", _) => {
                self.watching = false;
                OK
            }
            ("EXEC", 2) => {
                self.broken = self.queued.is_some();
                b"-ERR wrong number of arguments for 'exec' command\r\n"
            }
            ("EXEC", _) => return self.exec(),
            ("DISCARD", _) if self.queued.is_none() => b"-ERR DISCARD without MULTI\r\n",
            ("DISCARD", _) => {
                (self.queued, self.broken, self.watching) = (None, false, false);
                OK
            }
            ("NONSENSE", _) => {
                self.broken = self.queued.is_some();
                b"-ERR unknown command\r\n"
            }
            ("SELECT", 2) => match words.get(1).map(|word| &word[..]) {
                Some(b"0") => {
                    self.database = 0;
                    OK
                }
                Some(b"1") => {
                    self.database = 1;
                    OK
                }
                _ => OUT_OF_RANGE,
            },
            ("SELECT", _) => b"-ERR wrong number of arguments for 'select' command\r\n",
            ("GET" | "SET", _) => {
                let key = words.get(1).map(|key| String::from_utf8_lossy(key)).unwrap_or_default();
                let value = format!("{key}\r\n{}", self.state());
                return format!("${}\r\n{value}\r\n", value.len()).into_bytes();
            }
            ("LIST", _) => {
                return format!("*3\r\n*2\r\n:1\r\n*0\r\n$-1\r\n+{}\r\n", self.state()).into_bytes();
            }
            ("NULL", _) => b"*-1\r\n",
            ("NONE", _) => b"_\r\n",
            ("ATTRIBUTE", _) => b"|1\r\n+a\r\n%1\r\n+b\r\n:1\r\n~2\r\n#t\r\n,1.5\r\n",
            ("SUBSCRIBE", _) => {
                self.special = true;
                b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n"
            }
            ("CLIENT" | "MONITOR", _) => {
                self.special = true;
                match words.get(2).map(|word| &word[..]) {
                    Some(b"OFF") => self.mode = Mode::Off,
                    Some(b"SKIP") if self.mode == Mode::On => self.mode = Mode::Skip,
                    _ if words.get(1).is_some_and(|word| word == b"REPLY") => self.mode = Mode::On,
                    _ => {}
                }
                OK
            }
            ("BLPOP" | "XREAD", _) => return format!("*2\r\n$1\r\nk\r\n+{}\r\n", self.state()).into_bytes(),
            ("RESET", _) => {
                let (came, out) = (std::mem::take(&mut self.came), std::mem::take(&mut self.out));
                *self = Self { came, out, ..Self::default() };
                b"+RESET\r\n"
            }
            ("QUIT", _) => {
                self.closed = true;
                OK
            }
            _ => b"-ERR what\r\n",
        };
        answer.to_vec()
    }

    fn exec(&mut self) -> Vec<u8> {
        let Some(queued) = self.queued.take() else { return b"-ERR EXEC without MULTI\r\n".to_vec() };
        self.watching = false;
        if std::mem::take(&mut self.broken) {
            return b"-EXECABORT Transaction discarded\r\n".to_vec();
        }
        let mut answer = format!("*{}\r\n", queued.len()).into_bytes();
        for words in &queued {
            answer.extend(self.answer(words));
        }
        answer
    }
}

/// The first command of what has come, as words, and its length; an error for what is none.
type First = Result<(Vec<Vec<u8>>, usize), ()>;

fn first(came: &[u8]) -> Option<First> {
    let line = |from: usize| {
        let rest = came.get(from..)?;
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        let text = String::from_utf8_lossy(rest.get(..end)?).trim().to_owned();
        Some((text, from + end + 1))
    };
    let (begin, mut at) = line(0)?;
    let Some(count) = begin.strip_prefix('*') else {
        return Some(Ok((begin.split_whitespace().map(|word| word.into()).collect(), at)));
    };
    let mut words = Vec::new();
    for _ in 0..count.parse::<usize>().unwrap_or(0) {
        let (length, from) = line(at)?;
        let Some(length) = length.strip_prefix('$').and_then(|length| length.parse::<usize>().ok()) else {
            return Some(Err(()));
        };
        words.push(came.get(from..from + length)?.to_vec());
        came.get(from + length + 1)?;
        at = from + length + 2;
    }
    Some(Ok((words, at)))
}
