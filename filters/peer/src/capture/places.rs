//! Which route a captured destination belongs to: by the addresses to which routes lead, with names resolved again and again.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use qudag_filter_api::{Address, Host, HostPort, Resolve};
use qudag_filter_common::canonical;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::Route;

/// How often names are resolved again; the resolver keeps what it knows for as long as the names' servers say.
const REFRESH: Duration = Duration::from_secs(10);
/// The same while a name has never been resolved.
const SOON: Duration = Duration::from_secs(1);
/// For resolving one name.
const LIMIT: Duration = Duration::from_secs(5);

/// The addresses of names as they were last seen; outlives generations.
#[derive(Default)]
pub(crate) struct Known(Mutex<HashMap<String, Vec<IpAddr>>>);

impl Known {
    fn get(&self, name: &str) -> Option<Vec<IpAddr>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn set(&self, name: &str, ips: Vec<IpAddr>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), ips);
    }

    /// Forgets all other names.
    fn keep(&self, names: &[String]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|name, _| names.contains(name));
    }
}

type Table = HashMap<SocketAddr, Arc<Route>>;

/// The routes of a generation by the addresses that they lead to. Looking one up takes no lock.
pub(crate) struct Places {
    routes: Vec<Arc<Route>>,
    table: ArcSwap<Table>,
    /// Whether every name has been asked for.
    complete: watch::Sender<bool>,
}

impl fmt::Debug for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Places").field("table", &self.table.load()).finish_non_exhaustive()
    }
}

impl Places {
    /// The places of some routes. Where they have names, a task resolves them for as long as the places are in use.
    pub(crate) fn new(routes: Vec<Arc<Route>>, known: &Arc<Known>, resolve: &Arc<dyn Resolve>) -> Arc<Self> {
        let names = names(&routes);
        known.keep(&names);
        let complete = names.iter().all(|name| known.get(name).is_some());
        let table = ArcSwap::from_pointee(table(&routes, |name| known.get(name)));
        let places = Arc::new(Self { routes, table, complete: watch::Sender::new(complete) });
        if !names.is_empty() {
            let (places, known, resolve) = (Arc::downgrade(&places), Arc::clone(known), Arc::clone(resolve));
            tokio::spawn(follow(places, names, known, resolve));
        }
        places
    }

    /// All routes.
    pub(crate) fn routes(&self) -> &[Arc<Route>] {
        &self.routes
    }

    /// The first route that leads to an address. One that may be of a name that was never resolved waits for that for as long as
    /// `patience`.
    pub(crate) async fn find(&self, destination: SocketAddr, patience: Duration) -> Option<Arc<Route>> {
        let here = || self.table.load().get(&canonical(destination)).cloned();
        if let Some(route) = here() {
            return Some(route);
        }
        let mut complete = self.complete.subscribe();
        if !*complete.borrow() {
            // Late or never: what is known by then counts.
            let _ = timeout(patience, complete.wait_for(|complete| *complete)).await;
        }
        here()
    }
}

/// Resolves the names while the places are in use.
async fn follow(places: Weak<Places>, names: Vec<String>, known: Arc<Known>, resolve: Arc<dyn Resolve>) {
    loop {
        let asked =
            futures_util::future::join_all(names.iter().map(|name| timeout(LIMIT, resolve.resolve(name))));
        let mut all = true;
        for (name, found) in names.iter().zip(asked.await) {
            match found {
                Ok(Ok(ips)) if !ips.is_empty() => known.set(name, ips),
                // What was known stays: peers keep their addresses for longer than a resolver is silent.
                _ => all &= known.get(name).is_some(),
            }
        }
        let Some(places) = places.upgrade() else { return };
        places.table.store(Arc::new(table(&places.routes, |name| known.get(name))));
        places.complete.send_replace(true);
        drop(places);
        sleep(if all { REFRESH } else { SOON }).await;
    }
}

fn names(routes: &[Arc<Route>]) -> Vec<String> {
    let mut names: Vec<_> = routes
        .iter()
        .filter_map(|route| match &route.to {
            Address::Tcp(HostPort { host: Host::Name(name), .. }) => Some(name.clone()),
            _ => None,
        })
        .collect();
    names.sort();
    names.dedup();
    names
}

/// What leads where. Of several routes to one address the first one counts.
fn table(routes: &[Arc<Route>], known: impl Fn(&str) -> Option<Vec<IpAddr>>) -> Table {
    let mut table = Table::new();
    for route in routes {
        let Address::Tcp(HostPort { host, port }) = &route.to else { continue };
        let ips = match host {
            Host::Ip(ip) => vec![*ip],
            Host::Name(name) => known(name).unwrap_or_default(),
        };
        for ip in ips {
            table.entry(canonical(SocketAddr::new(ip, *port))).or_insert_with(|| Arc::clone(route));
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::BoxFuture;
    use tokio::time::Instant;

    use super::*;

    fn route(name: &str, to: &str) -> Arc<Route> {
        let bind = "127.0.0.1:1".parse().unwrap();
        Arc::new(Route { name: name.to_owned(), bind, to: to.parse().unwrap(), sidecar: None })
    }

    /// Gives 192.0.2.N at the Nth question; none at those that are to fail. Takes two seconds.
    struct Slow {
        asked: AtomicUsize,
        fails: fn(usize) -> bool,
    }

    impl Resolve for Slow {
        fn resolve(&self, _: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
            let number = self.asked.fetch_add(1, Ordering::Relaxed);
            let fails = (self.fails)(number);
            Box::pin(async move {
                sleep(Duration::from_secs(2)).await;
                if fails {
                    return Err(io::ErrorKind::NotFound.into());
                }
                Ok(vec![IpAddr::from([192, 0, 2, u8::try_from(number).unwrap()])])
            })
        }
    }

    async fn found(places: &Places, addr: &str, patience: u64) -> Option<String> {
        let route = places.find(addr.parse().unwrap(), Duration::from_secs(patience)).await;
        route.map(|route| route.name.clone())
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_are_known_at_once_and_the_first_route_counts() {
        let routes = vec![
            route("a", "192.0.2.1:4001"),
            route("b", "[2001:db8::1]:4001"),
            route("c", "192.0.2.1:4001"),
        ];
        let resolve: Arc<dyn Resolve> = Arc::new(Slow { asked: AtomicUsize::new(0), fails: |_| true });
        let places = Places::new(routes, &Arc::default(), &resolve);
        let start = Instant::now();
        assert_eq!(found(&places, "192.0.2.1:4001", 9).await.as_deref(), Some("a"));
        assert_eq!(found(&places, "[::ffff:192.0.2.1]:4001", 9).await.as_deref(), Some("a"));
        assert_eq!(found(&places, "[2001:db8::1]:4001", 9).await.as_deref(), Some("b"));
        assert_eq!(found(&places, "192.0.2.1:4002", 9).await, None);
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn names_are_waited_for_once_followed_and_kept() {
        let known = Arc::default();
        let resolve: Arc<dyn Resolve> =
            Arc::new(Slow { asked: AtomicUsize::new(1), fails: |number| number > 2 });
        let routes = || vec![route("named", "peer.example:4001")];
        let places = Places::new(routes(), &known, &resolve);
        let start = Instant::now();
        assert_eq!(found(&places, "192.0.2.1:4001", 1).await, None, "patience is over");
        assert_eq!(start.elapsed(), Duration::from_secs(1));
        assert_eq!(found(&places, "192.0.2.1:4001", 9).await.as_deref(), Some("named"));
        assert_eq!(start.elapsed(), Duration::from_secs(2));
        sleep(Duration::from_secs(14)).await;
        assert_eq!(found(&places, "192.0.2.2:4001", 0).await.as_deref(), Some("named"), "the second answer");
        assert_eq!(found(&places, "192.0.2.1:4001", 0).await, None);
        sleep(Duration::from_secs(60)).await;
        assert_eq!(
            found(&places, "192.0.2.2:4001", 0).await.as_deref(),
            Some("named"),
            "failures change nothing"
        );
        // The next generation knows it at once, and the task of this one ends.
        let next = Places::new(routes(), &known, &resolve);
        assert_eq!(found(&next, "192.0.2.2:4001", 0).await.as_deref(), Some("named"));
        let ended = Arc::downgrade(&places);
        drop(places);
        assert!(ended.upgrade().is_none());
        let other = Places::new(vec![route("a", "192.0.2.9:1")], &known, &resolve);
        assert_eq!(known.get("peer.example"), None, "names that nobody has are forgotten");
        drop(other);
    }
}
