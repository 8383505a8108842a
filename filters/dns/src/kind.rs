//! DNS as a kind of traffic: a query and its reply.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use qudag_filter_api::{Arm, FilterError, Flow, FlowKey, Kind, Look, Origin};
use qudag_filter_common::{Limit, RateLimited};
use serde::Serialize;
use tokio::time::Instant;

use crate::replies;
use crate::wire::{self, Ede, Parsed, Refusal, flag3, rcode};
use crate::zone::Zone;

/// DNS: a query and its reply.
#[derive(Debug)]
pub struct Dns;

/// How a query came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// In a datagram.
    Udp,
    /// On a connection.
    Tcp,
}

impl Transport {
    /// The name in logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// A query that was understood.
#[derive(Clone, Debug)]
pub struct DnsQuery {
    wire: Bytes,
    parsed: Parsed,
    client: SocketAddr,
    transport: Transport,
    from_servers: bool,
    trace: Option<Trace>,
}

/// What the filters and servers on a query's way had to say about it, for a look-up that asks why.
#[derive(Clone, Debug)]
pub struct Trace(Arc<(Instant, Mutex<Way>)>);

/// The way of a query so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Way {
    /// The filters that it came to, and whether it went through them or, by their rollout, past them.
    pub reached: Vec<(&'static str, Arm)>,
    /// What they had to say, in order.
    pub steps: Vec<TraceStep>,
}

/// One remark on a query's way.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TraceStep {
    /// The filter's name, or `dns_upstream`.
    #[serde(skip)]
    pub filter: &'static str,
    /// When, in milliseconds since the start of the trace.
    pub at_ms: f64,
    /// What it did, and why.
    pub what: String,
}

/// The most remarks that are kept.
const STEPS: usize = 256;

impl Default for Trace {
    fn default() -> Self {
        Self(Arc::new((Instant::now(), Mutex::default())))
    }
}

impl Trace {
    fn lock(&self) -> MutexGuard<'_, Way> {
        self.0.1.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, filter: &'static str, what: String) {
        let at_ms = self.0.0.elapsed().as_secs_f64() * 1e3;
        let mut way = self.lock();
        if way.steps.len() < STEPS {
            way.steps.push(TraceStep { filter, at_ms, what });
        }
    }

    /// The way so far.
    pub fn way(&self) -> Way {
        self.lock().clone()
    }

    /// The remarks so far, in order.
    pub fn steps(&self) -> Vec<TraceStep> {
        self.lock().steps.clone()
    }
}

impl DnsQuery {
    /// Reads a message of a client.
    ///
    /// # Errors
    /// When it is not a query; see [`wire::parse_query`].
    pub fn parse(wire: Bytes, client: SocketAddr, transport: Transport) -> Result<Self, Refusal> {
        let parsed = wire::parse_query(&wire)?;
        Ok(Self::new(wire, parsed, client, transport))
    }

    /// The query that was read from a message.
    pub(crate) fn new(wire: Bytes, parsed: Parsed, client: SocketAddr, transport: Transport) -> Self {
        Self { wire, parsed, client, transport, from_servers: false, trace: None }
    }

    /// The same query, with a record of its way.
    pub fn traced(self, trace: Trace) -> Self {
        Self { trace: Some(trace), ..self }
    }

    /// The same query, to be answered by a server and by no cache on the way.
    pub fn from_servers(self) -> Self {
        Self { from_servers: true, ..self }
    }

    /// Whether no cache may answer the query.
    pub fn is_from_servers(&self) -> bool {
        self.from_servers
    }

    /// Remarks what a filter did with the query, if anybody wants to know.
    pub fn note(&self, filter: &'static str, what: impl FnOnce() -> String) {
        if let Some(trace) = &self.trace {
            trace.note(filter, what());
        }
    }

    /// The client's message.
    pub fn wire(&self) -> &Bytes {
        &self.wire
    }

    /// What it says.
    pub fn parsed(&self) -> &Parsed {
        &self.parsed
    }

    /// Who asks.
    pub fn client(&self) -> SocketAddr {
        self.client
    }

    /// How it came.
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// The question in the client's own case, with type and class.
    pub fn question(&self) -> &[u8] {
        self.wire.get(wire::HEADER..wire::HEADER + self.parsed.question_len()).unwrap_or_default()
    }
}

impl Flow for DnsQuery {
    fn key(&self) -> FlowKey {
        flow_key(self.client, &self.parsed)
    }

    fn client(&self) -> Option<IpAddr> {
        Some(self.client.ip().to_canonical())
    }

    fn reached(&self, filter: &'static str, arm: Arm) {
        if let Some(trace) = &self.trace {
            let mut way = trace.lock();
            if way.reached.iter().all(|(known, _)| *known != filter) {
                way.reached.push((filter, arm));
            }
        }
    }

    fn note(&self, filter: &'static str, what: impl FnOnce() -> String) {
        Self::note(self, filter, what);
    }
}

/// One client's look-ups of one name belong together.
fn flow_key(client: SocketAddr, parsed: &Parsed) -> FlowKey {
    let mut bytes = [0_u8; 16 + 255];
    let ip = match client.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    wire::put(&mut bytes, 0, &ip.octets());
    let name = parsed.name.wire();
    wire::put(&mut bytes, 16, name);
    FlowKey::of(bytes.get(..16 + name.len()).unwrap_or(&bytes))
}

/// A query as the thread that received it shows it to the filters, with room for the reply.
#[derive(Debug)]
pub struct DnsGlance<'a> {
    /// The client's message.
    pub message: &'a [u8],
    /// What it says.
    pub parsed: &'a Parsed,
    /// Who asks.
    pub client: SocketAddr,
    /// How it came.
    pub transport: Transport,
    /// When it came.
    pub now: Instant,
    /// The most bytes that the reply may have.
    pub limit: usize,
    /// Where a filter that answers puts the whole reply, as [`DnsReply::finish`] would make it: behind what is there.
    pub out: &'a mut Vec<u8>,
    /// Where a filter that answers says where the reply comes from.
    pub source: Source,
}

impl DnsGlance<'_> {
    /// Answers with a reply that is not fitted to the client yet.
    pub fn reply(&mut self, wire: &[u8], ede: Option<&Ede>) -> Look {
        let code = wire.get(3).copied().unwrap_or(rcode::SERVFAIL) & flag3::RCODE;
        if let Some(ede) = ede {
            replies::count_extended(ede.code, 1);
        }
        wire::finish_into(self.out, self.message, self.parsed, wire, [ede, None], self.limit);
        Look::Answered(failure_of(code))
    }
}

impl Flow for DnsGlance<'_> {
    fn key(&self) -> FlowKey {
        flow_key(self.client, self.parsed)
    }

    fn client(&self) -> Option<IpAddr> {
        Some(self.client.ip().to_canonical())
    }
}

/// Where a reply comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The hosts file.
    Hosts,
    /// A zone of the configuration.
    LocalZone,
    /// The zone of the names that a bypass moves.
    ServiceZone,
    /// The cache.
    Cache,
    /// The cache that a fleet shares.
    SharedCache,
    /// An upstream server, as the configuration names it.
    Upstream(Arc<str>),
    /// The sidecar: an error, or a refusal.
    Sidecar,
}

impl Source {
    /// The name in logs.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Hosts => "hosts",
            Self::LocalZone => "local_zones",
            Self::ServiceZone => "service_zone",
            Self::Cache => "cache",
            Self::SharedCache => "shared_cache",
            Self::Upstream(_) => "upstream",
            Self::Sidecar => "sidecar",
        }
    }

    /// The filter that answers from there, or `listener`.
    pub fn filter(&self) -> &'static str {
        match self {
            Self::Hosts => "hosts",
            Self::LocalZone => "local_zones",
            Self::Cache => "dns_cache",
            Self::SharedCache => "dns_shared_cache",
            Self::Upstream(_) => "dns_upstream",
            Self::ServiceZone | Self::Sidecar => "listener",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Upstream(server) => write!(f, "upstream {server}"),
            other => f.write_str(other.label()),
        }
    }
}

/// A reply, before it is fitted to the client that asked: without an OPT record, its id and its question's case are anybody's.
#[derive(Clone, Debug)]
pub struct DnsReply {
    /// The message.
    pub wire: Bytes,
    /// Where it comes from.
    pub source: Source,
    /// Why, for a client that reads extended errors.
    pub ede: Option<Ede>,
    /// What else there is to say of it.
    pub also: Option<Ede>,
    /// How old its data are already: zero from the server that has them, more from a cache. The times to live in the message are
    /// what is left of them.
    pub age: Duration,
}

impl DnsReply {
    /// A reply with fresh data and nothing to say about it.
    pub fn new(wire: Bytes, source: Source) -> Self {
        Self { wire, source, ede: None, also: None, age: Duration::ZERO }
    }

    /// A reply without records and with a code.
    pub fn code(query: &DnsQuery, code: u8, ede: Option<Ede>) -> Self {
        let length = Some(query.parsed.question_len());
        let wire = wire::error_reply(&query.wire, length, code.into(), None).into();
        Self { ede, ..Self::new(wire, Source::Sidecar) }
    }

    /// What a client is told of an error in the chain.
    pub fn error(query: &DnsQuery, error: &FilterError) -> Self {
        let (code, ede) = match error {
            FilterError::Malformed(_) => return Self::code(query, rcode::FORMERR, None),
            // RFC 8914 section 4: prohibited.
            FilterError::Refused(_) | FilterError::RateLimited { .. } => (rcode::REFUSED, 18),
            // No reachable authority.
            FilterError::Timeout { .. }
            | FilterError::Unavailable { .. }
            | FilterError::BreakerOpen { .. }
            | FilterError::Resolve { .. } => (rcode::SERVFAIL, 22),
            // Network error.
            FilterError::Connect { .. } | FilterError::Upstream(_) => (rcode::SERVFAIL, 23),
            // Not ready.
            FilterError::Draining => (rcode::SERVFAIL, 14),
            FilterError::Overloaded(_)
            | FilterError::Shed { .. }
            | FilterError::ClientGone
            | FilterError::Internal(_) => (rcode::SERVFAIL, 0),
        };
        // The label and not the error itself, which may name addresses that are nobody's business.
        Self::code(query, code, Some(Ede { code: ede, text: error.label().into() }))
    }

    /// The filter that an error comes from.
    pub fn refuser(error: &FilterError) -> &'static str {
        match error {
            FilterError::RateLimited { .. } => "rate_limit",
            error if error.origin() == Origin::Upstream => "dns_upstream",
            _ => "listener",
        }
    }

    /// The response code.
    pub fn rcode(&self) -> u8 {
        self.wire.get(3).copied().unwrap_or(rcode::SERVFAIL) & flag3::RCODE
    }

    /// The message for the client that asked, in at most `limit` bytes.
    pub fn finish(&self, query: &DnsQuery, limit: usize) -> Vec<u8> {
        let reasons = [self.ede.as_ref(), self.also.as_ref()];
        wire::finish(&query.wire, &query.parsed, &self.wire, reasons, limit)
    }
}

/// What the listener reads of a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsSettings {
    /// How long a TCP connection may be idle, and how long a client may take to read a reply.
    pub tcp_idle: Duration,
    /// How many TCP connections there may be.
    pub max_tcp_connections: usize,
    /// How many queries may be under way.
    pub max_in_flight: usize,
    /// The largest UDP reply in bytes.
    pub max_udp_reply: usize,
    /// The zone of the names that a bypass moves; answered before any filter.
    pub service: Option<Arc<Zone>>,
}

/// The failure that a code reports.
pub(crate) fn failure_of(code: u8) -> Option<&'static str> {
    (code == rcode::SERVFAIL).then_some("servfail")
}

/// A host asks for every name through the sidecar, several at once for each connection that its programs open.
impl RateLimited for Dns {
    const PER_CLIENT: Limit = Limit { rate: 2_000, burst: 4_000 };
}

impl Kind for Dns {
    const NAME: &'static str = "dns";
    type Req = DnsQuery;
    type Rsp = DnsReply;
    type Glance<'a> = DnsGlance<'a>;
    type Settings = DnsSettings;

    fn failure(reply: &DnsReply) -> Option<&'static str> {
        failure_of(reply.rcode())
    }

    fn replay(request: &DnsQuery) -> Option<DnsQuery> {
        Some(request.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::query_wire;
    use crate::wire::rtype;

    fn query(name: &str, client: &str, edns: Option<u16>) -> DnsQuery {
        let wire = query_wire(name, rtype::A, edns).into();
        DnsQuery::parse(wire, client.parse().unwrap(), Transport::Udp).unwrap()
    }

    #[test]
    fn a_flow_is_a_client_and_a_name() {
        let key = |name, client| query(name, client, None).key();
        assert_eq!(key("a.example", "10.0.0.1:1"), key("A.Example", "10.0.0.1:2"));
        assert_eq!(key("a.example", "10.0.0.1:1"), key("a.example", "[::ffff:10.0.0.1]:1"));
        assert_ne!(key("a.example", "10.0.0.1:1"), key("b.example", "10.0.0.1:1"));
        assert_ne!(key("a.example", "10.0.0.1:1"), key("a.example", "10.0.0.2:1"));
    }

    #[test]
    fn errors_become_replies_with_a_reason() {
        let asked = query("a.example", "10.0.0.1:1", Some(1232));
        let of = |error| {
            let reply = DnsReply::error(&asked, &error);
            (reply.rcode(), reply.ede.map(|ede| ede.code))
        };
        let after = Duration::from_secs(1);
        assert_eq!(of(FilterError::Timeout { after }), (rcode::SERVFAIL, Some(22)));
        assert_eq!(
            of(FilterError::connect("x", std::io::ErrorKind::ConnectionRefused.into())),
            (rcode::SERVFAIL, Some(23))
        );
        assert_eq!(of(FilterError::RateLimited { retry_after: after }), (rcode::REFUSED, Some(18)));
        assert_eq!(of(FilterError::Refused("no".into())), (rcode::REFUSED, Some(18)));
        assert_eq!(of(FilterError::Malformed("no".into())), (rcode::FORMERR, None));
        let reply = DnsReply::error(&asked, &FilterError::Timeout { after });
        assert_eq!(Dns::failure(&reply), Some("servfail"));
        assert!(reply.finish(&asked, 512).ends_with(b"\0\x16timeout"));
    }
}
