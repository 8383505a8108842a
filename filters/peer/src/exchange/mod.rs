//! What sidecars tell each other of themselves, over a control stream on each pooled connection.

mod capabilities;
pub mod message;
mod stream;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metrics::gauge;
use qudag_filter_common::LiveGauge;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::identity::PeerName;
use crate::libp2p::PeerId;
use crate::tunnel::header::{self, Destination};
use message::State;
pub(crate) use stream::{answer, call};

/// How long what was heard of a peer is shown after its last connection has gone.
const KEPT: Duration = Duration::from_secs(600);

/// What this sidecar tells others, and what others have told it.
pub(crate) struct Exchange {
    own: watch::Sender<Arc<State>>,
    heard: Mutex<BTreeMap<PeerName, Heard>>,
    /// Changes with every peer that comes, goes or tells something new.
    news: watch::Sender<u64>,
}

struct Heard {
    state: State,
    /// When something came last.
    at: Instant,
    rtt: Option<Duration>,
    /// Control streams that are open.
    streams: usize,
    /// When the peer's node and this one's were last connected through the tunnel.
    met: Option<Instant>,
    meter: Option<LiveGauge>,
}

impl Default for Exchange {
    fn default() -> Self {
        let own = State {
            sidecar: env!("CARGO_PKG_VERSION").to_owned(),
            tunnel: header::VERSION,
            capabilities: capabilities::of_this_machine(),
            node: None,
            destinations: Vec::new(),
        };
        Self { own: watch::Sender::new(Arc::new(own)), heard: Mutex::default(), news: watch::Sender::new(0) }
    }
}

/// A sidecar of another node, as far as it has told.
#[derive(Clone, Debug, Serialize)]
pub struct SidecarStatus {
    /// The URI in its certificate.
    pub name: String,
    /// Whether it is heard now.
    pub connected: bool,
    /// The version of the program; `null` before it has said so.
    pub version: Option<String>,
    /// The version of the tunnel's header.
    pub tunnel_version: Option<u8>,
    /// What it can do.
    pub capabilities: Vec<String>,
    /// The peer id of its node; `null` while it does not know.
    pub peer_id: Option<PeerId>,
    /// Where it lets streams lead.
    pub destinations: Vec<String>,
    /// Seconds since something was heard of it.
    pub heard_seconds_ago: f64,
    /// The round trip of the last echo in milliseconds, from sidecar to sidecar.
    pub rtt_ms: Option<f64>,
}

impl Exchange {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<PeerName, Heard>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry<T>(&self, name: &PeerName, change: impl FnOnce(&mut Heard) -> T) -> T {
        let now = Instant::now();
        let mut heard = self.lock();
        // Those who come are allowed by the configuration, so there are few; names that were taken off it go here.
        heard.retain(|_, peer| peer.streams > 0 || now.saturating_duration_since(peer.at) < KEPT);
        let new =
            || Heard { state: State::default(), at: now, rtt: None, streams: 0, met: None, meter: None };
        change(heard.entry(name.clone()).or_insert_with(new))
    }

    fn tell_news(&self) {
        self.news.send_modify(|version| *version = version.wrapping_add(1));
    }

    /// Changes what is told.
    pub(crate) fn tell(&self, change: impl FnOnce(&mut State)) {
        self.own.send_if_modified(|own| {
            let mut state = State::clone(own);
            change(&mut state);
            let other = state != **own;
            if other {
                *own = Arc::new(state);
            }
            other
        });
    }

    /// Changes whenever [`Exchange::node_of`] may.
    pub(crate) fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// The peer id of the node to which `destination` of a peer leads; `None` unless the peer is heard now.
    pub(crate) fn node_of(&self, name: &PeerName, destination: &Destination) -> Option<PeerId> {
        let heard = self.lock();
        let peer = heard.get(name).filter(|peer| peer.streams > 0 && *destination == Destination::node())?;
        peer.state.node.clone()
    }

    /// The nodes of both sides are connected through the tunnel.
    pub(crate) fn meet(&self, name: &PeerName) {
        self.entry(name, |peer| peer.met = Some(Instant::now()));
    }

    /// When the nodes of both sides were last connected through the tunnel.
    pub(crate) fn met(&self, name: &PeerName) -> Option<Instant> {
        self.lock().get(name)?.met
    }

    /// What is known of the others.
    pub(crate) fn statuses(&self) -> Vec<SidecarStatus> {
        let heard = self.lock();
        let told = heard.iter().filter(|(_, peer)| peer.meter.is_some());
        told.map(|(name, peer)| {
            let state = &peer.state;
            SidecarStatus {
                name: name.to_string(),
                connected: peer.streams > 0,
                version: Some(state.sidecar.clone()).filter(|version| !version.is_empty()),
                tunnel_version: Some(state.tunnel).filter(|version| *version > 0),
                capabilities: state.capabilities.clone(),
                peer_id: state.node.clone(),
                destinations: state.destinations.iter().map(Destination::to_string).collect(),
                heard_seconds_ago: peer.at.elapsed().as_secs_f64(),
                rtt_ms: peer.rtt.map(|rtt| rtt.as_secs_f64() * 1e3),
            }
        })
        .collect()
    }

    /// The peer ids of the nodes of all who are heard, by the names of their sidecars.
    pub(crate) fn nodes(&self) -> HashMap<String, PeerId> {
        let statuses = self.statuses().into_iter();
        let told = statuses.filter(|status| status.connected);
        told.filter_map(|status| Some((status.name, status.peer_id?))).collect()
    }
}

/// A control stream with a peer, for as long as it is open.
struct Open<'a> {
    exchange: &'a Exchange,
    name: &'a PeerName,
}

impl<'a> Open<'a> {
    fn new(exchange: &'a Exchange, name: &'a PeerName) -> Self {
        exchange.entry(name, |peer| {
            peer.streams += 1;
            peer.at = Instant::now();
            let rtt = || gauge!("qudag_sidecar_peer_exchange_rtt_seconds", "peer" => name.to_string());
            peer.meter.get_or_insert_with(|| LiveGauge::new(rtt(), f64::NAN));
        });
        exchange.tell_news();
        Self { exchange, name }
    }

    fn heard(&self) {
        self.exchange.entry(self.name, |peer| peer.at = Instant::now());
    }

    fn state(&self, state: State) {
        let new = self.exchange.entry(self.name, |peer| {
            let new = peer.state != state;
            peer.state = state;
            new
        });
        if new {
            self.exchange.tell_news();
        }
    }

    fn echoed(&self, rtt: Duration) {
        self.exchange.entry(self.name, |peer| {
            peer.rtt = Some(rtt);
            if let Some(meter) = &peer.meter {
                meter.set(rtt.as_secs_f64());
            }
        });
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.exchange.entry(self.name, |peer| {
            peer.streams = peer.streams.saturating_sub(1);
            if peer.streams == 0
                && let Some(meter) = &peer.meter
            {
                meter.set(f64::NAN);
            }
        });
        self.exchange.tell_news();
    }
}
