//! What several kinds of traffic share: listeners and their drain, splicing, and the layers that
//! know nothing of a protocol.

pub mod buffers;
mod certificates;
pub mod circuit_breaker;
pub mod drain;
pub mod flow;
pub mod followed;
mod generic;
pub mod halves;
pub mod listener;
pub mod live;
pub mod memory_pooling;
pub mod mldsa;
pub mod net;
pub mod rate_limit;
pub mod retry;
pub mod seats;
pub mod splice;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod unix;
pub mod unix_stream;
pub mod watch;

pub use buffers::{Buffer, BufferPool, Buffers};
pub use certificates::{certificates, system_certificates};
pub use circuit_breaker::{CircuitBreaker, CircuitBreakerSettings, CircuitBreakerState};
pub use drain::Drain;
pub use flow::{Audience, FlowLine, FlowTally};
pub use followed::{Followed, Source, read_file};
pub use generic::ForKind;
pub use halves::{Abort, Duplex, ReadSide, WriteSide};
pub use listener::{Front, KindOf, ListenerSpec, Terminal};
pub use live::LiveGauge;
pub use memory_pooling::{Buffered, MemoryPooling, MemoryPoolingSettings};
pub use net::{Socket, Stream, canonical, connect, connect_addresses, connect_marked};
pub use rate_limit::{Limit, RateLimit, RateLimitSettings, RateLimitState, RateLimited};
pub use retry::{Retry, RetrySettings, RetryState};
pub use seats::{Seat, Seats};
pub use splice::{ByteCounters, Early, SpliceEnd, SpliceOptions, Spliced, splice, splice_after};
pub use unix::UnixSocket;
pub use unix_stream::UnixStream;
pub use watch::Watch;

/// The time for state machines: the runtime's clock, which tests can stop.
fn now() -> std::time::Instant {
    tokio::time::Instant::now().into_std()
}
