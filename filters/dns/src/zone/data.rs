//! The data of records, from text to wire format.

use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::{RData, RecordType};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder, NameEncoding};

use super::text::{Word, name};
use crate::wire::{Name, rtype};

/// The longest time to live in seconds that a zone gives its records: nothing that the sidecar says holds for longer.
pub const MAX_TTL: u32 = 300;

/// The bytes of a record's data. Types that are not named here are read by hickory-proto, and every type in the form of
/// RFC 3597 section 5.
pub(super) fn parse(rtype: u16, words: &[Word], origin: &Name) -> Result<Box<[u8]>, String> {
    if let [first, rest @ ..] = words
        && !first.quoted
        && first.text == "\\#"
    {
        return generic(rest);
    }
    let texts: Vec<&str> = words.iter().map(|word| word.text.as_str()).collect();
    let name = |text: &str| name(text, origin);
    let number =
        |text: &str| text.parse::<u16>().map_err(|_| format!("{text:?} is not a number from 0 to 65535"));
    let mut data = Vec::new();
    match (rtype, texts.as_slice()) {
        (rtype::A, texts) => match texts {
            [ip] => data.extend(
                ip.parse::<Ipv4Addr>().map_err(|_| format!("{ip:?} is not an IPv4 address"))?.octets(),
            ),
            _ => return Err("an A record has one IPv4 address".to_owned()),
        },
        (rtype::AAAA, texts) => match texts {
            [ip] => data.extend(
                ip.parse::<Ipv6Addr>().map_err(|_| format!("{ip:?} is not an IPv6 address"))?.octets(),
            ),
            _ => return Err("an AAAA record has one IPv6 address".to_owned()),
        },
        (rtype::NS | rtype::CNAME | rtype::PTR | rtype::DNAME, texts) => match texts {
            [target] => data.extend_from_slice(name(target)?.wire()),
            _ => return Err("the record has one name".to_owned()),
        },
        (rtype::MX, texts) => match texts {
            [preference, exchange] => {
                data.extend(number(preference)?.to_be_bytes());
                data.extend_from_slice(name(exchange)?.wire());
            }
            _ => return Err("an MX record has a preference and a name: 10 mail".to_owned()),
        },
        (rtype::SRV, texts) => match texts {
            [priority, weight, port, target] => {
                for value in [priority, weight, port] {
                    data.extend(number(value)?.to_be_bytes());
                }
                data.extend_from_slice(name(target)?.wire());
            }
            _ => return Err("an SRV record has priority, weight, port and a name: 0 0 443 host".to_owned()),
        },
        (rtype::SOA, texts) => match texts {
            [primary, mailbox, times @ ..] if times.len() == 5 => {
                data.extend_from_slice(name(primary)?.wire());
                data.extend_from_slice(name(mailbox)?.wire());
                for (time, is_serial) in times.iter().zip([true, false, false, false, false]) {
                    let value = if is_serial { time.parse().ok() } else { hickory_ttl(time) };
                    let value: u32 = value.ok_or_else(|| format!("{time:?} is not a number"))?;
                    data.extend(value.to_be_bytes());
                }
            }
            _ => {
                return Err(
                    "an SOA record has two names, serial, refresh, retry, expire and minimum".to_owned()
                );
            }
        },
        (rtype::TXT, []) => return Err("a TXT record has at least one string".to_owned()),
        (rtype::TXT, texts) => {
            for text in texts {
                let bytes = unescape(text).ok_or_else(|| format!("a wrong escape in {text:?}"))?;
                data.push(
                    u8::try_from(bytes.len()).map_err(|_| "a string has at most 255 bytes".to_owned())?,
                );
                data.extend(bytes);
            }
        }
        // Types that stand in messages only (RFC 6895 section 3.1).
        (0 | rtype::OPT | 128..=255, _) => return Err("records of this type cannot be in a zone".to_owned()),
        (rtype, texts) => data = by_hickory(rtype, texts)?,
    }
    if data.len() > usize::from(u16::MAX) {
        return Err("the data are longer than 65535 bytes".to_owned());
    }
    Ok(data.into())
}

fn hickory_ttl(text: &str) -> Option<u32> {
    hickory_proto::serialize::txt::parse_ttl(text).ok()
}

/// `\# LENGTH HEX…`
fn generic(words: &[Word]) -> Result<Box<[u8]>, String> {
    let wrong = || "expected \\# LENGTH HEX, as in \\# 4 C0000201".to_owned();
    let (length, hex) = words.split_first().ok_or_else(wrong)?;
    let length: u16 = length.text.parse().map_err(|_| wrong())?;
    let hex: String = hex.iter().map(|word| word.text.as_str()).collect();
    if hex.len() != 2 * usize::from(length) || !hex.is_ascii() {
        return Err(wrong());
    }
    let bytes = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok());
    bytes.collect::<Option<Vec<u8>>>().map(Into::into).ok_or_else(wrong)
}

fn by_hickory(rtype: u16, texts: &[&str]) -> Result<Vec<u8>, String> {
    let rtype = RecordType::from(rtype);
    let wrong =
        |why: &dyn std::fmt::Display| format!("the data of this {rtype} record cannot be read: {why}");
    let words: Vec<String> = texts
        .iter()
        .map(|text| {
            if text.is_empty() || text.contains(char::is_whitespace) {
                format!("\"{text}\"")
            } else {
                (*text).to_owned()
            }
        })
        .collect();
    let data = RData::try_from_str(rtype, &words.join(" ")).map_err(|why| wrong(&why))?;
    let mut bytes = Vec::new();
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_name_encoding(NameEncoding::Uncompressed);
    data.emit(&mut encoder).map_err(|why| wrong(&why))?;
    Ok(bytes)
}

/// The bytes of a character string (RFC 1035 section 5.1).
fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        let first = bytes.next()?;
        if !first.is_ascii_digit() {
            out.push(first);
            continue;
        }
        let mut value = u16::from(first - b'0');
        for _ in 0..2 {
            value = value * 10 + u16::from(bytes.next().filter(u8::is_ascii_digit)? - b'0');
        }
        out.push(u8::try_from(value).ok()?);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::super::Zone;
    use super::super::answer::Answer;
    use crate::testing::query_wire;
    use crate::wire::{Name, parse_query, parse_reply};

    /// The data of the only record of a type at `x.example`.
    fn data(record: &str, qtype: u16) -> Result<Vec<u8>, String> {
        let origin = Name::from_text("example").unwrap();
        let zone = Zone::from_text(origin, &format!("x {record}\n"), 60).map_err(|why| why.why)?;
        let query = parse_query(&query_wire("x.example", qtype, None)).unwrap();
        let Some(Answer::Whole(wire)) = zone.answer(&query) else { panic!("{record}") };
        let reply = parse_reply(&wire).unwrap();
        assert_eq!(reply.records[0].rtype, qtype, "{record}");
        Ok(wire[reply.records[0].data.clone()].to_vec())
    }

    #[test]
    fn every_type_has_its_wire_format() {
        let host = b"\x01h\x07example\0";
        let with = |head: &[u8]| [head, host].concat();
        assert_eq!(data("AAAA 2001:db8::1", 28).unwrap()[..4], [0x20, 1, 0xd, 0xb8]);
        assert_eq!(data("NS h", 2).unwrap(), host);
        assert_eq!(data("PTR h.example.", 12).unwrap(), host);
        assert_eq!(data("MX 10 h", 15).unwrap(), with(&[0, 10]));
        assert_eq!(data("SRV 1 2 443 h", 33).unwrap(), with(&[0, 1, 0, 2, 1, 187]));
        assert_eq!(data("TXT one \"two \\\"2\\\" \\255;\"", 16).unwrap(), b"\x03one\x0atwo \"2\" \xff;");
        assert_eq!(data("TXT \"\"", 16).unwrap(), b"\0");
        assert_eq!(data("TYPE731 \\# 3 abCD 01", 731).unwrap(), [0xab, 0xcd, 1]);
        assert_eq!(data("A \\# 4 C0000201", 1).unwrap(), [192, 0, 2, 1]);
        assert_eq!(data("TYPE1 192.0.2.1", 1).unwrap(), [192, 0, 2, 1]);
        assert_eq!(data("CAA 0 issue \"ca.example\"", 257).unwrap(), b"\0\x05issueca.example");
        assert_eq!(data("HTTPS 1 . alpn=h2", 65).unwrap(), b"\0\x01\0\0\x01\0\x03\x02h2");
        assert_eq!(data("SSHFP 1 1 123456", 44).unwrap(), [1, 1, 0x12, 0x34, 0x56]);
    }

    #[test]
    fn wrong_data_are_refused() {
        let long = format!("TXT \"{}\"", "x".repeat(256));
        for (record, qtype) in [
            ("AAAA 192.0.2.1", 28),
            ("MX h", 15),
            ("MX 65536 h", 15),
            ("SRV 1 2 h", 33),
            ("NS", 2),
            ("TXT", 16),
            ("TXT \\25", 16),
            ("TXT \\256", 16),
            (long.as_str(), 16),
            ("TYPE731 \\# 3 abcd", 731),
            ("TYPE731 \\# 1 zz", 731),
            ("TYPE731 x", 731),
            ("OPT \\x", 41),
            ("TSIG x", 250),
        ] {
            assert!(data(record, qtype).is_err(), "{record}");
        }
    }
}
