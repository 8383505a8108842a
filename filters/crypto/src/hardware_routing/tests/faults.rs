//! Whatever another sidecar does: programs get the right verdicts.

use super::*;

/// A batch goes there, nothing useful comes back, and the batch is done here.
async fn falls_back(does: Does, reason: &str) {
    metric("", &[]);
    let other = Other::start(does).await;
    let settings = match does {
        Does::Hangs => json!({"verify": 0, "timeout": "50ms"}),
        _ => json!({"verify": 0, "timeout": "10s"}),
    };
    let here = Here::start(&[&other.address], settings);
    here.ready().await;
    assert!(!here.routes().await, "{does:?}");
    assert_eq!((other.batches(), here.done()), (1, 1), "{does:?}");
    let label = format!("reason=\"{reason}\"");
    assert!(metric("qudag_sidecar_crypto_routing_fallbacks_total", &[&label]) >= 1.0, "{does:?}");
}

#[tokio::test]
async fn what_goes_wrong_there_is_done_here() {
    for (does, reason) in [
        (Does::Hangs, "timeout"),
        (Does::Refuses(Code::Overloaded), "refused"),
        (Does::Refuses(Code::Draining), "refused"),
        (Does::Closes, "disconnected"),
        (Does::Miscounts, "garbage"),
        (Does::ForgetsKeys, "garbage"),
        (Does::Confuses, "garbage"),
        (Does::Babbles, "disconnected"),
        (Does::Misaddresses, "disconnected"),
    ] {
        falls_back(does, reason).await;
    }
}

#[tokio::test]
async fn a_wrong_verdict_ends_it_and_is_not_what_is_answered() {
    let other = Other::start(Does::Lies).await;
    let here = Here::start(&[&other.address], json!({"verify": 100, "timeout": "10s"}));
    here.ready().await;
    assert!(!here.routes().await);
    assert_eq!((other.batches(), here.done()), (1, 1));
    let status = here.state.status();
    assert_eq!(status.sidecars[0].state, "stopped");
    let why = status.sidecars[0].why.as_deref().unwrap();
    assert_eq!(why, "it judged a signature Valid that portable judges Invalid(Mismatch)");
    for _ in 0..3 {
        assert!(!here.routes().await);
    }
    assert_eq!(other.batches(), 1, "it gets nothing any more");
    // Connections are kept, and a reload of the same list does not forgive.
    let settings = HardwareRouting { verify: Percent::NONE, ..HardwareRouting::default() };
    let again = settings.wrap(Arc::clone(&here.state), here.service.clone());
    drop(again);
    assert_eq!(here.state.status().sidecars[0].state, "stopped");
}

/// What is not verified is believed: this is what the setting is for.
#[tokio::test]
async fn nothing_is_verified_where_that_is_off() {
    let other = Other::start(Does::Lies).await;
    let here = Here::trusting(&[&other.address]);
    here.ready().await;
    here.is_slow();
    let (operations, verdicts) = signatures(40);
    let lies = vec![Verdict::Valid; verdicts.len()];
    assert!(here.is_routed(call(operations), &lies).await);
}

#[tokio::test]
async fn after_failures_in_a_row_it_is_left_alone() {
    let other = Other::start(Does::Refuses(Code::Internal)).await;
    let here = Here::trusting(&[&other.address]);
    here.ready().await;
    for _ in 0..5 {
        assert!(!here.routes().await);
    }
    assert!((3..5).contains(&other.batches()), "{}", other.batches());
    let asked = other.batches();
    assert_eq!(here.state.status().sidecars[0].state, "failing");
    // It is tried again when the time is up.
    let deadline = now() + Duration::from_secs(30);
    while other.batches() == asked {
        assert!(now() < deadline, "it is left alone for ever");
        assert!(!here.routes().await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn more_than_it_takes_is_done_here() {
    metric("", &[]);
    let limits = Limits { body: 1 << 20, operations: 39, in_flight: 1 };
    let few = Other::with(Does::Lies, "avx512", limits).await;
    let here = Here::trusting(&[&few.address]);
    here.ready().await;
    assert!(!here.routes().await);
    let short = Other::with(Does::Lies, "avx512", Limits { body: 40 * 3_309, operations: 40, in_flight: 1 });
    let short = short.await;
    let there = Here::trusting(&[&short.address]);
    there.ready().await;
    assert!(!there.routes().await);
    assert_eq!((few.batches(), short.batches()), (0, 0));
    assert!(metric("qudag_sidecar_crypto_routing_fallbacks_total", &["too_large"]) >= 2.0);

    // One at a time on each of two connections: the third is done here.
    let busy =
        Other::with(Does::Hangs, "avx512", Limits { body: 1 << 20, operations: 40, in_flight: 1 }).await;
    let here = Here::start(&[&busy.address], json!({"verify": 0, "timeout": "10s", "connections": 2}));
    until("both connections are there", || here.state.status().sidecars[0].connections == 2).await;
    let held: Vec<_> = (0..2)
        .map(|_| {
            let service = here.service.clone();
            tokio::spawn(async move { service.oneshot(call(signatures(40).0)).await })
        })
        .collect();
    until("both have a batch", || busy.batches() == 2).await;
    assert!(!here.routes().await);
    assert_eq!((busy.batches(), here.done()), (2, 1));
    held.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_sidecar_may_come_late_and_go_at_any_time() {
    let folder = tempfile::tempdir().unwrap();
    let address = Address::Unix(folder.path().join("crypto.sock"));
    let here = Here::trusting(&[&address]);
    until("it is tried", || here.state.status().sidecars[0].why.is_some()).await;
    let status = here.state.status();
    assert_eq!((status.sidecars[0].state, status.sidecars[0].backend), ("unreachable", None));
    assert!(!here.routes().await);

    let other = Other::start(Does::Lies).await;
    let Address::Unix(path) = &other.address else { panic!("a path") };
    std::os::unix::fs::symlink(path, folder.path().join("crypto.sock")).unwrap();
    here.ready().await;
    here.is_slow();
    let (operations, verdicts) = signatures(40);
    let lies = vec![Verdict::Valid; verdicts.len()];
    assert!(here.is_routed(call(operations), &lies).await);

    drop(other);
    until("its end is seen", || here.state.status().sidecars[0].state == "unreachable").await;
    assert!(!here.routes().await);
}

#[tokio::test]
async fn a_program_that_goes_leaves_nothing_behind() {
    let other = Other::start(Does::Hangs).await;
    let here = Here::trusting(&[&other.address]);
    here.ready().await;
    let asking = tokio::spawn(here.service.clone().oneshot(call(signatures(40).0)));
    until("a batch is there", || other.batches() == 1).await;
    asking.abort();
    assert!(asking.await.unwrap_err().is_cancelled());
    assert_eq!(here.state.status().sidecars[0].state, "ready");
}
