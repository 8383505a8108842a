//! Starts real sidecars, nodes, databases and resolvers for tests.
//!
//! Everything here fails by panicking with what was expected and what came, prints the logs of the programs that
//! it started when the test fails, and stops them when it is dropped. Programs also die with the thread that
//! started them, so call `start` functions from the test's own thread, not from a spawned task.
//!
//! Each program listens on ports of its own; none is fixed. Nothing waits for a length of time, only for a
//! condition with a deadline.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test kit reports by panicking"
)]

pub mod capture;
pub mod dns;
pub mod dns_pipe;
pub mod dns_wire;
pub mod dynamic_zone;
pub mod faulty_dns;
pub mod gossip;
pub mod haproxy;
pub mod http;
pub mod http_node;
pub mod js_libp2p;
pub mod knot;
pub mod load;
pub mod netns;
pub mod node;
pub mod peer;
pub mod pki;
pub mod ports;
pub mod postgres;
pub mod postgres_clients;
pub mod program;
pub mod redis;
pub mod rpc;
pub mod sidecar;
pub mod skip;
mod talker;
pub mod unbound;
pub mod wait;

pub use capture::Capture;
pub use dns_pipe::Pipe;
pub use dynamic_zone::DynamicZone;
pub use faulty_dns::{Behaviour, FaultyDns};
pub use haproxy::HaProxy;
pub use http_node::HttpNode;
pub use js_libp2p::JsPeer;
pub use knot::Knot;
pub use load::{Load, Outcome};
pub use netns::Namespace;
pub use node::{HostedNode, QudagNode};
pub use peer::EchoPeer;
pub use pki::{IdentityFiles, Pki};
pub use postgres::Postgres;
pub use postgres_clients::PostgresClient;
pub use program::{Program, Start};
pub use redis::Redis;
pub use sidecar::{Setup, TestSidecar};
pub use unbound::Unbound;
pub use wait::{eventually, within};
