//! HTTP: a well-behaved front for the node's HTTP server.
//!
//! Clients speak HTTP/1.1 or HTTP/2 and keep their connections; the node gets simple HTTP/1.1 requests, and its replies, some of
//! which are malformed, become well-formed ones. `LIFECYCLE.md` tells the life of a request.

mod chunked;
mod connection_pooling;
mod front;
mod guard;
mod headers;
mod kind;
mod listener;
mod mcp_crypto;
mod node;
mod record;
mod refusal;
mod request;
pub mod response;
mod scanner;
#[cfg(test)]
mod tests;
mod tunnel;

use qudag_filter_api::chain;
use qudag_filter_common::{CircuitBreaker, RateLimit, Retry};

pub use chunked::ChunkError;
pub use connection_pooling::{ConnectionPooling, Pool};
pub use kind::{Body, Http, HttpCall, HttpSettings};
pub use listener::HttpListener;
pub use mcp_crypto::{McpCrypto, Mode, fuzz_mcp};

chain! {
    /// The filters of the HTTP chain.
    pub struct HttpFilters for Http, states HttpStates {
        /// How often clients may ask.
        rate_limit: RateLimit<Http>,
        /// Answers for the node's mock of cryptography.
        mcp_crypto: McpCrypto,
        /// Stops asking a node that fails.
        circuit_breaker: CircuitBreaker<Http>,
        /// Asks again where that can do no harm.
        retry: Retry<Http>,
        /// Connections to the node that are kept.
        connection_pooling: ConnectionPooling,
    }
}
