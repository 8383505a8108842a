//! RPC as a kind of traffic.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use qudag_filter_api::{Address, Flow, FlowKey, Kind, Resolve};

use crate::RpcListener;
use crate::request::Method;

/// The node's remote procedure calls.
#[derive(Clone, Copy, Debug)]
pub struct Rpc;

impl Kind for Rpc {
    const NAME: &'static str = "rpc";
    type Req = RpcCall;
    type Rsp = RpcReply;
    type Glance<'a> = std::convert::Infallible;
    type Settings = RpcSettings;

    // A reply that reports an error is the node's answer to the call; it says nothing about the node's health.

    fn replay(call: &RpcCall) -> Option<RpcCall> {
        Method::of(&call.method).is_repeatable().then(|| call.clone())
    }
}

/// One call.
#[derive(Clone, Debug)]
pub struct RpcCall {
    /// The request as the client sent it; what the node gets.
    pub body: Bytes,
    /// The id, as JSON text.
    pub id: String,
    /// The method.
    pub method: String,
    /// The client; `None` on a Unix socket.
    pub client: Option<SocketAddr>,
}

impl Flow for RpcCall {
    fn key(&self) -> FlowKey {
        self.client.map_or_else(|| FlowKey::of(b"unix"), FlowKey::client)
    }

    fn client(&self) -> Option<IpAddr> {
        self.client.map(|client| client.ip().to_canonical())
    }
}

/// The reply to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RpcReply {
    /// The reply as the node sent it; what the client gets.
    pub body: Bytes,
}

/// What the listener and the terminal service need besides the filters.
pub struct RpcSettings {
    /// The listener's settings.
    pub listener: RpcListener,
    /// The node's RPC server.
    pub node: Address,
    /// Name resolution.
    pub resolve: Arc<dyn Resolve>,
}
