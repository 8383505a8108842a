//! As much of libp2p as it takes to ask a node who it is.
//!
//! A node proves its identity in a Noise handshake (pattern XX, <https://github.com/libp2p/specs/blob/master/noise/README.md>), which begins
//! after multistream-select has agreed on it. `libp2p-noise` does the same with *ring*; here `snow` keeps the state of the handshake
//! and aws-lc computes.

mod channel;
mod crypto;
mod identity;
mod lines;
mod noise;
mod peer_id;
mod protobuf;
mod visit;

pub use identity::{Identity, NotAnIdentity, read_identity};
pub use lines::{Line, Lines, NotALine};
pub use noise::{NodeFailure, ask};
pub use peer_id::{NotAPeerId, PeerId};
pub use visit::visit;
