//! The contract between the sidecar and its filters.
//!
//! A *kind* of traffic ([`Kind`]) has a typed chain of *filters*. A filter ([`FilterSpec`]) is the
//! settings of a tower layer; a [`Slot`] adds the two keys that every filter has, `enabled` and
//! `rollout`. [`chain!`] turns an ordered list of slots into the chain of a kind; the order in the
//! source is the order in which a request meets the filters.
//!
//! This crate opens no socket and spawns no task.

mod chain;
mod config;
mod env;
mod error;
mod filter;
mod kind;
mod lanes;
mod metered;
mod quick;
mod slot;
mod split;
pub mod units;

pub use chain::{ChainSpec, Decide, Held, Layer, Prepared, SlotInfo, Toggle, assemble, prepare, same_name};
pub use config::{ConfigError, ConfigPath};
pub use env::{Env, Node, Resolve, Service};
pub use error::{BuildError, FilterError, Origin};
pub use filter::FilterSpec;
pub use kind::{Chains, Flow, FlowKey, Kind, Lease, Svc, service_fn};
pub use lanes::{Lane, Lanes};
pub use metered::{Arm, Metered};
pub use quick::{Chain, Look, Looked, Quick, Rest, Tally};
pub use slot::Slot;
pub use split::Split;
pub use units::{Address, ByteSize, Host, HostPort, Percent, Period, Secret};

#[doc(hidden)]
pub mod macro_support {
    pub use schemars;
    pub use serde;
}

/// The guide for authors of filters, compiled and run as a test.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/adding-a-filter.md")]
pub struct AddingAFilter;
