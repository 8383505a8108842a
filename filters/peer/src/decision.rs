//! Which way a connection to an address would take now.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::capture::Unmatched;
use crate::connection_pooling;
use crate::kind::{PeerConnect, PeerSettings};
use crate::opening::Opening;
use crate::routes::Found;

/// The way of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Through the tunnel: there is a connection to the peer's sidecar, with room for a stream.
    Tunnel,
    /// Directly.
    Direct,
    /// Nowhere.
    Refuse,
}

impl PeerSettings {
    /// The way of a captured connection to `destination` with `route_table` and `connection_pooling` on; `None` where nothing is
    /// captured. Does what such a connection does until its stream is opened: the route is looked up, its pool is found, and a
    /// connection chosen, where a place is taken and given back. What is not there yet is waited for, for `patience` each.
    pub async fn decide(&self, destination: SocketAddr, patience: Duration) -> Option<Decision> {
        let capture = self.capture.get()?;
        let route = match capture.routes.find(destination, patience).await {
            Found::Route(route) => route,
            Found::Perhaps => return Some(Decision::Refuse),
            Found::Nobody if capture.unmatched == Unmatched::Refuse => return Some(Decision::Refuse),
            Found::Nobody => return Some(Decision::Direct),
        };
        let past = if route.requires_tunnel() { Decision::Refuse } else { Decision::Direct };
        let request = PeerConnect {
            client: None,
            route,
            destination: Some(destination),
            opening: Opening::default(),
            way: self.way.get().cloned(),
            routes: Some(Arc::clone(&capture.routes)),
            follows: true,
        };
        let Some(Ok(pool)) = connection_pooling::pool(&request) else { return Some(past) };
        let placed = pool.place(patience, request.route.requires_tunnel()).await;
        Some(if placed.is_ok() { Decision::Tunnel } else { past })
    }
}
