//! Operations of a request: what a batch consists of.

use std::marker::PhantomData;

use bytes::{Buf, BufMut, Bytes};

use super::{FINGERPRINT_BYTES, KEY_ID_BYTES, MAX_HASH_BYTES, MU_BYTES, Malformed, PUBLIC_KEY_BYTES};

/// An operation that has no place in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unencodable {
    /// A part has another length than it must have, or than a frame can say.
    #[error("operations[{operation}]: {part} of {length} bytes")]
    Length {
        /// The place of the operation, from 0.
        operation: usize,
        /// Which part.
        part: &'static str,
        /// Its length in bytes.
        length: usize,
    },
    /// More operations or bytes than a frame can hold.
    #[error("a batch of {operations} operations with {bytes} bytes does not fit into a frame")]
    Batch {
        /// How many operations.
        operations: usize,
        /// Bytes of all.
        bytes: usize,
    },
}

/// A key of a signature. `B` is [`Bytes`] in what was read, and whatever has bytes in what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key<B> {
    /// The id of one that was registered: 32 bytes.
    Id([u8; KEY_ID_BYTES]),
    /// The key itself: 1,952 bytes.
    Public(B),
}

/// By which text of FIPS 204 a signature was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edition {
    /// The initial public draft of August 2023.
    Draft,
    /// The standard of August 2024.
    Final,
}

/// What is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<B> {
    /// The message representative μ: 64 bytes.
    Mu(B),
    /// A message.
    Message {
        /// The context, at most 255 bytes.
        context: B,
        /// The message itself.
        message: B,
    },
}

impl<B: AsRef<[u8]>> Content<B> {
    /// The same, borrowed.
    pub fn as_bytes(&self) -> Content<&[u8]> {
        match self {
            Self::Mu(mu) => Content::Mu(mu.as_ref()),
            Self::Message { context, message } => {
                Content::Message { context: context.as_ref(), message: message.as_ref() }
            }
        }
    }
}

/// Registers a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewKey<B> {
    /// The key: 1,952 bytes.
    pub key: B,
}

/// Verifies a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature<B> {
    /// Whose it should be.
    pub key: Key<B>,
    /// By which text.
    pub edition: Edition,
    /// Of what.
    pub content: Content<B>,
    /// The signature, of any length.
    pub signature: B,
}

/// Verifies a fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint<B> {
    /// Whose it should be.
    pub key: Key<B>,
    /// Of what.
    pub data: B,
    /// The hash of the data: 64 bytes.
    pub fingerprint: B,
    /// The signature of the hash, of any length.
    pub signature: B,
}

/// Hashes data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest<B> {
    /// The data.
    pub data: B,
    /// How long the hash shall be: 1 to 1,024 bytes.
    pub length: u16,
}

/// An operation that can stand in a frame.
pub trait Operation: sealed::Operation {}
impl<O: sealed::Operation> Operation for O {}

pub(super) mod sealed {
    use super::{BufMut, Bytes};

    /// The rest of a body, taken part by part.
    pub struct Parts(pub(in super::super) Bytes);

    pub trait Operation {
        /// The sort of the request.
        const SORT: u8;
        /// The fewest bytes that one takes.
        const LEAST: usize;
        /// Bytes of this one; an error names the part that cannot be written.
        fn check(&self) -> Result<usize, (&'static str, usize)>;
        fn write(&self, to: &mut impl BufMut);
    }

    pub trait Read: Operation + Sized {
        fn read(parts: &mut Parts) -> Result<Self, &'static str>;
    }
}

use sealed::{Parts, Read};

const KEY_BY_ID: u8 = 0;
const KEY_ITSELF: u8 = 1;
const DRAFT: u8 = 1;
const FINAL: u8 = 2;
const MU: u8 = 1;
const MESSAGE: u8 = 2;

fn exactly(part: &'static str, bytes: &[u8], length: usize) -> Result<usize, (&'static str, usize)> {
    if bytes.len() == length { Ok(length) } else { Err((part, bytes.len())) }
}

fn at_most(part: &'static str, bytes: &[u8], length: usize) -> Result<usize, (&'static str, usize)> {
    if bytes.len() <= length { Ok(bytes.len()) } else { Err((part, bytes.len())) }
}

/// More than any frame holds; what is longer in sum is found there.
const LONGEST: usize = u32::MAX as usize;

/// A length that was checked before.
fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

impl<B: AsRef<[u8]>> Key<B> {
    fn check(&self) -> Result<usize, (&'static str, usize)> {
        match self {
            Self::Id(id) => Ok(id.len()),
            Self::Public(key) => exactly("a key", key.as_ref(), PUBLIC_KEY_BYTES),
        }
    }

    fn form(&self) -> u8 {
        match self {
            Self::Id(_) => KEY_BY_ID,
            Self::Public(_) => KEY_ITSELF,
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Id(id) => id,
            Self::Public(key) => key.as_ref(),
        }
    }
}

impl<B: AsRef<[u8]>> sealed::Operation for NewKey<B> {
    const SORT: u8 = 1;
    const LEAST: usize = PUBLIC_KEY_BYTES;

    fn check(&self) -> Result<usize, (&'static str, usize)> {
        exactly("a key", self.key.as_ref(), PUBLIC_KEY_BYTES)
    }

    fn write(&self, to: &mut impl BufMut) {
        to.put_slice(self.key.as_ref());
    }
}

impl<B: AsRef<[u8]>> sealed::Operation for Signature<B> {
    const SORT: u8 = 2;
    const LEAST: usize = 12 + KEY_ID_BYTES;

    fn check(&self) -> Result<usize, (&'static str, usize)> {
        let content = match &self.content {
            Content::Mu(mu) => exactly("μ", mu.as_ref(), MU_BYTES)?,
            Content::Message { context, message } => {
                at_most("a context", context.as_ref(), usize::from(u8::MAX))?
                    + at_most("a message", message.as_ref(), LONGEST)?
            }
        };
        Ok(12 + self.key.check()? + content + at_most("a signature", self.signature.as_ref(), LONGEST)?)
    }

    fn write(&self, to: &mut impl BufMut) {
        let (form, context, content) = match &self.content {
            Content::Mu(mu) => (MU, &[][..], mu.as_ref()),
            Content::Message { context, message } => (MESSAGE, context.as_ref(), message.as_ref()),
        };
        to.put_u8(self.key.form());
        to.put_u8(match self.edition {
            Edition::Draft => DRAFT,
            Edition::Final => FINAL,
        });
        to.put_u8(form);
        to.put_u8(u8::try_from(context.len()).unwrap_or(u8::MAX));
        to.put_u32(length(content));
        to.put_u32(length(self.signature.as_ref()));
        to.put_slice(self.key.bytes());
        to.put_slice(context);
        to.put_slice(content);
        to.put_slice(self.signature.as_ref());
    }
}

impl<B: AsRef<[u8]>> sealed::Operation for Fingerprint<B> {
    const SORT: u8 = 3;
    const LEAST: usize = 12 + KEY_ID_BYTES + FINGERPRINT_BYTES;

    fn check(&self) -> Result<usize, (&'static str, usize)> {
        Ok(12
            + self.key.check()?
            + exactly("a fingerprint", self.fingerprint.as_ref(), FINGERPRINT_BYTES)?
            + at_most("data", self.data.as_ref(), LONGEST)?
            + at_most("a signature", self.signature.as_ref(), LONGEST)?)
    }

    fn write(&self, to: &mut impl BufMut) {
        to.put_u8(self.key.form());
        to.put_bytes(0, 3);
        to.put_u32(length(self.data.as_ref()));
        to.put_u32(length(self.signature.as_ref()));
        to.put_slice(self.key.bytes());
        to.put_slice(self.fingerprint.as_ref());
        to.put_slice(self.data.as_ref());
        to.put_slice(self.signature.as_ref());
    }
}

impl<B: AsRef<[u8]>> sealed::Operation for Digest<B> {
    const SORT: u8 = 4;
    const LEAST: usize = 8;

    fn check(&self) -> Result<usize, (&'static str, usize)> {
        if self.length == 0 || self.length > MAX_HASH_BYTES {
            return Err(("a hash", self.length.into()));
        }
        Ok(8 + at_most("data", self.data.as_ref(), LONGEST)?)
    }

    fn write(&self, to: &mut impl BufMut) {
        to.put_u16(self.length);
        to.put_u16(0);
        to.put_u32(length(self.data.as_ref()));
        to.put_slice(self.data.as_ref());
    }
}

impl Parts {
    fn byte(&mut self) -> Result<u8, &'static str> {
        self.0.try_get_u8().map_err(|_| ENDS)
    }

    fn length(&mut self) -> Result<usize, &'static str> {
        let length = self.0.try_get_u32().map_err(|_| ENDS)?;
        usize::try_from(length).map_err(|_| "a part is longer than the memory")
    }

    fn zeros(&mut self, count: usize) -> Result<(), &'static str> {
        let zeros = self.bytes(count, ENDS)?;
        if zeros.iter().all(|byte| *byte == 0) { Ok(()) } else { Err("bytes that must be 0 are not") }
    }

    /// The next bytes, which share the memory of the body.
    fn bytes(&mut self, length: usize, ends: &'static str) -> Result<Bytes, &'static str> {
        if length > self.0.len() { Err(ends) } else { Ok(self.0.split_to(length)) }
    }

    fn key(&mut self, form: u8) -> Result<Key<Bytes>, &'static str> {
        const ENDS: &str = "the body ends within the key";
        match form {
            KEY_BY_ID => {
                let id = self.bytes(KEY_ID_BYTES, ENDS)?;
                Ok(Key::Id(id.first_chunk().copied().unwrap_or_default()))
            }
            KEY_ITSELF => self.bytes(PUBLIC_KEY_BYTES, ENDS).map(Key::Public),
            _ => Err("a key is given as 0 (its id) or 1 (the key itself)"),
        }
    }
}

const ENDS: &str = "the body ends within the operation";
const ENDS_IN_SIGNATURE: &str = "the body ends within the signature";
const ENDS_IN_DATA: &str = "the body ends within the data";

impl Read for NewKey<Bytes> {
    fn read(parts: &mut Parts) -> Result<Self, &'static str> {
        Ok(Self { key: parts.bytes(PUBLIC_KEY_BYTES, "the body ends within the key")? })
    }
}

impl Read for Signature<Bytes> {
    fn read(parts: &mut Parts) -> Result<Self, &'static str> {
        let (key, edition, content) = (parts.byte()?, parts.byte()?, parts.byte()?);
        let context = usize::from(parts.byte()?);
        let (message, signature) = (parts.length()?, parts.length()?);
        let edition = match edition {
            DRAFT => Edition::Draft,
            FINAL => Edition::Final,
            _ => return Err("an edition is 1 (the draft) or 2 (the final standard)"),
        };
        let key = parts.key(key)?;
        let content = match content {
            MU if context == 0 && message == MU_BYTES => {
                Content::Mu(parts.bytes(MU_BYTES, "the body ends within μ")?)
            }
            MU => return Err("μ has 64 bytes, and no context"),
            MESSAGE => Content::Message {
                context: parts.bytes(context, "the body ends within the context")?,
                message: parts.bytes(message, "the body ends within the message")?,
            },
            _ => return Err("a content is 1 (μ) or 2 (a message)"),
        };
        Ok(Self { key, edition, content, signature: parts.bytes(signature, ENDS_IN_SIGNATURE)? })
    }
}

impl Read for Fingerprint<Bytes> {
    fn read(parts: &mut Parts) -> Result<Self, &'static str> {
        let key = parts.byte()?;
        parts.zeros(3)?;
        let (data, signature) = (parts.length()?, parts.length()?);
        Ok(Self {
            key: parts.key(key)?,
            fingerprint: parts.bytes(FINGERPRINT_BYTES, "the body ends within the fingerprint")?,
            data: parts.bytes(data, ENDS_IN_DATA)?,
            signature: parts.bytes(signature, ENDS_IN_SIGNATURE)?,
        })
    }
}

impl Read for Digest<Bytes> {
    fn read(parts: &mut Parts) -> Result<Self, &'static str> {
        let length = u16::from_be_bytes([parts.byte()?, parts.byte()?]);
        parts.zeros(2)?;
        let data = parts.length()?;
        if length == 0 || length > MAX_HASH_BYTES {
            return Err("a hash has 1 to 1024 bytes");
        }
        Ok(Self { data: parts.bytes(data, ENDS_IN_DATA)?, length })
    }
}

/// The operations of a body, read one by one as the iterator goes. It ends after the first error.
pub struct Operations<O> {
    rest: Parts,
    next: u16,
    count: u16,
    operation: PhantomData<fn() -> O>,
}

impl<O: Read> Operations<O> {
    pub(super) fn new(count: u16, body: Bytes) -> Result<Self, Malformed> {
        if count == 0 {
            return Err(Malformed::Frame("a batch has at least one operation"));
        }
        // So that whoever takes memory for so many has the bytes of as many.
        if body.len() / O::LEAST < usize::from(count) {
            return Err(Malformed::Frame("the body is too short for so many operations"));
        }
        Ok(Self { rest: Parts(body), next: 0, count, operation: PhantomData })
    }

    /// How many operations the frame says that there are; there are no more, and there is memory for as many.
    pub fn count(&self) -> u16 {
        self.count
    }
}

impl<O: Read> Iterator for Operations<O> {
    type Item = Result<O, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next == self.count {
            let trailing = std::mem::take(&mut self.rest.0);
            return (!trailing.is_empty())
                .then_some(Err(Malformed::Frame("the body goes on after the last operation")));
        }
        let operation = self.next;
        self.next += 1;
        let read = O::read(&mut self.rest).map_err(|why| {
            (self.next, self.rest.0) = (self.count, Bytes::new());
            Malformed::Operation { operation, why }
        });
        Some(read)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // One more for what follows the last one.
        (0, Some(usize::from(self.count - self.next) + 1))
    }
}
