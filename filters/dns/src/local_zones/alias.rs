//! Aliases that lead out of their zone.

use hickory_proto::op::Message;
use qudag_filter_api::{FilterError, FilterSpec, Svc};
use tower::ServiceExt;

use super::{LocalZones, LocalZonesState, reply};
use crate::wire::{CLASS_IN, HEADER, Name, flag2, flag3};
use crate::zone::{Answer, Chase};
use crate::{Dns, DnsQuery, DnsReply};

/// How often an alias may lead from one local zone to another.
const MAX_CHASES: usize = 8;

/// Follows an alias out of its zone: a client of ours is a stub and follows none itself (RFC 1034 section 5.3.1).
pub(super) async fn follow(
    state: &LocalZonesState,
    query: DnsQuery,
    chase: Chase,
    inner: Svc<Dns>,
) -> Result<DnsReply, FilterError> {
    let internal = |why: &str| FilterError::Internal(why.to_owned().into());
    let read = |wire: &[u8]| Message::from_vec(wire).map_err(|_| internal("a reply cannot be read"));
    let mut whole = read(&chase.wire)?;
    let mut target = chase.target;
    for _ in 0..MAX_CHASES {
        query.note(LocalZones::NAME, || format!("an alias of {target}"));
        let next = DnsQuery::parse(question(&query, &target).into(), query.client(), query.transport())
            .map_err(|_| internal("an alias to no name"))?;
        let found = match state.answer(next.parsed()) {
            None => {
                let found = inner.oneshot(next).await?;
                add(&mut whole, read(&found.wire)?);
                let wire = whole.to_vec().map_err(|_| internal("a reply cannot be written"))?;
                return Ok(DnsReply { ede: found.ede, ..reply(wire) });
            }
            Some(found) => found,
        };
        let (wire, further) = match found {
            Answer::Whole(wire) => (wire, None),
            Answer::Alias(chase) => (chase.wire, Some(chase.target)),
        };
        add(&mut whole, read(&wire)?);
        match further {
            Some(further) => target = further,
            None => {
                return whole.to_vec().map(reply).map_err(|_| internal("a reply cannot be written"));
            }
        }
    }
    Err(FilterError::Upstream("too many aliases".into()))
}

/// Adds the reply about what an alias leads to.
fn add(whole: &mut Message, further: Message) {
    whole.answers.extend(further.answers);
    whole.authorities = further.authorities;
    whole.metadata.response_code = further.metadata.response_code;
}

/// The same question about another name.
fn question(query: &DnsQuery, name: &Name) -> Vec<u8> {
    let parsed = query.parsed();
    let flags = [if parsed.rd { flag2::RD } else { 0 }, if parsed.cd { flag3::CD } else { 0 }];
    let mut wire = Vec::with_capacity(HEADER + name.wire().len() + 4);
    wire.extend_from_slice(&parsed.id.to_be_bytes());
    wire.extend(flags);
    wire.extend([0, 1, 0, 0, 0, 0, 0, 0]);
    wire.extend_from_slice(name.wire());
    wire.extend_from_slice(&parsed.qtype.to_be_bytes());
    wire.extend_from_slice(&CLASS_IN.to_be_bytes());
    wire
}
