//! How a stream of the tunnel begins.
//!
//! The side that opens a bidirectional stream sends a header and then, without waiting, the bytes of its client:
//!
//! ```text
//!  offset  length  field
//!  0       1       version, 1
//!  1       1       flags; bit 0: bulk, bit 1: probe, bit 2: control; the others are 0
//!  2       1       length of the destination, 1 to 64
//!  3       1–64    destination: letters, digits, `.`, `_` and `-`
//!  …               payload
//! ```
//!
//! The destination is a name that the receiving side looks up in its own configuration, never an address. The receiving side sends one
//! byte, its [`Status`], and after [`Status::Ok`] the bytes of the upstream. After any other status it sends no more, and reads no more.
//!
//! A probe carries no payload: it asks whether the receiver takes streams of this peer at all, is answered with a status, and ends. In TLS
//! 1.3 a client believes itself connected before the server has looked at its certificate; a probe tells.
//!
//! A control stream carries what both sidecars tell each other ([`exchange`](crate::exchange::message)) instead of a payload, after the status
//! and in both directions; its destination says nothing.
//!
//! A receiver that does not know the version or one of the flags answers [`Status::Version`] and reads nothing else.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The version of this layout.
pub const VERSION: u8 = 1;
/// The bytes before the destination.
const FIXED: usize = 3;
/// The longest destination in bytes.
pub const MAX_DESTINATION: usize = 64;
/// The longest header in bytes.
pub const MAX_HEADER: usize = FIXED + MAX_DESTINATION;
/// The flag of [`Class::Bulk`].
const BULK: u8 = 1;
/// The flag of a probe.
const PROBE: u8 = 2;
/// The flag of a control stream.
const CONTROL: u8 = 4;

/// What a stream is for. Streams of different classes never share a connection, so that large transfers hold nothing up.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Messages whose delay matters.
    #[default]
    Interactive,
    /// Large transfers.
    Bulk,
}

impl Class {
    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Bulk => "bulk",
        }
    }
}

/// The name of a place at the receiving side: 1 to 64 letters, digits, dots, hyphens and underscores.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Destination(Box<str>);

/// The text is not a [`Destination`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a destination has 1 to 64 letters, digits, dots, hyphens and underscores")]
pub struct NotADestination;

impl Destination {
    /// The receiving sidecar's own node.
    pub const NODE: &str = "node";

    /// The receiving sidecar's own node.
    pub fn node() -> Self {
        Self(Self::NODE.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Destination {
    fn default() -> Self {
        Self::node()
    }
}

impl FromStr for Destination {
    type Err = NotADestination;

    fn from_str(text: &str) -> Result<Self, NotADestination> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let right = (1..=MAX_DESTINATION).contains(&text.len()) && text.bytes().all(plain);
        right.then(|| Self(text.into())).ok_or(NotADestination)
    }
}

impl TryFrom<String> for Destination {
    type Error = NotADestination;

    fn try_from(text: String) -> Result<Self, NotADestination> {
        text.parse()
    }
}

impl From<Destination> for String {
    fn from(destination: Destination) -> Self {
        destination.0.into()
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl schemars::JsonSchema for Destination {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Destination".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$" })
    }
}

/// The first bytes of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the stream is for.
    pub class: Class,
    /// It asks for the status only.
    pub probe: bool,
    /// It is for the sidecars themselves.
    pub control: bool,
    /// Where it leads.
    pub destination: Destination,
}

impl Header {
    /// The header of a stream that carries connections of clients to a destination.
    pub fn to(class: Class, destination: Destination) -> Self {
        Self { class, probe: false, control: false, destination }
    }

    /// The header of a probe.
    pub fn probe(class: Class) -> Self {
        Self { probe: true, ..Self::to(class, Destination::default()) }
    }

    /// The header of a control stream.
    pub fn control(class: Class) -> Self {
        Self { control: true, ..Self::to(class, Destination::default()) }
    }

    /// The bytes, [`MAX_HEADER`] at most.
    pub fn encode(&self) -> Vec<u8> {
        let name = self.destination.as_str().as_bytes();
        let bulk = if self.class == Class::Bulk { BULK } else { 0 };
        let flags = bulk | if self.probe { PROBE } else { 0 } | if self.control { CONTROL } else { 0 };
        let mut bytes = Vec::with_capacity(FIXED + name.len());
        // A destination has 64 bytes at most.
        bytes.extend([VERSION, flags, name.len() as u8]);
        bytes.extend(name);
        bytes
    }

    /// The header at the beginning of a stream of which `bytes` have come, and how many of them it takes; `None` while more are needed.
    /// To be called again with more bytes; [`MAX_HEADER`] are always enough.
    ///
    /// # Errors
    /// The status to answer with, as soon as the bytes cannot become a header.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, Status> {
        if bytes.first().is_some_and(|version| *version != VERSION) {
            return Err(Status::Version);
        }
        if bytes.get(1).is_some_and(|flags| flags & !(BULK | PROBE | CONTROL) != 0) {
            return Err(Status::Version);
        }
        let Some(([_, flags, length], rest)) = bytes.split_first_chunk::<FIXED>() else { return Ok(None) };
        let length = usize::from(*length);
        if !(1..=MAX_DESTINATION).contains(&length) {
            return Err(Status::Refused);
        }
        let Some(name) = rest.get(..length) else { return Ok(None) };
        let name = std::str::from_utf8(name).map_err(|_| Status::Refused)?;
        let destination = name.parse().map_err(|_| Status::Refused)?;
        let class = if flags & BULK == 0 { Class::Interactive } else { Class::Bulk };
        let (probe, control) = (flags & PROBE != 0, flags & CONTROL != 0);
        Ok(Some((Self { class, probe, control, destination }, FIXED + length)))
    }
}

/// The receiving side's answer to a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The upstream is connected, and its bytes follow.
    Ok,
    /// The destination is not configured.
    UnknownDestination,
    /// The peer may not have this stream, or its header is malformed.
    Refused,
    /// The destination's upstream did not accept a connection.
    NodeDown,
    /// The receiving side has as many connections as it may have.
    Overloaded,
    /// The receiving side is going away.
    Draining,
    /// The version or a flag is unknown.
    Version,
}

impl Status {
    /// All of them, in the order of their bytes from 0.
    pub const ALL: [Self; 7] = [
        Self::Ok,
        Self::UnknownDestination,
        Self::Refused,
        Self::NodeDown,
        Self::Overloaded,
        Self::Draining,
        Self::Version,
    ];

    /// The byte on the wire.
    pub fn byte(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::UnknownDestination => 1,
            Self::Refused => 2,
            Self::NodeDown => 3,
            Self::Overloaded => 4,
            Self::Draining => 5,
            Self::Version => 6,
        }
    }

    /// The status of a byte; `None` for a byte of a later version.
    pub fn of(byte: u8) -> Option<Self> {
        Self::ALL.get(usize::from(byte)).copied()
    }

    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::UnknownDestination => "unknown_destination",
            Self::Refused => "refused",
            Self::NodeDown => "node_down",
            Self::Overloaded => "overloaded",
            Self::Draining => "draining",
            Self::Version => "version",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(class: Class, destination: &str) -> Header {
        Header::to(class, destination.parse().unwrap())
    }

    #[test]
    fn the_bytes_are_as_documented() {
        assert_eq!(header(Class::Interactive, "node").encode(), b"\x01\x00\x04node");
        assert_eq!(header(Class::Bulk, "a").encode(), b"\x01\x01\x01a");
        assert_eq!(Header { probe: true, ..header(Class::Bulk, "a") }.encode(), b"\x01\x03\x01a");
        assert_eq!(Header::probe(Class::Interactive).encode(), b"\x01\x02\x04node");
        assert_eq!(Header::control(Class::Bulk).encode(), b"\x01\x05\x04node");
        let long = "x".repeat(64);
        assert_eq!(header(Class::Bulk, &long).encode().len(), MAX_HEADER);
    }

    #[test]
    fn what_cannot_be_a_header_is_refused_at_once() {
        assert_eq!(Header::decode(b"\x02"), Err(Status::Version));
        assert_eq!(Header::decode(b"\x01\x08"), Err(Status::Version));
        assert_eq!(Header::decode(b"\x01\x80\x04node"), Err(Status::Version));
        assert_eq!(Header::decode(b"\x01\x00\x00"), Err(Status::Refused));
        assert_eq!(Header::decode(b"\x01\x00\x41"), Err(Status::Refused));
        assert_eq!(Header::decode(b"\x01\x00\x02a/"), Err(Status::Refused));
        assert_eq!(Header::decode(b"\x01\x00\x02\xc3\x28"), Err(Status::Refused));
        assert_eq!(Header::decode(b""), Ok(None));
    }

    #[test]
    fn every_status_has_its_byte_and_its_label() {
        for (byte, status) in Status::ALL.into_iter().enumerate() {
            assert_eq!((usize::from(status.byte()), Status::of(status.byte())), (byte, Some(status)));
        }
        assert_eq!(Status::of(7), None);
        let labels: std::collections::BTreeSet<_> = Status::ALL.iter().map(|it| it.label()).collect();
        assert_eq!(labels.len(), Status::ALL.len());
    }

    fn any_header() -> impl Strategy<Value = Header> {
        ("[A-Za-z0-9._-]{1,64}", any::<[bool; 3]>()).prop_map(|(name, [bulk, probe, control])| {
            let class = if bulk { Class::Bulk } else { Class::Interactive };
            Header { probe, control, ..header(class, &name) }
        })
    }

    proptest! {
        #[test]
        fn a_header_is_read_back_from_any_pieces(
            header in any_header(), payload in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let mut bytes = header.encode();
            let length = bytes.len();
            bytes.extend(payload);
            for come in 0..=bytes.len() {
                let expected = (come >= length).then(|| (header.clone(), length));
                prop_assert_eq!(Header::decode(&bytes[..come]), Ok(expected));
            }
        }

        #[test]
        fn any_bytes_are_decided_within_the_longest_header(bytes in prop::collection::vec(any::<u8>(), MAX_HEADER..200)) {
            match Header::decode(&bytes) {
                Ok(Some((header, length))) => prop_assert_eq!(&header.encode()[..], &bytes[..length]),
                Ok(None) => prop_assert!(false, "undecided after {} bytes", bytes.len()),
                Err(status) => prop_assert!(matches!(status, Status::Version | Status::Refused)),
            }
        }

        #[test]
        fn more_bytes_never_change_a_refusal(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let mut refused = None;
            for come in 0..=bytes.len() {
                let decoded = Header::decode(&bytes[..come]);
                if let Some(status) = refused {
                    prop_assert_eq!(&decoded, &Err(status));
                }
                refused = decoded.err();
            }
        }
    }
}
