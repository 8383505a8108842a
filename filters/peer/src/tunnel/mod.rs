//! The tunnel between two sidecars: a QUIC stream for each TCP connection.

mod accept;
mod congestion;
mod door;
pub mod header;
mod open;
pub(crate) mod pulse;
mod shares;
mod stray;
mod stream;
pub mod transport;

pub(crate) use accept::bind;
pub use open::Failure;
pub use open::Limits as OpenLimits;
pub(crate) use open::{open, probe};
pub use stream::TunnelStream;
