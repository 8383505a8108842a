//! The parts of the benchmark: clients and servers that cost as little as possible, interleaved measurement, and
//! what is measured of each kind of traffic.

pub mod chain;
pub mod chart;
pub mod clients;
pub mod contenders;
pub mod cpu;
pub mod crypto;
pub mod db;
pub mod dns;
pub mod instructions;
pub mod measure;
pub mod peer;
pub mod pinned;
pub mod pivot;
pub mod progress;
pub mod row;
pub mod servers;
pub mod suites;

/// Whatever ends a benchmark.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;
