//! Replies.

use std::time::Duration;

use bytes::{Buf, BufMut};

use super::{Header, KEY_ID_BYTES, Malformed};

const WELCOME: u8 = 0x80;
const KEYS: u8 = 0x81;
const VERDICTS: u8 = 0x82;
const HASHES: u8 = 0x84;
const STATUS: u8 = 0x85;
const ERROR: u8 = 0xff;

/// What a server takes on a connection, when it began. A change of its settings may lower them later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest body of a request, in bytes.
    pub body: u32,
    /// The most operations of a request.
    pub operations: u16,
    /// The most requests at once; further ones are read when there is room.
    pub in_flight: u32,
}

/// What is said of a signature or fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// The signature is of that key and content.
    Valid = 0,
    /// It has not 3,309 bytes.
    Length = 1,
    /// A context with the draft.
    Context = 2,
    /// Its hints are malformed.
    Hints = 3,
    /// Its z is out of range.
    Range = 4,
    /// It is of another key or content.
    Mismatch = 5,
    /// The fingerprint is of other data.
    OtherData = 6,
    /// No key with that id is known (any more).
    UnknownKey = 7,
}

impl Verdict {
    /// All, in the order of their codes.
    pub const ALL: [Self; 8] = [
        Self::Valid,
        Self::Length,
        Self::Context,
        Self::Hints,
        Self::Range,
        Self::Mismatch,
        Self::OtherData,
        Self::UnknownKey,
    ];

    /// The name: `valid`, or the reason why it is not.
    pub fn name(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Length => "length",
            Self::Context => "context",
            Self::Hints => "hints",
            Self::Range => "range",
            Self::Mismatch => "mismatch",
            Self::OtherData => "other_data",
            Self::UnknownKey => "unknown_key",
        }
    }
}

/// Why there is no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// The request cannot be read.
    Malformed = 1,
    /// The request is longer, or has more operations, than the server takes.
    TooLarge = 2,
    /// The server does not do that, as it is configured.
    Refused = 3,
    /// Too many requests in too short a time.
    RateLimited = 4,
    /// Too much at once.
    Overloaded = 5,
    /// The server is stopping.
    Draining = 6,
    /// It took too long.
    Timeout = 7,
    /// A fault of the server.
    Internal = 8,
}

impl Code {
    /// All, in the order of their codes.
    pub const ALL: [Self; 8] = [
        Self::Malformed,
        Self::TooLarge,
        Self::Refused,
        Self::RateLimited,
        Self::Overloaded,
        Self::Draining,
        Self::Timeout,
        Self::Internal,
    ];

    /// The name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::TooLarge => "too_large",
            Self::Refused => "refused",
            Self::RateLimited => "rate_limited",
            Self::Overloaded => "overloaded",
            Self::Draining => "draining",
            Self::Timeout => "timeout",
            Self::Internal => "internal",
        }
    }
}

/// An error in place of a reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", code.name())]
pub struct Refusal {
    /// Why.
    pub code: Code,
    /// When to try again, where that is known; to the millisecond, rounded up.
    pub retry_after: Option<Duration>,
    /// The same for people.
    pub message: String,
}

/// What a server sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The first frame of a connection.
    Welcome(Limits),
    /// The ids of keys that were registered.
    Keys(Vec<[u8; KEY_ID_BYTES]>),
    /// Of signatures or fingerprints.
    Verdicts(Vec<Verdict>),
    /// Hashes, each at most 65,535 bytes.
    Hashes(Vec<Box<[u8]>>),
    /// The status of the service, as JSON.
    Status(String),
    /// An error.
    Error(Refusal),
}

impl Reply {
    /// Appends the reply to a request. It is as long as the request has asked for, which is far below what a frame can hold; what does not
    /// fit becomes an error.
    pub fn encode(&self, id: u32, to: &mut impl BufMut) {
        let (sort, count, length) = match self {
            Self::Welcome(_) => (WELCOME, 0, 12),
            Self::Keys(ids) => (KEYS, ids.len(), ids.len() * KEY_ID_BYTES),
            Self::Verdicts(verdicts) => (VERDICTS, verdicts.len(), verdicts.len()),
            Self::Hashes(hashes) => (HASHES, hashes.len(), hashes_length(hashes)),
            Self::Status(json) => (STATUS, 0, json.len()),
            Self::Error(refusal) => (ERROR, 0, 8 + refusal.message.len()),
        };
        let (Ok(length), Ok(count)) = (u32::try_from(length), u16::try_from(count)) else {
            let message = "the reply does not fit into a frame".to_owned();
            let refusal = Refusal { code: Code::Internal, retry_after: None, message };
            return Self::Error(refusal).encode(id, to);
        };
        Header { length, id, sort, flags: 0, count }.write(to);
        match self {
            Self::Welcome(limits) => {
                to.put_u32(limits.body);
                to.put_u16(limits.operations);
                to.put_u16(0);
                to.put_u32(limits.in_flight);
            }
            Self::Keys(ids) => ids.iter().for_each(|id| to.put_slice(id)),
            Self::Verdicts(verdicts) => verdicts.iter().for_each(|verdict| to.put_u8(*verdict as u8)),
            Self::Hashes(hashes) => {
                for hash in hashes {
                    to.put_u16(u16::try_from(hash.len()).unwrap_or(u16::MAX));
                    to.put_slice(hash);
                }
            }
            Self::Status(json) => to.put_slice(json.as_bytes()),
            Self::Error(refusal) => {
                to.put_u8(refusal.code as u8);
                to.put_bytes(0, 3);
                to.put_u32(milliseconds(refusal.retry_after));
                to.put_slice(refusal.message.as_bytes());
            }
        }
    }

    /// The reply in a frame. `body` has [`Header::length`] bytes.
    ///
    /// # Errors
    /// When it is none.
    pub fn read(header: &Header, mut body: &[u8]) -> Result<Self, Malformed> {
        if header.flags != 0 {
            return Err(Malformed::Frame("unknown flags"));
        }
        let count = usize::from(header.count);
        let short = Malformed::Frame("the body has another length than its results");
        match header.sort {
            WELCOME if body.len() == 12 => {
                let (body_limit, operations) = (body.get_u32(), body.get_u16());
                body.advance(2);
                Ok(Self::Welcome(Limits { body: body_limit, operations, in_flight: body.get_u32() }))
            }
            KEYS if body.len() == count * KEY_ID_BYTES => {
                Ok(Self::Keys(body.as_chunks::<KEY_ID_BYTES>().0.to_vec()))
            }
            VERDICTS if body.len() == count => {
                let known = |code: &u8| Verdict::ALL.get(usize::from(*code)).copied();
                let verdicts = body.iter().map(known).collect::<Option<Vec<_>>>();
                verdicts.map(Self::Verdicts).ok_or(Malformed::Frame("unknown verdict"))
            }
            HASHES if body.len() >= 2 * count => {
                let mut hashes = Vec::with_capacity(count);
                for _ in 0..count {
                    let length = body.try_get_u16().map_err(|_| short)?;
                    let (hash, rest) = body.split_at_checked(length.into()).ok_or(short)?;
                    hashes.push(hash.into());
                    body = rest;
                }
                if body.is_empty() { Ok(Self::Hashes(hashes)) } else { Err(short) }
            }
            STATUS => {
                let json = std::str::from_utf8(body).map_err(|_| Malformed::Frame("a status in UTF-8"))?;
                Ok(Self::Status(json.to_owned()))
            }
            ERROR if body.len() >= 8 => {
                let code = usize::from(body.get_u8()).checked_sub(1).and_then(|place| Code::ALL.get(place));
                let code = *code.ok_or(Malformed::Frame("unknown code of an error"))?;
                body.advance(3);
                let after = body.get_u32();
                Ok(Self::Error(Refusal {
                    code,
                    retry_after: (after > 0).then(|| Duration::from_millis(after.into())),
                    message: String::from_utf8_lossy(body).into_owned(),
                }))
            }
            WELCOME | KEYS | VERDICTS | HASHES | ERROR => Err(short),
            _ => Err(Malformed::Frame("unknown sort of reply")),
        }
    }
}

/// Bytes of hashes in a body; [`usize::MAX`] when one is too long for it.
fn hashes_length(hashes: &[Box<[u8]>]) -> usize {
    let fit = hashes.iter().all(|hash| hash.len() <= usize::from(u16::MAX));
    if fit { hashes.iter().map(|hash| 2 + hash.len()).sum() } else { usize::MAX }
}

/// Rounded up, so that nobody comes too early; 0 where nothing is known.
fn milliseconds(after: Option<Duration>) -> u32 {
    let after = after.map_or(0, |after| after.as_nanos().div_ceil(1_000_000).max(1));
    u32::try_from(after).unwrap_or(u32::MAX)
}
