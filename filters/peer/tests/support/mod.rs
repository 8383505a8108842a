//! The listener, chain and reload of one kind, as the program wires them, around this crate's listener.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use qudag_filter_api::{Address, ChainSpec, Chains, ConfigPath, Env, Lease, Node, Resolve, Svc};
use qudag_filter_common::{Drain, ListenerSpec};
use qudag_filter_peer::{Peer, PeerFilters, PeerListener, PeerSettings, PeerStates};
use serde_json::Value;
use tokio::sync::Semaphore;

/// How long a condition may take to come true.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Names for tests. Every connection attempt resolves the name, so look-ups count attempts.
pub(crate) struct Names {
    names: Mutex<HashMap<String, Vec<IpAddr>>>,
    lookups: AtomicUsize,
    gate: Semaphore,
}

impl Names {
    pub(crate) fn set(&self, name: &str, ips: &[&str]) {
        let ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        lock(&self.names).insert(name.to_owned(), ips);
    }

    pub(crate) fn lookups(&self) -> usize {
        self.lookups.load(Ordering::SeqCst)
    }

    /// Lets look-ups wait until the answer is dropped.
    pub(crate) async fn hold(&self) -> tokio::sync::SemaphorePermit<'_> {
        self.gate.acquire_many(1000).await.unwrap()
    }
}

struct Shared(Arc<Names>);

impl Resolve for Shared {
    fn resolve(&self, name: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let (names, name) = (Arc::clone(&self.0), name.to_owned());
        async move {
            names.lookups.fetch_add(1, Ordering::SeqCst);
            let _permit = names.gate.acquire().await;
            let found = lock(&names.names).get(&name).cloned();
            found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such name"))
        }
        .boxed()
    }
}

type Current = Arc<Mutex<Option<(Svc<Peer>, Arc<PeerSettings>)>>>;

pub(crate) struct Sidecar {
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) names: Arc<Names>,
    pub(crate) drain: Drain,
    env: Env,
    states: PeerStates,
    current: Current,
}

impl Sidecar {
    pub(crate) async fn start(node: SocketAddr, listener: Value, filters: Value) -> Self {
        LazyLock::force(&METRICS);
        let names = Arc::new(Names {
            names: Mutex::default(),
            lookups: AtomicUsize::new(0),
            gate: Semaphore::new(1000),
        });
        let nowhere: SocketAddr = ([127, 0, 0, 1], 1).into();
        let node = Node {
            name: "node".into(),
            p2p: node.into(),
            rpc: Address::Tcp(nowhere.into()),
            http: nowhere.into(),
        };
        let env = Env { node: Arc::new(node), resolve: Arc::new(Shared(Arc::clone(&names))) };
        let mut sidecar = Self {
            addresses: Vec::new(),
            names,
            drain: Drain::new(),
            env,
            states: PeerStates::default(),
            current: Current::default(),
        };
        let listener = sidecar.reload(listener, filters);
        for (name, address) in listener.binds() {
            let current = Arc::clone(&sidecar.current);
            let chains: Chains<Peer> = Arc::new(move || {
                let (chain, settings) = lock(&current).clone()?;
                Some(Lease { chain, settings, generation: 1, hold: Arc::new(()) })
            });
            let front = PeerListener::bind(name, address, chains, sidecar.env.clone()).await.unwrap();
            let Address::Tcp(address) = front.address() else { panic!("not TCP") };
            sidecar.addresses.push(address.socket_addr().unwrap());
            tokio::spawn(front.serve(sidecar.drain.clone()));
        }
        sidecar
    }

    /// Puts other settings in force; the listeners stay.
    pub(crate) fn reload(&mut self, listener: Value, filters: Value) -> PeerListener {
        let listener: PeerListener = serde_json::from_value(listener).unwrap();
        let filters: PeerFilters = serde_json::from_value(filters).unwrap();
        assert_eq!(listener.check(&ConfigPath::root()), []);
        assert_eq!(filters.check(&ConfigPath::root()), []);
        let settings = Arc::new(listener.settings(&self.env));
        let (terminal, _) = listener.terminal(&filters, &settings, &self.env, None).unwrap();
        let (chain, states) = filters.build(&self.env, &(), &self.states, terminal).unwrap();
        self.states = states;
        *lock(&self.current) = Some((chain, settings));
        listener
    }

    /// As after a reload without this kind.
    pub(crate) fn switch_off(&self) {
        *lock(&self.current) = None;
    }
}

static METRICS: LazyLock<PrometheusHandle> = LazyLock::new(|| {
    tracing_subscriber::fmt().with_ansi(false).with_writer(|| Log).init();
    PrometheusBuilder::new().install_recorder().unwrap()
});

static LINES: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// Where log lines go.
struct Log;

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&LINES).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether one line of the log has all these parts.
pub(crate) fn is_logged(parts: &[&str]) -> bool {
    let lines = lock(&LINES).clone();
    String::from_utf8_lossy(&lines).lines().any(|line| parts.iter().all(|part| line.contains(part)))
}

/// The value of a metric whose line has all these parts; 0 when there is none.
pub(crate) fn metric(name: &str, labels: &[&str]) -> f64 {
    let text = METRICS.render();
    let line = text.lines().find(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
            && labels.iter().all(|label| line.contains(label))
    });
    line.and_then(|line| line.rsplit(' ').next()).map_or(0.0, |value| value.parse().unwrap())
}

/// Waits until a condition is true.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "{what} did not come true");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
