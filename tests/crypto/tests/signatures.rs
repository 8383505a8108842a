//! What QuDAG nodes sign is accepted by every backend, and nothing else is.

use qudag_crypto_peers::{Signed, Signer};
use qudag_mldsa::{
    Backend, Content, Edition, Job, Key, Rejected, Scratch, matches_in_any_range, verify, verify_batch,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Signatures of the node's own library.
const SIGNATURES: usize = 10_000;
/// Keys that they are of.
const KEYS: usize = 100;

fn results(
    backend: Backend,
    scratch: &mut Scratch,
    signed: &[Signed],
    expanded: bool,
) -> Vec<Result<(), Rejected>> {
    let keys: Vec<_> = signed.iter().map(|one| expanded.then(|| one.key.expand(backend))).collect();
    let jobs: Vec<_> = signed
        .iter()
        .zip(&keys)
        .map(|(one, key)| Job {
            key: key.as_deref().map_or(Key::Fresh(&one.key), Key::Expanded),
            edition: Edition::Draft,
            content: Content::Message { context: b"", message: &one.message },
            signature: &one.signature,
        })
        .collect();
    let mut results = vec![Err(Rejected::Mismatch); jobs.len()];
    verify_batch(backend, scratch, &jobs, &mut results);
    results
}

#[test]
fn every_signature_of_a_node_is_accepted_and_every_altered_one_is_not() {
    let mut random = StdRng::seed_from_u64(0x5155_4441);
    let mut scratch = Scratch::new();
    for _ in 0..KEYS {
        let signer = Signer::new(&mut random);
        let mut signed: Vec<_> = (0..SIGNATURES / KEYS)
            .map(|_| {
                let length = random.gen_range(0..600);
                signer.sign(length, &mut random)
            })
            .collect();
        for backend in Backend::available() {
            for expanded in [false, true] {
                let results = results(backend, &mut scratch, &signed, expanded);
                assert!(results.iter().all(Result::is_ok), "{backend}: {results:?}");
            }
        }
        // One bit of each, of the signature or of the message.
        for one in &mut signed {
            let bytes =
                if random.r#gen() && !one.message.is_empty() { &mut one.message } else { &mut one.signature };
            let bit = random.gen_range(0..bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        for backend in Backend::available() {
            let results = results(backend, &mut scratch, &signed, true);
            assert!(results.iter().all(Result::is_err), "{backend}: {results:?}");
        }
    }
}

#[test]
fn a_signature_of_the_draft_is_none_of_the_standard() {
    let mut random = StdRng::seed_from_u64(1);
    let one = Signer::new(&mut random).sign(32, &mut random);
    let job = Job {
        key: Key::Fresh(&one.key),
        edition: Edition::Final,
        content: Content::Message { context: b"", message: &one.message },
        signature: &one.signature,
    };
    for backend in Backend::available() {
        let mut results = [Ok(())];
        verify_batch(backend, &mut Scratch::new(), &[job], &mut results);
        assert_eq!(results, [Err(Rejected::Mismatch)], "{backend}");
    }
}

/// The node's library skips a check where it runs on AVX2. Signatures that use that are refused here, and told from other bad ones.
#[test]
fn a_signature_out_of_range_that_a_node_accepts_is_refused() {
    let mut random = StdRng::seed_from_u64(2);
    let signers: Vec<_> = (0..5).map(|_| Signer::new(&mut random)).collect();
    for number in 0..20 {
        let signer = &signers[number % signers.len()];
        let message = number.to_string().into_bytes();
        let signature = signer.unbounded().sign(&message, &mut random);
        if std::arch::is_x86_feature_detected!("avx2") {
            signer.node_key.verify(&message, &signature).expect("nodes on AVX2 accept it");
        }
        for backend in Backend::available() {
            let key = signer.key.expand(backend);
            let verdicts = |message: &[u8], signature: &[u8]| {
                let content = Content::Message { context: b"", message };
                let mu = content.mu(key.tr(), Edition::Draft).expect("no context");
                let strict = verify(backend, &key, Edition::Draft, &mu, signature);
                (strict, matches_in_any_range(backend, &key, Edition::Draft, &mu, signature))
            };
            assert_eq!(verdicts(&message, &signature), (Err(Rejected::Range), true), "{backend}");
            assert_eq!(verdicts(b"another", &signature), (Err(Rejected::Range), false), "{backend}");
            let good = signer.sign(32, &mut random);
            assert_eq!(verdicts(&good.message, &good.signature), (Ok(()), true), "{backend}");
            let content = Content::Message { context: b"", message: &message };
            let job =
                Job { key: Key::Expanded(&key), edition: Edition::Draft, content, signature: &signature };
            let mut results = [Ok(()); 2];
            verify_batch(backend, &mut Scratch::new(), &[job, job], &mut results);
            assert_eq!(results, [Err(Rejected::Range); 2], "{backend}");
        }
    }
}
