//! The life of one query, whichever way it came.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use metrics::counter;
use qudag_filter_api::{Chains, FilterError, Kind, Lease, Looked, Rest, Tally};
use qudag_filter_common::flow::{Details, Ended};
use qudag_filter_common::{Audience, FlowLine, FlowTally, Seat, Seats};
use tokio::time::Instant;

use crate::replies::ReplyTally;
use crate::service;
use crate::wire::{self, MIN_UDP, Parsed, Refusal, rcode, rtype};
use crate::{Dns, DnsGlance, DnsQuery, DnsReply, DnsSettings, Source, Transport, replies};

/// What all queries of a listener share.
pub(super) struct Shared {
    chains: Chains<Dns>,
    in_flight: Seats,
    connections: Seats,
}

/// A message, and how it came.
#[derive(Clone, Copy)]
pub(super) struct Message<'a> {
    pub(super) wire: &'a [u8],
    pub(super) client: SocketAddr,
    pub(super) transport: Transport,
}

/// What becomes of a message.
pub(super) enum Received {
    /// No reply is due.
    Nothing,
    /// The reply is there.
    Replied,
    /// The chain has to be asked.
    Query(Box<Asking>),
}

/// A query that is on its way through the chain.
pub(super) struct Asking {
    query: DnsQuery,
    /// Keeps the generation until the chain has answered.
    lease: Lease<Dns>,
    rest: Rest<Dns>,
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
}

/// What one thread or connection takes in, and what it has counted.
pub(super) struct Intake {
    shared: Arc<Shared>,
    tally: Tally,
    flows: FlowTally,
    replies: ReplyTally,
    audience: &'static Audience,
}

impl Intake {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            tally: Tally::default(),
            flows: FlowTally::new(Dns::NAME),
            replies: ReplyTally::default(),
            audience: Audience::of(Dns::NAME),
        }
    }

    /// Begins with the messages that have come together. All of them are served by the generation of this moment.
    pub(super) fn batch(&mut self) -> Batch<'_> {
        Batch { lease: (self.shared.chains)(), intake: self, now: Instant::now() }
    }
}

/// Messages that came together. What was answered is counted at its end.
pub(super) struct Batch<'a> {
    intake: &'a mut Intake,
    lease: Option<Lease<Dns>>,
    now: Instant,
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        let Intake { tally, flows, replies, .. } = &mut *self.intake;
        if let Some(lease) = &self.lease {
            lease.chain.settle(tally);
        }
        flows.settle(self.now.elapsed());
        replies.settle();
    }
}

impl Batch<'_> {
    /// Takes a message in. What can be answered at once is; the reply is appended to `out`.
    pub(super) fn receive(&mut self, message: Message<'_>, out: &mut Vec<u8>) -> Received {
        let parsed = match wire::parse_query(message.wire) {
            Ok(parsed) => parsed,
            Err(Refusal::Silent(reason)) => {
                counter!("qudag_sidecar_dns_ignored_total", "reason" => reason).increment(1);
                return Received::Nothing;
            }
            Err(Refusal::Reply(why, reply)) => {
                let mut line = FlowLine::start(Dns::NAME, Some(message.client));
                let code = if why == "malformed" { rcode::label(rcode::FORMERR) } else { why };
                line.detail("transport", message.transport.label()).detail("rcode", code);
                replies::count(Source::Sidecar.label(), code, 1);
                line.end("malformed", message.wire.len() as u64, reply.len() as u64);
                out.extend_from_slice(&reply);
                return Received::Replied;
            }
        };
        let Some(lease) = &self.lease else {
            let refused = FilterError::Refused("DNS is not served".into());
            return message.refuse(parsed, &refused, MIN_UDP.into(), out);
        };
        let limit = limit(&parsed, message.transport, &lease.settings);
        let start = out.len();
        let mut glance = DnsGlance {
            message: message.wire,
            parsed: &parsed,
            client: message.client,
            transport: message.transport,
            now: self.now,
            limit,
            out,
            source: Source::Sidecar,
        };
        if parsed.qtype == rtype::ANY {
            glance.reply(&wire::hinfo(&parsed), None);
            return self.answered(&message, &parsed, &Source::Sidecar, start, out);
        }
        if let Some(reply) = service::answer(lease.settings.service.as_deref(), &parsed) {
            glance.reply(&reply.wire, None);
            return self.answered(&message, &parsed, &reply.source, start, out);
        }
        match lease.chain.look(&mut glance, &mut self.intake.tally) {
            Looked::Answered => {
                let source = glance.source;
                self.answered(&message, &parsed, &source, start, out)
            }
            Looked::Refused(error) => message.refuse(parsed, &error, limit, out),
            Looked::Wait(rest) => {
                let Some(seat) = self.intake.shared.in_flight.take(lease.settings.max_in_flight) else {
                    let full = FilterError::Overloaded("too many queries are under way".into());
                    return message.refuse(parsed, &full, MIN_UDP.into(), out);
                };
                let line = message.line(&parsed);
                let query = message.query(parsed);
                Received::Query(Box::new(Asking { query, lease: lease.clone(), rest, line, _seat: seat }))
            }
        }
    }

    /// Notes an answer that stands in `out` from `start` on.
    fn answered(
        &mut self,
        message: &Message<'_>,
        parsed: &Parsed,
        source: &Source,
        start: usize,
        out: &[u8],
    ) -> Received {
        let code = out.get(start + 3).map_or(rcode::SERVFAIL, |flags| flags & wire::flag3::RCODE);
        let outcome = crate::kind::failure_of(code).unwrap_or("ok");
        let Intake { flows, replies, audience, .. } = &mut *self.intake;
        flows.end(outcome);
        replies.count(source.label(), rcode::label(code));
        if audience.wants(outcome) {
            let reply = out.get(start..).unwrap_or_default();
            let mut details = Details::default();
            replies::describe_query(&mut details, parsed, message.transport);
            replies::describe_reply(&mut details, parsed, reply, source, source.filter());
            audience.show(&Ended {
                client: Some(message.client),
                outcome,
                duration: self.now.elapsed(),
                bytes_up: message.wire.len() as u64,
                bytes_down: reply.len() as u64,
                details: &details,
            });
        }
        Received::Replied
    }
}

impl Message<'_> {
    fn query(&self, parsed: Parsed) -> DnsQuery {
        DnsQuery::new(Bytes::copy_from_slice(self.wire), parsed, self.client, self.transport)
    }

    fn line(&self, parsed: &Parsed) -> FlowLine {
        let mut line = FlowLine::start(Dns::NAME, Some(self.client));
        line.details(|details| replies::describe_query(details, parsed, self.transport));
        line
    }

    /// Answers with an error.
    fn refuse(&self, parsed: Parsed, error: &FilterError, limit: usize, out: &mut Vec<u8>) -> Received {
        let line = self.line(&parsed);
        out.extend_from_slice(&finish(&self.query(parsed), Err(error), limit, line));
        Received::Replied
    }
}

impl Asking {
    /// Asks the rest of the chain.
    pub(super) async fn answer(self) -> Vec<u8> {
        let Self { query, lease, rest, line, _seat } = self;
        let limit = limit(query.parsed(), query.transport(), &lease.settings);
        let result = rest.call(query.clone()).await;
        drop(lease);
        finish(&query, result.as_ref(), limit, line)
    }
}

/// How large the reply may be.
fn limit(parsed: &Parsed, transport: Transport, settings: &DnsSettings) -> usize {
    match transport {
        Transport::Tcp => u16::MAX.into(),
        Transport::Udp => {
            let client = parsed.edns.map_or(MIN_UDP, |edns| edns.udp_size.max(MIN_UDP));
            usize::from(client).min(settings.max_udp_reply)
        }
    }
}

/// Turns the chain's result into the reply, and writes the line.
fn finish(
    query: &DnsQuery,
    result: Result<&DnsReply, &FilterError>,
    limit: usize,
    mut line: FlowLine,
) -> Vec<u8> {
    let error_reply;
    let (reply, outcome, filter) = match result {
        Ok(reply) => (reply, Dns::failure(reply).unwrap_or("ok"), reply.source.filter()),
        Err(error) => {
            line.detail("error", error);
            error_reply = DnsReply::error(query, error);
            (&error_reply, error.label(), DnsReply::refuser(error))
        }
    };
    replies::count(reply.source.label(), rcode::label(reply.rcode()), 1);
    for ede in reply.ede.iter().chain(&reply.also) {
        replies::count_extended(ede.code, 1);
    }
    let wire = reply.finish(query, limit);
    line.details(|details| {
        replies::describe_reply(details, query.parsed(), &wire, &reply.source, filter);
    });
    line.end(outcome, query.wire().len() as u64, wire.len() as u64);
    wire
}
