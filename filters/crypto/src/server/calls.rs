//! A connection's calls: into the chain of the generation in force, counted and shown when they have ended.

use std::net::SocketAddr;

use metrics::{Counter, Gauge, counter, gauge};
use qudag_filter_api::{Chains, FilterError, FlowKey, Kind, Lease};
use qudag_filter_common::flow::{Details, Ended};
use qudag_filter_common::{Audience, FlowTally};
use tokio::time::Instant;

use super::memory::{Asked, Memory};
use crate::{Crypto, CryptoCall, CryptoListener, CryptoReply, Operations};

/// How a program speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Binary,
    Http,
}

impl Protocol {
    fn label(self) -> &'static str {
        match self {
            Self::Binary => "binary",
            Self::Http => "http",
        }
    }
}

/// What a request asks for, as far as it could be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asks {
    /// A label.
    pub(super) request: &'static str,
    /// How many operations.
    pub(super) operations: usize,
}

impl Asks {
    /// Of a request that cannot be read.
    pub(super) const UNREADABLE: Self = Self { request: "unreadable", operations: 0 };

    pub(super) fn of(operations: &Operations) -> Self {
        let (request, operations) = match operations {
            Operations::Keys(keys) => ("keys", keys.len()),
            Operations::Signatures(signatures) => ("signatures", signatures.len()),
            Operations::Fingerprints(fingerprints) => ("fingerprints", fingerprints.len()),
            Operations::Hashes(hashes) => ("hashes", hashes.len()),
            Operations::Status => ("status", 0),
        };
        Self { request, operations }
    }
}

/// A request under way, to be ended by [`Caller::end`].
pub(super) struct Started {
    pub(super) asks: Asks,
    at: Instant,
    pub(super) bytes_up: usize,
}

/// A connection's way into the chain.
pub(super) struct Caller {
    chains: Chains<Crypto>,
    protocol: Protocol,
    program: FlowKey,
    client: Option<SocketAddr>,
    memory: Memory,
    audience: &'static Audience,
    connections: Gauge,
    /// The counter of requests that went well, of the sort that came last.
    well: Option<(&'static str, Counter)>,
    tally: FlowTally,
}

impl Caller {
    pub(super) fn new(
        chains: Chains<Crypto>,
        protocol: Protocol,
        program: FlowKey,
        client: Option<SocketAddr>,
        memory: Memory,
    ) -> Self {
        let connections = gauge!("qudag_sidecar_crypto_connections", "protocol" => protocol.label());
        connections.increment(1.0);
        Self {
            chains,
            protocol,
            program,
            client,
            memory,
            audience: Audience::of(Crypto::NAME),
            connections,
            well: None,
            tally: FlowTally::new(Crypto::NAME),
        }
    }

    /// The generation in force.
    ///
    /// # Errors
    /// [`FilterError::Draining`] when it does not have this listener any more.
    pub(super) fn lease(&self) -> Result<Lease<Crypto>, FilterError> {
        (self.chains)().ok_or(FilterError::Draining)
    }

    /// Asks for the memory of a request.
    pub(super) fn ask_memory(&self, bytes: usize, listener: &CryptoListener) -> Asked {
        self.memory.ask(self.program, bytes, listener.max_memory.bytes())
    }

    /// Begins a request of so many bytes.
    pub(super) fn start(&self, asks: Asks, bytes_up: usize) -> Started {
        Started { asks, at: Instant::now(), bytes_up }
    }

    /// Asks the chain. The lease is held until the reply is there. `routed` is as in [`CryptoCall::routed`].
    pub(super) fn call(
        &self,
        lease: Lease<Crypto>,
        operations: Operations,
        routed: bool,
    ) -> impl Future<Output = Result<CryptoReply, FilterError>> + Send + 'static {
        let client = self.client.map(|client| client.ip());
        let call = CryptoCall { routed, ..CryptoCall::new(operations, self.program, client) };
        async move { lease.chain.call(call).await }
    }

    /// Counts a request that has ended, and shows it to who wants to see it. `outcome` is `ok` or the label of an error.
    pub(super) fn end(&mut self, started: &Started, outcome: &'static str, bytes_down: usize) {
        let Started { asks, at, bytes_up } = started;
        let duration = at.elapsed();
        if outcome == "ok" {
            if self.well.as_ref().is_none_or(|(request, _)| *request != asks.request) {
                self.well = Some((asks.request, self.requests(asks.request, "ok")));
            }
            if let Some((_, well)) = &self.well {
                well.increment(1);
            }
        } else {
            self.requests(asks.request, outcome).increment(1);
        }
        self.tally.end(outcome);
        self.tally.settle(duration);
        if self.audience.wants(outcome) {
            let mut details = Details::default();
            details.add("transport", self.protocol.label()).add("type", asks.request);
            if asks.operations > 0 {
                details.add("operations", asks.operations);
            }
            self.audience.show(&Ended {
                client: self.client,
                outcome,
                duration,
                bytes_up: *bytes_up as u64,
                bytes_down: bytes_down as u64,
                details: &details,
            });
        }
    }

    fn requests(&self, request: &'static str, outcome: &'static str) -> Counter {
        counter!(
            "qudag_sidecar_crypto_requests_total",
            "protocol" => self.protocol.label(), "request" => request, "outcome" => outcome
        )
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.connections.decrement(1.0);
    }
}
