//! What a bypass does besides switching filters off: it moves names from the sidecar to the node itself, in the zone that the sidecar
//! serves and in those of other servers, and verifies that this had its effect.

mod publish;
mod serial;
mod verify;
pub mod withdraw;

use std::net::IpAddr;

use qudag_filter_api::Service;

pub use publish::{NameStatus, Published, Publisher};
pub use serial::Serials;
pub use verify::{Check, Report, Step, StepState, Verification};

use crate::config::{BypassConfig, BypassName};

/// Where a name should lead.
pub(crate) fn wanted(name: &BypassName, direct: bool) -> &[IpAddr] {
    if direct { &name.node } else { &name.sidecar }
}

/// What the DNS listener serves: the names with the addresses that hold now, under a serial number of their own.
pub(crate) fn service(config: &BypassConfig, direct: bool, serials: &Serials) -> Service {
    let Some(zone) = &config.zone else { return Service::default() };
    let names: Vec<_> =
        config.names.iter().map(|name| (name.name.clone(), wanted(name, direct).to_vec())).collect();
    let serial = serials.of(&format!("{zone} {names:?}"));
    Service { zone: Some(zone.clone()), serial, names }
}
