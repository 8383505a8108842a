//! What stands in a certificate (RFC 5280).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::name::{NotAName, PeerName};

/// What a certificate says, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The distinguished name of its holder.
    pub subject: String,
    /// The distinguished name of its issuer.
    pub issuer: String,
    /// The URIs among its subject alternative names (RFC 5280 section 4.2.1.6), as they stand there.
    pub uris: Vec<String>,
    /// From when on it holds.
    pub not_before: SystemTime,
    /// Until when it holds.
    pub not_after: SystemTime,
    /// The kind of its key, `ECDSA P-256` for instance; the object identifier where it is not known.
    pub key_type: String,
    /// The SHA-256 hash of the whole certificate.
    pub fingerprint: [u8; 32],
    /// Whether it may issue others.
    pub authority: bool,
    /// Whether its extended key usage lets it be a server's; true where it has none.
    pub for_servers: bool,
    /// Whether its extended key usage lets it be a client's; true where it has none.
    pub for_clients: bool,
}

/// Why a certificate has no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoName {
    /// There is no URI.
    #[error("the certificate has no URI among its subject alternative names")]
    None,
    /// There are several. X509-SVID section 2 has such a certificate refused, and which one is meant cannot be told.
    #[error("the certificate has {0} URIs among its subject alternative names instead of one")]
    Several(usize),
    /// It is no URI.
    #[error("the URI {uri:?} in the certificate cannot be used: {why}")]
    Wrong {
        /// What stands there.
        uri: String,
        /// Why it is no name.
        why: NotAName,
    },
}

impl Facts {
    /// Reads a certificate in DER.
    ///
    /// # Errors
    /// With what is wrong with it.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        let (rest, parsed) =
            X509Certificate::from_der(certificate).map_err(|why| format!("no certificate: {why}"))?;
        if !rest.is_empty() {
            return Err(format!("no certificate: {} bytes follow it", rest.len()));
        }
        let wrong = |what: &str| format!("a certificate whose {what} cannot be read");
        let names = parsed.subject_alternative_name().map_err(|_| wrong("subject alternative names"))?;
        let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
        let uris = names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        });
        let usage = parsed.extended_key_usage().map_err(|_| wrong("extended key usage"))?;
        let usage = usage.map(|usage| usage.value);
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(digest(&SHA256, certificate).as_ref());
        Ok(Self {
            subject: parsed.subject().to_string(),
            issuer: parsed.issuer().to_string(),
            uris: uris.collect(),
            not_before: time(parsed.validity().not_before.timestamp()),
            not_after: time(parsed.validity().not_after.timestamp()),
            key_type: key_type(&parsed),
            fingerprint,
            authority: parsed.is_ca(),
            for_servers: usage.is_none_or(|usage| usage.any || usage.server_auth),
            for_clients: usage.is_none_or(|usage| usage.any || usage.client_auth),
        })
    }

    /// The name of the certificate's holder: its only URI.
    ///
    /// # Errors
    /// When there is none, or more than one, or it cannot be used.
    pub fn name(&self) -> Result<PeerName, NoName> {
        match self.uris.as_slice() {
            [] => Err(NoName::None),
            [uri] => uri.parse().map_err(|why| NoName::Wrong { uri: uri.clone(), why }),
            several => Err(NoName::Several(several.len())),
        }
    }

    /// How the certificate stands at a time.
    pub fn standing(&self, now: SystemTime) -> Standing {
        Standing::at(now, self.not_before, self.not_after)
    }

    /// The fingerprint as other programs print it: pairs of hexadecimal digits with colons.
    pub fn fingerprint_text(&self) -> String {
        let pairs: Vec<_> = self.fingerprint.iter().map(|byte| format!("{byte:02X}")).collect();
        pairs.join(":")
    }
}

/// Seconds since the epoch as a time; the nearest one that can be told where they are out of reach.
fn time(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    time.unwrap_or(UNIX_EPOCH)
}

fn key_type(certificate: &X509Certificate<'_>) -> String {
    let key = certificate.public_key();
    let algorithm = key.algorithm.algorithm.to_id_string();
    let curve = || Some(key.algorithm.parameters.as_ref()?.as_oid().ok()?.to_id_string());
    let name = match algorithm.as_str() {
        // RFC 5480.
        "1.2.840.10045.2.1" => match curve().as_deref() {
            Some("1.2.840.10045.3.1.7") => "ECDSA P-256",
            Some("1.3.132.0.34") => "ECDSA P-384",
            Some("1.3.132.0.35") => "ECDSA P-521",
            _ => "ECDSA",
        },
        // RFC 8410.
        "1.3.101.112" => "Ed25519",
        "1.2.840.113549.1.1.1" => {
            return match key.parsed().map(|key| key.key_size()) {
                Ok(bits) => format!("RSA {bits}"),
                Err(_) => "RSA".to_owned(),
            };
        }
        // RFC 9881.
        "2.16.840.1.101.3.4.3.17" => "ML-DSA-44",
        "2.16.840.1.101.3.4.3.18" => "ML-DSA-65",
        "2.16.840.1.101.3.4.3.19" => "ML-DSA-87",
        _ => return algorithm,
    };
    name.to_owned()
}

/// How a certificate stands at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It begins to hold later.
    NotYet,
    /// It holds.
    Good,
    /// It holds, but not for long: less than a tenth of its time is left, and less than 14 days.
    Soon,
    /// Its time is over.
    Expired,
}

impl Standing {
    /// How a certificate stands that holds from one time to another (RFC 5280 section 4.1.2.5: both included).
    pub fn at(now: SystemTime, not_before: SystemTime, not_after: SystemTime) -> Self {
        const SOON: Duration = Duration::from_secs(14 * 24 * 3600);
        let lifetime = not_after.duration_since(not_before).unwrap_or_default();
        if now < not_before {
            return Self::NotYet;
        }
        match not_after.duration_since(now) {
            Err(_) => Self::Expired,
            Ok(left) if left < SOON.min(lifetime / 10) => Self::Soon,
            Ok(_) => Self::Good,
        }
    }

    /// A word for it.
    pub fn label(self) -> &'static str {
        match self {
            Self::NotYet => "not yet valid",
            Self::Good => "valid",
            Self::Soon => "expires soon",
            Self::Expired => "expired",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_damaged_certificate_is_read_or_refused(at: proptest::sample::Index, byte: u8, cut: proptest::sample::Index) {
            let mut params = rcgen::CertificateParams::default();
            params.subject_alt_names = vec![rcgen::SanType::URI("spiffe://a/b".try_into().unwrap())];
            let key = rcgen::KeyPair::generate().unwrap();
            let whole = params.self_signed(&key).unwrap().der().to_vec();
            let mut damaged = whole.clone();
            damaged[at.index(whole.len())] = byte;
            for bytes in [damaged.as_slice(), &whole[..cut.index(whole.len())]] {
                if let Ok(facts) = Facts::of(&CertificateDer::from(bytes)) {
                    let _readable = (facts.name(), facts.standing(SystemTime::now()), facts.fingerprint_text());
                }
            }
            prop_assert!(Facts::of(&CertificateDer::from(whole)).unwrap().name().is_ok());
        }
    }

    #[test]
    fn a_certificate_is_renewed_in_good_time() {
        let at = |seconds: u64| UNIX_EPOCH + Duration::from_secs(seconds);
        let day = 86_400;
        // A year: 14 days before.
        let year = |now| Standing::at(at(now), at(day), at(366 * day));
        assert_eq!(year(day - 1), Standing::NotYet);
        assert_eq!(year(day), Standing::Good);
        assert_eq!(year(352 * day), Standing::Good);
        assert_eq!(year(352 * day + 1), Standing::Soon);
        assert_eq!(year(366 * day), Standing::Soon);
        assert_eq!(year(366 * day + 1), Standing::Expired);
        // An hour: six minutes before.
        let hour = |now| Standing::at(at(now), at(0), at(3600));
        assert_eq!((hour(3240), hour(3241)), (Standing::Good, Standing::Soon));
        assert_eq!(Standing::at(at(5), at(6), at(4)), Standing::NotYet);
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        for bytes in [&b""[..], b"nonsense", &[0x30, 0x82, 0xff, 0xff]] {
            assert!(Facts::of(&CertificateDer::from(bytes)).is_err());
        }
    }
}
