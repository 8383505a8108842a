//! Names under `.dark` are QuDAG's own and exist nowhere in the DNS. Whoever asks the DNS for one tells strangers whom the node
//! talks to, so none leaves this host, whatever filters are on.

use qudag_filter_api::{Svc, service_fn};
use tower::ServiceExt;

use crate::wire::{Ede, Name, Parsed};
use crate::zone::{Answer, Zone};
use crate::{Dns, DnsQuery, DnsReply, Source};

/// The top-level domain.
const DARK: &[u8] = b"\x04dark\0";
/// For how many seconds clients may remember that a name is not there: records come with a reload.
const MINIMUM: u32 = 5;

/// Whether a name is `dark` or below it.
pub(crate) fn is_dark(name: &Name) -> bool {
    // A length byte that only looks like the label's is in the middle of a longer label; `is_within` knows labels.
    name.wire().ends_with(DARK) && Name::parse(DARK, 0).is_some_and(|(dark, _)| name.is_within(&dark))
}

/// The answer to a query for a name under `.dark` that no local zone has answered; `None` for other names.
///
/// It does not exist, and extended error 15 (RFC 8914 section 4.16, blocked by policy) says that nobody was asked.
pub(crate) fn refuse(query: &Parsed) -> Option<DnsReply> {
    if !is_dark(&query.name) {
        return None;
    }
    let (origin, _) = Name::parse(DARK, 0)?;
    let Answer::Whole(wire) = Zone::new(origin, 1, MINIMUM).answer(query)? else { return None };
    let ede = Some(Ede { code: 15, text: ".dark names are never asked for outside".into() });
    Some(DnsReply { ede, ..DnsReply::new(wire.into(), Source::Sidecar) })
}

/// Stands before the servers, where no switch takes it away.
pub(crate) fn guard(inner: Svc<Dns>) -> Svc<Dns> {
    service_fn::<Dns, _, _>(move |query: DnsQuery| {
        let refused = refuse(query.parsed());
        let inner = inner.clone();
        async move {
            match refused {
                Some(reply) => {
                    query.note("dns_upstream", || "under .dark: no server is asked".to_owned());
                    Ok(reply)
                }
                None => inner.oneshot(query).await,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::query_wire;
    use crate::wire::{flag2, parse_query, parse_reply, rcode, rtype};

    #[test]
    fn only_names_under_dark_are_refused() {
        let refused = |name: &str| refuse(&parse_query(&query_wire(name, rtype::A, None)).unwrap());
        for name in ["peer.dark", "a.b.DARK"] {
            let reply = refused(name).unwrap();
            let parsed = parse_reply(&reply.wire).unwrap();
            assert_eq!((parsed.rcode(), parsed.records[0].rtype), (rcode::NXDOMAIN, rtype::SOA), "{name}");
            assert_eq!(reply.wire[2] & flag2::AA, flag2::AA);
            assert_eq!(reply.ede.unwrap().code, 15);
        }
        assert_eq!(refused("dark").unwrap().rcode(), rcode::NOERROR, "the top exists and has no address");
        for name in ["dark.example", "xdark", "example"] {
            assert!(refused(name).is_none(), "{name}");
        }
        // The label "x\4dark" ends in the bytes of the top-level domain.
        let tricky = Name::from_text("x\\004dark").unwrap();
        assert!(tricky.wire().ends_with(DARK) && !is_dark(&tricky));
    }
}
