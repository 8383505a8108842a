//! From a client's request to its response.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use qudag_filter_api::{Chains, FilterError, Kind};
use qudag_filter_common::{Drain, FlowLine, Seat};

use crate::guard::{Busy, Shared};
use crate::headers::{check, forward, remove_hop_by_hop};
use crate::record::{Intake, Record, RequestBody, ResponseBody};
use crate::tunnel::Tunnel;
use crate::{Body, Http, HttpCall, HttpSettings, refusal};

/// The requests of one client connection.
pub(crate) struct Requests {
    chains: Chains<Http>,
    client: Option<SocketAddr>,
    shared: Arc<Shared>,
    drain: Drain,
    /// Given back with the last of the connection's work.
    _seat: Seat,
}

impl Requests {
    pub(crate) fn new(
        chains: Chains<Http>,
        client: Option<SocketAddr>,
        shared: Arc<Shared>,
        drain: Drain,
        seat: Seat,
    ) -> Self {
        Self { chains, client, shared, drain, _seat: seat }
    }

    /// Answers a request, with a refusal if need be.
    pub(crate) async fn answer(
        self: Arc<Self>,
        mut request: Request<Incoming>,
    ) -> Result<Response<ResponseBody>, Infallible> {
        let intake = Arc::new(Intake::default());
        let flow = FlowLine::start("http", self.client);
        let mut record = Record::new(flow, Arc::clone(&intake), self.drain.clone(), Busy::new(&self.shared));
        record.detail("method", format_args!("{:.16}", request.method().as_str()));
        record.detail("path", format_args!("{:.256}", request.uri().path()));
        let upgrade = hyper::upgrade::on(&mut request);
        let (response, outcome) = match self.call(request, &intake).await {
            Ok(response) => {
                let outcome = Http::failure(&response).unwrap_or("ok");
                (response, outcome)
            }
            Err(error) => {
                let response = match intake.refused() {
                    Some(status) => refusal::problem(status, &error.to_string()),
                    None => refusal::reply(&error),
                };
                (response, error.label())
            }
        };
        record.detail("status", response.status().as_u16());
        Ok(self.finish(response, record, outcome, upgrade))
    }

    async fn call(
        &self,
        request: Request<Incoming>,
        intake: &Arc<Intake>,
    ) -> Result<Response<Body>, FilterError> {
        let lease = (self.chains)().ok_or(FilterError::Draining)?;
        let call = self.receive(request, intake, &lease.settings).await?;
        let response = lease.chain.call(call).await;
        drop(lease);
        response
    }

    /// Checks a request and makes it the sidecar's own.
    async fn receive(
        &self,
        request: Request<Incoming>,
        intake: &Arc<Intake>,
        settings: &HttpSettings,
    ) -> Result<HttpCall, FilterError> {
        let (mut parts, incoming) = request.into_parts();
        if parts.method == Method::CONNECT {
            intake.refuse(StatusCode::NOT_IMPLEMENTED);
            return Err(FilterError::Malformed("CONNECT is for forward proxies".into()));
        }
        let host = check(&parts)?;
        let body = self.body(&parts, incoming, intake, settings).await?;
        forward(&mut parts, self.client.map(|client| client.ip()), host.as_deref());
        Ok(HttpCall { request: Request::from_parts(parts, body), client: self.client })
    }

    async fn body(
        &self,
        parts: &Parts,
        incoming: Incoming,
        intake: &Arc<Intake>,
        settings: &HttpSettings,
    ) -> Result<Body, FilterError> {
        if incoming.is_end_stream() {
            return Ok(Body::default());
        }
        let limit = settings.listener.max_body.0;
        if incoming.size_hint().lower() > limit {
            intake.refuse(StatusCode::PAYLOAD_TOO_LARGE);
            return Err(FilterError::Malformed(format!("the body is larger than {limit} bytes").into()));
        }
        let silence = settings.listener.body_timeout.0;
        let mut body = RequestBody::new(incoming, limit, silence, Arc::clone(intake));
        // A client that expects 100 sends nothing before it; reading is what sends 100.
        if !parts.headers.contains_key(http::header::EXPECT) {
            body.read_ahead().await?;
        }
        Ok(Body::new(body))
    }

    fn finish(
        self: &Arc<Self>,
        mut response: Response<Body>,
        mut record: Record,
        outcome: &'static str,
        upgrade: OnUpgrade,
    ) -> Response<ResponseBody> {
        let tunnel = response.extensions_mut().remove::<Tunnel>();
        let protocol = response.headers().get(UPGRADE).cloned();
        let close = outcome == FilterError::Draining.label();
        remove_hop_by_hop(response.headers_mut());
        if close {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(tunnel) = tunnel
            && let Some(flow) = record.hand_over()
        {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
            if let Some(protocol) = protocol {
                response.headers_mut().insert(UPGRADE, protocol);
            }
            self.shared.change_protocol();
            self.tunnel(tunnel, upgrade, flow);
        }
        response.map(|body| ResponseBody::new(body, record, outcome))
    }

    fn tunnel(self: &Arc<Self>, tunnel: Tunnel, upgrade: OnUpgrade, flow: FlowLine) {
        let requests = Arc::clone(self);
        self.drain.spawn(async move {
            match upgrade.await {
                Ok(client) => tunnel.run(TokioIo::new(client), flow, &requests.drain).await,
                Err(_) => flow.end(FilterError::ClientGone.label(), 0, 0),
            }
        });
    }
}
