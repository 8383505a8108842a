//! Signatures and fingerprints, many at a time.

use std::sync::Arc;

use arrayvec::ArrayVec;
use metrics::counter;
use qudag_mldsa::{
    self as mldsa, Backend, Edition, ExpandedKey, Job, Key, PublicKey, Rejected, Scratch,
    matches_in_any_range, verify_batch,
};

use crate::{Content, KeyRef, Operations, Verdict, fault};

/// The most signatures that are verified together: with more, each costs no less.
pub(crate) const BATCH: usize = 64;

/// One operation of a request.
pub(crate) type Place<'a> = (&'a Operations, usize);

/// Where keys come from.
pub(crate) trait Keys {
    /// The key that a signature names. `independent` is as in [`CryptoCall::independent`](crate::CryptoCall::independent).
    fn find<'a>(&self, key: &'a KeyRef, backend: Backend, independent: bool) -> Found<'a>;
}

/// A key that was looked for.
pub(crate) enum Found<'a> {
    /// By its name, which nobody knows.
    Nowhere,
    /// It came with the signature, and is not kept.
    Given(&'a PublicKey),
    /// It is kept.
    Kept(Arc<KeptKey>),
    /// It is kept, but what was made of it shall not be used.
    Bare(Arc<KeptKey>),
}

/// A key that is ready for many signatures.
#[derive(Debug)]
pub(crate) struct KeptKey {
    /// As it is written.
    pub(crate) public: PublicKey,
    /// As the verifier uses it.
    pub(crate) expanded: Box<ExpandedKey>,
    /// Who expanded it.
    pub(crate) by: Backend,
}

impl KeptKey {
    /// What it takes in memory.
    pub(crate) const BYTES: usize = size_of::<Self>() + ExpandedKey::BYTES;

    /// Expands a key.
    pub(crate) fn new(key: &PublicKey, by: Backend) -> Arc<Self> {
        Arc::new(Self { public: key.clone(), expanded: key.expand(by), by })
    }
}

impl Found<'_> {
    fn key(&self) -> Option<Key<'_>> {
        match self {
            Self::Nowhere => None,
            Self::Given(key) => Some(Key::Fresh(key)),
            Self::Kept(key) => Some(Key::Expanded(&key.expanded)),
            Self::Bare(key) => Some(Key::Fresh(&key.public)),
        }
    }
}

/// Keeps none.
pub(crate) struct NoKeys;

impl Keys for NoKeys {
    fn find<'a>(&self, key: &'a KeyRef, _: Backend, _: bool) -> Found<'a> {
        match key {
            KeyRef::Id(_) => Found::Nowhere,
            KeyRef::Public(key) => Found::Given(key),
        }
    }
}

/// A signature as the verifier takes it.
struct Check<'a> {
    key: &'a KeyRef,
    edition: Edition,
    content: mldsa::Content<'a>,
    signature: &'a [u8],
}

impl Operations {
    /// The signature at a place.
    ///
    /// # Errors
    /// The verdict, where no signature has to be verified for it: the fingerprint of other data.
    fn check(&self, place: usize) -> Result<Option<Check<'_>>, Verdict> {
        match self {
            Self::Signatures(checks) => Ok(checks.get(place).map(|check| Check {
                key: &check.key,
                edition: check.edition,
                content: match &check.content {
                    Content::Mu(mu) => mldsa::Content::Mu(mu),
                    Content::Message { context, message } => mldsa::Content::Message { context, message },
                },
                signature: &check.signature,
            })),
            Self::Fingerprints(checks) => checks
                .get(place)
                .map(|check| {
                    let mut hash = [0; 64];
                    blake3::Hasher::new().update(&check.data).finalize_xof().fill(&mut hash);
                    if hash != *check.fingerprint {
                        return Err(Verdict::OtherData);
                    }
                    Ok(Check {
                        key: &check.key,
                        edition: Edition::Draft,
                        content: mldsa::Content::Message { context: &[], message: &*check.fingerprint },
                        signature: &check.signature,
                    })
                })
                .transpose(),
            Self::Keys(_) | Self::Hashes(_) | Self::Status => Ok(None),
        }
    }
}

/// Verifies up to [`BATCH`] signatures and fingerprints together; a verdict is made for each place that has one, in the order of the places.
pub(crate) fn verify(
    backend: Backend,
    independent: bool,
    keys: &impl Keys,
    scratch: &mut Scratch,
    places: &[Place<'_>],
) -> ArrayVec<Verdict, BATCH> {
    /// What is known of a place so far.
    enum Known<'a> {
        Verdict(Verdict),
        Check(Check<'a>, Found<'a>),
    }
    let known: ArrayVec<_, BATCH> = places
        .iter()
        .filter_map(|(operations, place)| match operations.check(*place) {
            Err(verdict) => Some(Known::Verdict(verdict)),
            Ok(check) => check.map(|check| match keys.find(check.key, backend, independent) {
                Found::Nowhere => Known::Verdict(Verdict::UnknownKey),
                found => Known::Check(check, found),
            }),
        })
        .take(BATCH)
        .collect();
    let jobs: ArrayVec<_, BATCH> = known
        .iter()
        .filter_map(|known| match known {
            Known::Verdict(_) => None,
            Known::Check(check, found) => Some(Job {
                key: found.key()?,
                edition: check.edition,
                content: check.content,
                signature: check.signature,
            }),
        })
        .collect();
    let mut results = [Ok(()); BATCH];
    let results = results.get_mut(..jobs.len()).unwrap_or_default();
    verify_batch(backend, scratch, &jobs, results);
    fault::distort(backend, results);
    if !independent {
        count_accepted_by_nodes(&jobs, results);
    }
    let mut results = results.iter();
    let verdict = |known: &Known<'_>| match known {
        Known::Verdict(verdict) => Some(*verdict),
        Known::Check(..) => {
            results.next().map(|result| result.map_or_else(Verdict::Invalid, |()| Verdict::Valid))
        }
    };
    known.iter().filter_map(verdict).collect()
}

/// Counts the signatures that are refused because z is out of range, and that QuDAG nodes on AVX2 accept, because they do not look at that. Somebody made
/// them on purpose.
fn count_accepted_by_nodes(jobs: &[Job<'_>], results: &[Result<(), Rejected>]) {
    let refused = jobs.iter().zip(results).filter(|(_, result)| **result == Err(Rejected::Range));
    let accepted =
        refused.filter(|(job, _)| job.edition == Edition::Draft && is_accepted_by_nodes(job)).count();
    if accepted > 0 {
        counter!("qudag_sidecar_crypto_would_accept_on_avx2_node_total").increment(accepted as u64);
    }
}

fn is_accepted_by_nodes(job: &Job<'_>) -> bool {
    let expanded;
    let key = match job.key {
        Key::Expanded(key) => key,
        Key::Fresh(key) => {
            expanded = key.expand(Backend::Portable);
            &*expanded
        }
    };
    let mu = job.content.mu(key.tr(), job.edition);
    mu.is_ok_and(|mu| matches_in_any_range(Backend::Portable, key, job.edition, &mu, job.signature))
}
