//! Faulty implementations, and programs that notice nothing of them.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use qudag_mldsa::Rejected;

use super::*;
use crate::testing::{call, mixed};
use crate::{CryptoStatus, Verdict};

const LIMIT: Duration = Duration::from_secs(10);

/// A test that a shell script decides; the backend's name is `$1`.
async fn tested(script: &str) -> Arc<SimdState> {
    let arguments = ["-c", script, "sh"].map(str::to_owned).into();
    let state = Arc::new(SimdState {
        health: Health::of_any_processor(None),
        tester: Tester::new("/bin/sh", arguments),
        testing: Arc::default(),
        meters: Meters::new(),
    });
    Arc::clone(&state).test(LIMIT, None).await;
    state
}

/// The rest of the chain: right verdicts of `portable`, others of other implementations.
#[derive(Clone, Default)]
struct Rest {
    calls: Arc<AtomicUsize>,
    /// Of the operations at these places the fast verdicts are wrong.
    wrong: Vec<usize>,
    /// What is asked for a second time is refused.
    busy: bool,
    /// So many large independent calls find the queue full.
    full: Arc<AtomicUsize>,
    /// So many operations are asked for by independent calls.
    again: Arc<AtomicUsize>,
}

impl Rest {
    fn service(&self) -> Svc<Crypto> {
        let rest = self.clone();
        service_fn::<Crypto, _, _>(move |call: CryptoCall| {
            let rest = rest.clone();
            async move { rest.answer(&call) }
        })
    }

    fn answer(&self, call: &CryptoCall) -> Result<CryptoReply, FilterError> {
        self.calls.fetch_add(1, Relaxed);
        let Operations::Signatures(checks) = &*call.operations else {
            let status = CryptoStatus {
                backend: call.backend.name(),
                simd_crypto: None,
                hardware_routing: None,
                crypto_offload: None,
            };
            return Ok(CryptoReply::Status(Box::new(status)));
        };
        if call.independent {
            assert_eq!(call.backend, Backend::Portable);
            let one_less = |left: usize| left.checked_sub(1);
            if checks.len() == 1_000 && self.full.fetch_update(Relaxed, Relaxed, one_less).is_ok() {
                return Err(FilterError::Shed { why: "full", retry_after: Duration::from_millis(1) });
            }
            self.again.fetch_add(checks.len(), Relaxed);
            if self.busy {
                return Err(FilterError::Overloaded("busy".into()));
            }
        }
        let verdict = |place: usize| match call.backend != Backend::Portable && self.wrong.contains(&place) {
            true => Verdict::Valid,
            false => Verdict::Invalid(Rejected::Mismatch),
        };
        Ok(CryptoReply::Verdicts((0..checks.len()).map(verdict).collect()))
    }
}

async fn verdicts(state: &Arc<SimdState>, share: f64, rest: &Rest, number: usize) -> Vec<Verdict> {
    let settings = SimdCrypto { shadow: Percent::new(share).unwrap(), ..SimdCrypto::default() };
    let service = settings.wrap(Arc::clone(state), rest.service());
    match service.oneshot(call(mixed(number).0)).await {
        Ok(CryptoReply::Verdicts(verdicts)) => verdicts,
        other => panic!("{other:?}"),
    }
}

fn states(state: &SimdState) -> Vec<(&'static str, &'static str)> {
    state.status().backends.iter().map(|backend| (backend.name, backend.state)).collect()
}

#[tokio::test]
async fn a_test_that_dies_leaves_the_next_best() {
    let state = tested("test $1 != avx512 || kill -ILL $$").await;
    assert_eq!(states(&state), [("portable", "passed"), ("avx2", "passed"), ("avx512", "failed")]);
    assert_eq!(state.status().best, "avx2");
    let why = state.status().backends[2].why.clone().unwrap();
    assert!(why.contains("illegal instruction"), "{why}");
}

#[tokio::test]
async fn a_wrong_verdict_is_never_told_and_demotes() {
    let state = tested("true").await;
    let rest = Rest { wrong: vec![2], ..Rest::default() };
    assert_eq!(state.status().best, "avx512");
    let right = vec![Verdict::Invalid(Rejected::Mismatch); 4];
    assert_eq!(verdicts(&state, 100.0, &rest, 4).await, right);
    assert_eq!(states(&state)[2], ("avx512", "demoted"));
    assert_eq!(state.status().best, "avx2");
    // One of many is looked at, and all are made again.
    let full = Arc::new(AtomicUsize::new(3));
    let rest = Rest { wrong: (0..1_000).collect(), full, ..Rest::default() };
    assert_eq!(verdicts(&state, 5.0, &rest, 1_000).await, vec![right[0]; 1_000]);
    assert_eq!(state.status().best, "portable");
    let again = rest.again.load(Relaxed);
    assert!((1_000..1_200).contains(&again), "{again}");
    Arc::clone(&state).test(LIMIT, None).await;
    assert_eq!(state.status().best, "portable", "a test that it passed before proves nothing");
}

#[tokio::test]
async fn a_share_of_the_verdicts_is_made_twice() {
    let state = tested("true").await;
    let rest = Rest::default();
    for _ in 0..10 {
        verdicts(&state, 2.0, &rest, 1_000).await;
    }
    let again = rest.again.load(Relaxed);
    assert!((100..300).contains(&again), "{again} of 10,000 are about 2 %");
    let none = Rest::default();
    verdicts(&state, 0.0, &none, 1_000).await;
    assert_eq!((none.calls.load(Relaxed), none.again.load(Relaxed)), (1, 0));
    assert_eq!(state.status().best, "avx512");
}

#[tokio::test]
async fn who_has_no_time_for_the_second_verdict_answers_the_first() {
    let state = tested("true").await;
    let rest = Rest { busy: true, ..Rest::default() };
    assert_eq!(verdicts(&state, 100.0, &rest, 3).await, [Verdict::Invalid(Rejected::Mismatch); 3]);
    assert_eq!(state.status().best, "avx512");
}

#[tokio::test]
async fn portable_answers_until_the_test_is_passed_and_one_can_be_tested_alone() {
    let state = Arc::new(SimdState {
        health: Health::of_any_processor(None),
        tester: Tester::new("/bin/true", Vec::new()),
        testing: Arc::default(),
        meters: Meters::new(),
    });
    let service = SimdCrypto::default().wrap(Arc::clone(&state), Rest::default().service());
    let backend = async || match service.clone().oneshot(call(Operations::Status)).await {
        Ok(CryptoReply::Status(status)) => {
            assert_eq!(status.simd_crypto, Some(state.status()));
            status.backend
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(backend().await, "portable");
    Arc::clone(&state).test(LIMIT, Some(Backend::Avx2)).await;
    assert_eq!(backend().await, "avx2");
    assert_eq!(states(&state), [("portable", "untested"), ("avx2", "passed"), ("avx512", "untested")]);
}

#[test]
fn settings_are_checked() {
    let wrong = |text: &str| {
        let settings: SimdCrypto = serde_json::from_str(text).unwrap();
        settings.check(&ConfigPath::root()).iter().map(|error| error.at.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(wrong("{}"), [""; 0]);
    assert_eq!(wrong(r#"{"self_test_timeout": "0s"}"#), ["self_test_timeout"]);
    assert_eq!(wrong(r#"{"self_test_timeout": "16s"}"#), ["self_test_timeout"]);
    assert!(serde_json::from_str::<SimdCrypto>(r#"{"shadow": 101}"#).is_err());
}
