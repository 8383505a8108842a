//! Requests of many programs at once.

use std::time::Duration;

use qudag_filter_api::FilterError;
use qudag_filter_common::testing::{env, until};
use qudag_mldsa::Backend;

use super::*;
use crate::testing::{call, mixed, share, signatures};
use crate::work::hash;
use crate::{KeyId, KeyRef, SignatureCheck, Verdict};

/// Two threads, and few keys.
fn settings() -> CryptoOffload {
    CryptoOffload { threads: Some(2), max_keys: 8, ..CryptoOffload::default() }
}

fn start(settings: &CryptoOffload) -> Arc<OffloadState> {
    settings.state(&env(), None).unwrap()
}

async fn perform(state: &OffloadState, call: &CryptoCall) -> Result<CryptoReply, FilterError> {
    state.pool.perform(call, &settings().limits()).await
}

async fn verdicts(state: &OffloadState, call: &CryptoCall) -> Vec<Verdict> {
    match perform(state, call).await {
        Ok(CryptoReply::Verdicts(verdicts)) => verdicts,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn every_program_gets_its_own_verdicts() {
    let state = start(&settings());
    let programs = (0..24).map(|program: usize| {
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            for round in 0..12 {
                let number = [1, 2, 3, 40, 1, 200][(program + round) % 6];
                let (operations, expected) = mixed(number);
                let mut call = call(operations);
                // What is verified by another backend is not mixed with the rest.
                if program.is_multiple_of(4) {
                    call.backend = Backend::Portable;
                }
                call.independent = program.is_multiple_of(5);
                assert_eq!(verdicts(&state, &call).await, expected, "program {program}, round {round}");
                let text = format!("{program} {round}");
                let data = vec![(text.clone().into(), 64); number];
                match perform(&state, &self::call(Operations::Hashes(data))).await {
                    Ok(CryptoReply::Hashes(hashes)) => {
                        assert_eq!(hashes, vec![hash(text.as_bytes(), 64); number]);
                    }
                    other => panic!("{other:?}"),
                }
            }
        })
    });
    for program in programs.collect::<Vec<_>>() {
        program.await.unwrap();
    }
    assert_eq!(state.pool.waiting(), super::line::Load::default());
    assert!(state.registry.count().0 <= 8);
}

#[tokio::test]
async fn keys_are_known_by_name_once_they_are_registered() {
    let state = start(&settings());
    let checks = signatures();
    let key = |check: &SignatureCheck| match &check.key {
        KeyRef::Public(key) => (**key).clone(),
        KeyRef::Id(_) => panic!(),
    };
    let keys: Vec<_> = checks.iter().take(8).map(key).collect();
    let by_name = checks
        .iter()
        .take(8)
        .map(|check| SignatureCheck { key: KeyRef::Id(KeyId::of(&key(check))), ..check.clone() });
    let call_by_name = call(Operations::Signatures(by_name.collect()));
    assert_eq!(verdicts(&state, &call_by_name).await, [Verdict::UnknownKey; 8]);
    match perform(&state, &call(Operations::Keys(keys.clone()))).await {
        Ok(CryptoReply::Keys(names)) => assert_eq!(names, keys.iter().map(KeyId::of).collect::<Vec<_>>()),
        other => panic!("{other:?}"),
    }
    assert_eq!(verdicts(&state, &call_by_name).await, [Verdict::Valid; 8]);
    let status = state.status();
    assert_eq!((status.keys, status.registered), (8, 8));
}

#[tokio::test]
async fn a_reload_keeps_the_keys_and_ends_no_work() {
    let settings = |threads| CryptoOffload { threads: Some(threads), ..CryptoOffload::default() };
    let (one, two) = (settings(1), settings(2));
    let old = start(&one);
    let (operations, expected) = mixed(400);
    let operations = Arc::new(operations);
    let under_way = tokio::spawn({
        let (old, call) = (Arc::clone(&old), share(&operations));
        async move { verdicts(&old, &call).await }
    });
    let limits = CryptoOffload { max_queue: 1, ..one.clone() };
    let same = limits.state(&env(), Some((&one, Arc::clone(&old)))).unwrap();
    assert!(Arc::ptr_eq(&same, &old), "limits need no other threads");
    let new = two.state(&env(), Some((&one, old))).unwrap();
    drop(same);
    assert_eq!(under_way.await.unwrap(), expected);
    assert!(new.registry.count().0 > 0, "keys stay");
    assert_eq!(verdicts(&new, &share(&operations)).await, expected);
}

#[tokio::test]
async fn too_much_is_refused_with_advice_and_nothing_of_it_stays() {
    let limits = CryptoOffload { threads: Some(1), max_queue: 300, ..CryptoOffload::default() };
    let (state, limits) = (start(&limits), limits.limits());
    let operations = Arc::new(mixed(250).0);
    let bring = || {
        let (state, call) = (Arc::clone(&state), share(&operations));
        tokio::spawn(async move { state.pool.perform(&call, &limits).await })
    };
    let mut refused = 0;
    // The second one does not fit beside the first, unless the thread has been very fast.
    while refused == 0 {
        for task in [bring(), bring(), bring()] {
            match task.await.unwrap() {
                Ok(_) => {}
                Err(error @ FilterError::Shed { .. }) => {
                    assert!(error.retry_after().is_some_and(|after| after >= Duration::from_millis(1)));
                    refused += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert_eq!(state.pool.waiting(), super::line::Load::default());
}

#[tokio::test]
async fn what_nobody_waits_for_is_not_done() {
    let state = start(&CryptoOffload { threads: Some(1), ..CryptoOffload::default() });
    let operations = Arc::new(mixed(1_000).0);
    let (first, second) = (share(&operations), share(&operations));
    let gone = tokio::time::timeout(Duration::from_millis(1), async {
        tokio::join!(perform(&state, &first), perform(&state, &second))
    });
    assert!(gone.await.is_err(), "a thousand signatures take longer");
    until("nothing waits", || state.pool.waiting() == super::line::Load::default()).await;
}

#[test]
fn settings_are_checked() {
    let wrong = |text: &str| {
        let settings: CryptoOffload = serde_json::from_str(text).unwrap();
        settings.check(&ConfigPath::root()).iter().map(|error| error.at.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(wrong("{}"), [""; 0]);
    assert_eq!(
        wrong(
            r#"{"threads": 0, "max_keys": 0, "max_queue": 1000001, "max_queue_bytes": "0B", "gather": "2ms"}"#
        ),
        ["threads", "max_keys", "max_queue", "max_queue_bytes", "gather"]
    );
    assert!(serde_json::from_str::<CryptoOffload>(r#"{"lanes": 8}"#).is_err());
}
