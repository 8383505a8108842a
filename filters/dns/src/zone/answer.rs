//! Answers from a zone (RFC 1034 section 4.3.2, RFC 2308, RFC 4592).

use super::{Node, Set, Zone, parent};
use crate::wire::{CLASS_IN, HEADER, Name, Parsed, flag2, flag3, put, rcode, rtype};

/// How many aliases are followed; more of them are a mistake or a loop.
const MAX_CHAIN: usize = 16;
/// A pointer to the name in the question.
const QUESTION_NAME: [u8; 2] = [0xc0, 12];

/// What a zone says to a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The whole reply, in wire format.
    Whole(Vec<u8>),
    /// The name is an alias of one outside of the zone.
    Alias(Box<Chase>),
}

/// An answer that goes on elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chase {
    /// The reply so far: the aliases.
    pub wire: Vec<u8>,
    /// The name that they lead to.
    pub target: Name,
}

/// A reply under construction.
struct Reply<'a> {
    query: &'a Parsed,
    wire: Vec<u8>,
    answers: u16,
    authorities: u16,
}

impl Zone {
    /// The zone's answer to a query for a name in it; `None` for other names. Other classes than IN have no data, so that no name of
    /// the zone is asked for elsewhere.
    pub fn answer(&self, query: &Parsed) -> Option<Answer> {
        self.answer_up_to(query, |_| false)
    }

    /// [`Zone::answer`], where names for which `elsewhere` holds belong to another zone although they lie in this one.
    pub fn answer_up_to(&self, query: &Parsed, elsewhere: impl Fn(&Name) -> bool) -> Option<Answer> {
        if !query.name.is_within(&self.origin) {
            return None;
        }
        let mut reply = Reply::to(query);
        if query.qclass != CLASS_IN && query.qclass != rtype::ANY {
            return Some(self.nothing(reply, rcode::NOERROR));
        }
        let mut name = query.name.clone();
        for _ in 0..=MAX_CHAIN {
            let Some(node) = self.find(name.wire()) else {
                return Some(self.nothing(reply, rcode::NXDOMAIN));
            };
            let at_top = name == self.origin;
            if query.qtype == rtype::SOA && at_top {
                let ttl =
                    node.iter().find(|set| set.rtype == rtype::SOA).map_or(self.negative_ttl, |set| set.ttl);
                reply.answer(&name, rtype::SOA, ttl, &self.soa);
                return Some(Answer::Whole(reply.finish(rcode::NOERROR)));
            }
            if let Some(set) = node.iter().find(|set| set.rtype == query.qtype) {
                reply.set(&name, set);
                return Some(Answer::Whole(reply.finish(rcode::NOERROR)));
            }
            let Some((alias, target)) = alias(node) else { return Some(self.nothing(reply, rcode::NOERROR)) };
            reply.set(&name, alias);
            if !target.is_within(&self.origin) || elsewhere(&target) {
                let chase = Chase { wire: reply.finish(rcode::NOERROR), target };
                return Some(Answer::Alias(Box::new(chase)));
            }
            name = target;
        }
        Some(Answer::Whole(Reply::to(query).finish(rcode::SERVFAIL)))
    }

    /// The records at a name: its own, else those of the wildcard at its closest encloser (RFC 4592 section 3.3.1).
    fn find(&self, name: &[u8]) -> Option<&Node> {
        if let Some(node) = self.nodes.get(name) {
            return Some(node);
        }
        let mut encloser = parent(name);
        // The top exists, so this ends there.
        while !self.nodes.contains_key(encloser) {
            let above = parent(encloser);
            if above.len() == encloser.len() {
                return None;
            }
            encloser = above;
        }
        self.nodes.get([b"\x01*".as_slice(), encloser].concat().as_slice())
    }

    /// No such name, or no such data, with the SOA record that says for how long (RFC 2308 sections 2.1, 2.2 and 3).
    fn nothing(&self, mut reply: Reply<'_>, code: u8) -> Answer {
        reply.authority(&self.origin, rtype::SOA, self.negative_ttl, &self.soa);
        Answer::Whole(reply.finish(code))
    }
}

/// The alias at a name and what it leads to.
fn alias(node: &Node) -> Option<(&Set, Name)> {
    let set = node.iter().find(|set| set.rtype == rtype::CNAME)?;
    let (target, _) = Name::parse(set.data.first()?, 0)?;
    Some((set, target))
}

impl<'a> Reply<'a> {
    fn to(query: &'a Parsed) -> Self {
        let mut wire = Vec::with_capacity(HEADER + query.question_len() + 128);
        wire.extend_from_slice(&query.id.to_be_bytes());
        wire.extend([flag2::QR | flag2::AA | u8::from(query.rd), flag3::RA, 0, 1]);
        wire.extend([0; 6]);
        wire.extend_from_slice(query.name.wire());
        wire.extend_from_slice(&query.qtype.to_be_bytes());
        wire.extend_from_slice(&query.qclass.to_be_bytes());
        Self { query, wire, answers: 0, authorities: 0 }
    }

    fn set(&mut self, owner: &Name, set: &Set) {
        set.data.iter().for_each(|data| self.answer(owner, set.rtype, set.ttl, data));
    }

    fn answer(&mut self, owner: &Name, rtype: u16, ttl: u32, data: &[u8]) {
        self.answers += u16::from(self.record(owner, rtype, ttl, data));
    }

    fn authority(&mut self, owner: &Name, rtype: u16, ttl: u32, data: &[u8]) {
        self.authorities += u16::from(self.record(owner, rtype, ttl, data));
    }

    /// Appends a record if there is room for it.
    fn record(&mut self, owner: &Name, rtype: u16, ttl: u32, data: &[u8]) -> bool {
        let Ok(length) = u16::try_from(data.len()) else { return false };
        let owner = if *owner == self.query.name { &QUESTION_NAME } else { owner.wire() };
        if self.wire.len() + owner.len() + 10 + data.len() > usize::from(u16::MAX) {
            return false;
        }
        self.wire.extend_from_slice(owner);
        self.wire.extend_from_slice(&rtype.to_be_bytes());
        self.wire.extend_from_slice(&CLASS_IN.to_be_bytes());
        self.wire.extend_from_slice(&ttl.to_be_bytes());
        self.wire.extend_from_slice(&length.to_be_bytes());
        self.wire.extend_from_slice(data);
        true
    }

    fn finish(mut self, code: u8) -> Vec<u8> {
        put(&mut self.wire, 3, &[flag3::RA | code]);
        put(&mut self.wire, 6, &self.answers.to_be_bytes());
        put(&mut self.wire, 8, &self.authorities.to_be_bytes());
        self.wire
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::query_wire;
    use crate::wire::{Section, parse_query, parse_reply};

    /// The zone of RFC 4592 section 2.2.1, and some more names.
    const ZONE: &str = "\
$TTL 60
@            IN SOA ns hostmaster 7 3600 600 86400 30
             NS  ns
*            TXT \"this is a wildcard\"
*            MX  10 host1
sub.*        TXT \"this is not a wildcard\"
host1        A   192.0.2.1
             A   192.0.2.2
_ssh._tcp.host1 SRV 0 0 22 host1
_ssh._tcp.host2 SRV 0 0 22 host2
subdel       NS  ns.example.com.
alias        CNAME chain
chain        CNAME host1
out          CNAME www.example.net.
lost         CNAME x.host1
loop         CNAME pool
pool         CNAME loop
";

    fn zone() -> Zone {
        let origin = Name::from_text("example").unwrap();
        Zone::from_text(origin, ZONE, 60).unwrap()
    }

    fn parsed(name: &str, qtype: u16) -> Parsed {
        parse_query(&query_wire(name, qtype, None)).unwrap()
    }

    /// The code, the types in the answer, and the types in the authority section.
    fn ask(name: &str, qtype: u16) -> Option<(u8, Vec<u16>, Vec<u16>)> {
        let wire = match zone().answer(&parsed(name, qtype))? {
            Answer::Whole(wire) => wire,
            Answer::Alias(chase) => chase.wire,
        };
        let reply = parse_reply(&wire).unwrap();
        assert_eq!(wire[2] & flag2::AA, flag2::AA, "{name}");
        let types = |section| {
            let records = reply.records.iter().filter(|record| record.section == section);
            records.map(|record| record.rtype).collect()
        };
        Some((reply.rcode(), types(Section::Answer), types(Section::Authority)))
    }

    const TXT: u16 = 16;
    const MX: u16 = 15;
    const NS: u16 = 2;
    const SRV: u16 = 33;

    #[test]
    fn wildcards_answer_as_rfc_4592_says() {
        let soa = vec![rtype::SOA];
        let nodata = || Some((rcode::NOERROR, vec![], soa.clone()));
        let nxdomain = || Some((rcode::NXDOMAIN, vec![], soa.clone()));
        // Section 2.2.1, its list of queries in order.
        assert_eq!(ask("host3.example", MX), Some((rcode::NOERROR, vec![MX], vec![])));
        assert_eq!(ask("host3.example", rtype::A), nodata());
        assert_eq!(ask("foo.bar.example", TXT), Some((rcode::NOERROR, vec![TXT], vec![])));
        assert_eq!(ask("host1.example", MX), nodata());
        assert_eq!(ask("sub.*.example", MX), nodata());
        assert_eq!(ask("_telnet._tcp.host1.example", SRV), nxdomain());
        assert_eq!(ask("ghost.*.example", MX), nxdomain());
        // Empty non-terminals exist; the wildcard itself can be asked for.
        assert_eq!(ask("_tcp.host2.example", SRV), nodata());
        assert_eq!(ask("*.example", TXT), Some((rcode::NOERROR, vec![TXT], vec![])));
    }

    #[test]
    fn records_aliases_and_what_is_not_there() {
        assert_eq!(ask("HOST1.example", rtype::A), Some((0, vec![rtype::A; 2], vec![])));
        assert_eq!(ask("alias.example", rtype::A), Some((0, vec![5, 5, 1, 1], vec![])));
        assert_eq!(ask("alias.example", rtype::CNAME), Some((0, vec![5], vec![])));
        assert_eq!(ask("alias.example", TXT), Some((0, vec![5, 5], vec![rtype::SOA])));
        assert_eq!(ask("lost.example", rtype::A), Some((rcode::NXDOMAIN, vec![5], vec![rtype::SOA])));
        assert_eq!(ask("loop.example", rtype::A), Some((rcode::SERVFAIL, vec![], vec![])));
        assert_eq!(ask("example", rtype::SOA), Some((0, vec![rtype::SOA], vec![])));
        assert_eq!(ask("example", NS), Some((0, vec![NS], vec![])));
        assert_eq!(ask("subdel.example", NS), Some((0, vec![NS], vec![])));
        assert_eq!(ask("example.com", rtype::A), None);
        let Some(Answer::Alias(chase)) = zone().answer(&parsed("out.example", rtype::A)) else { panic!() };
        assert_eq!(chase.target, Name::from_text("www.example.net").unwrap());
    }

    #[test]
    fn another_class_has_no_data_and_does_not_leave_the_zone() {
        let mut query = parsed("host1.example", rtype::A);
        query.qclass = 3;
        let Some(Answer::Whole(wire)) = zone().answer(&query) else { panic!() };
        assert_eq!(parse_reply(&wire).unwrap().rcode(), rcode::NOERROR);
    }

    #[test]
    fn negative_answers_last_for_the_lesser_of_minimum_and_the_soa_records_time() {
        let Some(Answer::Whole(wire)) = zone().answer(&parsed("a.host1.example", rtype::A)) else { panic!() };
        assert_eq!(parse_reply(&wire).unwrap().records[0].ttl, 30);
    }

    proptest! {
        /// Whatever is asked, the reply can be read, and a name with records of its own never gets another's.
        #[test]
        fn replies_are_well_formed(labels in proptest::collection::vec("[a-c*]{1,2}", 0..5), qtype in 1_u16..40) {
            let name = labels.iter().map(|label| format!("{label}.")).collect::<String>() + "example";
            prop_assume!(qtype != rtype::OPT);
            let query = parsed(&name, qtype);
            let Some(Answer::Whole(wire)) = zone().answer(&query) else { panic!("{name}") };
            let reply = parse_reply(&wire).unwrap();
            prop_assert!(matches!(reply.rcode(), rcode::NOERROR | rcode::NXDOMAIN));
            let there = reply.records.iter().map(|record| record.section).collect::<Vec<_>>();
            prop_assert!(!there.is_empty());
            prop_assert_eq!(there.contains(&Section::Authority), !there.contains(&Section::Answer));
        }
    }
}
