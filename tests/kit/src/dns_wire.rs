//! DNS messages by hand: queries that may be wrong, and replies that are read strictly. It shares no code with the sidecar or
//! with hickory, so that a mistake of theirs is not taken for the truth.

use std::fmt;

/// Header flags (RFC 1035 section 4.1.1, RFC 4035 section 3) as they stand in the second 16 bits.
pub mod flag {
    /// A response.
    pub const QR: u16 = 0x8000;
    /// From the zone's authority.
    pub const AA: u16 = 0x0400;
    /// Truncated.
    pub const TC: u16 = 0x0200;
    /// Recursion desired.
    pub const RD: u16 = 0x0100;
    /// Recursion available.
    pub const RA: u16 = 0x0080;
    /// Reserved.
    pub const Z: u16 = 0x0040;
    /// Authenticated data.
    pub const AD: u16 = 0x0020;
    /// Checking disabled.
    pub const CD: u16 = 0x0010;
}

/// The EDNS flag DO (RFC 3225).
pub const DO: u16 = 0x8000;

/// Record types by number.
pub mod rtype {
    #![allow(missing_docs, reason = "the names are those of the standards")]
    pub const A: u16 = 1;
    pub const NS: u16 = 2;
    pub const CNAME: u16 = 5;
    pub const SOA: u16 = 6;
    pub const PTR: u16 = 12;
    pub const HINFO: u16 = 13;
    pub const MX: u16 = 15;
    pub const TXT: u16 = 16;
    pub const AAAA: u16 = 28;
    pub const SRV: u16 = 33;
    pub const DNAME: u16 = 39;
    pub const OPT: u16 = 41;
    pub const DS: u16 = 43;
    pub const RRSIG: u16 = 46;
    pub const NSEC: u16 = 47;
    pub const DNSKEY: u16 = 48;
    pub const HTTPS: u16 = 65;
    pub const IXFR: u16 = 251;
    pub const AXFR: u16 = 252;
    pub const ANY: u16 = 255;
    pub const CAA: u16 = 257;
}

/// Response codes by number (RFC 1035 section 4.1.1, RFC 6891 section 9).
pub mod rcode {
    #![allow(missing_docs, reason = "the names are those of the standards")]
    pub const NOERROR: u16 = 0;
    pub const FORMERR: u16 = 1;
    pub const SERVFAIL: u16 = 2;
    pub const NXDOMAIN: u16 = 3;
    pub const NOTIMP: u16 = 4;
    pub const REFUSED: u16 = 5;
    pub const BADVERS: u16 = 16;
}

/// A name on the wire. `\DDD` is a byte by its number, `\X` any other byte as it is.
///
/// # Panics
/// When a label is longer than 255 bytes, which even a wrong message cannot write.
pub fn name(text: &str) -> Vec<u8> {
    let mut wire = Vec::new();
    let mut label = Vec::new();
    let mut bytes = text.bytes();
    let mut end = |label: &mut Vec<u8>| {
        if !label.is_empty() {
            wire.push(u8::try_from(label.len()).unwrap());
            wire.append(label);
        }
    };
    while let Some(byte) = bytes.next() {
        match byte {
            b'.' => end(&mut label),
            b'\\' => match bytes.next().unwrap() {
                first @ b'0'..=b'9' => {
                    let digits = [first, bytes.next().unwrap(), bytes.next().unwrap()];
                    label.push(std::str::from_utf8(&digits).unwrap().parse().unwrap());
                }
                other => label.push(other),
            },
            other => label.push(other),
        }
    }
    end(&mut label);
    wire.push(0);
    wire
}

/// A name on the wire as people read it.
pub fn shown(wire: &[u8]) -> String {
    let mut text = String::new();
    let mut rest = wire;
    while let Some((&length, behind)) = rest.split_first().filter(|(length, _)| **length != 0) {
        let (label, next) = behind.split_at(usize::from(length).min(behind.len()));
        for &byte in label {
            match byte {
                b'.' | b'\\' => text.extend(['\\', char::from(byte)]),
                0x21..=0x7e => text.push(char::from(byte)),
                other => text.push_str(&format!("\\{other:03}")),
            }
        }
        text.push('.');
        rest = next;
    }
    if text.is_empty() { ".".to_owned() } else { text }
}

/// EDNS of a query (RFC 6891 section 6.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edns {
    /// The largest UDP reply that the client takes.
    pub size: u16,
    /// The version.
    pub version: u8,
    /// The flags; [`DO`] is the only one that means something.
    pub flags: u16,
    /// The options in order: code and value.
    pub options: Vec<(u16, Vec<u8>)>,
}

impl Edns {
    /// Version 0 without flags and options.
    pub fn size(size: u16) -> Self {
        Self { size, version: 0, flags: 0, options: Vec::new() }
    }

    /// With the DO bit.
    #[must_use]
    pub fn dnssec(self) -> Self {
        Self { flags: self.flags | DO, ..self }
    }

    /// With one more option.
    #[must_use]
    pub fn option(mut self, code: u16, value: &[u8]) -> Self {
        self.options.push((code, value.to_vec()));
        self
    }

    /// The OPT record.
    ///
    /// # Panics
    /// When the options are longer than a record can be.
    pub fn record(&self) -> Vec<u8> {
        let mut options = Vec::new();
        for (code, value) in &self.options {
            options.extend(code.to_be_bytes());
            options.extend(u16::try_from(value.len()).unwrap().to_be_bytes());
            options.extend(value);
        }
        let mut record = vec![0];
        record.extend(rtype::OPT.to_be_bytes());
        record.extend(self.size.to_be_bytes());
        record.extend([0, self.version]);
        record.extend(self.flags.to_be_bytes());
        record.extend(u16::try_from(options.len()).unwrap().to_be_bytes());
        record.extend(options);
        record
    }
}

/// A query with one question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The id.
    pub id: u16,
    /// Flags and operation, as they stand in the second 16 bits.
    pub flags: u16,
    /// The name on the wire, in any case.
    pub name: Vec<u8>,
    /// The type.
    pub rtype: u16,
    /// The class.
    pub class: u16,
    /// EDNS, if any.
    pub edns: Option<Edns>,
}

impl Ask {
    /// A query of class IN with RD and without EDNS.
    pub fn new(asked: &str, rtype: u16) -> Self {
        Self { id: 0x1d1d, flags: flag::RD, name: name(asked), rtype, class: 1, edns: None }
    }

    /// With other flags.
    #[must_use]
    pub fn flags(self, flags: u16) -> Self {
        Self { flags, ..self }
    }

    /// With an operation (RFC 1035 section 4.1.1): 0 is QUERY, 4 NOTIFY, 5 UPDATE.
    #[must_use]
    pub fn opcode(self, opcode: u16) -> Self {
        Self { flags: self.flags & !0x7800 | opcode << 11, ..self }
    }

    /// Of another class.
    #[must_use]
    pub fn class(self, class: u16) -> Self {
        Self { class, ..self }
    }

    /// With EDNS.
    #[must_use]
    pub fn edns(self, edns: Edns) -> Self {
        Self { edns: Some(edns), ..self }
    }

    /// The question.
    pub fn question(&self) -> Vec<u8> {
        [&self.name[..], &self.rtype.to_be_bytes(), &self.class.to_be_bytes()].concat()
    }

    /// The message.
    pub fn bytes(&self) -> Vec<u8> {
        let mut wire = Vec::with_capacity(64);
        wire.extend(self.id.to_be_bytes());
        wire.extend(self.flags.to_be_bytes());
        wire.extend([0, 1, 0, 0, 0, 0, 0, u8::from(self.edns.is_some())]);
        wire.extend(self.question());
        if let Some(edns) = &self.edns {
            wire.extend(edns.record());
        }
        wire
    }
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} CLASS{} TYPE{} flags {:#06x}", shown(&self.name), self.class, self.rtype, self.flags)?;
        match &self.edns {
            None => Ok(()),
            Some(edns) => write!(f, " {edns:?}"),
        }
    }
}

/// A record of a reply.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    /// The owner on the wire: lower case, not compressed.
    pub owner: Vec<u8>,
    /// The type.
    pub rtype: u16,
    /// The class.
    pub class: u16,
    /// The time to live.
    pub ttl: u32,
    /// The data, with names that may be compressed (RFC 3597 section 4) written out in lower case.
    pub data: Vec<u8>,
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { owner, rtype, class, ttl, data } = self;
        let data = &data[..data.len().min(40)];
        write!(f, "{} {ttl} CLASS{class} TYPE{rtype} {}", shown(owner), data.escape_ascii())
    }
}

/// A reply, read strictly: every section complete, pointers only backwards, nothing behind the last record, at most one OPT record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The id.
    pub id: u16,
    /// Flags, operation and the lower four bits of the code.
    pub flags: u16,
    /// The question as it stands there, name in its own case; empty when there is none.
    pub question: Vec<u8>,
    /// Answer section.
    pub answers: Vec<Record>,
    /// Authority section.
    pub authorities: Vec<Record>,
    /// Additional section without OPT.
    pub additionals: Vec<Record>,
    /// EDNS, with the upper bits of the code apart.
    pub edns: Option<Edns>,
    extended: u8,
    /// The length of the message.
    pub length: usize,
}

impl View {
    /// Reads a reply.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn read(wire: &[u8]) -> Result<Self, String> {
        let mut at = Cursor { wire, at: 0 };
        let (id, flags) = (at.u16()?, at.u16()?);
        let counts = [at.u16()?, at.u16()?, at.u16()?, at.u16()?];
        if flags & flag::QR == 0 {
            return Err("not a response".to_owned());
        }
        let mut question = Vec::new();
        for _ in 0..counts[0] {
            let start = at.at;
            at.name(false)?;
            at.take(4)?;
            question.extend(&wire[start..at.at]);
        }
        let mut edns = None;
        let mut extended = 0;
        let mut sections = [Vec::new(), Vec::new(), Vec::new()];
        for (section, count) in sections.iter_mut().zip(&counts[1..]) {
            for _ in 0..*count {
                let owner = at.name(true)?;
                let (rtype, class, ttl, length) = (at.u16()?, at.u16()?, at.u32()?, at.u16()?);
                if rtype == rtype::OPT {
                    if edns.is_some() || owner != [0] {
                        return Err("a second OPT record, or one with an owner".to_owned());
                    }
                    let [code, version, high, low] = ttl.to_be_bytes();
                    extended = code;
                    let options = options(at.take(length.into())?)?;
                    edns =
                        Some(Edns { size: class, version, flags: u16::from_be_bytes([high, low]), options });
                } else {
                    let data = at.data(rtype, length.into())?;
                    section.push(Record { owner, rtype, class, ttl, data });
                }
            }
        }
        if at.at != wire.len() {
            return Err(format!("{} bytes behind the last record", wire.len() - at.at));
        }
        let [answers, authorities, additionals] = sections;
        Ok(Self {
            id,
            flags,
            question,
            answers,
            authorities,
            additionals,
            edns,
            extended,
            length: wire.len(),
        })
    }

    /// The whole response code (RFC 6891 section 6.1.3).
    pub fn rcode(&self) -> u16 {
        u16::from(self.extended) << 4 | self.flags & 0xf
    }

    /// Whether a flag is set.
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// The extended errors (RFC 8914): codes and texts.
    pub fn explanations(&self) -> Vec<(u16, String)> {
        let options = self.edns.iter().flat_map(|edns| &edns.options);
        let explained = options.filter(|(code, value)| *code == 15 && value.len() >= 2);
        explained
            .map(|(_, value)| {
                (u16::from_be_bytes([value[0], value[1]]), String::from_utf8_lossy(&value[2..]).into_owned())
            })
            .collect()
    }

    /// The data of the answers of one type.
    pub fn data(&self, rtype: u16) -> Vec<&[u8]> {
        self.answers.iter().filter(|record| record.rtype == rtype).map(|record| &record.data[..]).collect()
    }

    /// The records of a section without their times to live, in a fixed order, each once.
    pub fn set(section: &[Record]) -> std::collections::BTreeSet<Record> {
        section.iter().map(|record| Record { ttl: 0, ..record.clone() }).collect()
    }

    /// The reply as far as it may not depend on a cache: everything but id, times to live, and the order of records of a set.
    #[must_use]
    pub fn without_age(&self) -> Self {
        let sorted = |section: &[Record]| -> Vec<Record> {
            let mut section: Vec<_> = section.iter().map(|it| Record { ttl: 0, ..it.clone() }).collect();
            section.sort();
            section
        };
        Self {
            id: 0,
            answers: sorted(&self.answers),
            authorities: sorted(&self.authorities),
            additionals: sorted(&self.additionals),
            ..self.clone()
        }
    }
}

fn options(mut bytes: &[u8]) -> Result<Vec<(u16, Vec<u8>)>, String> {
    let mut options = Vec::new();
    while !bytes.is_empty() {
        let mut at = Cursor { wire: bytes, at: 0 };
        let (code, length) = (at.u16()?, at.u16()?);
        options.push((code, at.take(length.into())?.to_vec()));
        bytes = &bytes[at.at..];
    }
    Ok(options)
}

struct Cursor<'a> {
    wire: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let taken = self.wire.get(self.at..self.at + length).ok_or("the message is cut")?;
        self.at += length;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16, String> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from(self.u16()?) << 16 | u32::from(self.u16()?))
    }

    /// A name written out, in lower case. Only a name that may be compressed may have pointers, and they point backwards.
    fn name(&mut self, compressed: bool) -> Result<Vec<u8>, String> {
        let mut name = Vec::new();
        let (mut at, mut lowest, mut behind) = (self.at, self.at, None);
        loop {
            let length = *self.wire.get(at).ok_or("a name is cut")?;
            match length {
                0 => break,
                1..=63 => {
                    let end = at + 1 + usize::from(length);
                    let label = self.wire.get(at..end).ok_or("a label is cut")?;
                    name.push(length);
                    name.extend(label[1..].iter().map(u8::to_ascii_lowercase));
                    at = end;
                }
                0xc0..=0xff if compressed => {
                    let low = *self.wire.get(at + 1).ok_or("a pointer is cut")?;
                    let target = usize::from(length & 0x3f) << 8 | usize::from(low);
                    if target >= lowest {
                        return Err("a pointer that does not point backwards".to_owned());
                    }
                    behind.get_or_insert(at + 2);
                    (at, lowest) = (target, target);
                }
                _ => return Err(format!("a label of type {length:#x}")),
            }
            if name.len() > 254 {
                return Err("a name of more than 255 bytes".to_owned());
            }
        }
        name.push(0);
        self.at = behind.unwrap_or(at + 1);
        Ok(name)
    }

    fn data(&mut self, rtype: u16, length: usize) -> Result<Vec<u8>, String> {
        let end = self.at + length;
        // How many bytes stand before the names, and how many names there are (RFC 1035 section 3.3, RFC 2782).
        let (before, names) = match rtype {
            rtype::NS | rtype::CNAME | rtype::PTR => (0, 1),
            rtype::SOA => (0, 2),
            rtype::MX => (2, 1),
            rtype::SRV => (6, 1),
            _ => (0, 0),
        };
        let mut data = self.take(before)?.to_vec();
        for _ in 0..names {
            data.extend(self.name(true)?);
        }
        let rest = end.checked_sub(self.at).ok_or("a name runs over the end of its record")?;
        data.extend(self.take(rest)?);
        Ok(data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_and_shown() {
        assert_eq!(name("www.Example."), b"\x03www\x07Example\0");
        assert_eq!(name(""), b"\0");
        assert_eq!(name(r"a\.b\000.c"), b"\x04a.b\0\x01c\0");
        assert_eq!(shown(&name(r"a\.b\000.c")), r"a\.b\000.c.");
        assert_eq!(shown(b"\0"), ".");
    }

    fn reply() -> Vec<u8> {
        let ask = Ask::new("WwW.Example.", rtype::MX).edns(Edns::size(1232));
        let mut wire = ask.bytes();
        wire.truncate(12 + ask.question().len());
        wire[2] |= 0x80;
        wire[7] = 1;
        wire[11] = 1;
        wire.extend(b"\xc0\x0c\0\x0f\0\x01\0\0\0\x3c\0\x07\0\x0a\x02MX\xc0\x10");
        let mut opt = Edns::size(1232).option(15, b"\0\x03old").record();
        opt[5] = 1;
        wire.extend(opt);
        wire
    }

    #[test]
    fn a_reply_is_read() {
        let view = View::read(&reply()).unwrap();
        assert_eq!(view.question, [&name("WwW.Example.")[..], b"\0\x0f\0\x01"].concat());
        assert_eq!(view.data(rtype::MX), [&[b"\0\x0a", &name("mx.example.")[..]].concat()[..]]);
        assert_eq!(view.answers[0].owner, name("www.example."));
        assert_eq!((view.rcode(), view.answers[0].ttl), (16, 60));
        assert_eq!(view.explanations(), [(3, "old".to_owned())]);
        let mut older = view.clone();
        older.answers[0].ttl = 7;
        older.id = 9;
        assert_ne!(older, view);
        assert_eq!(older.without_age(), view.without_age());
    }

    #[test]
    fn what_is_wrong_is_seen() {
        let wrong = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut wire = reply();
            change(&mut wire);
            View::read(&wire).is_err()
        };
        assert!(!wrong(&|_| {}));
        assert!(wrong(&|wire| wire.push(0)));
        assert!(wrong(&|wire| wire.truncate(wire.len() - 1)));
        assert!(wrong(&|wire| wire[2] &= 0x7f));
        // The owner points at itself.
        assert!(wrong(&|wire| wire[30] = 29));
    }
}
