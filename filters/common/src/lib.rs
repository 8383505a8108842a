//! What several kinds of traffic share: listeners and their drain, splicing, and the layers that
//! know nothing of a protocol.

pub mod drain;
pub mod listener;

pub use drain::Drain;
pub use listener::{Front, KindOf, ListenerSpec, Terminal};
