//! What the tests of several crates share. The product does not have it: the feature `testing` is for `dev-dependencies`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by a panic"
)]

#[cfg(test)]
mod layer;
#[cfg(feature = "testing")]
mod record;
#[cfg(feature = "testing")]
mod sidecar;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use qudag_filter_api::{Address, Answer, ConfigError, ConfigPath, Env, Lanes, Node, Resolve};
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

#[cfg(test)]
pub(crate) use layer::*;
#[cfg(feature = "testing")]
pub use record::{is_logged, metric};
#[cfg(feature = "testing")]
pub use sidecar::Sidecar;

/// How long a condition may take to come true, and anything else to happen.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How many look-ups there may be at once.
const LOOKUPS: u32 = 1000;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until a condition is true.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "did not come true: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A node whose parts are where nobody listens.
pub fn nowhere() -> Node {
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
    Node { name: "node".into(), p2p: nowhere.into(), rpc: Address::Tcp(nowhere.into()), http: nowhere.into() }
}

/// A node nowhere, and a resolver that knows no names.
pub fn env() -> Env {
    Env {
        node: Arc::new(nowhere()),
        resolve: Arc::new(Names::default()),
        service: Arc::default(),
        lanes: Lanes::default(),
    }
}

/// Where settings, in JSON, are wrong.
pub fn wrong_places<S: DeserializeOwned>(
    settings: &str,
    check: impl Fn(&S, &ConfigPath) -> Vec<ConfigError>,
) -> Vec<String> {
    let settings = serde_json::from_str(settings).unwrap();
    check(&settings, &ConfigPath::root()).iter().map(|error| error.at.to_string()).collect()
}

/// Names for tests; none at first. Clones share them.
#[derive(Clone)]
pub struct Names(Arc<Known>);

struct Known {
    names: Mutex<HashMap<String, Vec<IpAddr>>>,
    lookups: AtomicUsize,
    gate: Arc<Semaphore>,
    holds: Mutex<Duration>,
}

impl Default for Names {
    fn default() -> Self {
        Self(Arc::new(Known {
            names: Mutex::default(),
            lookups: AtomicUsize::new(0),
            gate: Arc::new(Semaphore::new(LOOKUPS as usize)),
            holds: Mutex::new(Duration::from_secs(10)),
        }))
    }
}

impl Names {
    /// Gives a name these addresses.
    pub fn set(&self, name: &str, ips: &[&str]) {
        let ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        lock(&self.0.names).insert(name.to_owned(), ips);
    }

    /// How long answers hold from now on; ten seconds at first.
    pub fn hold_for(&self, time: Duration) {
        *lock(&self.0.holds) = time;
    }

    /// How often a name was looked up. Every attempt to connect resolves the name, so this counts attempts.
    pub fn lookups(&self) -> usize {
        self.0.lookups.load(Ordering::SeqCst)
    }

    /// Lets look-ups wait until the answer is dropped.
    pub async fn hold(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.0.gate).acquire_many_owned(LOOKUPS).await.unwrap()
    }
}

impl Resolve for Names {
    fn resolve(&self, name: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let (known, name) = (Arc::clone(&self.0), name.to_owned());
        Box::pin(async move {
            known.lookups.fetch_add(1, Ordering::SeqCst);
            let _permit = known.gate.acquire().await;
            let found = lock(&known.names).get(&name).cloned();
            found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no such name: {name}")))
        })
    }

    fn ask(&self, name: &str) -> BoxFuture<'static, io::Result<Answer>> {
        let (known, ips) = (Arc::clone(&self.0), self.resolve(name));
        Box::pin(async move { Ok(Answer { ips: ips.await?, holds: *lock(&known.holds) }) })
    }
}
