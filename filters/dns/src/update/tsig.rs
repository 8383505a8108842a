//! Transaction signatures (RFC 8945), without a clock: the time is an argument.

use aws_lc_rs::hmac;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::wire::{HEADER, Name, put, skip_name, u16_at, u32_at};

/// How many seconds the clocks of both sides may differ (RFC 8945 section 10 recommends 300).
const FUDGE: u16 = 300;
const CLASS_ANY: u16 = 255;
const TYPE_TSIG: u16 = 250;

/// How a message is signed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// HMAC with SHA-256.
    #[default]
    HmacSha256,
    /// HMAC with SHA-512.
    HmacSha512,
}

impl Algorithm {
    fn name(self) -> &'static [u8] {
        match self {
            Self::HmacSha256 => b"\x0bhmac-sha256\0",
            Self::HmacSha512 => b"\x0bhmac-sha512\0",
        }
    }

    fn hmac(self) -> hmac::Algorithm {
        match self {
            Self::HmacSha256 => hmac::HMAC_SHA256,
            Self::HmacSha512 => hmac::HMAC_SHA512,
        }
    }
}

/// A key that both sides know.
pub struct Key {
    name: Name,
    algorithm: Algorithm,
    key: hmac::Key,
}

/// Why a reply is not believed, or what it says of our signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TsigError {
    /// It cannot be read.
    #[error("the reply cannot be read")]
    Malformed,
    /// Nobody signed it.
    #[error("the reply is not signed")]
    Unsigned,
    /// Somebody else signed it, or it was changed on its way.
    #[error("the reply's signature is wrong")]
    Forged,
    /// It was signed too long ago, or will be.
    #[error("the reply was signed at another time; look at the clocks")]
    Stale,
    /// The server does not know the key (TSIG error 17).
    #[error("the server does not know the key (BADKEY)")]
    BadKey,
    /// The server finds our signature wrong (TSIG error 16).
    #[error("the server finds the signature wrong (BADSIG): not the same secret")]
    BadSig,
    /// The server's clock shows another time (TSIG error 18).
    #[error("the server's clock shows another time (BADTIME)")]
    BadTime,
    /// Another error of the server's.
    #[error("the server refuses the signature (TSIG error {0})")]
    Other(u16),
}

impl TsigError {
    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Unsigned => "unsigned",
            Self::Forged => "forged",
            Self::Stale => "stale",
            Self::BadKey => "bad_key",
            Self::BadSig => "bad_sig",
            Self::BadTime => "bad_time",
            Self::Other(_) => "tsig",
        }
    }
}

/// What of a TSIG record is signed, and what it brings.
struct Variables<'a> {
    time: u64,
    fudge: u16,
    error: u16,
    other: &'a [u8],
}

impl Key {
    /// A key with its secret's bytes.
    pub fn new(name: Name, algorithm: Algorithm, secret: &[u8]) -> Self {
        Self { name, algorithm, key: hmac::Key::new(algorithm.hmac(), secret) }
    }

    fn context(&self, before: Option<&[u8]>, message: &[u8], variables: &Variables<'_>) -> hmac::Context {
        let mut context = hmac::Context::with_key(&self.key);
        if let Some(mac) = before {
            // A MAC has at most 64 bytes.
            context.update(&(mac.len() as u16).to_be_bytes());
            context.update(mac);
        }
        context.update(message);
        context.update(self.name.wire());
        context.update(&CLASS_ANY.to_be_bytes());
        context.update(&0_u32.to_be_bytes());
        context.update(self.algorithm.name());
        context.update(variables.time.to_be_bytes().get(2..).unwrap_or_default());
        context.update(&variables.fudge.to_be_bytes());
        context.update(&variables.error.to_be_bytes());
        context.update(&(variables.other.len() as u16).to_be_bytes());
        context.update(variables.other);
        context
    }

    /// Signs a request: appends a TSIG record (RFC 8945 section 4.2). Returns the MAC, which the reply's is bound to. `now` is in seconds since the
    /// Unix epoch.
    pub fn sign(&self, message: &mut Vec<u8>, now: u64) -> Vec<u8> {
        let variables = Variables { time: now, fudge: FUDGE, error: 0, other: &[] };
        let mac = self.context(None, message, &variables).sign();
        self.append(message, mac.as_ref(), &variables);
        mac.as_ref().to_vec()
    }

    fn append(&self, message: &mut Vec<u8>, mac: &[u8], variables: &Variables<'_>) {
        let id = u16_at(message, 0).unwrap_or_default();
        let mut data = self.algorithm.name().to_vec();
        data.extend_from_slice(variables.time.to_be_bytes().get(2..).unwrap_or_default());
        data.extend(variables.fudge.to_be_bytes());
        data.extend((mac.len() as u16).to_be_bytes());
        data.extend_from_slice(mac);
        data.extend(id.to_be_bytes());
        data.extend(variables.error.to_be_bytes());
        data.extend((variables.other.len() as u16).to_be_bytes());
        data.extend_from_slice(variables.other);
        message.extend_from_slice(self.name.wire());
        message.extend(TYPE_TSIG.to_be_bytes());
        message.extend(CLASS_ANY.to_be_bytes());
        message.extend(0_u32.to_be_bytes());
        message.extend((data.len() as u16).to_be_bytes());
        message.extend(data);
        let additional = u16_at(message, 10).unwrap_or_default().saturating_add(1);
        put(message, 10, &additional.to_be_bytes());
    }

    /// Whether a reply comes from who knows the key and belongs to the request with this MAC (RFC 8945 section 5.3).
    ///
    /// # Errors
    /// Why it is not believed. [`TsigError::BadKey`] and [`TsigError::BadSig`] are the server's word and are unsigned by nature.
    pub fn verify(&self, reply: &[u8], request_mac: &[u8], now: u64) -> Result<(), TsigError> {
        let start = last_record(reply).ok_or(TsigError::Malformed)?.ok_or(TsigError::Unsigned)?;
        let (owner, at) = Name::parse(reply, start).ok_or(TsigError::Malformed)?;
        if u16_at(reply, at) != Some(TYPE_TSIG) {
            return Err(TsigError::Unsigned);
        }
        if u16_at(reply, at + 2) != Some(CLASS_ANY) || u32_at(reply, at + 4) != Some(0) {
            return Err(TsigError::Malformed);
        }
        let data = reply.get(at + 10..).ok_or(TsigError::Malformed)?;
        let signature = Signature::read(data).ok_or(TsigError::Malformed)?;
        match signature.error {
            0 | 18 => {}
            16 => return Err(TsigError::BadSig),
            17 => return Err(TsigError::BadKey),
            other => return Err(TsigError::Other(other)),
        }
        if owner != self.name || signature.algorithm.wire() != self.algorithm.name() {
            return Err(TsigError::Forged);
        }
        // The message as it was when it was signed: its own id, without the record.
        let mut message = reply.get(..start).unwrap_or_default().to_vec();
        put(&mut message, 0, &signature.id.to_be_bytes());
        let additional = u16_at(&message, 10).unwrap_or_default().saturating_sub(1);
        put(&mut message, 10, &additional.to_be_bytes());
        let Signature { time, fudge, mac, error, other, .. } = signature;
        let variables = Variables { time, fudge, error, other };
        // A MAC that was cut is shorter and never equal (RFC 8945 section 5.2.2.1 lets us demand the whole).
        let expected = self.context(Some(request_mac), &message, &variables).sign();
        aws_lc_rs::constant_time::verify_slices_are_equal(expected.as_ref(), mac)
            .map_err(|_| TsigError::Forged)?;
        if error == 18 {
            return Err(TsigError::BadTime);
        }
        if now.abs_diff(time) > fudge.into() {
            return Err(TsigError::Stale);
        }
        Ok(())
    }
}

struct Signature<'a> {
    algorithm: Name,
    time: u64,
    fudge: u16,
    mac: &'a [u8],
    id: u16,
    error: u16,
    other: &'a [u8],
}

impl<'a> Signature<'a> {
    fn read(data: &'a [u8]) -> Option<Self> {
        let (algorithm, at) = Name::parse(data, 0)?;
        let mut time = [0; 8];
        time.get_mut(2..)?.copy_from_slice(data.get(at..at + 6)?);
        let mac_end = at + 10 + usize::from(u16_at(data, at + 8)?);
        let other = mac_end + 6;
        Some(Self {
            algorithm,
            time: u64::from_be_bytes(time),
            fudge: u16_at(data, at + 6)?,
            mac: data.get(at + 10..mac_end)?,
            id: u16_at(data, mac_end)?,
            error: u16_at(data, mac_end + 2)?,
            other: data.get(other..other + usize::from(u16_at(data, mac_end + 4)?))?,
        })
    }
}

/// Where the last record of a message begins; inside, `None` if it has none. `None` outside when it is malformed or has bytes behind.
fn last_record(message: &[u8]) -> Option<Option<usize>> {
    let mut at = HEADER;
    for _ in 0..u16_at(message, 4)? {
        at = skip_name(message, at)? + 4;
    }
    let records = [6, 8, 10].into_iter().map(|count| u16_at(message, count).map(usize::from));
    let records: usize = records.sum::<Option<usize>>()?;
    let mut last = None;
    for _ in 0..records {
        last = Some(at);
        let fixed = skip_name(message, at)?;
        at = fixed + 10 + usize::from(u16_at(message, fixed + 8)?);
    }
    (at == message.len()).then_some(last)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(name: &str, secret: &[u8]) -> Key {
        Key::new(Name::from_text(name).unwrap(), Algorithm::HmacSha256, secret)
    }

    /// An empty UPDATE reply with an id and one zone.
    fn reply() -> Vec<u8> {
        let mut wire = vec![0x12, 0x34, 0xa8, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        wire.extend(b"\x07example\0\0\x06\0\x01");
        wire
    }

    fn signed(key: &Key, request_mac: &[u8], time: u64, error: u16) -> Vec<u8> {
        let mut wire = reply();
        let variables = Variables { time, fudge: FUDGE, error, other: &[] };
        let mac = key.context(Some(request_mac), &wire, &variables).sign();
        key.append(&mut wire, mac.as_ref(), &variables);
        wire
    }

    #[test]
    fn a_signature_is_bound_to_key_request_time_and_bytes() {
        let ours = key("k", b"secret");
        let good = signed(&ours, b"mac", 1000, 0);
        assert_eq!(ours.verify(&good, b"mac", 1300), Ok(()));
        assert_eq!(ours.verify(&good, b"mac", 1301), Err(TsigError::Stale));
        assert_eq!(ours.verify(&good, b"cam", 1000), Err(TsigError::Forged));
        assert_eq!(key("k", b"other").verify(&good, b"mac", 1000), Err(TsigError::Forged));
        assert_eq!(key("j", b"secret").verify(&good, b"mac", 1000), Err(TsigError::Forged));
        assert_eq!(ours.verify(&reply(), b"mac", 1000), Err(TsigError::Unsigned));
        for (error, expected) in [
            (16, TsigError::BadSig),
            (17, TsigError::BadKey),
            (18, TsigError::BadTime),
            (22, TsigError::Other(22)),
        ] {
            assert_eq!(ours.verify(&signed(&ours, b"mac", 1000, error), b"mac", 1000), Err(expected));
        }
        // BADTIME is the server's signed word; nobody else may say it.
        let forged = signed(&key("k", b"other"), b"mac", 1000, 18);
        assert_eq!(ours.verify(&forged, b"mac", 1000), Err(TsigError::Forged));
    }

    #[test]
    fn the_mac_is_that_of_the_standard_composition() {
        let ours = key("k", b"secret");
        let mut message = reply();
        let mac = ours.sign(&mut message, 0x1_0000_0002);
        let mut whole = reply();
        whole.extend(b"\x01k\0\0\xff\0\0\0\0\x0bhmac-sha256\0\0\x01\0\0\0\x02\x01\x2c\0\0\0\0");
        let expected = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, b"secret"), &whole);
        assert_eq!(mac, expected.as_ref());
        assert_eq!(u16_at(&message, 10), Some(1));
    }

    proptest! {
        /// The id of the message is replaced by the one in the record, and the case of names is no difference.
        #[test]
        fn one_changed_bit_is_noticed(at in 2_usize..99, bit in 0_u8..8) {
            let ours = key("k", b"secret");
            let mut wire = signed(&ours, b"mac", 1000, 0);
            prop_assert_eq!(wire.len(), 99);
            wire[at] ^= 1 << bit;
            prop_assert!(bit == 5 || ours.verify(&wire, b"mac", 1000) != Ok(()));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(wire in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = key("k", b"secret").verify(&wire, b"mac", 1000);
        }
    }
}
