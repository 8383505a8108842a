//! Capture: connections that the local node makes straight to its peers, and that rules of the packet filter hand over.

mod listener;
mod settings;
mod status;

pub(crate) use listener::{CAPTURED, bind};
pub use settings::{Capture, CaptureMode, Mark, Owner, PortRange, Unmatched};
pub use status::CaptureStatus;
pub(crate) use status::{Counts, Taken};

use std::sync::Arc;

use crate::routes::Routes;

/// What the listeners of captured connections read; swapped with the chain.
#[derive(Clone, Debug)]
pub struct CaptureSettings {
    /// How connections are handed over.
    pub mode: CaptureMode,
    /// What happens to destinations that no route has.
    pub unmatched: Unmatched,
    /// What the packets of own sockets are marked with.
    pub mark: Mark,
    /// The ports of the listeners: a connection to one of them was not captured.
    pub ports: Vec<u16>,
    /// The routes by the addresses that they lead to.
    pub(crate) routes: Arc<Routes>,
    /// What is counted.
    pub(crate) counts: Arc<Counts>,
}
