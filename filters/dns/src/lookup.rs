//! A look-up by the sidecar's own command line, through the same chain as everybody's.

use std::net::{IpAddr, SocketAddr};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use qudag_filter_api::{FilterError, Svc};
use serde::Serialize;
use tokio::time::Instant;
use tower::ServiceExt;

use crate::dns_cache::parse_type;
use crate::wire::{CLASS_IN, HEADER, Name, NameError, Refusal, rtype};
use crate::{Dns, DnsQuery, Transport};

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
    /// `hosts`, `cache`, `upstream SERVER` or `sidecar`.
    pub source: String,
    /// How long it took, in milliseconds.
    pub elapsed_ms: f64,
    /// The records of the answer section.
    pub records: Vec<LookupRecord>,
}

/// A record in presentation format.
#[derive(Clone, Debug, PartialEq, Serialize)]
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
    /// The chain failed.
    #[error(transparent)]
    Chain(#[from] FilterError),
    /// The reply cannot be read.
    #[error("the reply cannot be read: {0}")]
    Reply(String),
}

/// Asks a chain for a name. The name of a `PTR` query may be an IP address. The query counts as one of a client on loopback, without
/// EDNS and with recursion desired.
///
/// # Errors
/// When name or type make no sense, the chain fails, or the reply cannot be read. An error that a server answered with is none: it
/// is in [`Lookup::rcode`].
pub async fn lookup(chain: Svc<Dns>, name: &str, rtype: &str) -> Result<Lookup, LookupError> {
    let qtype = parse_type(rtype).ok_or_else(|| LookupError::Type(rtype.to_owned()))?;
    let asked = match name.parse::<IpAddr>() {
        Ok(ip) if qtype == rtype::PTR => Name::reverse(ip),
        _ => Name::from_text(name)?,
    };
    let client = SocketAddr::from(([127, 0, 0, 1], 0));
    let query =
        DnsQuery::parse(question(&asked, qtype).into(), client, Transport::Tcp).map_err(|refusal| {
            LookupError::Question(match refusal {
                Refusal::Silent(why) | Refusal::Reply(why, _) => why,
            })
        })?;
    let start = Instant::now();
    let reply = chain.oneshot(query.clone()).await?;
    let elapsed = start.elapsed();
    let wire = reply.finish(&query, u16::MAX.into());
    let message = Message::from_vec(&wire).map_err(|why| LookupError::Reply(why.to_string()))?;
    let records = message.answers.iter().map(|record| LookupRecord {
        name: record.name.to_string(),
        ttl: record.ttl,
        rtype: record.record_type().to_string(),
        data: record.data.to_string(),
    });
    Ok(Lookup {
        name: asked.to_string(),
        rtype: RecordType::from(qtype).to_string(),
        rcode: code_name(message.metadata.response_code),
        source: reply.source.to_string(),
        elapsed_ms: elapsed.as_secs_f64() * 1e3,
        records: records.collect(),
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

fn question(name: &Name, qtype: u16) -> Vec<u8> {
    let mut wire = Vec::with_capacity(HEADER + name.wire().len() + 4);
    wire.extend([0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    wire.extend_from_slice(name.wire());
    wire.extend_from_slice(&qtype.to_be_bytes());
    wire.extend_from_slice(&CLASS_IN.to_be_bytes());
    wire
}
