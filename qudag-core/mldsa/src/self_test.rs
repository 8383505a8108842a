//! Known answers: one signature of each edition that is accepted, and the same damaged in every way that is told apart.

use crate::backend::Backend;
use crate::batch::{Content, Job, Key, Scratch, verify_batch};
use crate::hash::Edition;
use crate::key::PublicKey;
use crate::parameters::{C_TILDE_BYTES, SIGNATURE_BYTES};
use crate::verify::{Rejected, verify};

/// What is signed.
const MESSAGE: &[u8] = b"known answer";
/// What was signed with, to be found in the final standard's M′.
const CONTEXT: &[u8] = b"self-test";

/// A signature that is valid.
#[derive(Debug)]
pub struct KnownAnswer {
    /// By which text of the standard.
    pub edition: Edition,
    /// The context.
    pub context: &'static [u8],
    /// Of whom.
    pub key: PublicKey,
    /// What is signed.
    pub message: &'static [u8],
    /// The signature.
    pub signature: &'static [u8; SIGNATURE_BYTES],
}

/// One of each edition, made by the library that QuDAG signs with, pqcrypto-dilithium 0.5.0 (draft), and by fips204 0.4.6 (final standard).
pub static KNOWN_ANSWERS: [KnownAnswer; 2] = [
    KnownAnswer {
        edition: Edition::Draft,
        context: b"",
        message: MESSAGE,
        key: PublicKey(*include_bytes!("self_test/draft.key")),
        signature: include_bytes!("self_test/draft.signature"),
    },
    KnownAnswer {
        edition: Edition::Final,
        context: CONTEXT,
        message: MESSAGE,
        key: PublicKey(*include_bytes!("self_test/final.key")),
        signature: include_bytes!("self_test/final.signature"),
    },
];

/// A backend does not do what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelfTestFailed {
    /// This processor cannot run it.
    #[error("the processor cannot run {0}")]
    Unavailable(Backend),
    /// A signature of a known answer was judged wrong.
    #[error("{backend} judged a signature of the {edition:?} edition {seen:?} instead of {right:?}")]
    Wrong {
        /// Which backend.
        backend: Backend,
        /// The edition of the signature.
        edition: Edition,
        /// What it is.
        right: Result<(), Rejected>,
        /// What the backend says.
        seen: Result<(), Rejected>,
    },
}

/// Verifies known signatures, good and bad ones, each by itself and all in a batch. An instruction that the processor lacks in spite of what
/// it reports ends the process, so whoever reckons with that does this in a child process.
///
/// # Errors
/// When the backend is not available, or judges one wrong.
pub fn self_test(backend: Backend) -> Result<(), SelfTestFailed> {
    if !backend.is_available() {
        return Err(SelfTestFailed::Unavailable(backend));
    }
    let mut scratch = Scratch::new();
    KNOWN_ANSWERS.iter().try_for_each(|known| test(backend, known, &mut scratch))
}

fn test(backend: Backend, known: &KnownAnswer, scratch: &mut Scratch) -> Result<(), SelfTestFailed> {
    let expanded = known.key.expand(backend);
    let damaged = |place: usize, value: u8| {
        let mut signature = *known.signature;
        if let Some(byte) = signature.get_mut(place) {
            *byte = value;
        }
        signature
    };
    // All bits of the first coefficient of z are 1, which is below −γ₁ + β; hints end behind where they can.
    let mut range = damaged(C_TILDE_BYTES, 0xff);
    range.iter_mut().skip(C_TILDE_BYTES).take(3).for_each(|byte| *byte = 0xff);
    let hints = damaged(SIGNATURE_BYTES - 1, 0xff);
    let mut other_message = [0; MESSAGE.len()];
    other_message.copy_from_slice(MESSAGE);
    other_message.reverse();
    let long = [0; 256];

    let job = |key, context, message, signature| Job {
        key,
        edition: known.edition,
        content: Content::Message { context, message },
        signature,
    };
    let (own, fresh) = (Key::Expanded(&expanded), Key::Fresh(&known.key));
    let cases = [
        (job(own, known.context, MESSAGE, known.signature), Ok(())),
        (job(fresh, known.context, MESSAGE, known.signature), Ok(())),
        (job(own, known.context, MESSAGE, &known.signature[1..]), Err(Rejected::Length)),
        (job(own, &long, MESSAGE, known.signature), Err(Rejected::Context)),
        (job(own, known.context, MESSAGE, &hints), Err(Rejected::Hints)),
        (job(own, known.context, MESSAGE, &range), Err(Rejected::Range)),
        (job(own, known.context, &other_message, known.signature), Err(Rejected::Mismatch)),
        (job(fresh, known.context, &long, known.signature), Err(Rejected::Mismatch)),
        (job(fresh, known.context, MESSAGE, known.signature), Ok(())),
    ];
    let check = |right, seen| {
        let wrong = SelfTestFailed::Wrong { backend, edition: known.edition, right, seen };
        if right == seen { Ok(()) } else { Err(wrong) }
    };
    let jobs = cases.map(|(job, _)| job);
    let mut results = [Ok(()); 9];
    verify_batch(backend, scratch, &jobs, &mut results);
    for ((job, right), seen) in cases.into_iter().zip(results) {
        check(right, seen)?;
        let mu = job.content.mu(expanded.tr(), known.edition).map_err(Rejected::from);
        check(right, mu.and_then(|mu| verify(backend, &expanded, known.edition, &mu, job.signature)))?;
    }
    Ok(())
}
