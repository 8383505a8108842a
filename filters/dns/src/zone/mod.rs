//! Zones that the sidecar has authority over: what a zone file says, and the answers from it.
//!
//! Nothing here opens a file or reads a clock.

mod answer;
mod data;
mod text;

use std::collections::HashMap;
use std::fmt;

use crate::wire::{Name, rtype};

pub use answer::{Answer, Chase};
pub use data::MAX_TTL;
pub use text::{Line, TextError};

/// The most records that a zone may have.
const MAX_RECORDS: usize = 1_000_000;
/// The times of an SOA record that is made here (refresh, retry, expire): nobody transfers these zones.
const TIMES: [u32; 3] = [3600, 600, 86_400];

/// The records of one type at one name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Set {
    rtype: u16,
    /// In seconds, at most [`MAX_TTL`]; equal for all records of a set (RFC 2181 section 5.2).
    ttl: u32,
    data: Vec<Box<[u8]>>,
}

/// The sets at one name; none where only names below it have some (an empty non-terminal).
type Node = Vec<Set>;

/// A zone. Names are held in lower case by their wire form.
#[derive(Clone, PartialEq, Eq)]
pub struct Zone {
    origin: Name,
    nodes: HashMap<Box<[u8]>, Node>,
    /// The SOA record's data, and the time to live of answers that say there is nothing (RFC 2308 section 5).
    soa: Box<[u8]>,
    negative_ttl: u32,
    records: usize,
}

impl fmt::Debug for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "zone {} with {} records", self.origin, self.records)
    }
}

/// A record as it is put into a zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Whose it is.
    pub owner: Name,
    /// Its type.
    pub rtype: u16,
    /// Its time to live in seconds.
    pub ttl: u32,
    /// Its data in wire format, names uncompressed.
    pub data: Box<[u8]>,
}

/// Why a record cannot be in a zone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ZoneError {
    /// It belongs to another zone.
    #[error("{0} is not in the zone {1}")]
    Outside(String, String),
    /// A name with an alias has no other records (RFC 2181 section 10.1).
    #[error("{0} has a CNAME record, so it cannot have another record")]
    Alias(String),
    /// A zone has one SOA record, at its top.
    #[error("an SOA record stands once, at the top of the zone")]
    Soa,
    /// More than a million records.
    #[error("a zone has at most {MAX_RECORDS} records")]
    TooMany,
}

impl Zone {
    /// A zone without records but an SOA record that is made up: `serial`, and `minimum` seconds for answers that say there is nothing.
    pub fn new(origin: Name, serial: u32, minimum: u32) -> Self {
        let mut soa = Vec::with_capacity(2 * origin.wire().len() + 32);
        soa.extend_from_slice(origin.wire());
        let mailbox = [b"\x0ahostmaster".as_slice(), origin.wire()].concat();
        // A name too long for a mailbox below it is its own.
        let mailbox = if mailbox.len() <= 255 { mailbox } else { origin.wire().to_vec() };
        soa.extend_from_slice(&mailbox);
        for value in [serial].into_iter().chain(TIMES).chain([minimum]) {
            soa.extend_from_slice(&value.to_be_bytes());
        }
        let top = (origin.wire().into(), Node::new());
        let negative_ttl = minimum.min(MAX_TTL);
        Self { origin, nodes: [top].into(), soa: soa.into(), negative_ttl, records: 0 }
    }

    /// Adds a record; one that is there already is not added again. The shortest time to live of a set is that of the set.
    ///
    /// # Errors
    /// When the record cannot be in the zone.
    pub fn add(&mut self, record: Record) -> Result<(), ZoneError> {
        let Record { owner, rtype, ttl, data } = record;
        if !owner.is_within(&self.origin) {
            return Err(ZoneError::Outside(owner.to_string(), self.origin.to_string()));
        }
        if rtype == rtype::SOA {
            let own = owner == self.origin && !self.has_soa();
            let minimum = data.last_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes));
            let Some(minimum) = minimum.filter(|_| own) else { return Err(ZoneError::Soa) };
            // RFC 2308 section 5: the lesser of the record's own time to live and its MINIMUM.
            self.negative_ttl = minimum.min(ttl).min(MAX_TTL);
            self.soa = data;
            self.records += 1;
            self.put(&owner, rtype, ttl, None);
            return Ok(());
        }
        if self.records >= MAX_RECORDS {
            return Err(ZoneError::TooMany);
        }
        let node = self.nodes.get(owner.wire()).map_or(&[][..], Node::as_slice);
        let alias = rtype == rtype::CNAME;
        let conflict = |set: &Set| {
            (set.rtype == rtype::CNAME) != alias
                || alias && set.data.first().is_some_and(|known| *known != data)
        };
        if node.iter().any(conflict) || alias && owner == self.origin {
            return Err(ZoneError::Alias(owner.to_string()));
        }
        self.records += 1;
        self.put(&owner, rtype, ttl, Some(data));
        Ok(())
    }

    /// An SOA record of a zone file stands among the sets without data of its own.
    fn has_soa(&self) -> bool {
        let top = self.nodes.get(self.origin.wire());
        top.is_some_and(|node| node.iter().any(|set| set.rtype == rtype::SOA))
    }

    fn put(&mut self, owner: &Name, rtype: u16, ttl: u32, data: Option<Box<[u8]>>) {
        // The names between the owner and the top exist too (RFC 4592 section 2.2.2).
        let mut above = owner.wire();
        while above.len() > self.origin.wire().len() {
            if !self.nodes.contains_key(above) {
                self.nodes.insert(above.into(), Node::new());
            }
            above = parent(above);
        }
        let Some(node) = self.nodes.get_mut(owner.wire()) else { return };
        let ttl = ttl.min(MAX_TTL);
        match node.iter_mut().find(|set| set.rtype == rtype) {
            Some(set) => {
                set.ttl = set.ttl.min(ttl);
                set.data.extend(data.filter(|data| !set.data.contains(data)));
            }
            None => node.push(Set { rtype, ttl, data: data.into_iter().collect() }),
        }
    }

    /// The name of the zone.
    pub fn origin(&self) -> &Name {
        &self.origin
    }

    /// How many records there are, the SOA record only if it was given.
    pub fn records(&self) -> usize {
        self.records
    }

    /// The serial number of the SOA record (RFC 1982).
    pub fn serial(&self) -> u32 {
        let at = self.soa.len().checked_sub(20);
        at.and_then(|at| crate::wire::u32_at(&self.soa, at)).unwrap_or_default()
    }
}

/// The name above a name, both in wire format. The root's is the root.
pub(crate) fn parent(name: &[u8]) -> &[u8] {
    match name.split_first() {
        Some((length @ 1..=63, rest)) => rest.get(usize::from(*length)..).unwrap_or_default(),
        _ => name,
    }
}
