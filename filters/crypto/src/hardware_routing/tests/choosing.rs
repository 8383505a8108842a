//! Which batches go where.

use qudag_filter_api::Held;
use qudag_filter_common::testing::{Sidecar, nowhere};

use super::*;
use crate::simd_crypto::{SimdCrypto, SimdState, Tester};
use crate::{CryptoListener, FingerprintCheck, KeyId};

/// A whole crypto listener with the best backend of this processor.
async fn real(folder: &TempDir, mut filters: Value) -> Sidecar<CryptoListener> {
    let listener = json!({ "bind": format!("unix:{}", folder.path().join("crypto.sock").display()) });
    let mut sidecar: Sidecar<CryptoListener> = Sidecar::start(nowhere(), listener.clone(), json!({})).await;
    // The program would test itself; this one is no sidecar.
    let state = SimdState::new(Tester::new("/bin/true", Vec::new()), None);
    Arc::clone(&state).test(Duration::from_secs(10), None).await;
    let settings: SimdCrypto = serde_json::from_value(json!({"shadow": 100})).unwrap();
    sidecar.states.simd_crypto = Some(Held { settings, state });
    filters["simd_crypto"] = json!({"enabled": true, "shadow": 100});
    sidecar.reload(listener, filters);
    sidecar
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn fingerprints(number: usize) -> (Operations, Vec<Verdict>) {
    let (Operations::Signatures(checks), _) = signatures(number) else { panic!("signatures") };
    let made = |check: SignatureCheck| FingerprintCheck {
        key: check.key,
        data: Bytes::from_static(b"data"),
        fingerprint: Box::new([7; 64]),
        signature: check.signature,
    };
    (Operations::Fingerprints(checks.into_iter().map(made).collect()), vec![Verdict::OtherData; number])
}

#[tokio::test]
async fn a_better_processor_does_the_work() {
    let folder = folder();
    let sidecar = real(&folder, json!({"crypto_offload": {"enabled": true}})).await;
    let here = Here::start(&[&sidecar.addresses[0]], json!({"verify": 100, "timeout": "10s"}));
    here.ready().await;
    let status = here.state.status();
    assert_eq!(status.sidecars[0].backend, Some(Backend::best().name()));
    assert!(status.sidecars[0].round_trip_us.is_some() && status.sidecars[0].queued.is_some());
    // Where this processor has nothing better, there is nothing to gain.
    let better = Backend::best() > Backend::Portable;
    for (operations, expected) in [signatures(64), fingerprints(64)] {
        here.is_slow();
        assert_eq!(here.is_routed(call(operations), &expected).await, better);
    }
    assert_eq!(here.done(), if better { 0 } else { 2 });
    assert_eq!(here.state.status().sidecars[0].state, "ready", "all verdicts were compared");
}

#[tokio::test]
async fn many_batches_at_once_keep_their_verdicts() {
    let folder = folder();
    let sidecar = real(&folder, json!({"crypto_offload": {"enabled": true}})).await;
    let here = Here::start(&[&sidecar.addresses[0]], json!({"verify": 10, "timeout": "10s"}));
    here.ready().await;
    here.is_slow();
    let mut asking = tokio::task::JoinSet::new();
    for number in 32..64 {
        let service = here.service.clone();
        asking.spawn(async move {
            let (operations, expected) = signatures(number);
            match service.oneshot(call(operations)).await.unwrap() {
                CryptoReply::Verdicts(verdicts) | CryptoReply::Routed(verdicts) => {
                    assert_eq!(verdicts, expected);
                }
                other => panic!("{other:?}"),
            }
        });
    }
    while let Some(done) = asking.join_next().await {
        done.unwrap();
    }
    assert_eq!(here.state.status().sidecars[0].state, "ready");
}

/// What another sidecar has passed on is done where it arrives, even if a third one had a better backend.
#[tokio::test]
async fn nothing_goes_further_than_to_the_next_sidecar() {
    let folder = folder();
    let third = Other::start(Does::Lies).await;
    let routing =
        json!({"enabled": true, "verify": 0, "timeout": "10s", "sidecars": [{"address": third.address}]});
    let second = real(&folder, json!({"hardware_routing": routing})).await;
    let state = || second.states.hardware_routing.as_ref().unwrap().state.status();
    until("the third is known to the second", || state().sidecars[0].state == "ready").await;
    let here = Here::trusting(&[&second.addresses[0]]);
    here.ready().await;
    let better = Backend::best() > Backend::Portable;
    assert_eq!(here.routes().await, better);
    assert_eq!(third.batches(), 0);

    // The same batch of a program of the second one, while that takes itself for slow.
    let others = second.states.hardware_routing.as_ref().unwrap().state.others();
    for _ in 0..8 {
        others.here().note(Duration::from_secs(3_600), Duration::ZERO, now());
    }
    let mut stream =
        qudag_filter_common::connect(&second.addresses[0], &Names::default(), Duration::from_secs(10))
            .await
            .unwrap();
    let mut bytes = BytesMut::from(&PREAMBLE[..]);
    wire::encode(7, &signatures(40).0, &mut bytes).unwrap();
    // Without the mark.
    bytes[PREAMBLE.len() + 9] = 0;
    stream.write_all(&bytes).await.unwrap();
    let expected = usize::from(Backend::best() < Backend::Avx512);
    let mut received = BytesMut::new();
    loop {
        stream.read_buf(&mut received).await.unwrap();
        while let Some(frame) = Decoder::new(1 << 20).decode(&mut received).unwrap() {
            if frame.header.id == 7 {
                assert_eq!(third.batches.load(SeqCst), expected);
                // Its lies are not taken for those of the second one's own backend, all of whose verdicts are compared.
                let simd = second.states.simd_crypto.as_ref().unwrap().state.status();
                assert_eq!(simd.best, Backend::best().name());
                return;
            }
        }
    }
}

#[tokio::test]
async fn what_gains_nothing_there_stays_here() {
    let other = Other::start(Does::Lies).await;
    let here = Here::trusting(&[&other.address]);
    here.ready().await;
    let (operations, expected) = signatures(40);

    let (small, few) = signatures(31);
    assert!(!here.is_routed(call(small), &few).await, "too few");
    let Operations::Signatures(mut checks) = operations.clone() else { panic!("signatures") };
    checks[39].key = KeyRef::Id(KeyId([1; 32]));
    let mut unknown = expected.clone();
    unknown[39] = Verdict::UnknownKey;
    assert!(!here.is_routed(call(Operations::Signatures(checks)), &unknown).await, "a key by its id");
    let same = CryptoCall { backend: Backend::Avx512, ..call(operations.clone()) };
    assert!(!here.is_routed(same, &expected).await, "the same backend");
    let independent = CryptoCall { independent: true, ..call(operations.clone()) };
    assert!(!here.is_routed(independent, &expected).await, "a comparison");
    let routed = CryptoCall { routed: true, ..call(operations.clone()) };
    assert!(!here.is_routed(routed, &expected).await, "passed on before");
    let hashes = call(Operations::Hashes(vec![(Bytes::from_static(b"data"), 32); 100]));
    assert!(matches!(here.service.clone().oneshot(hashes).await.unwrap(), CryptoReply::Hashes(_)));
    assert_eq!(other.batches(), 0);

    // Fast here, and a long way.
    let here = Here::trusting(&[&other.address]);
    here.ready().await;
    for _ in 0..40 {
        here.others.here().note(Duration::ZERO, Duration::from_secs(1), now());
    }
    let link = &here.others.links[0];
    let choose = |operations| here.others.choose(operations, Backend::Portable, now()).map(|_| ());
    link.measured(Duration::from_secs(3_600));
    assert_eq!(choose(&operations), Err(Kept::Slower));
    assert!(!here.is_routed(call(operations), &expected).await, "a long way");
}

#[tokio::test]
async fn the_sidecar_with_the_shortest_time_is_asked() {
    let limits = Limits { body: 1 << 20, operations: 100, in_flight: 2 };
    let near = Other::with(Does::Lies, "avx2", limits).await;
    let far = Other::with(Does::Lies, "avx512", limits).await;
    let here = Here::trusting(&[&far.address, &near.address]);
    here.ready().await;
    here.others.links[0].measured(Duration::from_secs(1));
    here.others.links[1].measured(Duration::from_millis(1));
    let (operations, verdicts) = signatures(40);
    here.is_slow();
    let lies = vec![Verdict::Valid; verdicts.len()];
    assert!(here.is_routed(call(operations), &lies).await);
    assert_eq!((near.batches(), far.batches()), (1, 0));
}
