//! Replicas: transactions that only read may be carried out by them, and writes go to whatever server is the primary.
//!
//! `topology` holds the rules, `probe` asks a server what it is, `state` keeps asking all of them and routes transactions, `status` shows them,
//! `settings` is the filter.

mod probe;
mod settings;
mod state;
mod status;
mod topology;

pub use settings::{ReadReplicas, Routing};
pub use state::Replicas;
pub use status::ReplicaStatus;
