//! Connections to the node that are kept for the next request.

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use metrics::{counter, gauge};
use qudag_filter_api::{
    Address, BuildError, ConfigError, ConfigPath, Env, FilterSpec, Period, Svc, service_fn,
};
use qudag_filter_common::Stream;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use socket2::SockRef;
use tokio::time::{Instant, sleep_until};
use tower::ServiceExt;

use crate::{Http, HttpCall};

/// How long a connection must have been quiet before it is trusted with a request that cannot be repeated, while the
/// server has not shown yet that it answers twice on one connection.
const QUIET: Duration = Duration::from_millis(100);

/// `connection_pooling`: keeps connections to the node open between requests. Without it each request has its own connection.
///
/// Only connections whose state is known are kept: the reply had a length or was chunked, the server did not say `close`, and nothing
/// came after the body. So a server that closes after each reply, or sends too much, is not harmed by the filter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ConnectionPooling {
    /// The most connections that wait for a request.
    pub max_idle: u32,
    /// How long one waits before it is closed. Shorter than the server's own limit is best.
    pub idle_timeout: Period,
}

impl Default for ConnectionPooling {
    fn default() -> Self {
        Self { max_idle: 32, idle_timeout: Period::secs(30) }
    }
}

impl FilterSpec for ConnectionPooling {
    type Kind = Http;
    type State = Pool;
    const NAME: &'static str = "connection_pooling";

    fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        if self.max_idle == 0 {
            errors.push(
                at.key("max_idle").error("no connection could be kept").hint("use `enabled: false` instead"),
            );
        }
        if self.idle_timeout.0.is_zero() {
            errors.push(at.key("idle_timeout").error("must be longer than 0").hint("for instance 30s"));
        }
        errors
    }

    fn state(&self, _: &Env, previous: Option<(&Self, Arc<Pool>)>) -> Result<Arc<Pool>, BuildError> {
        Ok(previous.map(|(_, pool)| pool).unwrap_or_default())
    }

    fn wrap(&self, pool: Arc<Pool>, inner: Svc<Http>) -> Svc<Http> {
        let pooling = Pooled {
            pool,
            max_idle: usize::try_from(self.max_idle).unwrap_or(usize::MAX),
            idle_timeout: self.idle_timeout.0,
        };
        service_fn::<Http, _, _>(move |mut call: HttpCall| {
            call.request.extensions_mut().insert(pooling.clone());
            inner.clone().oneshot(call)
        })
    }
}

/// The pool as a request's extension, with the limits of the generation that the request belongs to.
#[derive(Clone, Debug)]
pub(crate) struct Pooled {
    pool: Arc<Pool>,
    max_idle: usize,
    idle_timeout: Duration,
}

/// The connections that wait for a request.
#[derive(Debug, Default)]
pub struct Pool {
    inner: Mutex<Inner>,
    /// The server has answered a second request on a connection, and no connection has broken the rules since.
    proven: AtomicBool,
}

#[derive(Debug, Default)]
struct Inner {
    /// The youngest at the back.
    idle: VecDeque<Idle>,
    reaping: bool,
}

#[derive(Debug)]
struct Idle {
    stream: Stream,
    to: Address,
    since: Instant,
    until: Instant,
}

impl Pool {
    /// How many connections wait.
    pub fn idle(&self) -> usize {
        self.lock().idle.len()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes what is due; `None` when nothing is left, which ends the reaper.
    fn reap(&self) -> Option<Instant> {
        let mut inner = self.lock();
        let now = Instant::now();
        inner.idle.retain(|idle| idle.until > now);
        let next = inner.idle.iter().map(|idle| idle.until).min();
        inner.reaping = next.is_some();
        gauged(&inner);
        next
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        inner.idle.clear();
        gauged(inner);
    }
}

fn gauged(inner: &Inner) {
    gauge!("qudag_sidecar_http_pool_idle").set(inner.idle.len() as f64);
}

impl Pooled {
    /// A waiting connection that is still in order. `repeatable` when the request may be sent again on another connection.
    pub(crate) fn take(&self, to: &Address, repeatable: bool) -> Option<Stream> {
        let now = Instant::now();
        let proven = self.pool.proven.load(Ordering::Relaxed);
        let mut inner = self.pool.lock();
        let mut found = None;
        // The youngest first: the oldest ones are those that are not needed.
        while let Some(idle) = inner.idle.pop_back() {
            if idle.to != *to || idle.until <= now {
                continue;
            }
            if !is_quiet(&idle.stream) {
                self.pool.proven.store(false, Ordering::Relaxed);
                continue;
            }
            if !repeatable && !proven && now.duration_since(idle.since) < QUIET {
                inner.idle.push_back(idle);
                break;
            }
            found = Some(idle.stream);
            break;
        }
        gauged(&inner);
        drop(inner);
        if found.is_some() {
            counter!("qudag_sidecar_http_pool_reused_total").increment(1);
        }
        found
    }

    /// A new connection was made.
    pub(crate) fn opened(&self) {
        counter!("qudag_sidecar_http_pool_opened_total").increment(1);
    }

    /// A reused connection has given a proper reply.
    pub(crate) fn proven(&self) {
        self.pool.proven.store(true, Ordering::Relaxed);
    }

    /// A reused connection was not what it seemed to be.
    pub(crate) fn disproved(&self) {
        self.pool.proven.store(false, Ordering::Relaxed);
    }

    /// Keeps a connection whose last reply was complete and left nothing behind.
    pub(crate) fn give(&self, stream: Stream, to: Address) {
        if !is_quiet(&stream) {
            self.disproved();
            return;
        }
        let now = Instant::now();
        let Some(until) = now.checked_add(self.idle_timeout) else { return };
        let mut inner = self.pool.lock();
        inner.idle.push_back(Idle { stream, to, since: now, until });
        while inner.idle.len() > self.max_idle {
            inner.idle.pop_front();
        }
        gauged(&inner);
        if !inner.reaping {
            inner.reaping = true;
            drop(inner);
            tokio::spawn(reaper(Arc::downgrade(&self.pool), until));
        }
    }
}

async fn reaper(pool: Weak<Pool>, mut next: Instant) {
    loop {
        sleep_until(next).await;
        match pool.upgrade().and_then(|pool| pool.reap()) {
            Some(at) => next = at,
            None => return,
        }
    }
}

/// Whether nothing has come: neither bytes, nor the end, nor an error. Asks the kernel, since the runtime may not have
/// noticed yet.
fn is_quiet(stream: &Stream) -> bool {
    let mut byte = [MaybeUninit::uninit()];
    let seen = match stream {
        Stream::Tcp(tcp) => SockRef::from(tcp).peek(&mut byte),
        Stream::Unix(unix) => SockRef::from(unix).peek(&mut byte),
    };
    matches!(seen, Err(why) if why.kind() == std::io::ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    async fn pair() -> (Stream, TcpStream, Address) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (client, server) = tokio::join!(TcpStream::connect(addr), listener.accept());
        (Stream::Tcp(client.unwrap()), server.unwrap().0, Address::Tcp(addr.into()))
    }

    fn pooled(max_idle: usize, idle_timeout: Duration) -> Pooled {
        Pooled { pool: Arc::default(), max_idle, idle_timeout }
    }

    async fn until(condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while !condition() {
            assert!(Instant::now() < deadline, "not in time");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn only_quiet_connections_to_the_right_server_are_lent() {
        let pool = pooled(8, Duration::from_secs(60));
        let (client, mut noisy, to) = pair().await;
        pool.give(client, to.clone());
        assert_eq!(pool.pool.idle(), 1);
        noisy.write_all(b"Connection: keep-alive\r\n").await.unwrap();
        let other: Address = "192.0.2.1:1".parse().unwrap();
        until(|| pool.take(&to, true).is_none()).await;
        let (client, _server, to) = pair().await;
        pool.give(client, to.clone());
        assert!(pool.take(&other, true).is_none());
        assert_eq!(pool.pool.idle(), 0, "of another server than now");

        let (client, closed, to) = pair().await;
        drop(closed);
        until(|| !is_quiet(&client)).await;
        pool.give(client, to);
        assert_eq!(pool.pool.idle(), 0, "a closed connection is not kept");
    }

    #[tokio::test]
    async fn what_cannot_be_repeated_waits_for_proof() {
        let pool = pooled(8, Duration::from_secs(60));
        let (client, _server, to) = pair().await;
        pool.give(client, to.clone());
        assert!(pool.take(&to, false).is_none());
        pool.proven();
        assert!(pool.take(&to, false).is_some());
        pool.disproved();
        let (client, _server, to) = pair().await;
        pool.give(client, to.clone());
        until(|| pool.take(&to, false).is_some()).await;
    }

    #[tokio::test]
    async fn there_are_never_too_many_nor_for_too_long() {
        let pool = pooled(2, Duration::from_millis(50));
        let (mut servers, mut to) = (Vec::new(), None);
        for _ in 0..3 {
            let (client, server, address) = pair().await;
            pool.give(client, address.clone());
            servers.push(server);
            to = Some(address);
        }
        assert!(pool.pool.idle() <= 2);
        until(|| pool.pool.idle() == 0).await;
        assert!(pool.take(&to.unwrap(), true).is_none());
        // The reaper starts anew.
        let (client, _server, address) = pair().await;
        pool.give(client, address);
        assert_eq!(pool.pool.idle(), 1);
        until(|| pool.pool.idle() == 0).await;
    }
}
