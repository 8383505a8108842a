//! Batches give what their signatures give one by one.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::{Signed, backends};
use crate::{
    Backend, Content, Edition, ExpandedKey, Job, Key, Mu, Rejected, SIGNATURE_BYTES, Scratch, verify,
    verify_batch,
};

struct Known {
    signed: Signed,
    expanded: Box<ExpandedKey>,
    mu: Mu,
}

/// Signatures of both editions, of short and of long messages.
static KNOWN: LazyLock<Vec<Known>> = LazyLock::new(|| {
    let standard = [0, 1, 32, 69, 70, 71, 72, 73, 136, 1_000, 5_000, 70_000];
    let standard = standard.map(|length| Signed::standard(&vec![7; length]));
    let known = Signed::drafts().into_iter().chain(standard).map(|signed| {
        let expanded = signed.key.expand(Backend::Portable);
        let mu = signed.mu(expanded.tr());
        Known { signed, expanded, mu }
    });
    known.collect()
});

/// What is done to a signature.
#[derive(Clone, Copy, Debug)]
enum Damage {
    None,
    Bit(usize),
    Short(usize),
    OtherKey,
    OtherEdition,
    Context(usize),
    Range,
    Hints,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    known: usize,
    damage: Damage,
    fresh: bool,
    by_mu: bool,
}

fn case() -> impl Strategy<Value = Case> {
    let damage = prop_oneof![
        6 => Just(Damage::None),
        2 => (0..8 * SIGNATURE_BYTES).prop_map(Damage::Bit),
        1 => (0..SIGNATURE_BYTES).prop_map(Damage::Short),
        1 => Just(Damage::OtherKey),
        1 => Just(Damage::OtherEdition),
        1 => (1..300_usize).prop_map(Damage::Context),
        1 => Just(Damage::Range),
        1 => Just(Damage::Hints),
    ];
    (0..28_usize, damage, any::<bool>(), any::<bool>()).prop_map(|(known, damage, fresh, by_mu)| Case {
        known,
        damage,
        fresh,
        by_mu,
    })
}

/// The same signature on its own.
fn single(backend: Backend, job: &Job<'_>) -> Result<(), Rejected> {
    let expanded;
    let key = match job.key {
        Key::Expanded(key) => key,
        Key::Fresh(key) => {
            expanded = key.expand(backend);
            &expanded
        }
    };
    let mu = job.content.mu(key.tr(), job.edition)?;
    verify(backend, key, job.edition, &mu, job.signature)
}

fn check(cases: &[Case], scratch: &mut Scratch) {
    let context = [b'c'; 300];
    let signatures: Vec<Vec<u8>> = cases
        .iter()
        .map(|case| {
            let mut signature = KNOWN[case.known].signed.signature.clone();
            match case.damage {
                Damage::Bit(bit) => signature[bit / 8] ^= 1 << (bit % 8),
                Damage::Short(length) => signature.truncate(length),
                Damage::Range => signature[48..51].fill(0),
                Damage::Hints => signature[SIGNATURE_BYTES - 1] = 56,
                _ => {}
            }
            signature
        })
        .collect();
    let jobs = cases.iter().zip(&signatures).map(|(case, signature)| {
        let known = &KNOWN[case.known];
        let of_key =
            &KNOWN[if matches!(case.damage, Damage::OtherKey) { 27 - case.known } else { case.known }];
        Job {
            key: if case.fresh { Key::Fresh(&of_key.signed.key) } else { Key::Expanded(&of_key.expanded) },
            edition: match (case.damage, known.signed.edition) {
                (Damage::OtherEdition, Edition::Draft) => Edition::Final,
                (Damage::OtherEdition, Edition::Final) => Edition::Draft,
                (_, edition) => edition,
            },
            content: match case.damage {
                Damage::Context(length) => {
                    Content::Message { context: &context[..length], message: &known.signed.message }
                }
                _ if case.by_mu => Content::Mu(&known.mu),
                _ => Content::Message { context: b"", message: &known.signed.message },
            },
            signature,
        }
    });
    let jobs: Vec<_> = jobs.collect();
    for backend in backends() {
        let mut results = vec![Ok(()); jobs.len()];
        verify_batch(backend, scratch, &jobs, &mut results);
        for ((job, result), case) in jobs.iter().zip(results).zip(cases) {
            assert_eq!(result, single(backend, job), "{backend}: {case:?}");
            assert_eq!(result.is_ok(), matches!(case.damage, Damage::None), "{backend}: {case:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn batches_are_as_their_parts(batches in prop::collection::vec(prop::collection::vec(case(), 0..20), 1..3)) {
        let mut scratch = Scratch::new();
        for cases in batches {
            check(&cases, &mut scratch);
        }
    }
}

#[test]
fn batches_of_all_sizes() {
    let mut scratch = Scratch::new();
    for size in (0..=66).chain([128, 200]) {
        let damage = |place| if place % 5 == 4 { Damage::Bit(place) } else { Damage::None };
        let case = |place| Case {
            known: place % 18,
            damage: damage(place),
            fresh: place % 3 == 0,
            by_mu: place % 7 == 0,
        };
        check(&(0..size).map(case).collect::<Vec<_>>(), &mut scratch);
    }
}

#[test]
fn results_that_no_job_has_are_no_acceptance() {
    let known = &KNOWN[0];
    let job = Job {
        key: Key::Expanded(&known.expanded),
        edition: Edition::Draft,
        content: Content::Mu(&known.mu),
        signature: &known.signed.signature,
    };
    let mut scratch = Scratch::default();
    for backend in backends() {
        let mut results = [Ok(()); 3];
        verify_batch(backend, &mut scratch, &[job], &mut results);
        assert_eq!(results, [Ok(()), Err(Rejected::Mismatch), Err(Rejected::Mismatch)]);
        verify_batch(backend, &mut scratch, &[job; 70], &mut results);
        assert_eq!(results, [Ok(()); 3]);
    }
}
