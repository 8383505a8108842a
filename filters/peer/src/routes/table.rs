//! The routes of a generation with the addresses that are known, compiled for looking up.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use qudag_filter_api::{Host, HostPort};
use qudag_filter_common::canonical;

use super::book::{Book, Over};
use crate::kind::Route;

/// Where a route leads. Never changed: another one takes its place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The addresses of its `to`; empty while its name is not known.
    pub(crate) to: Arc<[SocketAddr]>,
    /// The addresses of the peer's sidecar; empty without one, or while none of its names is known.
    pub(crate) sidecar: Arc<[SocketAddr]>,
}

/// All routes of a generation.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// By their names.
    entries: HashMap<String, Entry>,
    /// Those of captured connections, by the addresses that they lead to.
    places: HashMap<SocketAddr, Arc<Route>>,
    /// The ports of routes that require the tunnel and have names, by whether all these names are known.
    guarded: HashMap<u16, bool>,
    /// Every name that captured connections may mean was asked for.
    settled: bool,
}

impl Table {
    /// Compiles. Captured connections take `captured` of the routes; of several to one address the first one counts.
    pub(crate) fn compile(routes: &[Arc<Route>], captured: usize, book: &Book) -> Self {
        let mut table = Self { settled: true, ..Self::default() };
        for (index, route) in routes.iter().enumerate() {
            let place = route.place();
            let to = book.addresses(Over::Tcp, place);
            if index < captured {
                for address in &to {
                    table.places.entry(canonical(*address)).or_insert_with(|| Arc::clone(route));
                }
                if let Some(HostPort { host: Host::Name(name), port }) = place {
                    table.settled &= book.is_settled(name);
                    if route.requires_tunnel() {
                        *table.guarded.entry(*port).or_insert(true) &= !to.is_empty();
                    }
                }
            }
            let sidecar =
                route.sidecar.as_ref().map_or_else(Vec::new, |it| book.addresses(Over::Udp, &it.to));
            table.entries.insert(route.name.clone(), Entry { to: to.into(), sidecar: sidecar.into() });
        }
        table
    }

    /// Where a route leads.
    pub(crate) fn entry(&self, route: &str) -> Option<&Entry> {
        self.entries.get(route)
    }

    /// The route that leads to an address.
    pub(crate) fn find(&self, destination: SocketAddr) -> Option<&Arc<Route>> {
        self.places.get(&canonical(destination))
    }

    /// Whether every name that captured connections may mean was asked for.
    pub(crate) fn is_settled(&self) -> bool {
        self.settled
    }

    /// Whether a route that requires the tunnel may lead to a destination of this port without anybody here knowing: `None` where
    /// no such route has a name, otherwise whether all their names are known.
    pub(crate) fn guarded(&self, port: u16) -> Option<bool> {
        self.guarded.get(&port).copied()
    }

    /// Whether it says the same as another one.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let place = |(address, route): (&SocketAddr, &Arc<Route>)| {
            other.places.get(address).is_some_and(|it| it.name == route.name)
        };
        self.entries == other.entries
            && self.places.len() == other.places.len()
            && self.places.iter().all(place)
            && (&self.guarded, self.settled) == (&other.guarded, other.settled)
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
