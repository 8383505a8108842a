//! Who a client is, and who the sidecar is for a server.

pub mod scram;
