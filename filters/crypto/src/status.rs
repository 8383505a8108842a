//! The state of the service, as a program is told it.

use serde::Serialize;

/// What is in force for the program that asks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CryptoStatus {
    /// The implementation that verifies its signatures: `portable`, `avx2` or `avx512`.
    pub backend: &'static str,
    /// The implementations and how they were tested; `null` while `simd_crypto` is off.
    pub simd_crypto: Option<SimdStatus>,
    /// Other sidecars and what is in force there; `null` while `hardware_routing` is off.
    pub hardware_routing: Option<RoutingStatus>,
    /// Keys, threads and queue; `null` while `crypto_offload` is off.
    pub crypto_offload: Option<OffloadStatus>,
}

/// What `simd_crypto` knows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SimdStatus {
    /// The best implementation of those that passed their test.
    pub best: &'static str,
    /// All implementations, the slowest first.
    pub backends: Vec<BackendStatus>,
}

/// An implementation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BackendStatus {
    /// `portable`, `avx2` or `avx512`.
    pub name: &'static str,
    /// `unavailable` on this processor, `untested`, `testing`, `passed`, `failed` its test, or `demoted` because a verdict was not that of `portable`.
    pub state: &'static str,
    /// Why it failed or was demoted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What `hardware_routing` knows.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RoutingStatus {
    /// The other sidecars, as they are listed in the settings.
    pub sidecars: Vec<OtherSidecarStatus>,
}

/// Another sidecar.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OtherSidecarStatus {
    /// What leads there.
    pub address: String,
    /// `ready`; `unreachable`; `failing`, while it is left alone after failures; or `stopped`, because a verdict of it was wrong.
    pub state: &'static str,
    /// Why it is stopped or unreachable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The implementation that is in force there for this sidecar; `null` before it was heard.
    pub backend: Option<&'static str>,
    /// How many connections there are.
    pub connections: usize,
    /// How long the way there and back takes, in microseconds: the mean of the last few times.
    pub round_trip_us: Option<u64>,
    /// How many operations waited there, as it said last.
    pub queued: Option<usize>,
}

/// What `crypto_offload` holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OffloadStatus {
    /// How many threads there are.
    pub threads: u32,
    /// How many keys are ready.
    pub keys: usize,
    /// How many of them have a name.
    pub registered: usize,
    /// What the keys take in memory.
    pub keys_bytes: usize,
    /// How many operations wait.
    pub queued: usize,
    /// How many bytes they have.
    pub queued_bytes: usize,
}
