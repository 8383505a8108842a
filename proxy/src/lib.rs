//! The sidecar: one process next to one unmodified QuDAG node.
//!
//! `app` wires the parts together and is the only module that knows them all.

pub mod admin;
pub mod app;
pub mod bypass;
pub mod cli;
pub mod config;
pub mod control;
pub mod flags;
pub mod generation;
pub mod lanes;
pub mod net;
pub mod redirect;
pub mod resolve;
pub mod state_dir;
pub mod telemetry;
