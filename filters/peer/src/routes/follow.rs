//! Follows names for as long as somebody uses them, and compiles the tables anew when something changes.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use metrics::{counter, gauge};
use qudag_filter_api::{Answer, Host, HostPort, Resolve};
use qudag_filter_common::{LiveGauge, canonical};
use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::book::{Book, Bounds, Name, Over};
use super::table::{Entry, Table};
use crate::kind::Route;

/// A generation whose listeners have said nothing for so long does not use the table any more: they say so every second.
const UNWANTED: Duration = Duration::from_secs(5);
/// For asking for one name.
const LIMIT: Duration = Duration::from_secs(5);
/// Names that are asked for at a time.
const AT_ONCE: usize = 32;
/// Somebody who cannot go on without a name waits no longer than this for it.
const IMPATIENT: Duration = Duration::from_secs(3);

/// What is known of names and addresses; outlives generations.
#[derive(Default)]
pub(crate) struct Names {
    inner: Mutex<Inner>,
    /// There is something to do.
    work: Notify,
    /// Counts what was heard of names.
    heard: watch::Sender<u64>,
    /// How many addresses count as failed, to be read without the lock.
    failed: AtomicUsize,
}

#[derive(Default)]
struct Inner {
    book: Book,
    /// The tables of the generations that are in use.
    tables: Vec<Weak<Routes>>,
    running: bool,
    meters: Option<Meters>,
}

/// How many names there are, by what is known of them.
struct Meters(Vec<(&'static str, LiveGauge)>);

impl Meters {
    fn new() -> Self {
        let gauge = |state: &'static str| {
            (state, LiveGauge::new(gauge!("qudag_sidecar_peer_names", "state" => state), 0.0))
        };
        Self(["known", "stale", "unknown"].map(gauge).into())
    }

    fn show(&self, book: &Book) {
        for (state, gauge) in &self.0 {
            gauge.set(book.names().filter(|(_, name)| name.state() == *state).count() as f64);
        }
    }
}

/// The routes of a generation, with their table. Looking something up takes no lock.
pub(crate) struct Routes {
    routes: Vec<Arc<Route>>,
    /// So many of the routes, from the first, are of captured connections; their names are followed as long as this lives.
    captured: usize,
    names: Arc<Names>,
    resolve: Arc<dyn Resolve>,
    bounds: Bounds,
    table: ArcSwap<Table>,
    /// Until when all names are followed.
    wanted: Mutex<Option<Instant>>,
}

impl std::fmt::Debug for Routes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Routes").field("table", &self.table.load()).finish_non_exhaustive()
    }
}

/// What is known of a captured connection's destination.
#[derive(Clone, Debug)]
pub(crate) enum Found {
    /// This route leads there.
    Route(Arc<Route>),
    /// A route that requires the tunnel may lead there: its name was never resolved.
    Perhaps,
    /// No route leads there.
    Nobody,
}

/// A name that is followed.
#[derive(Clone, Debug, Serialize)]
pub struct NameStatus {
    /// The name.
    pub name: String,
    /// `known`; `stale` when it could not be resolved again; `unknown` when it never could.
    pub state: &'static str,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// When they were last confirmed; `null` while nothing is known.
    pub answered_seconds_ago: Option<f64>,
    /// When it is asked for again.
    pub asked_again_in_seconds: f64,
    /// How often in a row nobody answered.
    pub failures: u32,
}

fn name_of(place: &HostPort) -> Option<&String> {
    match &place.host {
        Host::Name(name) => Some(name),
        Host::Ip(_) => None,
    }
}

impl Routes {
    /// The routes of a generation, of which captured connections take the first `captured`.
    pub(crate) fn new(
        routes: Vec<Arc<Route>>,
        captured: usize,
        bounds: Bounds,
        names: &Arc<Names>,
        resolve: &Arc<dyn Resolve>,
    ) -> Arc<Self> {
        let routes = Arc::new(Self {
            routes,
            captured,
            names: Arc::clone(names),
            resolve: Arc::clone(resolve),
            bounds,
            table: ArcSwap::default(),
            wanted: Mutex::default(),
        });
        let mut inner = names.lock();
        inner.tables.retain(|table| table.strong_count() > 0);
        inner.tables.push(Arc::downgrade(&routes));
        routes.compile(&inner.book);
        if routes.followed(Instant::now()).next().is_some() {
            names.start(&mut inner);
        }
        drop(inner);
        routes
    }

    /// Those of captured connections.
    pub(crate) fn captured(&self) -> &[Arc<Route>] {
        self.routes.get(..self.captured).unwrap_or(&self.routes)
    }

    /// What outlives this.
    pub(crate) fn names(&self) -> &Arc<Names> {
        &self.names
    }

    /// Says that connections use the table, which holds for a few seconds.
    pub(crate) fn want(&self) {
        let until = Instant::now() + UNWANTED;
        let before = self.wanted.lock().unwrap_or_else(PoisonError::into_inner).replace(until);
        if before.is_none_or(|before| before <= Instant::now()) {
            self.names.start(&mut self.names.lock());
        }
    }

    /// Whether connections use the table.
    pub(crate) fn is_wanted(&self, now: Instant) -> bool {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| until > now)
    }

    /// The addresses of a route and of its sidecar.
    pub(crate) fn entry<T>(&self, route: &Route, read: impl FnOnce(&Entry) -> T) -> Option<T> {
        self.table.load().entry(&route.name).map(read)
    }

    /// The route that leads to an address, as far as is known.
    pub(crate) fn known(&self, destination: SocketAddr) -> Option<Arc<Route>> {
        self.table.load().find(destination).cloned()
    }

    /// The route that a captured connection takes. One that may be of a name that was never resolved waits for that for as long as
    /// `patience`, and so does one to a port of a route that requires the tunnel and whose name may have moved.
    pub(crate) async fn find(&self, destination: SocketAddr, patience: Duration) -> Found {
        let deadline = Instant::now() + patience;
        let here = || self.known(destination);
        if let Some(route) = here() {
            return Found::Route(route);
        }
        if !self.table.load().is_settled() {
            // Late or never: what is known by then counts.
            let _ = timeout_at(deadline, self.heard(|| self.table.load().is_settled())).await;
            if let Some(route) = here() {
                return Found::Route(route);
            }
        }
        let port = destination.port();
        if self.table.load().guarded(port).is_none() {
            return Found::Nobody;
        }
        // The node may know of the name's new address already.
        let guarded =
            |route: &&Arc<Route>| route.requires_tunnel() && route.place().is_some_and(|it| it.port == port);
        let places: Vec<_> =
            self.captured().iter().filter(guarded).filter_map(|route| route.place()).collect();
        self.names.again(places, deadline).await;
        match here() {
            Some(route) => Found::Route(route),
            None if self.table.load().guarded(port) == Some(false) => Found::Perhaps,
            None => Found::Nobody,
        }
    }

    /// Waits until something is so that changes with what is heard of names.
    async fn heard(&self, so: impl Fn() -> bool) {
        let mut heard = self.names.heard.subscribe();
        while !so() {
            if heard.changed().await.is_err() {
                return;
            }
        }
    }

    /// Compiles the table and swaps it, where it says something else than before.
    fn compile(&self, book: &Book) {
        let table = Table::compile(&self.routes, self.captured, book);
        if !self.table.load().is_same(&table) {
            counter!("qudag_sidecar_peer_route_table_swaps_total").increment(1);
            self.table.store(Arc::new(table));
        }
    }

    /// The names that are followed for this generation now.
    fn followed(&self, now: Instant) -> impl Iterator<Item = &String> {
        let all = self.is_wanted(now);
        let to = self.routes.iter().enumerate().filter(move |(index, _)| all || *index < self.captured);
        let sidecars = self.routes.iter().filter(move |_| all).filter_map(|route| route.sidecar.as_ref());
        to.filter_map(|(_, route)| route.place())
            .chain(sidecars.flat_map(|sidecar| &sidecar.to))
            .filter_map(name_of)
    }
}

impl Names {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes sure that names are followed.
    fn start(self: &Arc<Self>, inner: &mut Inner) {
        if !std::mem::replace(&mut inner.running, true) {
            tokio::spawn(follow(Arc::clone(self)));
        }
        self.work.notify_one();
    }

    /// Whether an address is one of these places'.
    pub(crate) fn has(&self, over: Over, places: &[HostPort], address: SocketAddr) -> bool {
        let known = self.lock().book.addresses(over, places);
        known.iter().any(|known| canonical(*known) == canonical(address))
    }

    /// All addresses that were `tried` have failed: those that are known meanwhile, or else their names are asked for again, unless that
    /// was done a moment ago. `None` where there are no others, or no time to try them.
    pub(crate) async fn others(
        &self,
        over: Over,
        places: &[HostPort],
        tried: &[SocketAddr],
        deadline: Instant,
    ) -> Option<Vec<SocketAddr>> {
        let new = || {
            let mut new = self.lock().book.addresses(over, places);
            new.retain(|address| !tried.contains(address));
            Some(new).filter(|new| !new.is_empty() && Instant::now() < deadline)
        };
        if let Some(new) = new() {
            return Some(new);
        }
        self.again(places, deadline).await;
        new()
    }

    /// Asks for names again, unless that was done a moment ago, and waits for the answers.
    async fn again(&self, places: impl IntoIterator<Item = &HostPort>, deadline: Instant) {
        let mut heard = self.heard.subscribe();
        let now = Instant::now();
        let mut asked: Vec<_> = {
            let mut inner = self.lock();
            let names = places.into_iter().filter_map(name_of);
            names.filter_map(|name| Some((name, inner.book.again(name, now.into_std())?))).collect()
        };
        self.work.notify_one();
        let deadline = deadline.min(now + IMPATIENT);
        while !asked.is_empty() && matches!(timeout_at(deadline, heard.changed()).await, Ok(Ok(()))) {
            let inner = self.lock();
            asked.retain(|(name, question)| !inner.book.is_over(name, *question));
        }
    }

    /// An address does not answer: it is tried after the others for a while.
    pub(crate) fn blame(&self, over: Over, address: SocketAddr) {
        let mut inner = self.lock();
        let changed = inner.book.blame(over, address, Instant::now().into_std());
        self.failed.store(inner.book.failed(), Ordering::Relaxed);
        if changed {
            self.compile(&inner);
        }
    }

    /// An address serves.
    pub(crate) fn praise(&self, over: Over, address: SocketAddr) {
        if self.failed.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut inner = self.lock();
        let changed = inner.book.praise(over, address);
        self.failed.store(inner.book.failed(), Ordering::Relaxed);
        if changed {
            self.compile(&inner);
        }
    }

    /// What is known of each name.
    pub(crate) fn statuses(&self) -> Vec<NameStatus> {
        let now = Instant::now().into_std();
        let seconds = |time: Duration| (time.as_secs_f64() * 10.0).round() / 10.0;
        let inner = self.lock();
        let status = |(name, known): (&String, &Name)| NameStatus {
            name: name.clone(),
            state: known.state(),
            addresses: known.ips.clone(),
            answered_seconds_ago: known.answered.map(|at| seconds(now.saturating_duration_since(at))),
            asked_again_in_seconds: seconds(known.next.saturating_duration_since(now)),
            failures: known.failures,
        };
        inner.book.names().map(status).collect()
    }

    /// Compiles all tables anew.
    fn compile(&self, inner: &Inner) {
        for routes in inner.tables.iter().filter_map(Weak::upgrade) {
            routes.compile(&inner.book);
        }
    }

    /// What is to be asked now, and when to look again. `None` when nobody uses a table any more, and nobody has to look.
    fn next(&self) -> Option<(Vec<Question>, Instant)> {
        let now = Instant::now();
        let mut inner = self.lock();
        inner.tables.retain(|table| table.strong_count() > 0);
        let tables: Vec<_> = inner.tables.iter().filter_map(Weak::upgrade).collect();
        let followed: BTreeSet<_> = tables.iter().flat_map(|table| table.followed(now)).cloned().collect();
        let mut changed = inner.book.keep(&followed, now.into_std());
        changed |= inner.book.forgive(now.into_std());
        self.failed.store(inner.book.failed(), Ordering::Relaxed);
        if changed {
            self.compile(&inner);
        }
        let is_used = tables.iter().any(|table| table.captured > 0 || table.is_wanted(now));
        if !is_used {
            (inner.running, inner.meters) = (false, None);
            return None;
        }
        let room = AT_ONCE.saturating_sub(inner.book.asking());
        let due = inner.book.due(room, now.into_std());
        let question = |name: String| {
            // The newest generation that has the name asks as it likes.
            let table = tables.iter().rev().find(|table| table.followed(now).any(|it| *it == name))?;
            Some(Question { name, resolve: Arc::clone(&table.resolve), bounds: table.bounds })
        };
        let questions = due.into_iter().filter_map(question).collect();
        // With no room an answer wakes whoever waits. Whether the tables are still used is looked at now and then.
        let next = inner.book.next().filter(|_| room > 0).map(Instant::from_std);
        let Inner { book, meters, .. } = &mut *inner;
        meters.get_or_insert_with(Meters::new).show(book);
        Some((questions, next.unwrap_or(now + UNWANTED).clamp(now + TICK, now + UNWANTED)))
    }

    /// Notes what was heard, and compiles the tables.
    fn take(&self, all: Vec<Heard>) {
        let now = Instant::now().into_std();
        let mut inner = self.lock();
        for heard in all {
            Self::note(&mut inner.book, heard, now);
        }
        // A first failure settles a name.
        self.compile(&inner);
        drop(inner);
        self.heard.send_modify(|count| *count += 1);
    }

    fn note(book: &mut Book, Heard { question, answer }: Heard, now: std::time::Instant) {
        let Question { name, bounds, .. } = question;
        let outcome = match answer {
            Ok(Answer { ips, holds }) => {
                if book.answered(&name, ips, holds, bounds, now) {
                    "changed"
                } else {
                    "same"
                }
            }
            Err(why) => {
                book.unanswered(&name, bounds, now, fastrand::u64(..));
                why
            }
        };
        counter!("qudag_sidecar_peer_resolutions_total", "outcome" => outcome).increment(1);
        if outcome == "changed" {
            tracing::info!(name, addresses = ?book.ips(&name), "a name in the table of routes has other addresses");
        }
    }
}

/// The shortest time between two looks, but for what notifies.
const TICK: Duration = Duration::from_millis(10);

/// A name to be asked for.
struct Question {
    name: String,
    resolve: Arc<dyn Resolve>,
    bounds: Bounds,
}

/// What came of it.
struct Heard {
    question: Question,
    answer: Result<Answer, &'static str>,
}

impl Question {
    fn ask(self) -> BoxFuture<'static, Heard> {
        let asking = self.resolve.ask(&self.name);
        Box::pin(async move {
            let answer = match timeout(LIMIT, asking).await {
                Ok(Ok(answer)) if !answer.ips.is_empty() => Ok(answer),
                Ok(_) => Err("error"),
                Err(_) => Err("timeout"),
            };
            Heard { question: self, answer }
        })
    }
}

/// Asks for names while tables are in use.
async fn follow(names: Arc<Names>) {
    let mut asking = FuturesUnordered::new();
    while let Some((questions, next)) = names.next() {
        asking.extend(questions.into_iter().map(Question::ask));
        tokio::select! {
            Some(heard) = asking.next() => {
                let mut all = vec![heard];
                // What came at the same time goes into the same table.
                while let Some(Some(heard)) = asking.next().now_or_never() {
                    all.push(heard);
                }
                names.take(all);
            }
            () = sleep_until(next) => {}
            () = names.work.notified() => {}
        }
    }
}

#[cfg(test)]
#[path = "follow_tests.rs"]
mod tests;
