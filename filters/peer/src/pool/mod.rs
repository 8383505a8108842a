//! The connections to another sidecar.

pub mod rules;
