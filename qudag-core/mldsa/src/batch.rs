//! Many signatures at a time: the hashes of several keys, messages and commitments run beside each other in the lanes of vectors.

use crate::backend::{Backend, Engine, with_engine};
use crate::encoding::Signature;
use crate::hash::{Edition, MU_BYTES, Mu, TooLong, mu, prefix};
use crate::keccak::{LANES, Lanes};
use crate::key::{ExpandedKey, PublicKey, TR_BYTES, expand};
use crate::lanes::{Input, absorb_short, hash_many};
use crate::parameters::{C_TILDE_BYTES, K, L, W1_BYTES};
use crate::polynomial::Polynomial;
use crate::sampling::sample_in_ball;
use crate::verify::{Rejected, challenge_seed, commit, parse};

/// How many signatures are hashed together. Longer batches are cut.
const CHUNK: usize = 64;
/// How many keys are expanded together: their 120 polynomials leave no lane empty.
const KEYS: usize = 4;

/// A key of a [`Job`].
#[derive(Clone, Copy, Debug)]
pub enum Key<'a> {
    /// Made ready before.
    Expanded(&'a ExpandedKey),
    /// To be made ready for this signature alone.
    Fresh(&'a PublicKey),
}

impl<'a> Key<'a> {
    fn expanded(self) -> Option<&'a ExpandedKey> {
        match self {
            Self::Expanded(key) => Some(key),
            Self::Fresh(_) => None,
        }
    }

    fn fresh(self) -> Option<&'a PublicKey> {
        match self {
            Self::Expanded(_) => None,
            Self::Fresh(key) => Some(key),
        }
    }
}

/// What is signed.
#[derive(Clone, Copy, Debug)]
pub enum Content<'a> {
    /// A message representative that was made before.
    Mu(&'a Mu),
    /// A message.
    Message {
        /// The context of [`Edition::Final`]; empty with [`Edition::Draft`].
        context: &'a [u8],
        /// The message itself.
        message: &'a [u8],
    },
}

impl Content<'_> {
    /// Its message representative for a key by the hash tr of the key (algorithm 7, step 6).
    ///
    /// # Errors
    /// When the context is longer than 255 bytes, or the edition has none.
    pub fn mu(&self, tr: &[u8; TR_BYTES], edition: Edition) -> Result<Mu, TooLong> {
        match self {
            Self::Mu(mu) => Ok(**mu),
            Self::Message { context, message } => mu(tr, edition, context, message),
        }
    }
}

/// A signature to verify.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// Of whom.
    pub key: Key<'a>,
    /// By which text of the standard.
    pub edition: Edition,
    /// Of what.
    pub content: Content<'a>,
    /// The signature.
    pub signature: &'a [u8],
}

/// Memory for [`verify_batch`], about 190 kB. It can be used again and again, by any backend.
#[derive(Debug)]
pub struct Scratch(Box<Memory>);

#[derive(Debug)]
struct Memory {
    lanes: Lanes,
    trs: [[u8; TR_BYTES]; CHUNK],
    mus: [[u8; MU_BYTES]; CHUNK],
    c_tildes: [[u8; MU_BYTES]; LANES],
    keys: [ExpandedKey; KEYS],
    z: [[Polynomial; L]; KEYS],
    c: [Polynomial; LANES],
    w1: [[u8; K * W1_BYTES]; LANES],
}

impl Scratch {
    /// Takes the memory.
    pub fn new() -> Self {
        Self(Box::new(Memory {
            lanes: Lanes::ZERO,
            trs: [[0; _]; _],
            mus: [[0; _]; _],
            c_tildes: [[0; _]; _],
            keys: [const { ExpandedKey::ZERO }; _],
            z: [const { [const { Polynomial::ZERO }; _] }; _],
            c: [const { Polynomial::ZERO }; _],
            w1: [[0; _]; _],
        }))
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

/// Verifies signatures, each by itself: `results` tells about the jobs in their order. It has to be as long as `jobs`; what it has room for
/// is verified, and what it holds beyond becomes [`Rejected::Mismatch`].
pub fn verify_batch(
    backend: Backend,
    scratch: &mut Scratch,
    jobs: &[Job<'_>],
    results: &mut [Result<(), Rejected>],
) {
    results.fill(Err(Rejected::Mismatch));
    for (jobs, results) in jobs.chunks(CHUNK).zip(results.chunks_mut(CHUNK)) {
        with_engine!(backend, verify_chunk, &mut scratch.0, jobs, results);
    }
}

/// What is known of a job after it is parsed.
#[derive(Clone, Copy)]
struct Parsed<'a> {
    /// Its place in the chunk.
    place: usize,
    job: Job<'a>,
    signature: Signature<'a>,
    /// What comes before the message.
    prefix: ([u8; 2], usize),
}

impl<'a> Parsed<'a> {
    fn new(place: usize, job: &Job<'a>) -> Result<Self, Rejected> {
        let prefix = match job.content {
            Content::Mu(_) => ([0; 2], 0),
            Content::Message { context, .. } => prefix(job.edition, context)?,
        };
        Ok(Self { place, job: *job, signature: parse(job.signature)?, prefix })
    }
}

/// Verifies up to [`CHUNK`] signatures.
fn verify_chunk<E: Engine>(
    engine: E,
    memory: &mut Memory,
    jobs: &[Job<'_>],
    results: &mut [Result<(), Rejected>],
) {
    let mut parsed = [None; CHUNK];
    let mut count = 0;
    for (place, (job, result)) in jobs.iter().zip(&mut *results).enumerate() {
        match Parsed::new(place, job) {
            Ok(one) => {
                if let Some(slot) = parsed.get_mut(count) {
                    *slot = Some(one);
                    count += 1;
                }
            }
            Err(rejected) => *result = Err(rejected),
        }
    }
    let parsed = parsed.get(..count).unwrap_or_default();
    hash_messages(engine, memory, parsed);
    for (group, mus) in parsed.chunks(E::LANES).zip(0..) {
        verify_group(engine, memory, group, mus * E::LANES, results);
    }
}

/// The hashes of keys and of messages, where they are not known (algorithm 8, steps 6 and 7).
fn hash_messages<E: Engine>(engine: E, memory: &mut Memory, parsed: &[Option<Parsed<'_>>]) {
    let keys = parsed.iter().flatten().enumerate().filter_map(|(place, one)| match one.job.content {
        Content::Message { .. } => Some((place, one.job.key.fresh()?)),
        Content::Mu(_) => None,
    });
    let inputs = keys.map(|(place, key)| (place, Input::new([&key.0, &[], &[], &[]])));
    hash_many(engine, &mut memory.lanes, inputs, &mut memory.trs);
    let trs = &memory.trs;
    let messages = parsed.iter().flatten().zip(trs).enumerate();
    let inputs = messages.filter_map(|(place, (one, tr))| match one.job.content {
        Content::Message { context, message } => {
            let tr = one.job.key.expanded().map_or(tr, ExpandedKey::tr);
            let (prefix, length) = &one.prefix;
            let prefix = prefix.get(..*length).unwrap_or_default();
            Some((place, Input::new([tr, prefix, context, message])))
        }
        Content::Mu(_) => None,
    });
    hash_many(engine, &mut memory.lanes, inputs, &mut memory.mus);
    for (one, mu) in parsed.iter().flatten().zip(&mut memory.mus) {
        if let Content::Mu(given) = one.job.content {
            *mu = given.0;
        }
    }
}

/// Verifies as many signatures as the engine has lanes, by their μ from the place `first_mu` on (algorithm 8, from step 8).
fn verify_group<E: Engine>(
    engine: E,
    memory: &mut Memory,
    group: &[Option<Parsed<'_>>],
    first_mu: usize,
    results: &mut [Result<(), Rejected>],
) {
    let seeds = group.iter().flatten().map(|one| challenge_seed(one.job.edition, one.signature.c_tilde));
    absorb_short(engine, &mut memory.lanes, seeds);
    for (lane, c) in memory.c.iter_mut().enumerate().take(group.len()) {
        sample_in_ball(engine, &mut memory.lanes.get(lane), c);
    }
    let mut in_range = [false; LANES];
    let lanes = group.chunks(KEYS).zip(memory.c.chunks_mut(KEYS)).zip(memory.w1.chunks_mut(KEYS));
    for (((group, c), w1), in_range) in lanes.zip(in_range.chunks_mut(KEYS)) {
        let mut fresh = [None; KEYS];
        let responses = group.iter().flatten().zip(&mut memory.z).zip(&mut *in_range).zip(&mut fresh);
        for (((one, z), in_range), fresh) in responses {
            *in_range = engine.z_decode(one.signature.z, z);
            *fresh = one.job.key.fresh().filter(|_| *in_range);
        }
        expand(engine, &fresh, &mut memory.keys);
        let responses = group.iter().flatten().zip(&mut memory.z).zip(in_range).zip(&memory.keys);
        for ((((one, z), in_range), expanded), (c, w1)) in responses.zip(c.iter_mut().zip(w1)) {
            if *in_range {
                let key = one.job.key.expanded().unwrap_or(expanded);
                commit(engine, key, c, z, &one.signature, w1);
            }
        }
    }
    let mus = memory.mus.get(first_mu..).unwrap_or_default();
    let inputs = mus.iter().zip(&memory.w1).enumerate().take(group.len());
    let inputs = inputs.map(|(lane, (mu, w1))| (lane, Input::new([mu, w1, &[], &[]])));
    hash_many(engine, &mut memory.lanes, inputs, &mut memory.c_tildes);
    for ((one, hash), in_range) in group.iter().flatten().zip(&memory.c_tildes).zip(in_range) {
        if let Some(result) = results.get_mut(one.place) {
            *result = match (in_range, hash.first_chunk::<C_TILDE_BYTES>() == Some(one.signature.c_tilde)) {
                (false, _) => Err(Rejected::Range),
                (true, false) => Err(Rejected::Mismatch),
                (true, true) => Ok(()),
            };
        }
    }
}
