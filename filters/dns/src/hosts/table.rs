//! The contents of a hosts file (hosts(5)).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use metrics::{counter, gauge};

use crate::watched::Contents;
use crate::wire::{CLASS_IN, Name, Parsed, answer, rtype};

/// The addresses of one name, in the file's order. Most names have one, which takes no memory of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Addresses {
    One(IpAddr),
    Many(Vec<IpAddr>),
}

impl Addresses {
    fn add(&mut self, ip: IpAddr) {
        match self {
            Self::One(first) if *first == ip => {}
            Self::One(first) => *self = Self::Many(vec![*first, ip]),
            Self::Many(all) if all.contains(&ip) => {}
            Self::Many(all) => all.push(ip),
        }
    }

    fn all(&self) -> &[IpAddr] {
        match self {
            Self::One(ip) => std::slice::from_ref(ip),
            Self::Many(all) => all,
        }
    }

    /// The records of one type.
    fn records(&self, qtype: u16, ttl: u32) -> Vec<(u16, u32, Vec<u8>)> {
        let record = |ip: &IpAddr| match (ip, qtype) {
            (IpAddr::V4(ip), rtype::A) => Some((rtype::A, ttl, ip.octets().to_vec())),
            (IpAddr::V6(ip), rtype::AAAA) => Some((rtype::AAAA, ttl, ip.octets().to_vec())),
            _ => None,
        };
        self.all().iter().filter_map(record).collect()
    }
}

/// What a hosts file says. Names are held by their wire form, which takes what the name needs: files of a million names are common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    names: HashMap<Box<[u8]>, Addresses>,
    /// The first name on the first line of each address, by its reverse name.
    reverse: HashMap<Box<[u8]>, Box<[u8]>>,
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
                let address = Name::reverse(ip).wire().into();
                table.reverse.entry(address).or_insert_with(|| first.wire().into());
            }
            for name in names {
                match table.names.entry(name.wire().into()) {
                    Entry::Occupied(mut known) => known.get_mut().add(ip),
                    Entry::Vacant(new) => drop(new.insert(Addresses::One(ip))),
                }
            }
        }
        table.names.shrink_to_fit();
        table.reverse.shrink_to_fit();
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
        if let Some(addresses) = self.names.get(query.name.wire()) {
            return Some(answer(query, &addresses.records(query.qtype, ttl)));
        }
        let name = self.reverse.get(query.name.wire())?;
        match query.qtype {
            rtype::PTR => Some(answer(query, &[(rtype::PTR, ttl, name.to_vec())])),
            _ => Some(answer(query, &[])),
        }
    }
}

impl Contents for Table {
    type Terms = ();

    fn parse(text: &str, (): &()) -> io::Result<Self> {
        Ok(Self::parse(text))
    }

    fn loaded(&self, path: &Path) {
        counter!("qudag_sidecar_dns_hosts_reloads_total", "outcome" => "ok").increment(1);
        gauge!("qudag_sidecar_dns_hosts_names").set(self.names() as f64);
        tracing::info!(file = %path.display(), names = self.names(), "hosts file read");
        if let Some((line, count)) = self.wrong() {
            tracing::warn!(
                file = %path.display(), line, count,
                "lines of the hosts file make no sense, the first is at this line"
            );
        }
    }

    fn failed(path: &Path, (): &(), why: &io::Error) {
        counter!("qudag_sidecar_dns_hosts_reloads_total", "outcome" => "error").increment(1);
        tracing::warn!(
            file = %path.display(), error = %why, "cannot read the hosts file; its last contents stay in use"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

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
