//! Cryptography as a kind of traffic.

use std::net::IpAddr;
use std::sync::Arc;

use qudag_filter_api::{Flow, FlowKey, Kind};
use qudag_filter_common::{Limit, RateLimited};
use qudag_mldsa::Backend;

use crate::{CryptoListener, CryptoStatus, KeyId, Operations, Verdict};

/// Batches of operations.
#[derive(Clone, Copy, Debug)]
pub struct Crypto;

impl Kind for Crypto {
    const NAME: &'static str = "crypto";
    type Req = CryptoCall;
    type Rsp = CryptoReply;
    type Glance<'a> = std::convert::Infallible;
    type Settings = CryptoSettings;

    // A verdict, whatever it is, is an answer.
}

impl RateLimited for Crypto {
    /// Operations: about as many signatures as a processor with AVX2 verifies in a second. Programs on a Unix socket have one limit together.
    const PER_CLIENT: Limit = Limit { rate: 200_000, burst: 400_000 };

    fn weight(call: &CryptoCall) -> u32 {
        u32::try_from(call.operations.len().max(1)).unwrap_or(u32::MAX)
    }
}

/// One batch.
#[derive(Clone, Debug)]
pub struct CryptoCall {
    /// What to do.
    pub operations: Arc<Operations>,
    /// With which implementation: [`Backend::Portable`], unless a filter chooses another one.
    pub backend: Backend,
    /// Whether nothing may be used that was prepared before, by this implementation or another one. So one is checked by another.
    pub independent: bool,
    /// Whether another sidecar has passed it on. It is passed on to no third one.
    pub routed: bool,
    /// The program, by its process and user; equal for all calls of a connection.
    pub program: FlowKey,
    /// The program's address; `None` on a Unix socket.
    pub client: Option<IpAddr>,
}

impl CryptoCall {
    /// A batch as a listener passes it on.
    pub fn new(operations: Operations, program: FlowKey, client: Option<IpAddr>) -> Self {
        Self {
            operations: Arc::new(operations),
            backend: Backend::Portable,
            independent: false,
            routed: false,
            program,
            client,
        }
    }
}

impl Flow for CryptoCall {
    fn key(&self) -> FlowKey {
        self.program
    }

    fn client(&self) -> Option<IpAddr> {
        self.client.map(|ip| ip.to_canonical())
    }
}

/// What became of a batch, in its order.
#[derive(Clone, Debug)]
pub enum CryptoReply {
    /// The names of the keys that were registered.
    Keys(Vec<KeyId>),
    /// Of signatures and fingerprints.
    Verdicts(Vec<Verdict>),
    /// The same, made by another sidecar. Nothing of it is to be blamed on what is here.
    Routed(Vec<Verdict>),
    /// Hashes, each as long as was asked for.
    Hashes(Vec<Box<[u8]>>),
    /// The state of the service.
    Status(Box<CryptoStatus>),
}

/// What the listener needs besides the filters.
pub struct CryptoSettings {
    /// The listener's settings.
    pub listener: CryptoListener,
}
