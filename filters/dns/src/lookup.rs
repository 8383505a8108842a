//! A look-up by the sidecar's own command line, through the same chain as everybody's.

use std::net::{IpAddr, SocketAddr};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Record, RecordType};
use qudag_filter_api::Svc;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tower::ServiceExt;

use crate::dns_cache::parse_type;
use crate::kind::Way;
use crate::replies;
use crate::wire::{CLASS_IN, Ede, Name, NameError, OWN_UDP, Refusal, flag2, flag3, rtype};
use crate::{Dns, DnsQuery, DnsReply, Trace, Transport};

/// What to look up, and how.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// The name; of a `PTR` query it may be an IP address.
    pub name: String,
    /// The record type, `A` where it is left out.
    #[serde(default = "address", rename = "type")]
    pub rtype: String,
    /// Ask for DNSSEC records (the DO bit, RFC 3225).
    #[serde(default)]
    pub dnssec: bool,
    /// Ask the servers not to check them (the CD bit, RFC 4035 section 3.2.2).
    #[serde(default)]
    pub cd: bool,
    /// Record what the filters do with the query.
    #[serde(default)]
    pub trace: bool,
}

fn address() -> String {
    "A".to_owned()
}

impl Question {
    /// A plain question.
    pub fn new(name: impl Into<String>, rtype: impl Into<String>) -> Self {
        Self { name: name.into(), rtype: rtype.into(), dnssec: false, cd: false, trace: false }
    }

    /// With a record of the query's way.
    #[must_use]
    pub fn traced(self) -> Self {
        Self { trace: true, ..self }
    }

    fn wire(&self, name: &Name, qtype: u16) -> Vec<u8> {
        let mut wire = vec![0, 0, flag2::RD, if self.cd { flag3::CD } else { 0 }, 0, 1, 0, 0, 0, 0, 0];
        wire.push(u8::from(self.dnssec));
        wire.extend_from_slice(name.wire());
        wire.extend_from_slice(&qtype.to_be_bytes());
        wire.extend_from_slice(&CLASS_IN.to_be_bytes());
        if self.dnssec {
            // The root, OPT, the size of our datagrams, no extended code, version 0, DO, no options.
            wire.push(0);
            wire.extend_from_slice(&rtype::OPT.to_be_bytes());
            wire.extend_from_slice(&OWN_UDP.to_be_bytes());
            wire.extend([0, 0, 0x80, 0, 0, 0]);
        }
        wire
    }
}

/// What a look-up found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Lookup {
    /// The name asked for.
    pub name: String,
    /// The type asked for.
    #[serde(rename = "type")]
    pub rtype: String,
    /// The response code: `NOERROR`, `NXDOMAIN` and so on.
    pub rcode: String,
    /// The flags of the reply, `do` among them where it was asked for.
    pub flags: Vec<&'static str>,
    /// `hosts`, `cache`, `shared_cache`, `upstream SERVER` or `sidecar`.
    pub source: String,
    /// The filter that answered, or `listener`.
    pub filter: &'static str,
    /// How long it took, in milliseconds.
    pub elapsed_ms: f64,
    /// The records of the answer section.
    pub records: Vec<LookupRecord>,
    /// The records of the authority section.
    pub authority: Vec<LookupRecord>,
    /// The extended errors (RFC 8914), if there are any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub extended_errors: Vec<ExtendedError>,
    /// Why the chain has no answer; the code is what a client is told then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The query's way, if it was asked for.
    #[serde(skip)]
    pub way: Option<Way>,
}

/// An extended error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExtendedError {
    /// Its code.
    pub code: u16,
    /// What the code means, as a label.
    pub reason: &'static str,
    /// More words.
    pub text: String,
}

impl From<Ede> for ExtendedError {
    fn from(Ede { code, text }: Ede) -> Self {
        Self { code, reason: replies::reason(code), text: text.into_owned() }
    }
}

/// A record in presentation format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LookupRecord {
    /// Whose it is.
    pub name: String,
    /// Its time to live in seconds.
    pub ttl: u32,
    /// Its type.
    #[serde(rename = "type")]
    pub rtype: String,
    /// Its data.
    pub data: String,
}

impl From<&Record> for LookupRecord {
    fn from(record: &Record) -> Self {
        Self {
            name: record.name.to_string(),
            ttl: record.ttl,
            rtype: record.record_type().to_string(),
            data: record.data.to_string(),
        }
    }
}

/// Why a look-up could not be made.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The name is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The type is none.
    #[error("{0:?} is not a record type, expected A, AAAA, PTR, TYPE123 or the like")]
    Type(String),
    /// The question cannot be asked, a transfer of a zone for instance.
    #[error("a question of this type cannot be asked: {0}")]
    Question(&'static str),
    /// The reply cannot be read.
    #[error("the reply cannot be read: {0}")]
    Reply(String),
}

/// Asks a chain for a name. The query counts as one of a client on loopback, over TCP, with recursion desired, and without EDNS
/// unless DNSSEC records are asked for.
///
/// # Errors
/// When name or type make no sense, or the reply cannot be read. An error that a server answered with is none: it is in
/// [`Lookup::rcode`]; nor is one of the chain, which is in [`Lookup::error`].
pub async fn lookup(chain: Svc<Dns>, question: &Question) -> Result<Lookup, LookupError> {
    let rtype = &question.rtype;
    let qtype = parse_type(rtype).ok_or_else(|| LookupError::Type(rtype.clone()))?;
    let asked = match question.name.parse::<IpAddr>() {
        Ok(ip) if qtype == rtype::PTR => Name::reverse(ip),
        _ => Name::from_text(&question.name)?,
    };
    let client = SocketAddr::from(([127, 0, 0, 1], 0));
    let wire = question.wire(&asked, qtype);
    let query = DnsQuery::parse(wire.into(), client, Transport::Tcp).map_err(|refusal| {
        LookupError::Question(match refusal {
            Refusal::Silent(why) | Refusal::Reply(why, _) => why,
        })
    })?;
    let trace = question.trace.then(Trace::default);
    let query = match &trace {
        Some(trace) => query.traced(trace.clone()),
        None => query,
    };
    let start = Instant::now();
    let answer = chain.oneshot(query.clone()).await;
    let elapsed = start.elapsed();
    let (reply, filter, error) = match answer {
        Ok(reply) => {
            let filter = reply.source.filter();
            (reply, filter, None)
        }
        Err(error) => {
            let filter = DnsReply::refuser(&error);
            query.note(filter, || format!("no answer: {error}"));
            (DnsReply::error(&query, &error), filter, Some(error.to_string()))
        }
    };
    let wire = reply.finish(&query, u16::MAX.into());
    let message = Message::from_vec(&wire).map_err(|why| LookupError::Reply(why.to_string()))?;
    Ok(Lookup {
        name: asked.to_string(),
        rtype: RecordType::from(qtype).to_string(),
        rcode: code_name(message.metadata.response_code),
        flags: replies::flags(&wire, question.dnssec),
        source: reply.source.to_string(),
        filter,
        elapsed_ms: elapsed.as_secs_f64() * 1e3,
        records: message.answers.iter().map(LookupRecord::from).collect(),
        authority: message.authorities.iter().map(LookupRecord::from).collect(),
        extended_errors: reply.ede.into_iter().chain(reply.also).map(ExtendedError::from).collect(),
        error,
        way: trace.map(|trace| trace.way()),
    })
}

fn code_name(code: ResponseCode) -> String {
    match u16::from(code) {
        0 => "NOERROR",
        1 => "FORMERR",
        2 => "SERVFAIL",
        3 => "NXDOMAIN",
        4 => "NOTIMP",
        5 => "REFUSED",
        6 => "YXDOMAIN",
        other => return format!("RCODE{other}"),
    }
    .to_owned()
}
