//! One query's way through the servers.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use metrics::{counter, histogram};
use qudag_filter_api::{FilterError, Host};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::exchange::{self, Failure};
use super::system::RESOLV_CONF;
use super::{Server, Upstream, own};
use crate::wire::{Parsed, Stripped};
use crate::{DnsReply, Source};

/// How many times servers are asked for one query.
const MOST: usize = 16;
/// How many addresses of one server's name are asked.
const MOST_ADDRESSES: usize = 4;

/// The answer to a query: the first good one of a server. A server that fails is left for the next one at once. One that is silent for
/// `attempt_timeout` is still listened to while the next ones are asked, and is asked again after them, for its datagram may
/// have been lost.
pub(super) async fn answer(upstream: &Upstream, asked: &Parsed) -> Result<DnsReply, FilterError> {
    let limit = upstream.settings.timeout.0;
    let mut trial = Trial {
        upstream,
        asked,
        targets: VecDeque::new(),
        asks: Vec::new(),
        refusal: None,
        error: None,
        own: false,
    };
    let outcome = timeout_at(Instant::now() + limit, trial.run()).await;
    trial
        .asks
        .iter()
        .filter(|ask| ask.slow && !ask.done)
        .for_each(|ask| count(&ask.target.server, "timeout"));
    match outcome {
        Ok(Some(reply)) => Ok(reply),
        Ok(None) | Err(_) => trial.conclude(limit),
    }
}

/// Whom to ask.
#[derive(Clone)]
struct Target {
    server: Server,
    /// One of the server's addresses; `None` where its name has to be resolved first.
    addr: Option<SocketAddr>,
    /// How many times it was asked.
    asked: u32,
}

/// A server that was asked.
struct Ask {
    target: Target,
    start: Instant,
    /// It was silent for long enough that the next one was asked.
    slow: bool,
    /// It answered or failed.
    done: bool,
}

enum Event {
    Resolved(Server, Result<Vec<IpAddr>, String>),
    /// The number of the ask, and what came of it.
    Ended(usize, Result<Stripped, Failure>),
}

struct Trial<'a> {
    upstream: &'a Upstream,
    asked: &'a Parsed,
    targets: VecDeque<Target>,
    asks: Vec<Ask>,
    /// The first error that a server answered with.
    refusal: Option<DnsReply>,
    /// Why the last server gave no answer at all.
    error: Option<FilterError>,
    /// A server was left out because it is this process.
    own: bool,
}

impl<'a> Trial<'a> {
    async fn run(&mut self) -> Option<DnsReply> {
        let servers = match self.upstream.settings.servers.as_slice() {
            [] => self.upstream.state.system.servers().await,
            servers => servers.to_vec(),
        };
        if servers.is_empty() {
            let why = "it names no server, nor does filters.dns.dns_upstream.servers".into();
            self.error = Some(FilterError::Resolve { name: RESOLV_CONF.to_owned(), why });
        }
        let servers = self.upstream.state.health.order(servers, Instant::now());
        self.targets = servers.into_iter().map(Target::new).collect();

        let mut running = FuturesUnordered::new();
        let mut due = true;
        loop {
            if due {
                running.extend(self.next());
            }
            // With an error in hand there is no point in waiting for those that are silent.
            if running.is_empty() || self.refusal.is_some() && self.is_exhausted(running.len()) {
                return None;
            }
            let patience = self.patience();
            due = tokio::select! {
                Some(event) = running.next() => match event {
                    Event::Resolved(server, result) => {
                        self.resolved(&server, result);
                        true
                    }
                    Event::Ended(number, Ok(reply)) => return self.answered(number, reply),
                    Event::Ended(number, Err(failure)) => self.failed(number, failure),
                },
                () = sleep_until(patience.unwrap_or_else(Instant::now)), if patience.is_some() => {
                    self.silent();
                    true
                }
            };
        }
    }

    /// When the server asked last has been silent for too long; `None` when that is known already.
    fn patience(&self) -> Option<Instant> {
        let last = self.asks.last().filter(|ask| !ask.slow && !ask.done)?;
        Some(last.start + self.upstream.settings.attempt_timeout.0)
    }

    /// Whether everybody has been asked, and of what is still running there are only those that are silent.
    fn is_exhausted(&self, running: usize) -> bool {
        let silent = self.asks.iter().filter(|ask| ask.slow && !ask.done).count();
        running == silent && self.targets.iter().all(|target| !self.is_worth(target))
    }

    /// Servers that were silent are asked again and again while there is nothing better, and once more in any case.
    fn is_worth(&self, target: &Target) -> bool {
        self.asks.len() < MOST && (self.refusal.is_none() || target.asked < 2)
    }

    /// Starts on the next server.
    fn next(&mut self) -> Option<BoxFuture<'a, Event>> {
        let upstream = self.upstream;
        loop {
            let target = self.targets.pop_front().filter(|target| self.is_worth(target))?;
            let server = target.server.clone();
            let addr = match (&server.0.host, target.addr) {
                (_, Some(addr)) => addr,
                (Host::Ip(ip), None) => SocketAddr::new(*ip, server.0.port),
                (Host::Name(name), None) => {
                    let resolving =
                        timeout(upstream.settings.attempt_timeout.0, upstream.resolve.resolve(name));
                    return Some(Box::pin(async move {
                        let ips = match resolving.await {
                            Ok(resolved) => resolved.map_err(|why| why.to_string()),
                            Err(_) => Err("timeout".to_owned()),
                        };
                        Event::Resolved(server, ips)
                    }));
                }
            };
            if own::is_own(addr) {
                count(&server, "own_address");
                self.own = true;
                continue;
            }
            let number = self.asks.len();
            let asked = self.asked;
            let target = Target { server, addr: Some(addr), asked: target.asked + 1 };
            self.asks.push(Ask { target, start: Instant::now(), slow: false, done: false });
            return Some(Box::pin(async move {
                // Never closed.
                let _socket = upstream.state.sockets.acquire().await;
                Event::Ended(number, exchange::ask(addr, asked, &upstream.state.ids).await)
            }));
        }
    }

    fn resolved(&mut self, server: &Server, result: Result<Vec<IpAddr>, String>) {
        match result {
            Ok(ips) => {
                for ip in ips.into_iter().take(MOST_ADDRESSES).rev() {
                    let addr = Some(SocketAddr::new(ip, server.0.port));
                    self.targets.push_front(Target { server: server.clone(), addr, asked: 0 });
                }
            }
            Err(why) => {
                count(server, "resolve");
                self.upstream.state.health.failed(server, Instant::now());
                self.error = Some(FilterError::Resolve { name: server.to_string(), why: why.into() });
            }
        }
    }

    fn answered(&mut self, number: usize, reply: Stripped) -> Option<DnsReply> {
        let now = Instant::now();
        let ask = self.asks.get_mut(number)?;
        ask.done = true;
        let server = ask.target.server.clone();
        count(&server, "ok");
        histogram!("qudag_sidecar_dns_upstream_seconds", "server" => server.to_string())
            .record((now - ask.start).as_secs_f64());
        let health = &self.upstream.state.health;
        health.succeeded(&server);
        // A server that answers worse than the next one is in trouble. When all answer alike, the name is.
        let failed = self.asks.iter().filter(|ask| ask.done && ask.target.server != server);
        failed.for_each(|ask| health.failed(&ask.target.server, now));
        Some(reply_of(&server, reply))
    }

    /// Notes a failure. Whether the next server is to be asked now: not when it is being asked already.
    fn failed(&mut self, number: usize, failure: Failure) -> bool {
        let is_last = number + 1 == self.asks.len();
        let Some(ask) = self.asks.get_mut(number) else { return true };
        ask.done = true;
        let server = ask.target.server.clone();
        count(&server, failure.label());
        match failure {
            Failure::Network(why) => {
                self.upstream.state.health.failed(&server, Instant::now());
                self.error = Some(FilterError::connect(server.to_string(), why));
            }
            Failure::Mismatch => {
                self.error = Some(FilterError::Upstream("a reply to another query".into()));
            }
            Failure::Code(_, Some(reply)) if self.refusal.is_none() => {
                self.refusal = Some(reply_of(&server, reply));
            }
            Failure::Code(..) => {
                self.error.get_or_insert(FilterError::Upstream("an error without a question".into()));
            }
        }
        is_last || self.asks.iter().all(|ask| ask.done)
    }

    /// The server asked last has been silent for too long.
    fn silent(&mut self) {
        let Some(ask) = self.asks.last_mut() else { return };
        ask.slow = true;
        let target = ask.target.clone();
        self.upstream.state.health.failed(&target.server, Instant::now());
        self.targets.push_back(target);
    }

    /// What the client is told when no server gave a good answer: what a server said, or else why none could.
    fn conclude(self, limit: Duration) -> Result<DnsReply, FilterError> {
        let silent = self.asks.iter().any(|ask| !ask.done);
        match (self.refusal, self.error) {
            (Some(reply), _) => Ok(reply),
            (None, Some(error)) if !silent => Err(error),
            (None, None) if !silent && self.own => {
                Err(FilterError::Upstream("the upstream server is this sidecar itself".into()))
            }
            (None, _) => Err(FilterError::Timeout { after: limit }),
        }
    }
}

impl Target {
    fn new(server: Server) -> Self {
        Self { server, addr: None, asked: 0 }
    }
}

fn reply_of(server: &Server, reply: Stripped) -> DnsReply {
    let source = Source::Upstream(server.to_string().into());
    DnsReply { ede: reply.ede, ..DnsReply::new(reply.wire.into(), source) }
}

fn count(server: &Server, outcome: &'static str) {
    counter!(
        "qudag_sidecar_dns_upstream_queries_total",
        "server" => server.to_string(), "outcome" => outcome
    )
    .increment(1);
}
