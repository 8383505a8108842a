//! `simd_crypto`: the fastest implementation that is known to be sound.

mod health;
mod self_test;
mod shadow;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use qudag_filter_api::{
    BuildError, ConfigError, ConfigPath, Env, FilterError, FilterSpec, Percent, Period, Svc, service_fn,
};
use qudag_mldsa::Backend;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tower::ServiceExt;

use crate::work::sample;
use crate::{Crypto, CryptoCall, CryptoReply, Operations, SimdStatus};
use health::Health;
use shadow::Meters;

pub use self_test::Tester;

/// The longest time that a test may take: whoever asks for one waits for three of them.
const LONGEST_TEST: Period = Period::secs(15);

/// Settings of `simd_crypto`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SimdCrypto {
    /// The percentage of verdicts that are made once more by the portable implementation. When one differs, the fast implementation is not used
    /// any more, and the portable verdict is what the program is told. 0 for never.
    pub shadow: Percent,
    /// How long the self-test of one implementation may take.
    pub self_test_timeout: Period,
}

impl Default for SimdCrypto {
    fn default() -> Self {
        Self { shadow: Percent::new(0.1).unwrap_or(Percent::NONE), self_test_timeout: Period::secs(10) }
    }
}

/// What is known of the implementations. It lasts as long as the process.
pub struct SimdState {
    health: Health,
    tester: Tester,
    /// Held while tests run.
    testing: Arc<Mutex<()>>,
    meters: Meters,
}

impl SimdState {
    /// Nothing is known yet. With `forced`, no other implementation but that and `portable` is used.
    pub fn new(tester: Tester, forced: Option<Backend>) -> Arc<Self> {
        Arc::new(Self { health: Health::new(forced), tester, testing: Arc::default(), meters: Meters::new() })
    }

    /// What is known.
    pub fn status(&self) -> SimdStatus {
        self.health.status()
    }

    /// Tests one implementation, or all that this processor can run, and waits for the end. Each has a process of its own, and so much time.
    pub async fn test(self: Arc<Self>, limit: Duration, only: Option<Backend>) {
        let testing = Arc::clone(&self.testing).lock_owned().await;
        let done = spawn_blocking(move || {
            let _one_at_a_time = testing;
            self.test_here(limit, only);
        });
        if let Err(why) = done.await {
            tracing::error!(%why, "the self-test of cryptography has failed");
        }
    }

    fn test_here(&self, limit: Duration, only: Option<Backend>) {
        for backend in self.health.testable() {
            if only.is_none_or(|only| only == backend) {
                self.health.tested(backend, &self.tester.test(backend, limit));
            }
        }
    }
}

impl FilterSpec for SimdCrypto {
    type Kind = Crypto;
    type State = SimdState;
    const NAME: &'static str = "simd_crypto";

    fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let (at, timeout) = (at.key("self_test_timeout"), self.self_test_timeout);
        let problem = match timeout {
            Period(Duration::ZERO) => Some("no test would pass"),
            timeout if timeout > LONGEST_TEST => Some("too long"),
            _ => None,
        };
        let error = |problem| at.error(problem).hint(format!("at most {LONGEST_TEST}, for instance 10s"));
        problem.map(error).into_iter().collect()
    }

    fn state(
        &self,
        _: &Env,
        previous: Option<(&Self, Arc<SimdState>)>,
    ) -> Result<Arc<SimdState>, BuildError> {
        if let Some((_, state)) = previous {
            return Ok(state);
        }
        let error = |why: &dyn ToString| BuildError::new("filters.crypto.simd_crypto", why.to_string());
        let forced = Backend::from_environment().map_err(|why| error(&why))?;
        let state = SimdState::new(Tester::this_program(), forced);
        let (tested, limit) = (Arc::clone(&state), self.self_test_timeout.0);
        let testing = Arc::clone(&state.testing).try_lock_owned();
        let test = move || {
            let _one_at_a_time = testing;
            tested.test_here(limit, None);
        };
        // Requests do not wait for it.
        let thread = thread::Builder::new().name("crypto-selftest".to_owned());
        thread.spawn(test).map_err(|why| error(&why))?;
        Ok(state)
    }

    fn wrap(&self, state: Arc<SimdState>, inner: Svc<Crypto>) -> Svc<Crypto> {
        let share = self.shadow;
        service_fn::<Crypto, _, _>(move |call: CryptoCall| {
            choose(call, share, Arc::clone(&state), inner.clone())
        })
    }
}

async fn choose(
    mut call: CryptoCall,
    share: Percent,
    state: Arc<SimdState>,
    inner: Svc<Crypto>,
) -> Result<CryptoReply, FilterError> {
    call.backend = state.health.best();
    if matches!(*call.operations, Operations::Status) {
        let mut reply = inner.oneshot(call).await?;
        if let CryptoReply::Status(status) = &mut reply {
            status.simd_crypto = Some(state.status());
        }
        return Ok(reply);
    }
    if call.backend == Backend::Portable {
        return inner.oneshot(call).await;
    }
    let places = sample(&call.operations, share);
    if places.is_empty() {
        return inner.oneshot(call).await;
    }
    shadow::compare(call, &places, inner, &state.health, &state.meters).await
}
