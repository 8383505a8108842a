//! What a program can ask for, and what it is told.

use std::ops::RangeInclusive;

use bytes::Bytes;
use qudag_mldsa::{Edition, Mu, PUBLIC_KEY_BYTES, PublicKey, Rejected};

/// How long a hash may be, in bytes. BLAKE3 gives as many as are asked for.
pub const HASH_BYTES: RangeInclusive<u16> = 1..=1_024;

/// The name of a public key: its BLAKE3 hash of 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyId(pub [u8; 32]);

/// A key of a signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyRef {
    /// One that was registered before.
    Id(KeyId),
    /// The key itself.
    Public(Box<PublicKey>),
}

/// What is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// The message representative, made by the program (FIPS 204, algorithm 7, step 6).
    Mu(Box<Mu>),
    /// A message.
    Message {
        /// The context of the final standard; empty with the draft.
        context: Bytes,
        /// The message itself.
        message: Bytes,
    },
}

/// A signature to verify.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignatureCheck {
    /// Whose it should be.
    pub key: KeyRef,
    /// By which text of the standard.
    pub edition: Edition,
    /// Of what.
    pub content: Content,
    /// The signature.
    pub signature: Bytes,
}

/// A fingerprint of QuDAG to verify: a hash of data (BLAKE3, 64 bytes), and a signature of that hash by the draft.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FingerprintCheck {
    /// Whose it should be.
    pub key: KeyRef,
    /// Of what.
    pub data: Bytes,
    /// The hash: 64 bytes.
    pub fingerprint: Box<[u8; 64]>,
    /// The signature of the hash.
    pub signature: Bytes,
}

/// A batch of operations of one sort.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operations {
    /// Registers keys.
    Keys(Vec<PublicKey>),
    /// Verifies signatures.
    Signatures(Vec<SignatureCheck>),
    /// Verifies fingerprints.
    Fingerprints(Vec<FingerprintCheck>),
    /// Hashes data by BLAKE3 to so many bytes ([`HASH_BYTES`]).
    Hashes(Vec<(Bytes, u16)>),
    /// Asks for the state of the service.
    Status,
}

impl Operations {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Keys(keys) => keys.len(),
            Self::Signatures(checks) => checks.len(),
            Self::Fingerprints(checks) => checks.len(),
            Self::Hashes(data) => data.len(),
            Self::Status => 0,
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What they take in memory, in bytes; not counting what the parts of one frame have in common.
    pub fn bytes(&self) -> usize {
        let key = |key: &KeyRef| match key {
            KeyRef::Id(_) => 0,
            KeyRef::Public(_) => PUBLIC_KEY_BYTES,
        };
        let content = |content: &Content| match content {
            Content::Mu(_) => size_of::<Mu>(),
            Content::Message { context, message } => context.len() + message.len(),
        };
        let (each, more) = match self {
            Self::Keys(_) => (PUBLIC_KEY_BYTES, 0),
            Self::Signatures(checks) => {
                let bytes = |check: &SignatureCheck| {
                    key(&check.key) + content(&check.content) + check.signature.len()
                };
                (size_of::<SignatureCheck>(), checks.iter().map(bytes).sum())
            }
            Self::Fingerprints(checks) => {
                let bytes = |check: &FingerprintCheck| {
                    key(&check.key) + check.data.len() + check.fingerprint.len() + check.signature.len()
                };
                (size_of::<FingerprintCheck>(), checks.iter().map(bytes).sum())
            }
            Self::Hashes(data) => {
                let bytes = |(data, length): &(Bytes, u16)| data.len() + usize::from(*length);
                (size_of::<(Bytes, u16)>(), data.iter().map(bytes).sum())
            }
            Self::Status => (0, 0),
        };
        each * self.len() + more
    }
}

/// What is said of a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is of that key and that message.
    Valid,
    /// It is not.
    Invalid(Rejected),
    /// The fingerprint is of other data.
    OtherData,
    /// No key of that name is known (any more): the program sends the key itself.
    UnknownKey,
}
