//! HTTP as a kind of traffic.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::combinators::UnsyncBoxBody;
use qudag_filter_api::{Address, FilterError, Flow, FlowKey, Kind, Resolve};

use crate::HttpListener;

/// The body of a request or of a response, streamed. An error means that it is not complete and that what was seen of it is not
/// to be trusted as a whole.
pub type Body = UnsyncBoxBody<Bytes, FilterError>;

/// HTTP/1.1 and HTTP/2 in front of the node's HTTP server.
#[derive(Clone, Copy, Debug)]
pub struct Http;

impl Kind for Http {
    const NAME: &'static str = "http";
    type Req = HttpCall;
    type Rsp = Response<Body>;
    type Glance<'a> = std::convert::Infallible;
    type Settings = HttpSettings;

    fn failure(reply: &Response<Body>) -> Option<&'static str> {
        match reply.status() {
            StatusCode::BAD_GATEWAY => Some("bad_gateway"),
            StatusCode::SERVICE_UNAVAILABLE => Some("service_unavailable"),
            StatusCode::GATEWAY_TIMEOUT => Some("gateway_timeout"),
            _ => None,
        }
    }

    fn replay(call: &HttpCall) -> Option<HttpCall> {
        let request = &call.request;
        if !is_safe(request.method()) || !request.body().is_end_stream() {
            return None;
        }
        let mut copy = Request::new(Body::default());
        *copy.method_mut() = request.method().clone();
        *copy.uri_mut() = request.uri().clone();
        *copy.version_mut() = request.version();
        *copy.headers_mut() = request.headers().clone();
        *copy.extensions_mut() = request.extensions().clone();
        Some(HttpCall { request: copy, client: call.client })
    }
}

/// Whether a method asks for nothing to change (RFC 9110 section 9.2.1), of those that the node answers.
pub(crate) fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// One request on its way to the node.
#[derive(Debug)]
pub struct HttpCall {
    /// The request. Fields that concern one connection are gone; `Host` and the framing are added by the terminal service.
    pub request: Request<Body>,
    /// The client; `None` on a Unix socket.
    pub client: Option<SocketAddr>,
}

impl Flow for HttpCall {
    fn key(&self) -> FlowKey {
        self.client.map_or_else(|| FlowKey::of(b"unix"), FlowKey::client)
    }

    fn client(&self) -> Option<IpAddr> {
        self.client.map(|client| client.ip().to_canonical())
    }
}

/// What the listener and the terminal service need besides the filters.
pub struct HttpSettings {
    /// The listener's settings.
    pub listener: HttpListener,
    /// The node's HTTP server.
    pub node: Address,
    /// Name resolution.
    pub resolve: Arc<dyn Resolve>,
}
