//! What people are told of a server.

/// What is known of a server.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct ServerStatus {
    /// Its name in the configuration.
    pub server: String,
    /// `servers`, `alternative` or `direct`.
    pub list: &'static str,
    /// `udp`, `tcp`, `tls`, `https` or `quic`.
    pub protocol: &'static str,
    /// Whether it is asked in its configured place.
    pub healthy: bool,
    /// `closed`, `half_open` or `open`.
    pub breaker: &'static str,
    /// The smoothed time that its answers take, in milliseconds.
    pub latency_ms: Option<f64>,
    /// The time in which 95 of 100 answers come, in milliseconds.
    pub p95_ms: Option<f64>,
    /// Queries that it has to answer.
    pub in_flight: usize,
    /// Open connections to it.
    pub connections: usize,
    /// Good answers.
    pub answers: u64,
    /// Queries that ended otherwise.
    pub failures: u64,
    /// Why the last of these failed.
    pub last_failure: Option<String>,
    /// Whether it repeats the case of names (0x20).
    pub repeats_case: bool,
}
