//! RPC: framed JSON requests to the node.
//!
//! Clients may keep a connection and send several requests at once; the node gets one request per connection, as it requires.
//! `LIFECYCLE.md` tells the life of a call.

mod connection;
mod kind;
mod listener;
mod node;
mod refusal;
pub mod request;
pub mod rpc_auth;
#[cfg(test)]
mod tests;

use qudag_filter_api::chain;
use qudag_filter_common::{CircuitBreaker, RateLimit, Retry};

pub use kind::{Rpc, RpcCall, RpcReply, RpcSettings};
pub use listener::RpcListener;
pub use rpc_auth::{RpcAuth, RpcAuthState};

chain! {
    /// The filters of the RPC chain.
    pub struct RpcFilters for Rpc, states RpcStates {
        /// Who may call.
        rpc_auth: RpcAuth,
        /// How often clients may call.
        rate_limit: RateLimit<Rpc>,
        /// Stops calling a node that fails.
        circuit_breaker: CircuitBreaker<Rpc>,
        /// Calls again where that can do no harm.
        retry: Retry<Rpc>,
    }
}
