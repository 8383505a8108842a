//! Cryptography: batches of signatures to verify and of data to hash, for programs on this machine.

mod crypto_offload;
mod fault;
mod hardware_routing;
mod kind;
mod listener;
mod operation;
mod server;
mod simd_crypto;
mod speed;
mod status;
mod terminal;
#[cfg(test)]
mod testing;
mod work;

use qudag_filter_api::chain;
use qudag_filter_common::RateLimit;

pub use crypto_offload::{CryptoOffload, OffloadState};
pub use fault::test_in_process;
pub use hardware_routing::{HardwareRouting, OtherSidecar, RoutingState};
pub use kind::{Crypto, CryptoCall, CryptoReply, CryptoSettings};
pub use listener::CryptoListener;
pub use operation::{
    Content, FingerprintCheck, HASH_BYTES, KeyId, KeyRef, Operations, SignatureCheck, Verdict,
};
pub use qudag_mldsa::{Backend, UnknownBackend};
pub use simd_crypto::{SimdCrypto, SimdState, Tester};
pub use speed::{Speed, speeds};
pub use status::{BackendStatus, CryptoStatus, OffloadStatus, OtherSidecarStatus, RoutingStatus, SimdStatus};

/// Reads any bytes as the body of an HTTP request: for `tests/fuzz`.
#[doc(hidden)]
pub fn fuzz_json(body: &[u8]) {
    server::fuzz_json(body);
}

chain! {
    /// The filters of the crypto chain.
    pub struct CryptoFilters for Crypto, states CryptoStates {
        /// How often programs may call.
        rate_limit: RateLimit<Crypto>,
        /// The fastest implementation that is known to be sound.
        simd_crypto: SimdCrypto,
        /// Batches that another sidecar verifies sooner.
        hardware_routing: HardwareRouting,
        /// Keys that are kept ready, and threads.
        crypto_offload: CryptoOffload,
    }
}
