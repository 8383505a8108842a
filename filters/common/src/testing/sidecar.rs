//! The listeners, chain and reload of one kind, as the program wires them.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use qudag_filter_api::{Address, Chain, ChainSpec, Chains, ConfigPath, Env, Kind, Lanes, Lease, Node};
use serde_json::Value;

use super::{Names, lock, record};
use crate::{Drain, KindOf, ListenerSpec};

type Current<K> = Arc<Mutex<Option<(Chain<K>, Arc<<K as Kind>::Settings>)>>>;

/// One kind of traffic with its listeners, which stop with this value. Metrics and log lines are recorded.
pub struct Sidecar<L: ListenerSpec> {
    /// Where it listens, in the order of [`ListenerSpec::binds`].
    pub addresses: Vec<Address>,
    /// What its resolver knows.
    pub names: Names,
    /// The drain of its listeners.
    pub drain: Drain,
    /// The states of its filters.
    pub states: <L::Filters as ChainSpec>::States,
    /// What the end of the chain knows.
    pub upstream: Option<Arc<L::Upstream>>,
    env: Env,
    current: Current<KindOf<L>>,
}

impl<L: ListenerSpec> Sidecar<L> {
    /// Beside `node`; the settings as in YAML.
    pub async fn start(node: Node, listener: Value, filters: Value) -> Self {
        record::start();
        let names = Names::default();
        let env = Env {
            node: Arc::new(node),
            resolve: Arc::new(names.clone()),
            service: Arc::default(),
            lanes: Lanes::default(),
        };
        let mut sidecar = Self {
            addresses: Vec::new(),
            names,
            drain: Drain::new(),
            states: Default::default(),
            upstream: None,
            env,
            current: Current::<KindOf<L>>::default(),
        };
        let listener = sidecar.reload(listener, filters);
        for (name, address) in listener.binds() {
            let current = Arc::clone(&sidecar.current);
            let chains: Chains<KindOf<L>> = Arc::new(move || {
                let (chain, settings) = lock(&current).clone()?;
                Some(Lease { chain, settings, generation: 1, hold: Arc::new(()) })
            });
            let front = L::bind(name, address, chains, sidecar.env.clone()).await.unwrap();
            sidecar.addresses.push(front.address());
            tokio::spawn(front.serve(sidecar.drain.clone()));
        }
        sidecar
    }

    /// Puts other settings in force; the listeners stay.
    pub fn reload(&mut self, listener: Value, filters: Value) -> L {
        let listener: L = serde_json::from_value(listener).unwrap();
        let filters: L::Filters = serde_json::from_value(filters).unwrap();
        assert_eq!(listener.check(&ConfigPath::root()), []);
        assert_eq!(filters.check(&ConfigPath::root()), []);
        let settings = Arc::new(listener.settings(&self.env));
        let upstream = self.upstream.as_ref();
        let (terminal, upstream) = listener.terminal(&filters, &settings, &self.env, upstream).unwrap();
        self.upstream = Some(upstream);
        let (chain, states) = filters.build(&self.env, &(), &self.states, terminal).unwrap();
        self.states = states;
        *lock(&self.current) = Some((chain, settings));
        listener
    }

    /// As after a reload without this kind.
    pub fn switch_off(&self) {
        *lock(&self.current) = None;
    }

    /// Where its first listener is, which is a TCP one.
    pub fn tcp(&self) -> SocketAddr {
        self.tcps()[0]
    }

    /// Where its listeners are, which are TCP ones.
    pub fn tcps(&self) -> Vec<SocketAddr> {
        let tcp = |address: &Address| match address {
            Address::Tcp(address) => address.socket_addr().unwrap(),
            Address::Unix(_) => panic!("not TCP: {address}"),
        };
        self.addresses.iter().map(tcp).collect()
    }
}

impl<L: ListenerSpec> Drop for Sidecar<L> {
    fn drop(&mut self) {
        self.drain.stop();
    }
}
