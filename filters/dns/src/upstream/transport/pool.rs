//! The connections to one server.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::super::message::{Failure, Randomness};
use super::super::server::{Protocol, Server};
use super::framed::Framed;
use super::https::Https;
use super::quic::Quic;
use super::tls::Tls;

/// A further connection is opened when so many queries wait on each.
const CROWD: usize = 100;
/// How many connections there are at most to one address.
const MOST: usize = 4;
/// How long a handshake may take. The query that caused it may be over by then; the next one finds the connection.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// A connection without queries is closed after this time (RFC 7766 section 6.2.3, RFC 7858 section 3.4).
const IDLE: Duration = Duration::from_secs(10);
/// A connection older than this may have ended for reasons of its own.
const FRESH: Duration = Duration::from_secs(1);
/// On how many connections one query is tried.
const MOST_TRIES: u32 = 3;

/// What is needed to open a connection.
#[derive(Clone, Debug)]
pub(in super::super) struct Target {
    pub(in super::super) protocol: Protocol,
    pub(in super::super) addr: SocketAddr,
    /// What a server is verified with; encrypted ones cannot be reached without.
    pub(in super::super) tls: Option<Tls>,
}

/// A connection that is being opened, for all who want it.
type Opening = Shared<BoxFuture<'static, Result<Arc<Link>, Arc<Failure>>>>;

/// The connections to one server.
#[derive(Default)]
pub(in super::super) struct Pool {
    links: Mutex<Links>,
}

#[derive(Default)]
struct Links {
    open: Vec<Arc<Link>>,
    opening: HashMap<(Protocol, SocketAddr), Opening>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("open", &self.lock().open.len()).finish()
    }
}

/// A connection, and what is known of it.
struct Link {
    protocol: Protocol,
    addr: SocketAddr,
    wire: Wire,
    since: Instant,
    /// It has carried a reply.
    used: AtomicBool,
    waiting: AtomicUsize,
    pulse: Mutex<Pulse>,
}

enum Wire {
    Framed(Framed),
    Https(Https),
    Quic(Quic),
}

/// When something was heard on a connection.
#[derive(Clone, Copy, Debug)]
struct Pulse {
    /// The last reply, or the beginning.
    heard: Instant,
    /// The earliest query since then that waits.
    asked: Option<Instant>,
}

impl Pulse {
    /// Whether a query has waited for so long without a sign of life. A peer that was cut off says nothing more, and no error comes either.
    fn is_gone(&self, now: Instant, patience: Duration) -> bool {
        self.asked.is_some_and(|asked| now.saturating_duration_since(asked) > patience)
    }

    fn asked(&mut self, now: Instant) {
        self.asked.get_or_insert(now);
    }

    /// A query was answered, and others wait or not.
    fn heard(&mut self, now: Instant, others: bool) {
        self.heard = now;
        self.asked = others.then_some(now);
    }
}

/// A query on a connection: nobody waits for it when it is dropped.
struct Asking<'a>(&'a Link);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

impl Link {
    fn pulse(&self) -> MutexGuard<'_, Pulse> {
        self.pulse.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_closed(&self) -> bool {
        match &self.wire {
            Wire::Framed(wire) => wire.is_closed(),
            Wire::Https(wire) => wire.is_closed(),
            Wire::Quic(wire) => wire.is_closed(),
        }
    }

    async fn exchange(&self, message: Vec<u8>) -> Result<Vec<u8>, Failure> {
        self.waiting.fetch_add(1, Relaxed);
        let asking = Asking(self);
        self.pulse().asked(Instant::now());
        let reply = match &self.wire {
            Wire::Framed(wire) => wire.exchange(message).await,
            Wire::Https(wire) => wire.exchange(message).await,
            Wire::Quic(wire) => wire.exchange(&message).await,
        };
        drop(asking);
        if reply.is_ok() {
            self.used.store(true, Relaxed);
            self.pulse().heard(Instant::now(), self.waiting.load(Relaxed) > 0);
        }
        reply
    }
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many connections are open.
    pub(in super::super) fn open(&self) -> usize {
        self.lock().open.iter().filter(|link| !link.is_closed()).count()
    }

    /// Closes what is idle or dead.
    pub(in super::super) fn sweep(&self, now: Instant) {
        self.lock().open.retain(|link| {
            let pulse = *link.pulse();
            let used = link.waiting.load(Relaxed) > 0;
            let idle = now.saturating_duration_since(pulse.heard) > IDLE;
            !link.is_closed() && (used || !idle)
        });
    }

    /// Asks on a connection that is open, or opens one. `patience` is for how long a connection may say nothing while queries wait.
    /// Returns the reply and how long it took without the opening.
    pub(in super::super) async fn exchange(
        &self,
        server: &Server,
        target: &Target,
        message: Vec<u8>,
        patience: Duration,
        random: &Arc<Randomness>,
    ) -> Result<(Vec<u8>, Duration), Failure> {
        let mut tries = 0;
        loop {
            tries += 1;
            let link = match self.pooled(target, patience) {
                Some(link) => link,
                None => self.opened(server, target, random).await?,
            };
            let start = Instant::now();
            match link.exchange(message.clone()).await {
                Ok(reply) => return Ok((reply, start.elapsed())),
                Err(why) => {
                    self.forget(&link);
                    // The server may have closed a connection that it had for a while; that says nothing of the next one.
                    let used = link.used.load(Relaxed) || start.saturating_duration_since(link.since) > FRESH;
                    let again = used && matches!(why, Failure::Closed | Failure::Network(_));
                    if !again || tries == MOST_TRIES {
                        return Err(why);
                    }
                }
            }
        }
    }

    /// The connection to use: the one with the fewest queries, unless another one is to be opened.
    fn pooled(&self, target: &Target, patience: Duration) -> Option<Arc<Link>> {
        let now = Instant::now();
        let mut links = self.lock();
        // One that is given up lives on for the queries that wait on it.
        links.open.retain(|link| !link.is_closed() && !link.pulse().is_gone(now, patience));
        let ours = |link: &&Arc<Link>| link.addr == target.addr && link.protocol == target.protocol;
        let count = links.open.iter().filter(ours).count();
        let least = links.open.iter().filter(ours).min_by_key(|link| link.waiting.load(Relaxed))?;
        let crowded = least.waiting.load(Relaxed) >= CROWD && count < MOST;
        (!crowded).then(|| Arc::clone(least))
    }

    fn forget(&self, gone: &Arc<Link>) {
        self.lock().open.retain(|link| !Arc::ptr_eq(link, gone));
    }

    /// A new connection, which everybody shares who needs one at the same time.
    async fn opened(
        &self,
        server: &Server,
        target: &Target,
        random: &Arc<Randomness>,
    ) -> Result<Arc<Link>, Failure> {
        let key = (target.protocol, target.addr);
        let opening = {
            let mut links = self.lock();
            links
                .opening
                .entry(key)
                .or_insert_with(|| open(server.clone(), target.clone(), Arc::clone(random)))
                .clone()
        };
        let opened = opening.clone().await;
        let mut links = self.lock();
        // The first one who is told puts it among the others.
        if links.opening.get(&key).is_some_and(|current| current.ptr_eq(&opening)) {
            links.opening.remove(&key);
            if let Ok(link) = &opened {
                links.open.push(Arc::clone(link));
            }
        }
        opened.map_err(|why| match why.as_ref() {
            Failure::Network(why) => Failure::Network(io::Error::new(why.kind(), why.to_string())),
            Failure::Tls(why) => Failure::Tls(why.clone()),
            Failure::Http(why) => Failure::Http(why.clone()),
            _ => Failure::Closed,
        })
    }
}

/// Opens a connection in a task of its own: who caused it may have its answer from elsewhere.
fn open(server: Server, target: Target, random: Arc<Randomness>) -> Opening {
    let task = tokio::spawn(async move {
        let late = || Failure::Network(io::ErrorKind::TimedOut.into());
        let wire =
            timeout(HANDSHAKE, connect(&server, &target, random)).await.unwrap_or_else(|_| Err(late()));
        let now = Instant::now();
        Ok(Arc::new(Link {
            protocol: target.protocol,
            addr: target.addr,
            wire: wire?,
            since: now,
            used: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            pulse: Mutex::new(Pulse { heard: now, asked: None }),
        }))
    });
    let opened = async move { task.await.unwrap_or(Err(Failure::Closed)).map_err(Arc::new) };
    opened.boxed().shared()
}

async fn connect(server: &Server, target: &Target, random: Arc<Randomness>) -> Result<Wire, Failure> {
    let name = server.certified_name();
    let tls = || target.tls.as_ref().ok_or_else(|| Failure::Tls("no certificate authorities".to_owned()));
    if target.protocol == Protocol::Quic {
        return Ok(Wire::Quic(Quic::new(target.addr, &name, tls()?.quic.clone()).await?));
    }
    let stream = TcpStream::connect(target.addr).await.map_err(Failure::Network)?;
    stream.set_nodelay(true).map_err(Failure::Network)?;
    if !target.protocol.is_encrypted() {
        return Ok(Wire::Framed(Framed::new(stream, random)));
    }
    let verified = ServerName::try_from(name.clone())
        .map_err(|_| Failure::Tls(format!("{name} cannot be in a certificate")))?;
    let connector = TlsConnector::from(tls()?.over_tcp(target.protocol));
    let stream = connector.connect(verified, stream).await.map_err(tls_failure)?;
    if target.protocol != Protocol::Https {
        return Ok(Wire::Framed(Framed::new(stream, random)));
    }
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err(Failure::Http("the server does not offer HTTP/2".to_owned()));
    }
    Ok(Wire::Https(Https::new(stream, &server.uri()).await?))
}

fn tls_failure(why: io::Error) -> Failure {
    match why.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) {
        true => Failure::Tls(why.to_string()),
        false => Failure::Network(why),
    }
}
