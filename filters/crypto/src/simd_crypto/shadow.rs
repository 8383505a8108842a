//! Verdicts that are made once more by `portable`, with nothing that another implementation prepared.

use std::sync::Arc;

use metrics::{Counter, counter};
use qudag_filter_api::{FilterError, Svc};
use qudag_mldsa::Backend;
use tokio::time::sleep;
use tower::ServiceExt;

use super::health::Health;
use crate::{Crypto, CryptoCall, CryptoReply, Verdict};

/// How often a request that has to be judged anew tries to get a place in a full queue.
const TRIES: u32 = 20;

/// How often what comes of comparing was.
pub(super) struct Meters {
    same: Counter,
    different: Counter,
    skipped: Counter,
}

impl Meters {
    pub(super) fn new() -> Self {
        let checks =
            |result: &'static str| counter!("qudag_sidecar_crypto_shadow_checks_total", "result" => result);
        Self { same: checks("same"), different: checks("different"), skipped: checks("skipped") }
    }
}

/// Does a request, and compares the verdicts of some places with those of `portable`. Where one differs, the backend is demoted, and all
/// verdicts are `portable`'s.
///
/// # Errors
/// What the rest of the chain fails with.
pub(super) async fn compare(
    call: CryptoCall,
    places: &[usize],
    inner: Svc<Crypto>,
    health: &Health,
    meters: &Meters,
) -> Result<CryptoReply, FilterError> {
    let backend = call.backend;
    let again = CryptoCall { backend: Backend::Portable, independent: true, ..call.clone() };
    let reply = inner.clone().oneshot(call).await?;
    // Verdicts of another sidecar say nothing of this one's backends.
    let CryptoReply::Verdicts(verdicts) = &reply else { return Ok(reply) };
    let some = CryptoCall { operations: Arc::new(again.operations.pick(places)), ..again.clone() };
    // Whoever has too much to do is not asked to do it twice.
    let Ok(CryptoReply::Verdicts(right)) = inner.clone().oneshot(some).await else {
        meters.skipped.increment(places.len() as u64);
        return Ok(reply);
    };
    let mut wrong = None;
    for (place, right) in places.iter().zip(&right) {
        match verdicts.get(*place) {
            // A key may be forgotten from one moment to the next.
            None | Some(Verdict::UnknownKey) => meters.skipped.increment(1),
            Some(_) if *right == Verdict::UnknownKey => meters.skipped.increment(1),
            Some(seen) if seen == right => meters.same.increment(1),
            Some(seen) => {
                meters.different.increment(1);
                wrong = Some((*seen, *right));
            }
        }
    }
    let Some((seen, right_one)) = wrong else { return Ok(reply) };
    health.demote(backend, &format!("it judged a signature {seen:?} that portable judges {right_one:?}"));
    if right.len() == verdicts.len() {
        return Ok(CryptoReply::Verdicts(right));
    }
    for _ in 0..TRIES {
        match inner.clone().oneshot(again.clone()).await {
            // It had its place in the queue once, and what it was told there is worth nothing.
            Err(FilterError::Shed { retry_after, .. }) => sleep(retry_after).await,
            done => return done,
        }
    }
    inner.oneshot(again).await
}
