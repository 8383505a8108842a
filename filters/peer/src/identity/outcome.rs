//! How a handshake ended, for metrics and for people.

use quinn::{ConnectionError, TransportErrorCode};

/// How a handshake of the tunnel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HandshakeOutcome {
    /// Both sides know each other.
    Ok,
    /// This side refused the other one.
    Refused(Refusal),
    /// The other side refused this one. A client learns of it after its own handshake is over: in TLS 1.3 it speaks last, and its
    /// certificate is verified when its connection is already up (RFC 8446 section 4.4.2.4 and appendix E.1.2).
    RefusedByPeer(Refusal),
    /// Nothing came for too long.
    Timeout,
    /// The other side went away, or did not know of the connection.
    Gone,
    /// The versions of QUIC differ (RFC 9000 section 6).
    Version,
    /// What came is not QUIC as it should be.
    Protocol,
    /// This side gave up.
    Closed,
}

/// Why a side was refused: TLS alerts (RFC 8446 section 6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The certificate is good, but its name is not the expected or an allowed one.
    WrongName,
    /// There is no certificate.
    NoCertificate,
    /// The certificate is from none of the authorities.
    UnknownAuthority,
    /// The certificate does not hold yet or any more. The clock may be wrong.
    Expired,
    /// The certificate was revoked, is not for this use, is damaged, or its key was not proved.
    BadCertificate,
    /// No protocol in common: whoever that is does not speak the tunnel's.
    WrongProtocol,
    /// No key exchange in common: classical ones only, for instance; or no cipher suite or signature in common.
    NoCommonKeyExchange,
    /// Any other alert.
    Other,
}

impl Refusal {
    fn of(alert: u8) -> Self {
        match alert {
            49 => Self::WrongName,
            116 => Self::NoCertificate,
            48 => Self::UnknownAuthority,
            45 => Self::Expired,
            41..=44 | 46 | 51 => Self::BadCertificate,
            120 => Self::WrongProtocol,
            40 | 71 => Self::NoCommonKeyExchange,
            _ => Self::Other,
        }
    }
}

impl HandshakeOutcome {
    /// How a connection ended that did not get through its handshake, or was refused right after it.
    pub fn of(error: &ConnectionError) -> Self {
        match error {
            ConnectionError::TransportError(why) => {
                alert(why.code).map_or(Self::Protocol, |alert| Self::Refused(Refusal::of(alert)))
            }
            ConnectionError::ConnectionClosed(why) => {
                alert(why.error_code).map_or(Self::Gone, |alert| Self::RefusedByPeer(Refusal::of(alert)))
            }
            ConnectionError::ApplicationClosed(_) | ConnectionError::Reset => Self::Gone,
            ConnectionError::VersionMismatch => Self::Version,
            ConnectionError::TimedOut => Self::Timeout,
            ConnectionError::LocallyClosed | ConnectionError::CidsExhausted => Self::Closed,
        }
    }

    /// The value of the label `outcome`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused(Refusal::WrongName) => "wrong_name",
            Self::Refused(Refusal::NoCertificate) => "no_certificate",
            Self::Refused(Refusal::UnknownAuthority) => "unknown_authority",
            Self::Refused(Refusal::Expired) => "expired",
            Self::Refused(Refusal::BadCertificate) => "bad_certificate",
            Self::Refused(Refusal::WrongProtocol) => "wrong_protocol",
            Self::Refused(Refusal::NoCommonKeyExchange) => "no_common_key_exchange",
            Self::Refused(Refusal::Other) => "tls",
            Self::RefusedByPeer(Refusal::WrongName) => "peer_wrong_name",
            Self::RefusedByPeer(Refusal::NoCertificate) => "peer_no_certificate",
            Self::RefusedByPeer(Refusal::UnknownAuthority) => "peer_unknown_authority",
            Self::RefusedByPeer(Refusal::Expired) => "peer_expired",
            Self::RefusedByPeer(Refusal::BadCertificate) => "peer_bad_certificate",
            Self::RefusedByPeer(Refusal::WrongProtocol) => "peer_wrong_protocol",
            Self::RefusedByPeer(Refusal::NoCommonKeyExchange) => "peer_no_common_key_exchange",
            Self::RefusedByPeer(Refusal::Other) => "peer_tls",
            Self::Timeout => "timeout",
            Self::Gone => "gone",
            Self::Version => "version",
            Self::Protocol => "protocol",
            Self::Closed => "closed",
        }
    }

    /// What it means, in words.
    pub fn explanation(self) -> &'static str {
        match self {
            Self::Ok => "both sides know each other",
            Self::Refused(Refusal::WrongName) => {
                "the name in the other side's certificate is not allowed here"
            }
            Self::Refused(Refusal::NoCertificate) => "the other side has shown no certificate",
            Self::Refused(Refusal::UnknownAuthority) => {
                "the other side's certificate is from none of our authorities"
            }
            Self::Refused(Refusal::Expired) => {
                "the other side's certificate has expired or does not hold yet; are the clocks right?"
            }
            Self::Refused(Refusal::BadCertificate) => "the other side's certificate cannot be used",
            Self::Refused(Refusal::WrongProtocol) => {
                "the other side does not speak the tunnel's protocol (ALPN qst/1)"
            }
            Self::Refused(Refusal::NoCommonKeyExchange) => "the other side does not offer X25519MLKEM768",
            Self::Refused(Refusal::Other) => "the other side breaks the rules of TLS",
            Self::RefusedByPeer(Refusal::WrongName) => {
                "the other side does not allow the name in our certificate"
            }
            Self::RefusedByPeer(Refusal::NoCertificate) => {
                "the other side wants a certificate that we did not show"
            }
            Self::RefusedByPeer(Refusal::UnknownAuthority) => {
                "our certificate is from none of the other side's authorities"
            }
            Self::RefusedByPeer(Refusal::Expired) => {
                "to the other side our certificate has expired or does not hold yet; are the clocks right?"
            }
            Self::RefusedByPeer(Refusal::BadCertificate) => "the other side cannot use our certificate",
            Self::RefusedByPeer(Refusal::WrongProtocol) => {
                "something else than a tunnel answers there (it does not know ALPN qst/1)"
            }
            Self::RefusedByPeer(Refusal::NoCommonKeyExchange) => {
                "the other side does not know X25519MLKEM768"
            }
            Self::RefusedByPeer(Refusal::Other) => "the other side ended the handshake with a TLS alert",
            Self::Timeout => "the other side was silent for too long",
            Self::Gone => "the other side went away",
            Self::Version => "the other side speaks other versions of QUIC only",
            Self::Protocol => "the other side breaks the rules of QUIC",
            Self::Closed => "given up on this side",
        }
    }
}

/// The alert in an error code (RFC 9001 section 4.8: 0x100 and the alert).
fn alert(code: TransportErrorCode) -> Option<u8> {
    let alert = u64::from(code).checked_sub(0x100)?;
    u8::try_from(alert).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_outcome_has_a_label_of_its_own() {
        use HandshakeOutcome::*;
        let alerts = [49, 116, 48, 45, 42, 120, 40, 80].map(Refusal::of);
        let outcomes = alerts.iter().flat_map(|&why| [Refused(why), RefusedByPeer(why)]);
        let outcomes: Vec<_> = outcomes.chain([Ok, Timeout, Gone, Version, Protocol, Closed]).collect();
        let labels: HashSet<_> = outcomes.iter().map(|outcome| outcome.label()).collect();
        let texts: HashSet<_> = outcomes.iter().map(|outcome| outcome.explanation()).collect();
        assert_eq!((labels.len(), texts.len()), (22, 22));
        assert!(labels.iter().all(|label| label.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
    }

    #[test]
    fn what_is_not_tls_is_no_refusal() {
        assert_eq!(HandshakeOutcome::of(&ConnectionError::TimedOut), HandshakeOutcome::Timeout);
        assert_eq!(HandshakeOutcome::of(&ConnectionError::Reset), HandshakeOutcome::Gone);
        assert_eq!(alert(TransportErrorCode::crypto(49)), Some(49));
        assert_eq!(alert(TransportErrorCode::CONNECTION_REFUSED), None);
    }
}
