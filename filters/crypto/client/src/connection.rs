//! One connection to the sidecar: a request, its reply, the next request.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use qudag_core::offload::{HEADER, Header, Limits, Operation, PREAMBLE, Reply, encode_batch, encode_status};

use crate::Error;

/// The longest body of a reply: 65,535 hashes of 1,024 bytes, and their lengths.
const LONGEST: usize = 65_535 * 1_026;
/// The room for replies at first; most are shorter. It doubles as the bytes of a longer one arrive.
const ROOM: usize = 4 << 10;

pub(crate) struct Connection {
    stream: UnixStream,
    limits: Limits,
    /// How long a call of the socket waits at most, as it was told last.
    patience: Duration,
    next: u32,
    out: Vec<u8>,
    /// Room for a reply, of which the first `filled` bytes are there.
    received: Vec<u8>,
    filled: usize,
}

/// When an answer has to be there.
#[derive(Clone, Copy)]
pub(crate) struct Deadline {
    at: Instant,
    after: Duration,
}

impl Deadline {
    pub(crate) fn new(after: Duration) -> Self {
        let now = Instant::now();
        Self { at: now.checked_add(after).unwrap_or(now), after }
    }

    fn timeout(&self) -> Error {
        Error::Timeout { after: self.after }
    }

    fn left(&self) -> Result<Duration, Error> {
        let left = self.at.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(self.timeout()) } else { Ok(left) }
    }

    fn failed(&self, why: io::Error) -> Error {
        match why.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => self.timeout(),
            _ => Error::Broken(why),
        }
    }
}

impl Connection {
    pub(crate) fn open(path: &Path, deadline: Deadline) -> Result<Self, Error> {
        let stream =
            UnixStream::connect(path).map_err(|source| Error::Connect { path: path.to_owned(), source })?;
        let limits = Limits { body: 0, operations: 0, in_flight: 0 };
        let mut connection = Self {
            stream,
            limits,
            patience: Duration::ZERO,
            next: 1,
            out: PREAMBLE.to_vec(),
            received: vec![0; ROOM],
            filled: 0,
        };
        connection.write(deadline)?;
        match connection.reply(0, deadline)? {
            Reply::Welcome(limits) if limits.operations > 0 => connection.limits = limits,
            _ => return Err(Error::Protocol("the first frame is no welcome")),
        }
        Ok(connection)
    }

    /// Sends as many operations as fit into one request, and returns how many these are, with the reply to them.
    pub(crate) fn batch<O: Operation>(
        &mut self,
        operations: &[O],
        deadline: Deadline,
    ) -> Result<(usize, Reply), Error> {
        let limit = usize::try_from(self.limits.body).unwrap_or(usize::MAX);
        let mut some = operations.len().min(self.limits.operations.into());
        let id = self.id();
        loop {
            self.out.clear();
            encode_batch(id, operations.get(..some).unwrap_or(operations), &mut self.out)?;
            let length = self.out.len().saturating_sub(HEADER);
            if length <= limit {
                break;
            }
            if some <= 1 {
                return Err(Error::TooLong { length, limit });
            }
            some = some.div_ceil(2);
        }
        self.write(deadline)?;
        Ok((some, self.reply(id, deadline)?))
    }

    pub(crate) fn status(&mut self, deadline: Deadline) -> Result<Reply, Error> {
        let id = self.id();
        self.out.clear();
        encode_status(id, &mut self.out);
        self.write(deadline)?;
        self.reply(id, deadline)
    }

    /// Ids are never 0.
    fn id(&mut self) -> u32 {
        let id = self.next;
        self.next = id.checked_add(1).unwrap_or(1);
        id
    }

    /// Tells the socket how long to wait, unless it knows: that would be two more calls of the system for each request.
    fn wait_until(&mut self, deadline: Deadline) -> Result<(), Error> {
        let left = deadline.left()?;
        if self.patience < left || self.patience - left > deadline.after / 16 {
            self.stream.set_read_timeout(Some(left))?;
            self.stream.set_write_timeout(Some(left))?;
            self.patience = left;
        }
        Ok(())
    }

    fn write(&mut self, deadline: Deadline) -> Result<(), Error> {
        let mut written = 0;
        while written < self.out.len() {
            self.wait_until(deadline)?;
            match self.stream.write(self.out.get(written..).unwrap_or_default()) {
                Ok(0) => return Err(Error::Broken(io::ErrorKind::WriteZero.into())),
                Ok(now) => written += now,
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(why) => return Err(deadline.failed(why)),
            }
        }
        Ok(())
    }

    /// The reply to the request with this id.
    fn reply(&mut self, id: u32, deadline: Deadline) -> Result<Reply, Error> {
        self.filled = 0;
        loop {
            let received = self.received.get(..self.filled).unwrap_or_default();
            if let Some((header, body)) = received.split_first_chunk::<HEADER>() {
                let header = Header::read(header);
                if header.body() > LONGEST {
                    return Err(Error::Protocol("a reply that is too long"));
                }
                if body.len() > header.body() {
                    return Err(Error::Protocol("more than one reply"));
                }
                if body.len() == header.body() {
                    return match Reply::read(&header, body)? {
                        Reply::Error(refusal) => Err(refusal.into()),
                        _ if header.id != id => Err(Error::Protocol("the reply to another request")),
                        reply => Ok(reply),
                    };
                }
            }
            self.fill(deadline)?;
        }
    }

    fn fill(&mut self, deadline: Deadline) -> Result<(), Error> {
        self.wait_until(deadline)?;
        if self.filled == self.received.len() {
            self.received.resize(2 * self.filled, 0);
        }
        let read = loop {
            let room = self.received.get_mut(self.filled..).unwrap_or_default();
            match self.stream.read(room) {
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        match read {
            Ok(0) => Err(Error::Broken(io::ErrorKind::UnexpectedEof.into())),
            Ok(now) => {
                self.filled += now;
                Ok(())
            }
            Err(why) => Err(deadline.failed(why)),
        }
    }
}
