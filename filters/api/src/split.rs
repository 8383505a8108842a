//! A percentage of flows through a filter, the rest past it.

use std::task::{Context, Poll};

use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt};

use crate::{FilterError, Flow, Kind, Percent, Svc};

/// Holds both arms and chooses by a sticky hash of the flow's key.
pub struct Split<K: Kind> {
    with: Svc<K>,
    without: Svc<K>,
    rollout: Percent,
    salt: u64,
}

impl<K: Kind> Clone for Split<K> {
    fn clone(&self) -> Self {
        Self {
            with: self.with.clone(),
            without: self.without.clone(),
            rollout: self.rollout,
            salt: self.salt,
        }
    }
}

impl<K: Kind> Split<K> {
    /// `rollout` of the flows go `with` the filter. `salt` is the filter's own, so that the
    /// shares of two filters are independent of each other.
    pub fn boxed(with: Svc<K>, without: Svc<K>, rollout: Percent, salt: u64) -> Svc<K> {
        BoxCloneSyncService::new(Self { with, without, rollout, salt })
    }
}

impl<K: Kind> Service<K::Req> for Split<K> {
    type Response = K::Rsp;
    type Error = FilterError;
    type Future = tower::util::Oneshot<Svc<K>, K::Req>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), FilterError>> {
        // Readiness is the chosen arm's; `oneshot` waits for it.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: K::Req) -> Self::Future {
        let arm =
            if self.rollout.covers(request.key().bucket(self.salt)) { &self.with } else { &self.without };
        arm.clone().oneshot(request)
    }
}
