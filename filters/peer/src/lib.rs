//! Peer traffic: byte streams between nodes.
//!
//! `LIFECYCLE.md` in the crate's folder tells the life of one connection.

mod capture;
mod connection_pooling;
mod decision;
mod discovery;
pub mod exchange;
pub mod identity;
mod kind;
pub mod libp2p;
mod listener;
mod opening;
pub mod pool;
mod routes;
mod settings;
mod status;
pub mod tunnel;
mod tunnels;

pub use capture::{Capture, CaptureMode, CaptureSettings, CaptureStatus, Mark, Owner, PortRange, Unmatched};
pub use connection_pooling::{ConnectionPooling, OutlierSettings};
pub use decision::Decision;
pub use discovery::{DiscoveryStatus, PeerDiscovery, mdns};
pub use exchange::SidecarStatus;
pub use kind::{Link, Peer, PeerConnect, PeerFilters, PeerSettings, PeerStates, Route, Sidecar};
pub use opening::Opening;
pub use routes::{NameStatus, RouteTable};
pub use settings::{Outbound, PeerListener};
pub use status::{OwnStatus, PeersStatus, RouteStatus};
pub use tunnels::{Tunnels, Way};
