//! The zone of the names that a bypass moves. The listener answers it before any filter, so that it works while everything is off.

use std::net::IpAddr;
use std::sync::Arc;

use qudag_filter_api::{Service, Svc, service_fn};
use tower::ServiceExt;

use crate::wire::{Name, Parsed, rtype};
use crate::zone::{Answer, Record, Zone};
use crate::{Dns, DnsQuery, DnsReply, Source};

/// The time to live of its records, and of the answer that there is none: how long a client goes on with what it knew before a
/// switch.
pub const SERVICE_TTL: u32 = 5;

/// The zone, if one is to be served. Names of other zones are left out, as is what is no name; the configuration's check has
/// complained about them.
pub(crate) fn zone(service: &Service) -> Option<Arc<Zone>> {
    let origin = Name::from_text(service.zone.as_deref()?).ok()?;
    let mut zone = Zone::new(origin, service.serial, SERVICE_TTL);
    for (name, addresses) in &service.names {
        let Ok(owner) = Name::from_text(name) else { continue };
        for address in addresses {
            let (rtype, data): (_, Box<[u8]>) = match address {
                IpAddr::V4(ip) => (rtype::A, ip.octets().into()),
                IpAddr::V6(ip) => (rtype::AAAA, ip.octets().into()),
            };
            // Of another zone.
            let _ = zone.add(Record { owner: owner.clone(), rtype, ttl: SERVICE_TTL, data });
        }
    }
    Some(Arc::new(zone))
}

/// The zone's reply to a query for a name in it.
pub(crate) fn answer(zone: Option<&Zone>, query: &Parsed) -> Option<DnsReply> {
    let Answer::Whole(wire) = zone?.answer(query)? else { return None };
    Some(DnsReply::new(wire.into(), Source::ServiceZone))
}

/// A chain with the zone before it, as the listener has it.
pub fn before(zone: Option<Arc<Zone>>, chain: Svc<Dns>) -> Svc<Dns> {
    if zone.is_none() {
        return chain;
    }
    service_fn::<Dns, _, _>(move |query: DnsQuery| {
        let known = answer(zone.as_deref(), query.parsed());
        let chain = chain.clone();
        async move {
            match known {
                Some(reply) => {
                    query
                        .note("service_zone", || "a name that a bypass moves; no filter is asked".to_owned());
                    Ok(reply)
                }
                None => chain.oneshot(query).await,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::query_wire;
    use crate::wire::{parse_query, parse_reply, rcode};

    #[test]
    fn addresses_of_both_families_are_served_with_five_seconds() {
        let service = Service {
            zone: Some("svc.internal".into()),
            serial: 17,
            names: vec![
                (
                    "rpc.svc.internal".into(),
                    vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
                ),
                ("elsewhere.example".into(), vec!["192.0.2.2".parse().unwrap()]),
            ],
        };
        let zone = zone(&service).unwrap();
        assert_eq!((zone.serial(), zone.records()), (17, 2));
        let ask = |name, qtype| {
            let reply = answer(Some(&zone), &parse_query(&query_wire(name, qtype, None)).unwrap())?;
            let parsed = parse_reply(&reply.wire).unwrap();
            assert!(parsed.records.iter().all(|record| record.ttl == SERVICE_TTL));
            Some((parsed.rcode(), parsed.records[0].rtype))
        };
        assert_eq!(ask("rpc.svc.internal", rtype::A), Some((0, rtype::A)));
        assert_eq!(ask("RPC.svc.internal", rtype::AAAA), Some((0, rtype::AAAA)));
        assert_eq!(ask("svc.internal", rtype::SOA), Some((0, rtype::SOA)));
        assert_eq!(ask("none.svc.internal", rtype::A), Some((rcode::NXDOMAIN, rtype::SOA)));
        assert_eq!(ask("elsewhere.example", rtype::A), None);
    }
}
