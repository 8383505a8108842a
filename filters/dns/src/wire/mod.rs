//! The wire format of DNS messages (RFC 1035 section 4, RFC 6891), by hand and without I/O.
//!
//! Everything here takes bytes from strangers. Nothing allocates more than a small multiple of its input and nothing panics.

mod build;
mod name;
mod query;
mod reply;

pub use build::{Ede, Reasons, answer, error_reply, finish, finish_into, hinfo, patch_ttls};
pub(crate) use name::is_within;
pub use name::{Name, NameError};
pub use query::{Edns, Parsed, Refusal, parse_query};
pub use reply::{Record, Reply, Section, Stripped, parse_reply, strip_opt};

/// Length of the header.
pub const HEADER: usize = 12;
/// The smallest reply size that every UDP client takes (RFC 1035 section 2.3.4).
pub const MIN_UDP: u16 = 512;
/// The UDP payload size that fits every path (RFC 9715 section 3, the DNS flag day of 2020).
pub const OWN_UDP: u16 = 1232;

/// Record types that the sidecar itself looks at.
pub mod rtype {
    /// An IPv4 address.
    pub const A: u16 = 1;
    /// A name server.
    pub const NS: u16 = 2;
    /// An alias.
    pub const CNAME: u16 = 5;
    /// The start of a zone of authority.
    pub const SOA: u16 = 6;
    /// A name for an address.
    pub const PTR: u16 = 12;
    /// Host information; what RFC 8482 answers `ANY` with.
    pub const HINFO: u16 = 13;
    /// A mail server.
    pub const MX: u16 = 15;
    /// Text.
    pub const TXT: u16 = 16;
    /// An IPv6 address.
    pub const AAAA: u16 = 28;
    /// Where a service is (RFC 2782).
    pub const SRV: u16 = 33;
    /// An alias for all names below a name (RFC 6672).
    pub const DNAME: u16 = 39;
    /// EDNS (RFC 6891).
    pub const OPT: u16 = 41;
    /// Transfers of zones (RFC 1995, RFC 5936).
    pub const IXFR: u16 = 251;
    /// See [`IXFR`].
    pub const AXFR: u16 = 252;
    /// Every type (RFC 8482).
    pub const ANY: u16 = 255;
}

/// Response codes (RFC 1035 section 4.1.1, RFC 6891 section 9).
pub mod rcode {
    /// No error.
    pub const NOERROR: u8 = 0;
    /// The query was malformed.
    pub const FORMERR: u8 = 1;
    /// The server failed.
    pub const SERVFAIL: u8 = 2;
    /// The name does not exist.
    pub const NXDOMAIN: u8 = 3;
    /// Not implemented.
    pub const NOTIMP: u8 = 4;
    /// Refused by policy.
    pub const REFUSED: u8 = 5;
    /// A name is too long after DNAME substitution (RFC 6672 section 2.2); an answer, not a failure.
    pub const YXDOMAIN: u8 = 6;
    /// The EDNS version is not implemented; 16, of which the header holds the lower four bits.
    pub const BADVERS: u16 = 16;

    /// The name of a code in the header, in lower case: an outcome's label.
    pub fn label(code: u8) -> &'static str {
        match code {
            NOERROR => "noerror",
            FORMERR => "formerr",
            SERVFAIL => "servfail",
            NXDOMAIN => "nxdomain",
            NOTIMP => "notimp",
            REFUSED => "refused",
            YXDOMAIN => "yxdomain",
            _ => "other",
        }
    }
}

/// The class of the Internet.
pub const CLASS_IN: u16 = 1;

/// Bits of the third byte of the header.
pub mod flag2 {
    /// A response.
    pub const QR: u8 = 0x80;
    /// The four bits of the operation.
    pub const OPCODE: u8 = 0x78;
    /// From the zone's authority.
    pub const AA: u8 = 0x04;
    /// Truncated.
    pub const TC: u8 = 0x02;
    /// Recursion is asked for.
    pub const RD: u8 = 0x01;
}

/// Bits of the fourth byte of the header.
pub mod flag3 {
    /// Recursion is offered.
    pub const RA: u8 = 0x80;
    /// Data were authenticated (RFC 4035), or the client understands that bit (RFC 6840 section 5.7).
    pub const AD: u8 = 0x20;
    /// Do not check (RFC 4035).
    pub const CD: u8 = 0x10;
    /// The response code.
    pub const RCODE: u8 = 0x0f;
}

/// A big-endian number at an offset.
pub(crate) fn u16_at(wire: &[u8], at: usize) -> Option<u16> {
    let bytes = wire.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

/// A big-endian number at an offset.
pub(crate) fn u32_at(wire: &[u8], at: usize) -> Option<u32> {
    let bytes = wire.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

/// Writes bytes at an offset, if they fit.
pub(crate) fn put(wire: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = at.checked_add(bytes.len()).and_then(|end| wire.get_mut(at..end)) {
        place.copy_from_slice(bytes);
    }
}

/// Where a name that may be compressed ends (RFC 1035 section 4.1.4). Pointers are not followed.
pub(crate) fn skip_name(wire: &[u8], mut at: usize) -> Option<usize> {
    // A name has at most 255 bytes, so at most 128 labels.
    for _ in 0..=128 {
        let length = *wire.get(at)?;
        match length {
            0 => return Some(at + 1),
            1..=63 => at = at + 1 + usize::from(length),
            0xc0..=0xff => return wire.get(at + 1).map(|_| at + 2),
            _ => return None,
        }
    }
    None
}
