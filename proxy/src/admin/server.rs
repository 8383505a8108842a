//! The connections of the admin API, and what keeps slow ones from being in the way.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use axum::response::Response;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use qudag_filter_common::{Drain, Socket, Stream};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::auth::{Auth, Peer};
use super::operations::Operations;
use super::routes;
use super::tap::{Endless, Taps};
use crate::telemetry::Metrics;

/// How many connections there may be. When one more comes, the oldest one that has no request at work is closed.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take to send the head of a request, and how long a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection lives before it is asked to end, and how long it may then take: a client that does not read its answer
/// would otherwise stay for ever.
const LIFETIME: Duration = Duration::from_secs(60);
const LAST_ANSWER: Duration = Duration::from_secs(30);
/// How long an answer that has no end of its own may be left unread.
const UNREAD: Duration = Duration::from_secs(30);
/// How long a stopping server waits for answers under way.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// How much of a request's head is read at most; more is answered with 431.
const HEAD_LIMIT: usize = 16 * 1024;

/// Serves the API until `stop`, then finishes the answers under way. Meanwhile keeps the recorder's memory bounded.
pub async fn serve<C: Operations>(
    socket: Socket,
    control: C,
    auth: Auth,
    metrics: Metrics,
    stop: CancellationToken,
) {
    let loopback = is_loopback(&socket);
    let upkeep = metrics.clone().upkeep();
    let drain = Drain::new();
    let router = routes::router(control, &Arc::new(auth), metrics, Taps::new(drain.clone()));
    let connections = Connections::default();
    let on_connection = {
        let drain = drain.clone();
        move |stream: Stream| {
            let peer = peer(&stream, loopback);
            connection(stream, peer, router.clone(), connections.clone(), drain.clone())
        }
    };
    let serving = socket.serve(drain.clone(), on_connection);
    let stopping = async {
        tokio::select! {
            () = upkeep => {}
            () = stop.cancelled() => {}
        }
        drain.finish(STOP_GRACE).await;
    };
    tokio::join!(serving, stopping);
}

fn is_loopback(socket: &Socket) -> bool {
    match socket {
        Socket::Tcp(listener) => {
            listener.local_addr().is_ok_and(|addr| addr.ip().to_canonical().is_loopback())
        }
        Socket::Unix(_) => false,
    }
}

fn peer(stream: &Stream, loopback: bool) -> Peer {
    let user = match stream {
        Stream::Unix(unix) => unix.peer().map(|cred| (cred.uid(), cred.pid())),
        Stream::Tcp(_) => None,
    };
    Peer { tcp: stream.peer_addr().zip(stream.local_addr()), user, loopback }
}

async fn connection(stream: Stream, peer: Peer, router: Router, connections: Connections, drain: Drain) {
    if peer.tcp.is_none() && peer.user.is_none() {
        return;
    }
    let Some(place) = connections.enter() else { return };
    let entry = Arc::clone(&place.entry);
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        let router = router.clone();
        let busy = Busy::new(&entry);
        async move {
            let response = router.oneshot(request.map(Body::new)).await;
            let response = response.map_err(|never: Infallible| match never {})?;
            Ok::<_, Infallible>(match response.extensions().get::<Endless>().cloned() {
                Some(endless) => busy.until_the_end_of(response, endless),
                None => response,
            })
        }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_LIMIT);
    let mut serving = pin!(http.serve_connection(TokioIo::new(stream), service));
    // An error is the client's: it broke off, was too slow or spoke no HTTP.
    tokio::select! {
        _ = serving.as_mut() => return,
        () = place.entry.closed.cancelled() => return,
        () = drain.stopping() => {}
        () = end_of_life(&place.entry) => {}
    }
    serving.as_mut().graceful_shutdown();
    tokio::select! {
        _ = serving => {}
        () = place.entry.closed.cancelled() => {}
        () = drain.aborted() => {}
        () = tokio::time::sleep(LAST_ANSWER) => {}
    }
}

/// Resolves when a connection has lived long enough. One with an endless answer lives on while that is read.
async fn end_of_life(entry: &Entry) {
    loop {
        tokio::time::sleep(LIFETIME).await;
        let endless = entry.endless.lock().unwrap_or_else(PoisonError::into_inner);
        if endless.as_ref().is_none_or(|endless| endless.idle() > UNREAD) {
            return;
        }
    }
}

/// The open connections, oldest first.
#[derive(Clone, Debug, Default)]
struct Connections {
    next: Arc<AtomicU64>,
    open: Arc<Mutex<Vec<Arc<Entry>>>>,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    busy: AtomicBool,
    /// The answer under way, if it has no end of its own.
    endless: Mutex<Option<Endless>>,
    closed: CancellationToken,
}

impl Connections {
    /// A place for one more, if need be in exchange for the oldest one without a request at work; `None` when there is none.
    fn enter(&self) -> Option<Place> {
        let entry = Arc::new(Entry {
            id: self.next.fetch_add(1, Ordering::Relaxed),
            busy: AtomicBool::default(),
            endless: Mutex::default(),
            closed: CancellationToken::new(),
        });
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= MAX_CONNECTIONS {
            let idle = open.iter().position(|entry| !entry.busy.load(Ordering::Relaxed))?;
            open.remove(idle).closed.cancel();
        }
        open.push(Arc::clone(&entry));
        drop(open);
        Some(Place { entry, connections: self.clone() })
    }
}

/// A connection's place, given back when it ends.
struct Place {
    entry: Arc<Entry>,
    connections: Connections,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.connections.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|entry| entry.id != self.entry.id);
    }
}

/// A request at work. Requests of one connection come one after another, so a flag is enough.
struct Busy(Arc<Entry>);

impl Busy {
    fn new(entry: &Arc<Entry>) -> Self {
        entry.busy.store(true, Ordering::Relaxed);
        Self(Arc::clone(entry))
    }

    fn endless(&self, endless: Option<Endless>) {
        *self.0.endless.lock().unwrap_or_else(PoisonError::into_inner) = endless;
    }

    /// Keeps the place of a connection whose answer goes on for as long as it is read.
    fn until_the_end_of(self, response: Response, endless: Endless) -> Response {
        self.endless(Some(endless));
        response.map(|body| {
            Body::new(body.map_frame(move |frame| {
                let _held = &self;
                frame
            }))
        })
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.endless(None);
        self.0.busy.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn the_oldest_idle_connection_makes_room() {
        let connections = Connections::default();
        let mut places: Vec<_> = (0..MAX_CONNECTIONS).map(|_| connections.enter().unwrap()).collect();
        let busy = Busy::new(&places[0].entry);
        let one_more = connections.enter().unwrap();
        assert!(!places[0].entry.closed.is_cancelled());
        assert!(places[1].entry.closed.is_cancelled());
        drop(busy);
        let _another = connections.enter().unwrap();
        assert!(places[0].entry.closed.is_cancelled());
        places.clear();
        drop(one_more);
        assert_eq!(connections.open.lock().unwrap().len(), 1);
    }

    #[test]
    fn when_all_are_busy_nobody_is_let_in() {
        let connections = Connections::default();
        let places: Vec<_> = (0..MAX_CONNECTIONS).map(|_| connections.enter().unwrap()).collect();
        let busy: Vec<_> = places.iter().map(|place| Busy::new(&place.entry)).collect();
        assert!(connections.enter().is_none());
        drop(busy);
        assert!(connections.enter().is_some());
    }
}
