//! `memory_pooling`: buffers of the data path are used again.

use std::sync::Arc;

use qudag_filter_api::{
    BuildError, ByteSize, ConfigError, ConfigPath, Env, FilterSpec, Kind, Svc, service_fn,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tower::ServiceExt;

use crate::buffers::{BufferPool, Buffers};
use crate::generic::{ForKind, range};

/// Gives connections a pool from which their buffers come, and to which they go back.
pub type MemoryPooling<K> = ForKind<MemoryPoolingSettings, K>;

/// A request for a connection over which bytes are copied, which tells whoever copies them where buffers come from.
pub trait Buffered {
    /// Takes them from here.
    fn take_buffers_from(&self, buffers: &Buffers);
}

/// Settings of `memory_pooling`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MemoryPoolingSettings {
    /// How much memory may wait for its next use. What comes back above it is freed.
    pub max_bytes: ByteSize,
}

impl Default for MemoryPoolingSettings {
    fn default() -> Self {
        Self { max_bytes: ByteSize::mib(16) }
    }
}

impl<K: Kind<Req: Buffered>> FilterSpec for MemoryPooling<K> {
    type Kind = K;
    /// Knows no settings: each chain that is in force says how much may be kept.
    type State = BufferPool;
    const NAME: &'static str = "memory_pooling";

    fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let most = self.settings.max_bytes;
        range(at.key("max_bytes"), most, ByteSize::kib(64), ByteSize::mib(1024)).into_iter().collect()
    }

    fn state(
        &self,
        _: &Env,
        previous: Option<(&Self, Arc<BufferPool>)>,
    ) -> Result<Arc<BufferPool>, BuildError> {
        Ok(previous.map_or_else(|| BufferPool::new(K::NAME), |(_, pool)| pool))
    }

    fn wrap(&self, pool: Arc<BufferPool>, inner: Svc<K>) -> Svc<K> {
        // Dropped with the last chain that has the filter: then the pool is emptied.
        let wanted = Arc::new(pool.want(self.settings.max_bytes.bytes()));
        service_fn::<K, _, _>(move |request: K::Req| {
            request.take_buffers_from(&wanted.buffers());
            inner.clone().oneshot(request)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffers::{LARGE, SMALL};
    use crate::testing::{Req, Test, Upstream, assert_slot_is_flat, env, problems};

    fn with(most: ByteSize) -> MemoryPooling<Test> {
        MemoryPoolingSettings { max_bytes: most }.into()
    }

    /// The buffers that a connection gets.
    async fn asked(service: &Svc<Test>) -> Buffers {
        let request = Req::to("a");
        let buffers = Arc::clone(&request.buffers);
        service.clone().oneshot(request).await.unwrap();
        buffers.lock().unwrap().clone()
    }

    #[test]
    fn settings_are_checked_and_flat() {
        let wrong = "max_bytes: 63KiB is too small (64KiB to 1GiB)";
        assert_eq!(problems::<MemoryPooling<Test>>(r#"{"max_bytes": "63KiB"}"#), [wrong]);
        let wrong = "max_bytes: 2GiB is too large (64KiB to 1GiB)";
        assert_eq!(problems::<MemoryPooling<Test>>(r#"{"max_bytes": "2GiB"}"#), [wrong]);
        assert_slot_is_flat::<MemoryPooling<Test>>(&["max_bytes"]);
    }

    #[tokio::test]
    async fn a_pool_lasts_as_long_as_a_chain_has_it_and_is_found_again() {
        let upstream = Upstream::default();
        let first = with(ByteSize::mib(1));
        let pool = first.state(&env(), None).unwrap();
        let chain = first.wrap(Arc::clone(&pool), upstream.service());
        let stream = asked(&chain).await;
        drop((0..64).map(|_| stream.take(LARGE)).collect::<Vec<_>>());
        assert_eq!(pool.kept(), 1 << 20);

        // Edited: the same pool, and what is too much goes before the chain is in force.
        let second = with(ByteSize::kib(128));
        let same = second.state(&env(), Some((&first, Arc::clone(&pool)))).unwrap();
        assert!(Arc::ptr_eq(&same, &pool));
        let edited = second.wrap(same, upstream.service());
        assert_eq!(pool.kept(), 128 << 10);
        drop(chain);
        assert_eq!(pool.kept(), 128 << 10);

        // Off: its last chain goes, and the open stream allocates plainly.
        drop(edited);
        assert_eq!(pool.kept(), 0);
        drop(stream.take(SMALL));
        assert_eq!(pool.kept(), 0);

        // On again.
        let _chain = second.wrap(Arc::clone(&pool), upstream.service());
        drop(stream.take(SMALL));
        assert_eq!(pool.kept(), SMALL);
    }
}
