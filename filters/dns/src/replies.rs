//! What clients got: the details of a query's line, and the counts of replies.

use hickory_proto::rr::RecordType;
use metrics::{Counter, counter};
use qudag_filter_common::flow::Details;

use crate::wire::{Parsed, flag2, flag3, rcode};
use crate::{Source, Transport};

/// Adds what a query says: `transport`, `name` and `type`.
pub fn describe_query(details: &mut Details, query: &Parsed, transport: Transport) {
    details
        .add("transport", transport.label())
        .add("name", &query.name)
        .add("type", RecordType::from(query.qtype));
}

/// Adds what the reply on the wire says and where it comes from: `rcode`, `source`, `filter` and `flags`. The flags are those of the
/// reply's header, and `do` where the client asked for DNSSEC records.
pub fn describe_reply(
    details: &mut Details,
    query: &Parsed,
    reply: &[u8],
    source: &Source,
    filter: &'static str,
) {
    details
        .add("rcode", rcode::label(code(reply)))
        .add("source", source)
        .add("filter", filter)
        .add("flags", flags(reply, query.dnssec_ok()).join(" "));
}

/// Counts replies that clients got, by where they come from and by their code (see [`rcode::label`]).
pub fn count(source: &'static str, code: &'static str, replies: u64) {
    counter_of(source, code).increment(replies);
}

fn counter_of(source: &'static str, code: &'static str) -> Counter {
    counter!("qudag_sidecar_dns_replies_total", "source" => source, "rcode" => code)
}

/// Counts of replies of one thread, added up many at a time.
#[derive(Default)]
pub struct ReplyTally(Vec<Sum>);

/// Replies of one source with one code.
struct Sum {
    source: &'static str,
    code: &'static str,
    /// Those since the last settling.
    replies: u64,
    total: Counter,
}

impl ReplyTally {
    /// Counts a reply; see [`count`].
    pub fn count(&mut self, source: &'static str, code: &'static str) {
        match self.0.iter_mut().find(|sum| (sum.source, sum.code) == (source, code)) {
            Some(sum) => sum.replies += 1,
            None => self.0.push(Sum { source, code, replies: 1, total: counter_of(source, code) }),
        }
    }

    /// Adds up what was counted since the last time.
    pub fn settle(&mut self) {
        for sum in self.0.iter_mut().filter(|sum| sum.replies > 0) {
            sum.total.increment(std::mem::take(&mut sum.replies));
        }
    }
}

/// Counts replies with an extended error (RFC 8914), by its code.
pub fn count_extended(code: u16, replies: u64) {
    counter!("qudag_sidecar_dns_extended_errors_total", "reason" => reason(code)).increment(replies);
}

fn code(reply: &[u8]) -> u8 {
    reply.get(3).copied().unwrap_or(rcode::SERVFAIL) & flag3::RCODE
}

/// The flags of a reply as people write them.
pub(crate) fn flags(reply: &[u8], dnssec_ok: bool) -> Vec<&'static str> {
    let [flags2, flags3] = reply.get(2..4).and_then(|flags| flags.first_chunk()).copied().unwrap_or_default();
    [
        (flags2 & flag2::AA, "aa"),
        (flags2 & flag2::TC, "tc"),
        (flags2 & flag2::RD, "rd"),
        (flags3 & flag3::RA, "ra"),
        (flags3 & flag3::AD, "ad"),
        (flags3 & flag3::CD, "cd"),
        (u8::from(dnssec_ok), "do"),
    ]
    .into_iter()
    .filter_map(|(bit, name)| (bit != 0).then_some(name))
    .collect()
}

/// The name of an extended error (the IANA registry of RFC 8914 section 5.2), as a label.
pub(crate) fn reason(code: u16) -> &'static str {
    match code {
        1 => "unsupported_dnskey_algorithm",
        2 => "unsupported_ds_digest_type",
        3 => "stale_answer",
        4 => "forged_answer",
        5 => "dnssec_indeterminate",
        6 => "dnssec_bogus",
        7 => "signature_expired",
        8 => "signature_not_yet_valid",
        9 => "dnskey_missing",
        10 => "rrsigs_missing",
        11 => "no_zone_key_bit_set",
        12 => "nsec_missing",
        13 => "cached_error",
        14 => "not_ready",
        15 => "blocked",
        16 => "censored",
        17 => "filtered",
        18 => "prohibited",
        19 => "stale_nxdomain_answer",
        20 => "not_authoritative",
        21 => "not_supported",
        22 => "no_reachable_authority",
        23 => "network_error",
        24 => "invalid_data",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{query, reply_wire};
    use crate::wire::rtype;

    #[test]
    fn a_reply_is_described_as_the_client_got_it() {
        let query = query("www.Example", rtype::A);
        let mut reply = reply_wire(query.wire(), rcode::NXDOMAIN, &[]);
        reply[2] |= flag2::AA | flag2::TC;
        let mut details = Details::default();
        describe_query(&mut details, query.parsed(), Transport::Udp);
        let source = Source::Upstream("192.0.2.1:53".into());
        describe_reply(&mut details, query.parsed(), &reply, &source, source.filter());
        assert_eq!(
            details.to_string(),
            "transport=udp name=www.example type=A rcode=nxdomain source=\"upstream 192.0.2.1:53\" \
             filter=dns_upstream flags=\"aa tc rd ra\""
        );
        assert_eq!(flags(&reply[..3], true), ["do"], "a reply that is too short says nothing");
    }

    #[test]
    fn every_extended_error_has_a_label() {
        let labels: std::collections::BTreeSet<_> = (0..100).map(reason).collect();
        assert_eq!(labels.len(), 25);
        assert_eq!((reason(3), reason(0), reason(999)), ("stale_answer", "other", "other"));
    }
}
