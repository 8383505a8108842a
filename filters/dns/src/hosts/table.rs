//! The contents of a hosts file (hosts(5)).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::wire::{CLASS_IN, Name, Parsed, answer, rtype};

/// The addresses of one name, in the file's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Addresses {
    v4: Vec<Ipv4Addr>,
    v6: Vec<Ipv6Addr>,
}

/// What a hosts file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    names: HashMap<Name, Addresses>,
    /// The first name on the first line of each address, by its reverse name.
    reverse: HashMap<Name, Name>,
    /// Numbers of lines that say nothing: the first, and how many there are.
    wrong: Option<(usize, usize)>,
}

impl Table {
    /// Reads the text of a hosts file. Lines and names that make no sense are passed over and counted.
    pub fn parse(text: &str) -> Self {
        let mut table = Self::default();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace();
            let Some(address) = words.next() else { continue };
            let mut wrong = || {
                let (first, count) = table.wrong.unwrap_or((number, 0));
                table.wrong = Some((first, count + 1));
            };
            let Ok(ip) = address.parse::<IpAddr>() else {
                wrong();
                continue;
            };
            let (names, bad): (Vec<_>, Vec<_>) = words.map(Name::from_text).partition(Result::is_ok);
            if names.is_empty() || !bad.is_empty() {
                wrong();
            }
            let mut names = names.into_iter().flatten().peekable();
            if let Some(first) = names.peek() {
                table.reverse.entry(Name::reverse(ip)).or_insert_with(|| first.clone());
            }
            for name in names {
                let addresses = table.names.entry(name).or_default();
                match ip {
                    IpAddr::V4(ip) if !addresses.v4.contains(&ip) => addresses.v4.push(ip),
                    IpAddr::V6(ip) if !addresses.v6.contains(&ip) => addresses.v6.push(ip),
                    _ => {}
                }
            }
        }
        table
    }

    /// How many names there are.
    pub fn names(&self) -> usize {
        self.names.len()
    }

    /// The first line that was passed over, in whole or in part, and how many such lines there are.
    pub fn wrong(&self) -> Option<(usize, usize)> {
        self.wrong
    }

    /// The reply to a query, if the file has something to say about the name: its addresses of the type asked for, or nothing
    /// where it has only others (NODATA).
    pub fn answer(&self, query: &Parsed, ttl: u32) -> Option<Vec<u8>> {
        if query.qclass != CLASS_IN {
            return None;
        }
        if let Some(addresses) = self.names.get(&query.name) {
            let records: Vec<_> = match query.qtype {
                rtype::A => addresses.v4.iter().map(|ip| (rtype::A, ttl, ip.octets().to_vec())).collect(),
                rtype::AAAA => {
                    addresses.v6.iter().map(|ip| (rtype::AAAA, ttl, ip.octets().to_vec())).collect()
                }
                _ => Vec::new(),
            };
            return Some(answer(query, &records));
        }
        let name = self.reverse.get(&query.name)?;
        match query.qtype {
            rtype::PTR => Some(answer(query, &[(rtype::PTR, ttl, name.wire().to_vec())])),
            _ => Some(answer(query, &[])),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::query_wire;
    use crate::wire::{parse_query, parse_reply, rcode};

    const FILE: &str = "# a comment\n\
        127.0.0.1\tlocalhost\n\
        ::1  localhost ip6-localhost # another\n\
        192.0.2.1 Node.Example node\n\
        192.0.2.2 node.example\n\
        192.0.2.1 other.example\n\
        fe80::1%eth0 zoned\n\
        nonsense\n\
        192.0.2.3\n\
        192.0.2.4 good..bad fine.example\n";

    fn ask(table: &Table, name: &str, qtype: u16) -> Option<Vec<Vec<u8>>> {
        let query = parse_query(&query_wire(name, qtype, None)).unwrap();
        let wire = table.answer(&query, 60)?;
        let reply = parse_reply(&wire).unwrap();
        assert_eq!(reply.rcode(), rcode::NOERROR);
        assert!(reply.records.iter().all(|record| record.ttl == 60 && record.rtype == qtype));
        Some(reply.records.iter().map(|record| wire[record.data.clone()].to_vec()).collect())
    }

    #[test]
    fn names_addresses_and_reverse_names_are_answered() {
        let table = Table::parse(FILE);
        assert_eq!(ask(&table, "NODE.example", rtype::A), Some(vec![vec![192, 0, 2, 1], vec![192, 0, 2, 2]]));
        assert_eq!(ask(&table, "localhost", rtype::AAAA), Some(vec![Ipv6Addr::LOCALHOST.octets().to_vec()]));
        let name = |text| vec![Name::from_text(text).unwrap().wire().to_vec()];
        assert_eq!(ask(&table, "1.2.0.192.in-addr.arpa", rtype::PTR), Some(name("node.example")));
        let v6 = Name::reverse(Ipv6Addr::LOCALHOST.into()).to_string();
        assert_eq!(ask(&table, &v6, rtype::PTR), Some(name("localhost")));
        assert_eq!(ask(&table, "fine.example", rtype::A), Some(vec![vec![192, 0, 2, 4]]));
    }

    #[test]
    fn a_known_name_has_no_other_data_and_an_unknown_one_is_not_ours() {
        let table = Table::parse(FILE);
        assert_eq!(ask(&table, "node", rtype::AAAA), Some(vec![]));
        assert_eq!(ask(&table, "node", 16), Some(vec![]));
        assert_eq!(ask(&table, "elsewhere.example", rtype::A), None);
        assert_eq!(ask(&table, "9.2.0.192.in-addr.arpa", rtype::PTR), None);
        assert_eq!(table.wrong(), Some((7, 4)));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "(?s)[0-9a-f.:# \\n\\\\%-]{0,200}|(?s).{0,200}") {
            let table = Table::parse(&text);
            prop_assert!(table.names() <= text.len());
        }
    }
}
