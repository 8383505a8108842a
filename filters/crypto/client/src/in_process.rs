//! The same work, done by the program itself.

use qudag_core::offload::{self as wire, Content, Digest, Edition, Fingerprint, Key, Signature, Verdict};
use qudag_mldsa::{self as mldsa, Backend, Job, Mu, PublicKey, Rejected, Scratch, self_test, verify_batch};

use crate::client::Keys;

/// How many signatures are prepared at a time.
const CHUNK: usize = 64;

/// The verifier, with the fastest backend that passes its test.
pub(crate) struct InProcess {
    backend: Backend,
    scratch: Scratch,
}

impl InProcess {
    pub(crate) fn new() -> Self {
        let sound = Backend::available().rev().find(|backend| self_test(*backend).is_ok());
        Self { backend: sound.unwrap_or(Backend::Portable), scratch: Scratch::new() }
    }

    pub(crate) fn verify<B: AsRef<[u8]>>(&mut self, keys: &Keys, all: &[Signature<B>]) -> Vec<Verdict> {
        let mut verdicts = Vec::with_capacity(all.len());
        for some in all.chunks(CHUNK) {
            let ready = some.iter().map(|one| match &one.content {
                Content::Mu(mu) => {
                    let mu = mu.as_ref().try_into().map(Mu).ok();
                    (public_key(&one.key, keys), mu)
                }
                Content::Message { .. } => (public_key(&one.key, keys), None),
            });
            let ready: Vec<_> = ready.collect();
            let jobs = some.iter().zip(&ready).map(|(one, (key, mu))| {
                let content = match (&one.content, mu) {
                    (_, Some(mu)) => mldsa::Content::Mu(mu),
                    (Content::Message { context, message }, None) => {
                        mldsa::Content::Message { context: context.as_ref(), message: message.as_ref() }
                    }
                    // Has the wrong length, which was looked for before.
                    (Content::Mu(_), None) => return None,
                };
                let edition = match one.edition {
                    Edition::Draft => mldsa::Edition::Draft,
                    Edition::Final => mldsa::Edition::Final,
                };
                let (key, signature) = (mldsa::Key::Fresh(key.as_deref()?), one.signature.as_ref());
                Some(Job { key, edition, content, signature })
            });
            self.verify_jobs(&jobs.collect::<Vec<_>>(), &mut verdicts);
        }
        verdicts
    }

    pub(crate) fn verify_fingerprints<B: AsRef<[u8]>>(
        &mut self,
        keys: &Keys,
        all: &[Fingerprint<B>],
    ) -> Vec<Verdict> {
        let mut verdicts = Vec::with_capacity(all.len());
        for some in all.chunks(CHUNK) {
            let first = verdicts.len();
            let ready: Vec<_> = some.iter().map(|one| public_key(&one.key, keys)).collect();
            let jobs = some.iter().zip(&ready).map(|(one, key)| {
                let content = mldsa::Content::Message { context: &[], message: one.fingerprint.as_ref() };
                let (key, signature) = (mldsa::Key::Fresh(key.as_deref()?), one.signature.as_ref());
                Some(Job { key, edition: mldsa::Edition::Draft, content, signature })
            });
            self.verify_jobs(&jobs.collect::<Vec<_>>(), &mut verdicts);
            for (verdict, one) in verdicts.iter_mut().skip(first).zip(some) {
                let mut fingerprint = [0; wire::FINGERPRINT_BYTES];
                blake3::Hasher::new().update(one.data.as_ref()).finalize_xof().fill(&mut fingerprint);
                if fingerprint != *one.fingerprint.as_ref() {
                    *verdict = Verdict::OtherData;
                }
            }
        }
        verdicts
    }

    /// Appends a verdict for each job; what is none has a key that is not known.
    fn verify_jobs(&mut self, jobs: &[Option<Job<'_>>], verdicts: &mut Vec<Verdict>) {
        let known: Vec<_> = jobs.iter().flatten().copied().collect();
        let mut results = vec![Err(Rejected::Mismatch); known.len()];
        verify_batch(self.backend, &mut self.scratch, &known, &mut results);
        let mut results = results.into_iter().map(|result| match result {
            Ok(()) => Verdict::Valid,
            Err(Rejected::Length) => Verdict::Length,
            Err(Rejected::Context) => Verdict::Context,
            Err(Rejected::Hints) => Verdict::Hints,
            Err(Rejected::Range) => Verdict::Range,
            Err(Rejected::Mismatch) => Verdict::Mismatch,
        });
        let unknown = Verdict::UnknownKey;
        verdicts.extend(jobs.iter().map(|job| match job {
            Some(_) => results.next().unwrap_or(Verdict::Mismatch),
            None => unknown,
        }));
    }

    pub(crate) fn hash<B: AsRef<[u8]>>(all: &[Digest<B>]) -> Vec<Box<[u8]>> {
        let hash = |one: &Digest<B>| {
            let mut hash = vec![0; one.length.into()].into_boxed_slice();
            blake3::Hasher::new().update(one.data.as_ref()).finalize_xof().fill(&mut hash);
            hash
        };
        all.iter().map(hash).collect()
    }
}

fn public_key<B: AsRef<[u8]>>(key: &Key<B>, keys: &Keys) -> Option<Box<PublicKey>> {
    let bytes = match key {
        Key::Id(id) => keys.get(id)?,
        Key::Public(key) => key.as_ref(),
    };
    bytes.try_into().ok().map(|bytes| Box::new(PublicKey(bytes)))
}
