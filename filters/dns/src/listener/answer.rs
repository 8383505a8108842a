//! The life of one query, whichever way it came.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use hickory_proto::rr::RecordType;
use metrics::counter;
use qudag_filter_api::{Chains, FilterError, Kind, Lease};
use qudag_filter_common::{FlowLine, Seat, Seats};
use tower::ServiceExt;

use crate::service;
use crate::wire::{self, MIN_UDP, Refusal, rcode, rtype};
use crate::{Dns, DnsQuery, DnsReply, DnsSettings, Source, Transport};

/// What all queries of a listener share.
pub(super) struct Shared {
    chains: Chains<Dns>,
    in_flight: Seats,
    connections: Seats,
}

/// What becomes of a message.
pub(super) enum Received {
    /// No reply is due.
    Nothing,
    /// This is the reply.
    Reply(Vec<u8>),
    /// The chain has to be asked.
    Query(Box<Asking>),
}

/// A query that is on its way through the chain.
pub(super) struct Asking {
    query: DnsQuery,
    lease: Lease<Dns>,
    line: FlowLine,
    _seat: Seat,
}

impl Shared {
    pub(super) fn new(chains: Chains<Dns>) -> Arc<Self> {
        Arc::new(Self { chains, in_flight: Seats::default(), connections: Seats::default() })
    }

    /// The settings of the current generation; `None` when it serves no DNS.
    pub(super) fn settings(&self) -> Option<Arc<DnsSettings>> {
        (self.chains)().map(|lease| lease.settings)
    }

    /// A seat for one more connection, if there is one.
    pub(super) fn connect(&self) -> Option<Seat> {
        self.connections.take(self.settings()?.max_tcp_connections)
    }

    /// Takes a message in. Whatever can be answered without the chain is.
    pub(super) fn receive(&self, message: Bytes, client: SocketAddr, transport: Transport) -> Received {
        let length = message.len() as u64;
        let query = match DnsQuery::parse(message, client, transport) {
            Ok(query) => query,
            Err(Refusal::Silent(reason)) => {
                counter!("qudag_sidecar_dns_ignored_total", "reason" => reason).increment(1);
                return Received::Nothing;
            }
            Err(Refusal::Reply(why, reply)) => {
                let mut line = FlowLine::start(Dns::NAME, Some(client));
                line.detail("transport", transport.label()).detail("rcode", why);
                line.end("malformed", length, reply.len() as u64);
                return Received::Reply(reply);
            }
        };
        let mut line = FlowLine::start(Dns::NAME, Some(client));
        let parsed = query.parsed();
        line.detail("transport", transport.label())
            .detail("name", &parsed.name)
            .detail("type", RecordType::from(parsed.qtype));
        let Some(lease) = (self.chains)() else {
            let refused = FilterError::Refused("DNS is not served".into());
            return Received::Reply(finish(&query, Err(refused), MIN_UDP.into(), line));
        };
        if parsed.qtype == rtype::ANY {
            let wire = wire::hinfo(parsed).into();
            let reply = DnsReply { wire, source: Source::Sidecar, ede: None };
            return Received::Reply(finish(&query, Ok(reply), limit(&query, &lease.settings), line));
        }
        if let Some(reply) = service::answer(lease.settings.service.as_deref(), parsed) {
            return Received::Reply(finish(&query, Ok(reply), limit(&query, &lease.settings), line));
        }
        match self.in_flight.take(lease.settings.max_in_flight) {
            Some(seat) => Received::Query(Box::new(Asking { query, lease, line, _seat: seat })),
            None => {
                let full = FilterError::Overloaded("too many queries are under way".into());
                Received::Reply(finish(&query, Err(full), MIN_UDP.into(), line))
            }
        }
    }
}

impl Asking {
    /// Asks the chain. The generation is held until it has answered.
    pub(super) async fn answer(self) -> Vec<u8> {
        let Self { query, lease, line, _seat } = self;
        let limit = limit(&query, &lease.settings);
        let result = lease.chain.clone().oneshot(query.clone()).await;
        drop(lease);
        finish(&query, result, limit, line)
    }
}

/// How large the reply may be.
fn limit(query: &DnsQuery, settings: &DnsSettings) -> usize {
    match query.transport() {
        Transport::Tcp => u16::MAX.into(),
        Transport::Udp => {
            let client = query.parsed().edns.map_or(MIN_UDP, |edns| edns.udp_size.max(MIN_UDP));
            usize::from(client).min(settings.max_udp_reply)
        }
    }
}

/// Turns the chain's result into the reply, and writes the line.
fn finish(
    query: &DnsQuery,
    result: Result<DnsReply, FilterError>,
    limit: usize,
    mut line: FlowLine,
) -> Vec<u8> {
    let (reply, outcome) = match result {
        Ok(reply) => {
            let outcome = Dns::failure(&reply).unwrap_or("ok");
            (reply, outcome)
        }
        Err(error) => {
            line.detail("error", &error);
            (DnsReply::error(query, &error), error.label())
        }
    };
    line.detail("rcode", rcode::label(reply.rcode())).detail("source", &reply.source);
    let wire = reply.finish(query, limit);
    line.end(outcome, query.wire().len() as u64, wire.len() as u64);
    wire
}
