//! DNS: listener, filters and upstreams

pub mod dns_cache;
pub mod hosts;
pub mod kind;
pub mod listener;
pub mod local_zones;
pub mod lookup;
pub mod replies;
pub mod service;
pub mod shared_cache;
#[cfg(test)]
mod testing;
pub mod update;
pub mod upstream;
mod watched;
pub mod wire;
pub mod zone;

use qudag_filter_api::chain;
use qudag_filter_common::RateLimit;

pub use dns_cache::{CacheState, CacheStats, DnsCache, FlushSelector, RebuildError, Rebuilt};
pub use hosts::{Hosts, HostsState};
pub use kind::{Dns, DnsGlance, DnsQuery, DnsReply, DnsSettings, Source, Trace, TraceStep, Transport, Way};
pub use listener::DnsListener;
pub use local_zones::{Dark, LocalZone, LocalZones, LocalZonesState, SignedRecord};
pub use lookup::{Lookup, LookupError, Question, lookup};
pub use service::SERVICE_TTL;
pub use shared_cache::{DnsSharedCache, SharedCacheState};
pub use upstream::{DnsUpstream, Protocol, Server, ServerStatus, UpstreamState, try_server};
pub use wire::parse_query;

chain! {
    /// The filters of DNS, in the order in which a query meets them, and the servers at the end.
    pub struct DnsFilters for Dns, states DnsStates {
        /// Names from a hosts file.
        hosts: Hosts,
        /// Zones that the sidecar answers for itself.
        local_zones: LocalZones,
        /// A limit for each client and for all together.
        rate_limit: RateLimit<Dns>,
        /// Replies from earlier queries.
        dns_cache: DnsCache,
        /// Replies that the sidecars of a fleet share in Redis or Valkey.
        dns_shared_cache: DnsSharedCache,
    }
    terminal {
        /// The servers that are asked what no filter answered.
        dns_upstream: DnsUpstream,
    }
}
