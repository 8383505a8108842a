//! One server: what is known of it, its connections, and how it is asked.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use qudag_filter_api::{Host, Resolve};
use tokio::time::{Instant, timeout};

use super::gate::{Gate, Seat};
use super::message::{Checked, Failure, Randomness, check, query};
use super::meters::Meters;
use super::own;
use super::rules::{BreakerLimits, BreakerState, Candidate, Fault, Health, HedgeLimits, Latency, List, Rank};
use super::server::{Protocol, Server};
use super::settings::DnsUpstream;
use super::status::ServerStatus;
use super::transport::tls::Tls;
use super::transport::udp::{Heard, Line, Sent};
use super::transport::{Pool, Target};
use crate::wire::{Parsed, Stripped};

/// How many addresses of one server's name are used.
const MOST_ADDRESSES: usize = 4;
/// A server that did not repeat the case of names is given another chance after this time.
const CASE_MEMORY: Duration = Duration::from_secs(3600);

/// What asking needs besides the server.
#[derive(Clone)]
pub(super) struct Means {
    pub(super) hedge: HedgeLimits,
    pub(super) breaker: BreakerLimits,
    pub(super) randomize: bool,
    pub(super) per_server: usize,
    pub(super) queue: usize,
    pub(super) resolve: Arc<dyn Resolve>,
    pub(super) tls: Option<Tls>,
    pub(super) random: Arc<Randomness>,
}

impl Means {
    pub(super) fn new(
        settings: &DnsUpstream,
        resolve: Arc<dyn Resolve>,
        tls: Option<Tls>,
        random: Arc<Randomness>,
    ) -> Self {
        Self {
            hedge: settings.hedge_limits(),
            breaker: settings.breaker_limits(),
            randomize: settings.case_randomization,
            per_server: usize::try_from(settings.max_in_flight_per_server).unwrap_or(usize::MAX),
            queue: usize::try_from(settings.max_queued).unwrap_or(usize::MAX),
            resolve,
            tls,
            random,
        }
    }
}

/// One server. It outlives a reload that keeps it; its connections are closed when the last generation that has it is gone.
pub(super) struct Member {
    pub(super) server: Server,
    /// Its name in replies, logs and metrics.
    pub(super) name: Arc<str>,
    pub(super) meters: Meters,
    known: Mutex<Known>,
    gate: Arc<Gate>,
    pool: Pool,
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member").field("server", &self.name).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Known {
    health: Health,
    latency: Latency,
    /// What its name was resolved to last.
    addresses: Vec<SocketAddr>,
    /// When it did not repeat the case of a name.
    other_case: Option<Instant>,
    used: Option<Instant>,
    probed: Option<Instant>,
    answers: u64,
    failures: u64,
    last_failure: Option<String>,
    shown: Option<(bool, BreakerState)>,
}

/// What became of a question to a server.
pub(super) enum Outcome {
    /// A good answer, and how long it took, where that is known.
    Good(Stripped, Option<Duration>),
    /// None.
    Failed(Failure),
    /// Something came that is no reply; the question stays open.
    Strange(Box<Open>),
}

/// A question that is still open.
pub(super) struct Open {
    sent: Sent,
    addr: SocketAddr,
    start: Instant,
}

/// Where a question that was sent in a datagram can be sent again, once it was sent.
#[derive(Clone, Debug, Default)]
pub(super) struct Again(Arc<OnceLock<Weak<Line>>>);

impl Again {
    /// Sends it again. False where it was not sent in a datagram, or nobody waits for the reply any more.
    pub(super) fn send(&self) -> bool {
        let line = self.0.get().and_then(Weak::upgrade);
        line.inspect(|line| line.again()).is_some()
    }
}

/// A query's place at a server, however often the server is asked.
#[derive(Debug)]
pub(super) struct Place {
    member: Arc<Member>,
    _seat: Seat,
}

impl Place {
    fn new(member: &Arc<Member>, seat: Seat) -> Self {
        member.meters.in_flight(1.0);
        Self { member: Arc::clone(member), _seat: seat }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.member.meters.in_flight(-1.0);
    }
}

impl Member {
    pub(super) fn new(server: Server) -> Self {
        let name = server.to_string();
        let meters = Meters::new(name.clone());
        meters.state(true, BreakerState::Closed);
        let (known, gate) = (Mutex::default(), Arc::default());
        Self { server, name: name.into(), meters, known, gate, pool: Pool::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server as one to ask for a query.
    pub(super) fn candidate(&self, list: List, now: Instant, limits: &HedgeLimits, only: bool) -> Candidate {
        let mut known = self.known();
        let doubt = known.latency.doubt(limits);
        // On a connection nothing is lost: sooner makes sense for datagrams only.
        let only = only && self.server.protocol() == Protocol::Udp;
        Candidate {
            list,
            rank: known.health.admit(now, doubt),
            patience: known.latency.patience(limits),
            resend: known.latency.resend(limits, only),
        }
    }

    /// A place for a query, if one is free and nobody waits for it.
    pub(super) fn place(self: &Arc<Self>, means: &Means) -> Option<Place> {
        Some(Place::new(self, self.gate.try_enter(means.per_server)?))
    }

    /// Waits for a place; `None` at once when too many wait already.
    pub(super) async fn queue(self: Arc<Self>, means: Arc<Means>) -> Option<Place> {
        let seat = self.gate.enter(means.per_server, means.queue).await?;
        Some(Place::new(&self, seat))
    }

    /// Whether a query that was sent at a time went into a silence of the server.
    pub(super) fn missed(&self, sent: Instant, now: Instant) -> bool {
        self.known().health.missed(sent, now)
    }

    /// Asks a question. `turn` is how many times the server was asked it before: each time another of its addresses.
    pub(super) async fn ask(
        self: Arc<Self>,
        means: Arc<Means>,
        asked: Arc<Parsed>,
        turn: u32,
        again: Again,
    ) -> Outcome {
        self.known().used = Some(Instant::now());
        let outcome = self.asked(&means, &asked, turn, &again).await;
        self.learn(&means, &outcome);
        outcome
    }

    /// Goes on listening.
    pub(super) async fn listen(
        self: Arc<Self>,
        means: Arc<Means>,
        asked: Arc<Parsed>,
        open: Box<Open>,
    ) -> Outcome {
        let outcome = self.heard(&means, &asked, open).await;
        self.learn(&means, &outcome);
        outcome
    }

    /// Asks without learning from it but how long it took.
    async fn asked(&self, means: &Means, asked: &Parsed, turn: u32, again: &Again) -> Outcome {
        let addr = match self.address(means, turn).await {
            Ok(addr) => addr,
            Err(why) => return Outcome::Failed(why),
        };
        if own::is_own(addr) {
            return Outcome::Failed(Failure::Own);
        }
        let start = Instant::now();
        self.known().health.sent(start);
        if self.server.protocol() != Protocol::Udp {
            return self.connected(means, asked, addr).await;
        }
        match Sent::new(addr, asked, &means.random, means.randomize && self.repeats_case(start)).await {
            Err(why) => Outcome::Failed(Failure::Network(why)),
            Ok(sent) => {
                // Each question is sent once, so nothing is there yet.
                drop(again.0.set(Arc::downgrade(sent.line())));
                let open = Open { sent, addr, start };
                self.heard(means, asked, Box::new(open)).await
            }
        }
    }

    async fn heard(&self, means: &Means, asked: &Parsed, mut open: Box<Open>) -> Outcome {
        match open.sent.heard(asked).await {
            Heard::Good(reply) => {
                let took = open.start.elapsed();
                Outcome::Good(reply, Some(took).filter(|_| !open.sent.is_repeated()))
            }
            Heard::Failed(why) => Outcome::Failed(why),
            Heard::Strange => Outcome::Strange(open),
            // RFC 7766 section 5.
            Heard::Truncated => self.connected(means, asked, open.addr).await,
            Heard::OtherCase => self.in_other_case(means, asked, open.addr).await,
        }
    }

    /// What to do about a reply that fits but for the case of its name: forged, or from a server that does not repeat it. Over TCP nobody
    /// else can answer; where there is no TCP, the question goes out once more, as everybody else would send it.
    async fn in_other_case(&self, means: &Means, asked: &Parsed, addr: SocketAddr) -> Outcome {
        self.meters.ended("case");
        let outcome = match self.connected(means, asked, addr).await {
            Outcome::Failed(Failure::Network(_) | Failure::Closed) => {
                let start = Instant::now();
                match Sent::new(addr, asked, &means.random, false).await {
                    Err(why) => return Outcome::Failed(Failure::Network(why)),
                    Ok(mut sent) => match sent.heard(asked).await {
                        Heard::Good(reply) => Outcome::Good(reply, Some(start.elapsed())),
                        Heard::Failed(why) => Outcome::Failed(why),
                        Heard::Truncated | Heard::OtherCase | Heard::Strange => {
                            Outcome::Failed(Failure::Mismatch)
                        }
                    },
                }
            }
            outcome => outcome,
        };
        if matches!(outcome, Outcome::Good(..)) {
            let first = self.known().other_case.replace(Instant::now()).is_none();
            if first {
                tracing::info!(server = %self.name, "does not repeat the case of names; it gets them in lower case");
            }
        }
        outcome
    }

    fn repeats_case(&self, now: Instant) -> bool {
        let mut known = self.known();
        let forgotten = known.other_case.is_some_and(|at| now.saturating_duration_since(at) >= CASE_MEMORY);
        if forgotten {
            known.other_case = None;
        }
        known.other_case.is_none()
    }

    /// Asks over a connection.
    async fn connected(&self, means: &Means, asked: &Parsed, addr: SocketAddr) -> Outcome {
        let protocol = match self.server.protocol() {
            Protocol::Udp => Protocol::Tcp,
            protocol => protocol,
        };
        let target = Target { protocol, addr, tls: means.tls.clone() };
        let patience = self.known().latency.resend(&means.hedge, false) * 3 / 4;
        let name = asked.name.wire();
        let message = query(asked, name, 0, protocol.is_encrypted());
        match self.pool.exchange(&self.server, &target, message, patience, &means.random).await {
            Err(why) => Outcome::Failed(why),
            Ok((reply, took)) => match check(reply, 0, asked, name, false) {
                Checked::Good(reply) => Outcome::Good(reply, Some(took)),
                Checked::Bad(why) => Outcome::Failed(why),
                Checked::Truncated | Checked::OtherCase | Checked::Strange => {
                    Outcome::Failed(Failure::Mismatch)
                }
            },
        }
    }

    /// One of its addresses.
    async fn address(&self, means: &Means, turn: u32) -> Result<SocketAddr, Failure> {
        let port = self.server.address().port;
        let name = match &self.server.address().host {
            Host::Ip(ip) => return Ok(SocketAddr::new(*ip, port)),
            Host::Name(name) => name,
        };
        let resolved = match timeout(means.hedge.attempt, means.resolve.resolve(name)).await {
            Ok(resolved) => resolved.map_err(|why| why.to_string()),
            Err(_) => Err("no answer in time".to_owned()),
        };
        let mut known = self.known();
        let failure = match resolved {
            Ok(ips) => {
                let addresses = ips.into_iter().map(|ip: IpAddr| SocketAddr::new(ip, port));
                known.addresses = addresses.take(MOST_ADDRESSES).collect();
                "no address".to_owned()
            }
            // Where it was before is the best guess.
            Err(why) => why,
        };
        let turn = usize::try_from(turn).unwrap_or(0);
        let addr = known.addresses.get(turn % known.addresses.len().max(1)).copied();
        addr.ok_or(Failure::Resolve(failure))
    }

    fn learn(&self, means: &Means, outcome: &Outcome) {
        let now = Instant::now();
        match outcome {
            Outcome::Good(_, took) => {
                self.meters.answered(*took);
                self.update(now, |known| {
                    known.answers += 1;
                    took.iter().for_each(|took| known.latency.record(*took));
                    known.health.succeeded(now, &means.breaker);
                });
            }
            Outcome::Strange(_) => {
                self.meters.ended("mismatch");
                self.update(now, |known| known.health.doubt());
            }
            Outcome::Failed(why) => {
                self.meters.ended(why.label());
                self.update(now, |known| {
                    known.failures += 1;
                    known.last_failure = Some(why.text());
                    match why {
                        Failure::Own => {}
                        // Whether that is the server's fault shows when others have answered.
                        Failure::Code(..) => known.health.heard(now),
                        Failure::Network(_)
                        | Failure::Closed
                        | Failure::Tls(_)
                        | Failure::Http(_)
                        | Failure::Resolve(_)
                        | Failure::Mismatch => {
                            known.health.failed(Fault::Network, now, &means.breaker);
                        }
                    }
                });
            }
        }
    }

    /// It answered with an error where another server had an answer.
    pub(super) fn was_wrong(&self, means: &Means) {
        let now = Instant::now();
        self.update(now, |known| {
            known.health.failed(Fault::Code, now, &means.breaker);
        });
    }

    /// It has not answered a question that was asked at a time.
    pub(super) fn was_silent(&self, asked: Instant, means: &Means) {
        let now = Instant::now();
        self.meters.ended("timeout");
        self.update(now, |known| {
            known.failures += 1;
            known.last_failure = Some("no answer in time".to_owned());
            known.health.silent(asked, now, &means.breaker);
        });
    }

    /// Changes what is known, and shows it.
    fn update(&self, now: Instant, change: impl FnOnce(&mut Known)) {
        let mut known = self.known();
        change(&mut known);
        let breaker = known.health.breaker();
        // Only silence that has lasted is seen here; a query that is under way is no trouble.
        let healthy = known.health.rank(now, Duration::MAX) == Rank::Clean;
        let before = known.shown.replace((healthy, breaker)).unwrap_or((true, BreakerState::Closed));
        if before == (healthy, breaker) {
            return;
        }
        self.meters.state(healthy, breaker);
        let why = known.last_failure.clone().unwrap_or_default();
        drop(known);
        match (before.1, breaker) {
            (BreakerState::Closed, BreakerState::Open) => {
                tracing::warn!(server = %self.name, why, "fails and is left alone");
            }
            (BreakerState::Open | BreakerState::HalfOpen, BreakerState::Closed) => {
                tracing::info!(server = %self.name, "is back");
            }
            _ => {}
        }
    }

    /// Whether a probe is due: soon where something is wrong, each `interval` where nobody else asks, seldom where nobody asks anything.
    pub(super) fn probe_due(&self, now: Instant, interval: Duration, quiet: bool, means: &Means) -> bool {
        let known = self.known();
        let since = |at: Option<Instant>| at.map_or(Duration::MAX, |at| now.saturating_duration_since(at));
        let doubt = known.latency.doubt(&means.hedge);
        let pause = match known.health.breaker() {
            // It is nearly back.
            BreakerState::HalfOpen => interval / 5,
            _ if known.health.is_troubled(now, doubt) => interval,
            _ if since(known.used) < interval => return false,
            _ if quiet => interval * QUIET,
            _ => interval,
        };
        since(known.probed) >= jittered(pause, means.random.next())
    }

    /// Asks the probe's question.
    pub(super) async fn probe(self: Arc<Self>, means: Arc<Means>, question: Arc<Parsed>) {
        let start = Instant::now();
        self.known().probed = Some(start);
        // The handshake of a new connection may take longer than an answer.
        let limit =
            if self.server.protocol().is_encrypted() { means.hedge.attempt * 3 } else { means.hedge.attempt };
        let asking = async {
            let mut outcome = self.asked(&means, &question, 0, &Again::default()).await;
            while let Outcome::Strange(open) = outcome {
                outcome = self.heard(&means, &question, open).await;
            }
            outcome
        };
        let outcome = timeout(limit, asking).await;
        let now = Instant::now();
        let failed = |fault, label, why| {
            self.meters.probed(label);
            self.update(now, |known: &mut Known| {
                known.last_failure = Some(why);
                known.health.failed(fault, now, &means.breaker);
            });
        };
        match outcome {
            Err(_) => failed(Fault::Silence, "timeout", "no answer to a probe in time".to_owned()),
            Ok(Outcome::Good(_, took)) => {
                self.meters.probed("ok");
                self.update(now, |known| {
                    took.iter().for_each(|took| known.latency.record(*took));
                    known.health.probed(true, now, &means.breaker);
                });
            }
            Ok(Outcome::Failed(why @ Failure::Code(..))) => {
                self.meters.probed(why.label());
                self.update(now, |known| {
                    known.health.probed(false, now, &means.breaker);
                });
            }
            // Nothing was asked.
            Ok(Outcome::Failed(why @ Failure::Own)) => self.meters.probed(why.label()),
            Ok(Outcome::Failed(why)) => failed(Fault::Network, why.label(), why.text()),
            Ok(Outcome::Strange(_)) => {}
        }
    }

    /// Closes connections that are idle.
    pub(super) fn sweep(&self, now: Instant) {
        self.pool.sweep(now);
    }

    /// What is known, for status.
    pub(super) fn status(&self, list: List) -> ServerStatus {
        let (in_flight, connections) = (self.gate.inside(), self.pool.open());
        let known = self.known();
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        ServerStatus {
            server: self.name.to_string(),
            list: list.label(),
            protocol: self.server.protocol().label(),
            healthy: known.health.rank(Instant::now(), Duration::MAX) == Rank::Clean,
            breaker: known.health.breaker().label(),
            latency_ms: known.latency.smoothed().map(ms),
            p95_ms: known.latency.p95().map(ms),
            in_flight,
            connections,
            answers: known.answers,
            failures: known.failures,
            last_failure: known.last_failure.clone(),
            repeats_case: known.other_case.is_none(),
        }
    }
}

/// While nobody asks anything, servers are probed less often by this factor.
const QUIET: u32 = 30;

/// A time between 80 and 120 of 100 parts, so that probes of many sidecars do not meet.
fn jittered(time: Duration, random: u64) -> Duration {
    let part = u32::try_from(random % 41).unwrap_or(20) + 80;
    time * part / 100
}
