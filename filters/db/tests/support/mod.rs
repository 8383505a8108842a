//! The listener, chain and reload of one kind, as the program wires them, around this crate's listener; and a PostgreSQL server.

#![allow(dead_code, reason = "each test program uses a part")]

pub(crate) mod postgres;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, ready};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use qudag_filter_api::{Address, ChainSpec, Chains, ConfigPath, Env, Lease, Node, Resolve, Svc};
use qudag_filter_common::{Drain, ListenerSpec};
use qudag_filter_db::{Db, DbFilters, DbSettings, DbStates, PostgresListener};
use serde_json::Value;

/// How long a condition may take to come true.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Every name is this host.
struct Loopback;

impl Resolve for Loopback {
    fn resolve(&self, _: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        Box::pin(ready(Ok(vec![IpAddr::from([127, 0, 0, 1])])))
    }
}

type Current = Arc<Mutex<Option<(Svc<Db>, Arc<DbSettings>)>>>;

pub(crate) struct Sidecar {
    pub(crate) address: Address,
    pub(crate) drain: Drain,
    env: Env,
    states: DbStates,
    current: Current,
}

impl Sidecar {
    pub(crate) async fn start(listener: Value, filters: Value) -> Self {
        LazyLock::force(&METRICS);
        let nowhere: SocketAddr = ([127, 0, 0, 1], 1).into();
        let node = Node {
            name: "node".into(),
            p2p: nowhere.into(),
            rpc: Address::Tcp(nowhere.into()),
            http: nowhere.into(),
        };
        let mut sidecar = Self {
            address: Address::Tcp(nowhere.into()),
            drain: Drain::new(),
            env: Env { node: Arc::new(node), resolve: Arc::new(Loopback) },
            states: DbStates::default(),
            current: Current::default(),
        };
        let listener = sidecar.reload(listener, filters);
        let (name, address) = listener.binds().remove(0);
        let current = Arc::clone(&sidecar.current);
        let chains: Chains<Db> = Arc::new(move || {
            let (chain, settings) = lock(&current).clone()?;
            Some(Lease { chain, settings, generation: 1, hold: Arc::new(()) })
        });
        let front = PostgresListener::bind(name, address, chains, sidecar.env.clone()).await.unwrap();
        sidecar.address = front.address();
        tokio::spawn(front.serve(sidecar.drain.clone()));
        sidecar
    }

    /// Puts other settings in force; the listener stays.
    pub(crate) fn reload(&mut self, listener: Value, filters: Value) -> PostgresListener {
        let listener: PostgresListener = serde_json::from_value(listener).unwrap();
        let filters: DbFilters = serde_json::from_value(filters).unwrap();
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

    /// The address, which is a TCP one.
    pub(crate) fn tcp(&self) -> SocketAddr {
        match &self.address {
            Address::Tcp(address) => address.socket_addr().unwrap(),
            Address::Unix(_) => panic!("not TCP"),
        }
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
