//! What goes on while the filter is on.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use metrics::{counter, gauge};
use qudag_filter_common::LiveGauge;
use tokio::net::UdpSocket;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::board::{Board, Wish};
use super::invite::{Candidate, Invitation, Invitations, company, nowhere};
use super::learn::{Known, connect, learn};
use super::mdns::{self, Announcement, Asked};
use super::place::Place;
use super::{Discovery, Order, PeerDiscovery, Wanted};
use crate::identity::PeerName;
use crate::libp2p::{NodeFailure, PeerId, visit};

/// How often everything is looked at without a reason.
const TICK: Duration = Duration::from_millis(500);
/// Between filling a bucket and the visit.
const READ: Duration = Duration::from_millis(300);
/// For a visit.
const VISIT: Duration = Duration::from_secs(10);
/// For how long ids of nobody are believed, in seconds.
const NOBODY_TTL: u32 = 1;

/// Runs until nothing is wanted any more.
pub(super) async fn run(discovery: Arc<Discovery>) {
    let mut state: Option<State> = None;
    loop {
        let Some((wanted, order)) = discovery.wanted() else { break };
        let state = match &mut state {
            Some(state) if state.is_for(&order) => state,
            other => {
                // What another node was told, it is told to forget.
                if let Some(mut before) = other.take() {
                    before.end();
                }
                other.insert(State::new(&order))
            }
        };
        state.order = Arc::clone(&order);
        state.look(&wanted, &discovery);
        let changed = discovery.changed.notified();
        tokio::select! {
            () = changed => {}
            () = sleep(TICK) => {}
            _ = state.known.changed() => {}
            _ = state.news.changed() => {}
            asked = Ears::hear(&mut state.ears) => state.asked(asked),
        }
    }
    if let Some(mut state) = state {
        state.end();
    }
}

struct State {
    order: Arc<Order>,
    known: watch::Receiver<Known>,
    /// Makes somebody ask the node who it is.
    wake: Arc<Notify>,
    news: watch::Receiver<u64>,
    _learning: AbortOnDropHandle<()>,
    /// The node of [`State::board`].
    node: Option<PeerId>,
    board: Board,
    /// Where each announcement that was sent went.
    places: BTreeMap<String, Place>,
    ears: Option<Ears>,
    invitations: Invitations,
    invited: Option<AbortOnDropHandle<()>>,
    announced: LiveGauge,
    /// The last failure of sending.
    failed: Option<io::ErrorKind>,
}

/// Hears the node's questions.
struct Ears {
    place: Place,
    socket: UdpSocket,
    message: Vec<u8>,
}

impl Ears {
    /// What the node asks next; never returns when there is nothing to hear with.
    async fn hear(ears: &mut Option<Self>) -> Asked {
        let Some(Self { place, socket, message }) = ears else { return std::future::pending().await };
        loop {
            match socket.recv_from(message).await {
                Ok((length, from)) if place.is_from_node(from.ip()) => {
                    if let Some(asked) = mdns::asked(message.get(..length).unwrap_or_default()) {
                        return asked;
                    }
                }
                Ok(_) => {}
                // Of something that was sent before.
                Err(_) => sleep(TICK).await,
            }
        }
    }
}

impl State {
    fn new(order: &Arc<Order>) -> Self {
        let (told, known) = watch::channel(Known::default());
        let wake = Arc::new(Notify::new());
        let (node, resolve) = (order.node.clone(), Arc::clone(&order.resolve));
        let learning = learn(node, resolve, order.settings.interval.0, told, Arc::clone(&wake));
        Self {
            order: Arc::clone(order),
            known,
            wake,
            news: order.exchange.news(),
            _learning: AbortOnDropHandle::new(tokio::spawn(learning)),
            node: None,
            board: Board::default(),
            places: BTreeMap::new(),
            ears: None,
            invitations: Invitations::default(),
            invited: None,
            announced: LiveGauge::new(gauge!("qudag_sidecar_peer_announced"), 0.0),
            failed: None,
        }
    }

    /// Whether the same node is asked in the same way.
    fn is_for(&self, order: &Arc<Order>) -> bool {
        let interval = |order: &Order| order.settings.interval;
        self.order.node == order.node
            && interval(&self.order) == interval(order)
            && Arc::ptr_eq(&self.order.exchange, &order.exchange)
    }

    /// Announces and withdraws what there is.
    fn look(&mut self, wanted: &BTreeMap<String, Wanted>, discovery: &Discovery) {
        let known = self.known.borrow_and_update().clone();
        self.news.mark_unchanged();
        let id = known.node.as_ref().map(|(id, _)| id.clone());
        self.order.exchange.tell(|state| state.node.clone_from(&id));
        let now = Instant::now();
        if id.is_some() && self.node != id {
            self.node.clone_from(&id);
            self.board.forgotten(now.into_std());
        }
        let (mut wishes, mut problems) = (BTreeMap::new(), BTreeMap::new());
        let mut peers = BTreeMap::new();
        for (route, wanted) in wanted {
            let Some((listen, (name, destination))) = wanted.listen.zip(wanted.sidecar.as_ref()) else {
                continue;
            };
            // The node asks when it starts, before anybody knows who it is.
            let ip = known.node.as_ref().map(|(_, address)| address.ip()).or_else(|| self.order.node_ip());
            let place = ip.map(|ip| Place::find(listen, ip));
            if let Some(Ok(place)) = place {
                self.hear_at(place);
                self.places.insert(route.clone(), place);
            }
            let Some(((own, _), place)) = known.node.as_ref().zip(place) else { continue };
            let Some(peer) = self.order.exchange.node_of(name, destination) else { continue };
            if peer == *own {
                problems.insert(route.clone(), "the route leads to the local node itself".to_owned());
                continue;
            }
            match place {
                Ok(place) => {
                    let at = format!("/ip4/{}/tcp/{}", place.source, listen.port());
                    peers.insert(route.clone(), name.clone());
                    wishes.insert(route.clone(), Wish { id: peer, at });
                }
                Err(why) => {
                    problems.insert(route.clone(), why.to_owned());
                }
            }
        }
        let ttl = self.order.settings.ttl.0;
        let work = self.board.work(&wishes, ttl, now.into_std());
        self.send(&work.withdraw, 0, "withdrawn");
        self.send(&work.announce, seconds(&self.order.settings), "sent");
        self.places.retain(|route, _| wanted.contains_key(route));
        self.announced.set(self.board.told().count() as f64);
        if let Some((own, address)) = &known.node
            && self.order.settings.invite
        {
            self.invite(own, address.ip(), &peers);
        }
        let announced =
            self.board.told().map(|(route, told, _)| (route.to_owned(), told.multiaddr())).collect();
        discovery.show(&known, announced, problems);
    }

    fn hear_at(&mut self, place: Place) {
        // One that could not be had is not asked for again and again.
        if self.places.values().all(|other| !other.hears_as(&place)) {
            match place.listen() {
                Ok(socket) => self.ears = Some(Ears { place, socket, message: vec![0; 9000] }),
                Err(why) => {
                    tracing::warn!(%why, "the local node's questions for peers cannot be heard; announcements are repeated anyway")
                }
            }
        }
    }

    /// Sends announcements to where each belongs.
    fn send(&mut self, announcements: &[Announcement], ttl: u32, outcome: &'static str) {
        let mut by_place: Vec<(Place, Vec<Announcement>)> = Vec::new();
        for announcement in announcements {
            // The address says the place: it is where the announcement has to come from.
            let place = self
                .places
                .values()
                .find(|place| announcement.at.starts_with(&format!("/ip4/{}/", place.source)));
            let Some(place) = place else { continue };
            match by_place.iter_mut().find(|(other, _)| other == place) {
                Some((_, list)) => list.push(announcement.clone()),
                None => by_place.push((*place, vec![announcement.clone()])),
            }
        }
        for (place, list) in by_place {
            let sent = place.send(&mdns::announce(&list, ttl));
            self.sent(sent, outcome, list.len());
        }
    }

    fn sent(&mut self, sent: io::Result<()>, outcome: &'static str, count: usize) {
        let failed = sent.as_ref().err().map(io::Error::kind);
        let outcome = if failed.is_some() { "failed" } else { outcome };
        counter!("qudag_sidecar_peer_announcements_total", "outcome" => outcome).increment(count as u64);
        if let Err(why) = sent
            && self.failed != failed
        {
            tracing::warn!(%why, "peers cannot be announced to the local node");
        }
        self.failed = failed;
    }

    /// The node has asked.
    fn asked(&mut self, asked: Asked) {
        counter!("qudag_sidecar_peer_discovery_queries_total").increment(1);
        match asked {
            Asked::Nodes => {
                // It asks when it starts, and is somebody else then.
                self.wake.notify_one();
                self.board.asked();
            }
            Asked::Services => {
                let places: Vec<_> = self.ears.iter().map(|ears| ears.place).collect();
                for place in places {
                    let message = mdns::service(seconds(&self.order.settings));
                    let sent = place.send(&Vec::from_iter(message));
                    self.sent(sent, "sent", 1);
                }
            }
        }
    }

    /// Makes the node dial somebody, if there is somebody to be dialled.
    fn invite(&mut self, own: &PeerId, node: IpAddr, peers: &BTreeMap<String, PeerName>) {
        if self.invited.as_ref().is_some_and(|invited| !invited.is_finished()) {
            return;
        }
        let candidates: Vec<_> = self
            .board
            .told()
            .filter_map(|(route, told, since)| {
                let met = self.order.exchange.met(peers.get(route)?);
                let met = met.is_some_and(|met| met.into_std() >= since);
                Some(Candidate { id: told.id.clone(), since, met })
            })
            .collect();
        let Some(invitation) = self.invitations.next(own, &candidates, Instant::now().into_std()) else {
            return;
        };
        let Some(place) = self.places.values().next().copied() else { return };
        tracing::debug!(bucket = invitation.bucket, filled = invitation.fill, %node, "the local node is made to dial");
        let order = Arc::clone(&self.order);
        self.invited = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let outcome = match timeout(VISIT, carry_out(&order, invitation, place)).await {
                Ok(Ok(())) => "ok",
                Ok(Err(why)) => {
                    tracing::debug!(%why, "the local node was not made to dial");
                    why.label()
                }
                Err(_) => "timeout",
            };
            counter!("qudag_sidecar_peer_invitations_total", "outcome" => outcome).increment(1);
        })));
    }

    /// Tells the node that everything is gone.
    fn end(&mut self) {
        let told = self.board.clear();
        self.send(&told, 0, "withdrawn");
        self.order.exchange.tell(|state| state.node = None);
    }
}

async fn carry_out(order: &Order, invitation: Invitation, place: Place) -> Result<(), NodeFailure> {
    let node = invitation.node.clone();
    let company = tokio::task::spawn_blocking(move || company(&invitation, place.source));
    let (nobody, visitor) = company.await.ok().flatten().ok_or(NodeFailure::Internal)?;
    if !nobody.is_empty() {
        place.send(&mdns::announce(&nobody, NOBODY_TTL))?;
        sleep(READ).await;
    }
    let (stream, _) = connect(&order.node, &*order.resolve).await?;
    visit(stream, &node, &visitor, nowhere(place.source)).await
}

/// For how long the node believes an announcement.
fn seconds(settings: &PeerDiscovery) -> u32 {
    u32::try_from(settings.ttl.0.as_secs()).unwrap_or(u32::MAX)
}
