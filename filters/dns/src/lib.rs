//! DNS: listener, filters and upstreams

pub mod dns_cache;
pub mod hosts;
pub mod kind;
pub mod listener;
pub mod lookup;
#[cfg(test)]
mod testing;
pub mod upstream;
pub mod wire;

use qudag_filter_api::chain;
use qudag_filter_common::RateLimit;

pub use dns_cache::{CacheState, CacheStats, DnsCache, FlushSelector};
pub use hosts::{Hosts, HostsState};
pub use kind::{Dns, DnsQuery, DnsReply, DnsSettings, Source, Trace, TraceStep, Transport};
pub use listener::DnsListener;
pub use lookup::{Lookup, LookupError, lookup};
pub use upstream::{DnsUpstream, Protocol, Server, ServerStatus, UpstreamState, try_server};
pub use wire::parse_query;

chain! {
    /// The filters of DNS, in the order in which a query meets them, and the servers at the end.
    pub struct DnsFilters for Dns, states DnsStates {
        /// Names from a hosts file.
        hosts: Hosts,
        /// A limit for each client and for all together.
        rate_limit: RateLimit<Dns>,
        /// Replies from earlier queries.
        dns_cache: DnsCache,
    }
    terminal {
        /// The servers that are asked what no filter answered.
        dns_upstream: DnsUpstream,
    }
}
