//! The client: asks the sidecar, and does it itself where that was chosen.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use qudag_core::offload::{
    Code, Digest, Fingerprint, KEY_ID_BYTES, Key, NewKey, Operation, Refusal, Reply, Signature, Unencodable,
    Verdict, encode_batch,
};

use crate::Error;
use crate::connection::{Connection, Deadline};
use crate::in_process::InProcess;

/// How many registered keys a client remembers: as many as the sidecar does.
const KEYS: usize = 1_024;
/// How long a sidecar that was not there is left alone, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// What to do when the sidecar does not answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fallback {
    /// The work, in this process. A sidecar that was not there, or took too long, is tried again after 50 ms, twice as long each time and 5 s at most.
    #[default]
    InProcess,
    /// Nothing: the error is returned. Each call tries to connect.
    Error,
}

/// How a client behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// What to do when the sidecar does not answer.
    pub fallback: Fallback,
    /// How long the sidecar may take for a call, connecting included.
    pub deadline: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { fallback: Fallback::default(), deadline: Duration::from_secs(2) }
    }
}

/// Who has done the work.
#[derive(Debug)]
pub enum By {
    /// The sidecar.
    Sidecar,
    /// This process, because the sidecar did not.
    InProcess {
        /// Why it did not.
        why: Error,
    },
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sidecar => f.write_str("the sidecar"),
            Self::InProcess { why } => write!(f, "this process ({why})"),
        }
    }
}

/// What was found, and by whom.
#[derive(Debug)]
pub struct Answer<T> {
    /// What was found, in the order of the operations.
    pub value: T,
    /// Who has done the work.
    pub by: By,
}

/// A program's way to the sidecar.
pub struct Client {
    path: PathBuf,
    options: Options,
    connection: Option<Connection>,
    pause: Option<Pause>,
    keys: Keys,
    in_process: Option<InProcess>,
}

impl Client {
    /// Connects to the sidecar's socket. Without one there the client works all the same: it does the work in this process.
    ///
    /// # Errors
    /// When the sidecar refuses for a reason that will not go away by itself.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::connect_with(path, Options::default())
    }

    /// Connects to the sidecar's socket.
    ///
    /// # Errors
    /// With [`Fallback::Error`] when the sidecar is not there or refuses.
    pub fn connect_with(path: impl AsRef<Path>, options: Options) -> Result<Self, Error> {
        let mut client = Self {
            path: path.as_ref().to_owned(),
            options,
            connection: None,
            pause: None,
            keys: Keys::default(),
            in_process: None,
        };
        let connected = client.ready(Deadline::new(options.deadline)).map(drop);
        match (connected, options.fallback) {
            (Err(error), Fallback::Error) => Err(error),
            _ => Ok(client),
        }
    }

    /// Whether there is a connection to the sidecar.
    pub fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    /// Verifies signatures.
    ///
    /// A key that was registered by this client may be named by its id also when the sidecar has forgotten it: it is sent along then.
    ///
    /// # Errors
    /// [`Error::Unencodable`] for what nobody could verify; with [`Fallback::Error`] when the sidecar does not answer.
    pub fn verify<B: AsRef<[u8]>>(&mut self, all: &[Signature<B>]) -> Result<Answer<Vec<Verdict>>, Error> {
        self.check(all)
    }

    /// Verifies fingerprints of QuDAG. Keys are as in [`Client::verify`].
    ///
    /// # Errors
    /// Those of [`Client::verify`].
    pub fn verify_fingerprints<B: AsRef<[u8]>>(
        &mut self,
        all: &[Fingerprint<B>],
    ) -> Result<Answer<Vec<Verdict>>, Error> {
        self.check(all)
    }

    fn check<C: Check>(&mut self, all: &[C]) -> Result<Answer<Vec<Verdict>>, Error> {
        let mut answer = self.ask(all, verdicts, C::alone)?;
        let unknown = answer.value.iter().zip(all).enumerate();
        let forgotten = unknown.filter_map(|(place, (verdict, one))| {
            let key = self.keys.get(one.id().filter(|_| *verdict == Verdict::UnknownKey)?)?;
            Some((place, one, Box::<[u8]>::from(key)))
        });
        let forgotten: Vec<_> = forgotten.collect();
        if !forgotten.is_empty() {
            let again: Vec<_> = forgotten.iter().map(|(_, one, key)| one.with_key(key)).collect();
            let Answer { value, by } = self.ask(&again, verdicts, <C::WithKey<'_> as Check>::alone)?;
            for ((place, ..), verdict) in forgotten.iter().zip(value) {
                answer.value.get_mut(*place).into_iter().for_each(|first| *first = verdict);
            }
            if let By::InProcess { .. } = by {
                answer.by = by;
            }
        }
        Ok(answer)
    }

    /// Hashes data by BLAKE3.
    ///
    /// # Errors
    /// Those of [`Client::verify`].
    pub fn hash<B: AsRef<[u8]>>(&mut self, all: &[Digest<B>]) -> Result<Answer<Vec<Box<[u8]>>>, Error> {
        let take = |reply| match reply {
            Reply::Hashes(hashes) => Some(hashes),
            _ => None,
        };
        let answer = self.ask(all, take, |_, _, all| InProcess::hash(all))?;
        let fits = answer.value.iter().zip(all).all(|(hash, one)| hash.len() == usize::from(one.length));
        if fits { Ok(answer) } else { Err(Error::Protocol("a hash has another length")) }
    }

    /// Registers keys of 1,952 bytes, so that they can be named by their ids and are ready when a signature comes. The client
    /// remembers the last 1,024 of them.
    ///
    /// # Errors
    /// Those of [`Client::verify`].
    pub fn register<B: AsRef<[u8]>>(&mut self, all: &[B]) -> Result<Answer<Vec<[u8; KEY_ID_BYTES]>>, Error> {
        let keys: Vec<_> = all.iter().map(|key| NewKey { key: key.as_ref() }).collect();
        let take = |reply| match reply {
            Reply::Keys(ids) => Some(ids),
            _ => None,
        };
        let answer = self.ask(&keys, take, |_, _, all| all.iter().map(|new| id(new.key)).collect())?;
        if answer.value.iter().zip(all).any(|(named, key)| *named != id(key.as_ref())) {
            return Err(Error::Protocol("the id of another key"));
        }
        answer.value.iter().zip(all).for_each(|(id, key)| self.keys.remember(*id, key.as_ref()));
        Ok(answer)
    }

    /// What the sidecar says of its service, as JSON. There is no fallback.
    ///
    /// # Errors
    /// When the sidecar does not answer.
    pub fn status(&mut self) -> Result<String, Error> {
        let deadline = Deadline::new(self.options.deadline);
        match self.with_connection(deadline, |connection| connection.status(deadline))? {
            Reply::Status(json) => Ok(json),
            _ => Err(Error::Protocol("another reply than a status")),
        }
    }

    /// Has a batch done, by the sidecar or in this process.
    fn ask<O: Operation, T>(
        &mut self,
        operations: &[O],
        take: impl Fn(Reply) -> Option<Vec<T>>,
        alone: impl FnOnce(&mut InProcess, &Keys, &[O]) -> Vec<T>,
    ) -> Result<Answer<Vec<T>>, Error> {
        let why = match self.ask_sidecar(operations, take) {
            Ok(value) => return Ok(Answer { value, by: By::Sidecar }),
            Err(error) => error,
        };
        let hopeless =
            matches!(why, Error::Unencodable(_) | Error::Refused(Refusal { code: Code::Malformed, .. }));
        if hopeless || self.options.fallback == Fallback::Error {
            return Err(why);
        }
        // The sidecar would have looked at each operation.
        check(operations)?;
        let in_process = self.in_process.get_or_insert_with(InProcess::new);
        Ok(Answer { value: alone(in_process, &self.keys, operations), by: By::InProcess { why } })
    }

    fn ask_sidecar<O: Operation, T>(
        &mut self,
        operations: &[O],
        take: impl Fn(Reply) -> Option<Vec<T>>,
    ) -> Result<Vec<T>, Error> {
        let deadline = Deadline::new(self.options.deadline);
        let mut values = Vec::with_capacity(operations.len());
        while let Some(rest) = operations.get(values.len()..).filter(|rest| !rest.is_empty()) {
            let (some, reply) =
                self.with_connection(deadline, |connection| connection.batch(rest, deadline))?;
            let found = take(reply).filter(|found| found.len() == some);
            let Some(found) = found else {
                self.connection = None;
                return Err(Error::Protocol("not one result for each operation"));
            };
            values.extend(found);
        }
        Ok(values)
    }

    /// Does something on the connection; once more on a new one when an old one turns out to be broken, as it is when the sidecar was
    /// restarted. A connection is kept after a refusal only.
    fn with_connection<T>(
        &mut self,
        deadline: Deadline,
        mut work: impl FnMut(&mut Connection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut fresh = self.connection.is_none();
        loop {
            let result = work(self.ready(deadline)?);
            match &result {
                Ok(_) | Err(Error::Unencodable(_) | Error::TooLong { .. }) => return result,
                Err(Error::Refused(refusal)) => {
                    if refusal.code == Code::Draining {
                        self.connection = None;
                    }
                    return result;
                }
                Err(error) => {
                    self.connection = None;
                    if fresh || !error.is_broken() {
                        self.pause(error);
                        return result;
                    }
                    fresh = true;
                }
            }
        }
    }

    /// The connection, made if there is none.
    fn ready(&mut self, deadline: Deadline) -> Result<&mut Connection, Error> {
        if self.connection.is_none() {
            if let Some(Pause { until, why, .. }) = &self.pause
                && self.options.fallback == Fallback::InProcess
            {
                let again = until.saturating_duration_since(Instant::now());
                if !again.is_zero() {
                    return Err(Error::Waiting { why: why.clone(), again });
                }
            }
            match Connection::open(&self.path, deadline) {
                Ok(connection) => (self.connection, self.pause) = (Some(connection), None),
                Err(error) => {
                    self.pause(&error);
                    return Err(error);
                }
            }
        }
        self.connection.as_mut().ok_or(Error::Protocol("no connection"))
    }

    /// Leaves the sidecar alone for a while.
    fn pause(&mut self, why: &Error) {
        let (first, longest) = PAUSES;
        let length = self.pause.as_ref().map_or(first, |last| (last.length * 2).min(longest));
        self.pause = Some(Pause { until: Instant::now() + length, length, why: why.to_string() });
    }
}

/// A sidecar has failed, and is left alone.
struct Pause {
    until: Instant,
    length: Duration,
    why: String,
}

/// Whether these are operations at all.
fn check<O: Operation>(operations: &[O]) -> Result<(), Unencodable> {
    // Written nowhere, piece by piece, since a batch may be longer than a frame.
    operations.iter().try_for_each(|one| encode_batch(0, std::slice::from_ref(one), &mut Vec::new()))
}

fn verdicts(reply: Reply) -> Option<Vec<Verdict>> {
    match reply {
        Reply::Verdicts(verdicts) => Some(verdicts),
        _ => None,
    }
}

fn id(key: &[u8]) -> [u8; KEY_ID_BYTES] {
    blake3::hash(key).into()
}

/// What is found valid or not.
trait Check: Operation + Sized {
    type WithKey<'a>: Check
    where
        Self: 'a;

    /// The id by which it names its key.
    fn id(&self) -> Option<&[u8; KEY_ID_BYTES]>;
    /// The same with the key itself.
    fn with_key<'a>(&'a self, key: &'a [u8]) -> Self::WithKey<'a>;
    fn alone(in_process: &mut InProcess, keys: &Keys, all: &[Self]) -> Vec<Verdict>;
}

fn id_of<B>(key: &Key<B>) -> Option<&[u8; KEY_ID_BYTES]> {
    match key {
        Key::Id(id) => Some(id),
        Key::Public(_) => None,
    }
}

impl<B: AsRef<[u8]>> Check for Signature<B> {
    type WithKey<'a>
        = Signature<&'a [u8]>
    where
        B: 'a;

    fn id(&self) -> Option<&[u8; KEY_ID_BYTES]> {
        id_of(&self.key)
    }

    fn with_key<'a>(&'a self, key: &'a [u8]) -> Signature<&'a [u8]> {
        let (key, content) = (Key::Public(key), self.content.as_bytes());
        Signature { key, edition: self.edition, content, signature: self.signature.as_ref() }
    }

    fn alone(in_process: &mut InProcess, keys: &Keys, all: &[Self]) -> Vec<Verdict> {
        in_process.verify(keys, all)
    }
}

impl<B: AsRef<[u8]>> Check for Fingerprint<B> {
    type WithKey<'a>
        = Fingerprint<&'a [u8]>
    where
        B: 'a;

    fn id(&self) -> Option<&[u8; KEY_ID_BYTES]> {
        id_of(&self.key)
    }

    fn with_key<'a>(&'a self, key: &'a [u8]) -> Fingerprint<&'a [u8]> {
        let (key, signature) = (Key::Public(key), self.signature.as_ref());
        Fingerprint { key, data: self.data.as_ref(), fingerprint: self.fingerprint.as_ref(), signature }
    }

    fn alone(in_process: &mut InProcess, keys: &Keys, all: &[Self]) -> Vec<Verdict> {
        in_process.verify_fingerprints(keys, all)
    }
}

/// Keys that were registered, so that their ids hold whatever becomes of the sidecar.
#[derive(Default)]
pub(crate) struct Keys {
    known: HashMap<[u8; KEY_ID_BYTES], Box<[u8]>>,
    /// The first one is forgotten first.
    order: VecDeque<[u8; KEY_ID_BYTES]>,
}

impl Keys {
    pub(crate) fn get(&self, id: &[u8; KEY_ID_BYTES]) -> Option<&[u8]> {
        self.known.get(id).map(|key| &key[..])
    }

    fn remember(&mut self, id: [u8; KEY_ID_BYTES], key: &[u8]) {
        if self.known.insert(id, key.into()).is_none() {
            self.order.push_back(id);
            if self.order.len() > KEYS
                && let Some(first) = self.order.pop_front()
            {
                self.known.remove(&first);
            }
        }
    }
}
