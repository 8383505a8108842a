//! `crypto_offload`: keys that are kept ready, and threads that take what several programs ask for together.

mod keys;
mod line;
#[cfg(test)]
mod line_tests;
mod pool;
#[cfg(test)]
mod tests;
mod ticket;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread::available_parallelism;

use qudag_filter_api::{
    BuildError, ByteSize, ConfigError, ConfigPath, Env, FilterSpec, Period, Svc, service_fn,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tower::ServiceExt;

use crate::work::KeptKey;
use crate::{Crypto, CryptoCall, CryptoReply, OffloadStatus, Operations};
use keys::Registry;
use line::Limits;
use pool::Pool;

/// The most threads that may be asked for.
const MOST_THREADS: u32 = 256;
/// The most keys that may be kept: 2.5 GB.
const MOST_KEYS: u32 = 65_536;
/// The most operations that may wait.
const MOST_OPERATIONS: u32 = 1_000_000;
/// The longest time that a request may let others come first.
const LONGEST_GATHER: Period = Period::millis(1);

/// Settings of `crypto_offload`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CryptoOffload {
    /// Threads for what is not done in a moment; null for one a processor.
    #[schemars(range(min = 1, max = 256))]
    pub threads: Option<u32>,
    /// The most keys that are kept ready, each of 39 kB; the one that was not used for longest is forgotten first.
    #[schemars(range(min = 1, max = 65_536))]
    pub max_keys: u32,
    /// The most operations that may wait for a thread; requests beyond are refused. One request may be larger when nothing waits.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_queue: u32,
    /// The most bytes that they may have.
    pub max_queue_bytes: ByteSize,
    /// How long the first of several requests lets others come, to be done together with them. A lone request waits for nobody. 0s for never.
    pub gather: Period,
}

impl Default for CryptoOffload {
    fn default() -> Self {
        Self {
            threads: None,
            max_keys: 1_024,
            max_queue: 16_384,
            max_queue_bytes: ByteSize::mib(64),
            gather: Period(std::time::Duration::from_micros(50)),
        }
    }
}

impl CryptoOffload {
    fn limits(&self) -> Limits {
        let processors = || available_parallelism().map_or(1, NonZeroUsize::get);
        let size = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        Limits {
            operations: size(self.max_queue),
            bytes: self.max_queue_bytes.bytes(),
            gather: self.gather.0,
            threads: self.threads.unwrap_or_else(|| u32::try_from(processors()).unwrap_or(MOST_THREADS)),
            keys: size(self.max_keys),
        }
    }
}

/// Keys and threads. Both outlive a change of the settings; a change of the number of threads starts new ones, and the old ones end when what they
/// have to do is done.
pub struct OffloadState {
    registry: Arc<Registry>,
    pool: Pool,
    threads: u32,
}

impl OffloadState {
    fn start(limits: &Limits, registry: Arc<Registry>) -> Result<Arc<Self>, BuildError> {
        let threads = limits.threads;
        let pool = Pool::start(threads, Arc::clone(&registry)).map_err(|why| {
            BuildError::new("filters.crypto.crypto_offload", format!("cannot start threads: {why}"))
        })?;
        Ok(Arc::new(Self { registry, pool, threads }))
    }

    /// What it holds.
    pub fn status(&self) -> OffloadStatus {
        let ((keys, named), waiting) = (self.registry.count(), self.pool.waiting());
        OffloadStatus {
            threads: self.threads,
            keys,
            registered: named,
            keys_bytes: keys * KeptKey::BYTES,
            queued: waiting.operations,
            queued_bytes: waiting.bytes,
        }
    }
}

impl FilterSpec for CryptoOffload {
    type Kind = Crypto;
    type State = OffloadState;
    const NAME: &'static str = "crypto_offload";

    fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        let mut range = |key: &str, number: u32, most: u32| {
            if !(1..=most).contains(&number) {
                errors.push(
                    at.key(key).error(format!("{number} is out of range")).hint(format!("1 to {most}")),
                );
            }
        };
        range("threads", self.threads.unwrap_or(1), MOST_THREADS);
        range("max_keys", self.max_keys, MOST_KEYS);
        range("max_queue", self.max_queue, MOST_OPERATIONS);
        if self.max_queue_bytes.0 == 0 {
            errors.push(at.key("max_queue_bytes").error("nothing could wait").hint("for instance 64MiB"));
        }
        if self.gather > LONGEST_GATHER {
            let hint = format!("at most {LONGEST_GATHER}; the first request waits for so long");
            errors.push(at.key("gather").error(format!("{} is too long", self.gather)).hint(hint));
        }
        errors
    }

    fn state(
        &self,
        _: &Env,
        previous: Option<(&Self, Arc<OffloadState>)>,
    ) -> Result<Arc<OffloadState>, BuildError> {
        let limits = self.limits();
        match previous {
            Some((_, state)) if state.threads == limits.threads => Ok(state),
            Some((_, state)) => OffloadState::start(&limits, Arc::clone(&state.registry)),
            None => OffloadState::start(&limits, Arc::new(Registry::new(limits.keys))),
        }
    }

    fn wrap(&self, state: Arc<OffloadState>, inner: Svc<Crypto>) -> Svc<Crypto> {
        let limits = self.limits();
        service_fn::<Crypto, _, _>(move |call: CryptoCall| {
            let (state, inner) = (Arc::clone(&state), inner.clone());
            async move {
                match &*call.operations {
                    Operations::Status => {
                        let mut reply = inner.oneshot(call).await?;
                        if let CryptoReply::Status(status) = &mut reply {
                            status.crypto_offload = Some(state.status());
                        }
                        Ok(reply)
                    }
                    _ => state.pool.perform(&call, &limits).await,
                }
            }
        })
    }
}
