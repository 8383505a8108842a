//! Names in wire format.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;

/// The longest name, with its length bytes and the root's (RFC 1035 section 2.3.4).
const MAX: usize = 255;

/// A name in wire format, uncompressed and lower-cased: names compare without regard to case (RFC 4343). It needs no allocation, which
/// counts where each query has one; tables of many names are better keyed by [`Name::wire`].
#[derive(Clone)]
pub struct Name {
    bytes: [u8; MAX],
    length: u8,
}

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a domain name: {1}")]
pub struct NameError(pub String, pub &'static str);

impl Name {
    /// At most 255 bytes of wire format.
    fn of(wire: &[u8]) -> Self {
        let mut bytes = [0; MAX];
        for (to, from) in bytes.iter_mut().zip(wire) {
            // Length bytes are below b'A', so lower-casing leaves them alone.
            *to = from.to_ascii_lowercase();
        }
        Self { bytes, length: wire.len().min(MAX) as u8 }
    }

    /// Reads the uncompressed name at an offset. Returns it and the offset behind it; `None` when it is
    /// compressed, longer than 255 bytes or cut off.
    pub fn parse(wire: &[u8], start: usize) -> Option<(Self, usize)> {
        let mut at = start;
        loop {
            let length = usize::from(*wire.get(at)?);
            if length > 63 {
                return None;
            }
            at += 1 + length;
            if at - start > MAX {
                return None;
            }
            if length == 0 {
                return Some((Self::of(wire.get(start..at)?), at));
            }
        }
    }

    /// Reads a name as people write it, with or without the dot at its end, with escapes (RFC 1035 section 5.1).
    ///
    /// # Errors
    /// When a label is empty or longer than 63 bytes, the name is longer than 255 bytes, or an escape is wrong.
    pub fn from_text(text: &str) -> Result<Self, NameError> {
        let fail = |why| NameError(text.to_owned(), why);
        if text == "." {
            return Ok(Self::of(&[0]));
        }
        let mut wire = Vec::with_capacity(text.len() + 2);
        let mut label = Vec::new();
        let mut bytes = text.bytes();
        let mut ended = false;
        let mut close = |label: &mut Vec<u8>| {
            let length = u8::try_from(label.len()).ok().filter(|n| (1..=63).contains(n));
            wire.push(length.ok_or_else(|| fail("a label has 1 to 63 bytes"))?);
            wire.append(label);
            Ok(())
        };
        while let Some(byte) = bytes.next() {
            ended = byte == b'.';
            match byte {
                b'.' => close(&mut label)?,
                b'\\' => label.push(escaped(&mut bytes).ok_or_else(|| fail("a wrong escape"))?),
                byte => label.push(byte),
            }
        }
        if !ended {
            close(&mut label)?;
        }
        wire.push(0);
        if wire.len() > MAX {
            return Err(fail("it is longer than 255 bytes"));
        }
        Ok(Self::of(&wire))
    }

    /// The name under which the names of an address are found (RFC 1035 section 3.5, RFC 3596 section 2.5).
    pub fn reverse(ip: IpAddr) -> Self {
        let (labels, zone): (Vec<String>, _) = match ip {
            IpAddr::V4(ip) => (ip.octets().iter().rev().map(u8::to_string).collect(), "in-addr"),
            IpAddr::V6(ip) => {
                let nibbles = ip.octets().into_iter().rev().flat_map(|byte| [byte & 0xf, byte >> 4]);
                (nibbles.map(|nibble| format!("{nibble:x}")).collect(), "ip6")
            }
        };
        let mut wire = Vec::with_capacity(80);
        for label in labels.iter().map(String::as_str).chain([zone, "arpa"]) {
            // At most three bytes for an address's labels, seven for the zone's.
            wire.push(label.len() as u8);
            wire.extend_from_slice(label.as_bytes());
        }
        wire.push(0);
        Self::of(&wire)
    }

    /// The bytes, from the first label's length to the root's zero.
    pub fn wire(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or(&self.bytes)
    }

    /// The labels, without the root's.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.wire();
        std::iter::from_fn(move || {
            let (length, tail) = rest.split_first()?;
            let (label, tail) = tail.split_at_checked(usize::from(*length))?;
            rest = tail;
            (!label.is_empty()).then_some(label)
        })
    }

    /// Whether this name is `suffix` or lies below it.
    pub fn is_within(&self, suffix: &Self) -> bool {
        is_within(self.wire(), suffix.wire())
    }
}

/// Whether a name is `suffix` or lies below it, both as labels in lower case.
pub(crate) fn is_within(name: &[u8], suffix: &[u8]) -> bool {
    let mut rest = name;
    loop {
        if rest == suffix {
            return true;
        }
        let Some((length, tail)) = rest.split_first() else { return false };
        let Some(tail) = tail.get(usize::from(*length)..) else { return false };
        rest = tail;
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.wire() == other.wire()
    }
}

impl Eq for Name {}

impl Hash for Name {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.wire().hash(hasher);
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Name {
    fn cmp(&self, other: &Self) -> Ordering {
        self.wire().cmp(other.wire())
    }
}

fn escaped(bytes: &mut std::str::Bytes<'_>) -> Option<u8> {
    let first = bytes.next()?;
    if !first.is_ascii_digit() {
        return Some(first);
    }
    let mut value = u16::from(first - b'0');
    for _ in 0..2 {
        let digit = bytes.next().filter(u8::is_ascii_digit)?;
        value = value * 10 + u16::from(digit - b'0');
    }
    u8::try_from(value).ok()
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut labels = self.labels().peekable();
        if labels.peek().is_none() {
            return f.write_str(".");
        }
        for (i, label) in labels.enumerate() {
            if i > 0 {
                f.write_str(".")?;
            }
            for &byte in label {
                match byte {
                    b'.' | b'\\' => write!(f, "\\{}", char::from(byte))?,
                    b'!'..=b'~' => write!(f, "{}", char::from(byte))?,
                    byte => write!(f, "\\{byte:03}")?,
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts_become_names_and_names_texts() {
        for (text, shown) in
            [("Example.COM.", "example.com"), (".", "."), ("a\\.b.c", "a\\.b.c"), ("\\007x", "\\007x")]
        {
            let name = Name::from_text(text).unwrap();
            assert_eq!(name.to_string(), shown);
            assert_eq!(Name::from_text(shown).unwrap(), name);
            assert_eq!(Name::parse(name.wire(), 0), Some((name.clone(), name.wire().len())));
        }
        let long = "a".repeat(64);
        let deep = "abcdefg.".repeat(32);
        for text in ["", "a..b", ".a", "a\\", "a\\25", "a\\999", long.as_str(), deep.as_str()] {
            assert!(Name::from_text(text).is_err(), "{text:?}");
        }
        assert!(Name::from_text(&"abcdefg.".repeat(31)).is_ok());
    }

    #[test]
    fn suffixes_end_at_labels() {
        let name = |text| Name::from_text(text).unwrap();
        assert!(name("a.example.com").is_within(&name("example.com")));
        assert!(name("example.com").is_within(&name("Example.com")));
        assert!(name("example.com").is_within(&name(".")));
        assert!(!name("badexample.com").is_within(&name("example.com")));
        assert!(!name("com").is_within(&name("example.com")));
        // A label that holds what looks like another name's wire form.
        assert!(!name("x\\003com").is_within(&name("com")));
    }

    #[test]
    fn reverse_names_are_those_of_the_standards() {
        let reverse = |ip: &str| Name::reverse(ip.parse().unwrap()).to_string();
        assert_eq!(reverse("192.0.2.1"), "1.2.0.192.in-addr.arpa");
        assert_eq!(
            reverse("4321:0:1:2:3:4:567:89ab"),
            "b.a.9.8.7.6.5.0.4.0.0.0.3.0.0.0.2.0.0.0.1.0.0.0.0.0.0.0.1.2.3.4.ip6.arpa"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(wire in proptest::collection::vec(any::<u8>(), 0..300), at in 0_usize..310) {
            if let Some((name, end)) = Name::parse(&wire, at) {
                prop_assert!(end <= wire.len() && name.wire().len() <= MAX);
                prop_assert_eq!(Name::from_text(&name.to_string()), Ok(name));
            }
        }
    }
}
