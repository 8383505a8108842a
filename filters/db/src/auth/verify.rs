//! Whether a server is to be believed, as libpq does it (PostgreSQL documentation, "SSL Support" of libpq).
//!
//! Two customs of PostgreSQL installations are not known to the web: a server whose own certificate is the only authority that clients are
//! given, and a name that stands in the subject's common name and nowhere else.

use std::io;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::settings::ServerTlsMode;

/// Verifies what one of the modes demands.
#[derive(Debug)]
pub(super) struct Believer {
    /// None where any certificate will do.
    authorities: Option<(Arc<WebPkiServerVerifier>, Vec<CertificateDer<'static>>)>,
    /// Whether the name counts.
    name: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Believer {
    /// Who believes these authorities.
    ///
    /// # Errors
    /// When none of them can be used.
    pub(super) fn new(
        mode: ServerTlsMode,
        certificates: &[CertificateDer<'static>],
        provider: &Arc<CryptoProvider>,
    ) -> io::Result<Self> {
        let authorities = match mode {
            ServerTlsMode::VerifyCa | ServerTlsMode::VerifyFull => {
                let mut roots = RootCertStore::empty();
                // Some systems keep certificates that no longer conform; one that is left out verifies nobody.
                let (added, _) = roots.add_parsable_certificates(certificates.iter().cloned());
                if added == 0 {
                    let why = "none of the certificates can be used";
                    return Err(io::Error::new(io::ErrorKind::InvalidData, why));
                }
                let roots = Arc::new(roots);
                let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider));
                Some((verifier.build().map_err(io::Error::other)?, certificates.to_vec()))
            }
            ServerTlsMode::Disable | ServerTlsMode::Prefer | ServerTlsMode::Require => None,
        };
        let algorithms = provider.signature_verification_algorithms;
        Ok(Self { authorities, name: mode == ServerTlsMode::VerifyFull, algorithms })
    }
}

impl ServerCertVerifier for Believer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some((verifier, certificates)) = &self.authorities else {
            return Ok(ServerCertVerified::assertion());
        };
        if certificates.iter().any(|known| known.as_ref() == end_entity.as_ref()) {
            holds_at(end_entity, now)?;
        } else {
            match verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
                // The name is looked at after the chain, and here below.
                Err(Error::InvalidCertificate(
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
                )) => {}
                verified => return verified,
            }
        }
        if self.name {
            verify_name(end_entity, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Error> {
    let parsed = X509Certificate::from_der(certificate);
    parsed.map(|(_, parsed)| parsed).map_err(|_| CertificateError::BadEncoding.into())
}

/// Whether the time is one for which a certificate was made out.
fn holds_at(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let parsed = parse(certificate)?;
    let validity = parsed.validity();
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now < validity.not_before.timestamp() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > validity.not_after.timestamp() {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

/// Whether a certificate is made out for a name: among the subject alternative names, or in the common name where those have no name of this
/// kind (`pq_verify_peer_name_matches_certificate` in `fe-secure-common.c`).
fn verify_name(certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> Result<(), Error> {
    let refused = match rustls::client::verify_server_name(&ParsedCertificate::try_from(certificate)?, name) {
        Ok(()) => return Ok(()),
        Err(refused) => refused,
    };
    let parsed = parse(certificate)?;
    let alternatives = parsed.subject_alternative_name();
    let alternatives = alternatives.map_err(|_| Error::from(CertificateError::BadEncoding))?;
    let alternatives = alternatives.map(|list| list.value.general_names.as_slice()).unwrap_or_default();
    let named = alternatives.iter().any(|other| match name {
        ServerName::IpAddress(_) => matches!(other, GeneralName::IPAddress(_)),
        _ => matches!(other, GeneralName::DNSName(_)),
    });
    let host = name.to_str();
    let common = parsed.subject().iter_common_name().filter_map(|common| common.as_str().ok());
    if !named && common.last().is_some_and(|pattern| matches(pattern, &host)) {
        return Ok(());
    }
    Err(refused)
}

/// Whether a common name is that of a host; a leading `*.` stands for one label.
fn matches(pattern: &str, host: &str) -> bool {
    if pattern.eq_ignore_ascii_case(host) {
        return true;
    }
    let wild = pattern.strip_prefix("*.").zip(host.split_once('.'));
    wild.is_some_and(|(rest, (label, parent))| {
        !label.is_empty() && !rest.is_empty() && rest.eq_ignore_ascii_case(parent)
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    use super::*;

    struct Made {
        params: CertificateParams,
        key: KeyPair,
        der: CertificateDer<'static>,
    }

    fn params(common: &str, names: &[&str]) -> CertificateParams {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common);
        params
    }

    fn authority(common: &str) -> Made {
        let mut params = params(common, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().clone();
        Made { params, key, der }
    }

    fn issued(by: &Made, common: &str, names: &[&str]) -> CertificateDer<'static> {
        let issuer = Issuer::from_params(&by.params, &by.key);
        params(common, names).signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap().der().clone()
    }

    fn believes_at(
        mode: ServerTlsMode,
        authorities: &[CertificateDer<'static>],
        certificate: &CertificateDer<'_>,
        name: &str,
        now: UnixTime,
    ) -> bool {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let believer = Believer::new(mode, authorities, &provider).unwrap();
        let name = ServerName::try_from(name).unwrap();
        believer.verify_server_cert(certificate, &[], &name, &[], now).is_ok()
    }

    fn believes(
        mode: ServerTlsMode,
        by: &CertificateDer<'static>,
        certificate: &CertificateDer<'_>,
        name: &str,
    ) -> bool {
        believes_at(mode, std::slice::from_ref(by), certificate, name, UnixTime::now())
    }

    #[test]
    fn each_mode_believes_what_it_should() {
        use ServerTlsMode::{Require, VerifyCa, VerifyFull};
        let (ours, other) = (authority("ours"), authority("other"));
        let right = issued(&ours, "x", &["db.example", "*.db.example", "192.0.2.1"]);
        assert!(believes(Require, &other.der, &right, "nobody.example"));
        assert!(believes(VerifyCa, &ours.der, &right, "nobody.example"));
        assert!(!believes(VerifyCa, &other.der, &right, "db.example"));
        for name in ["db.example", "DB.example", "a.db.example", "192.0.2.1"] {
            assert!(believes(VerifyFull, &ours.der, &right, name), "{name}");
            assert!(!believes(VerifyFull, &other.der, &right, name), "{name}");
        }
        for name in ["nobody.example", "a.b.db.example", "x", "192.0.2.2"] {
            assert!(!believes(VerifyFull, &ours.der, &right, name), "{name}");
        }
    }

    #[test]
    fn the_common_name_counts_where_there_is_no_other() {
        use ServerTlsMode::VerifyFull;
        let ours = authority("ours");
        let common = issued(&ours, "*.db.example", &[]);
        assert!(believes(VerifyFull, &ours.der, &common, "a.DB.example"));
        for name in ["db.example", "a.b.db.example", "adb.example"] {
            assert!(!believes(VerifyFull, &ours.der, &common, name), "{name}");
        }
        let address = issued(&ours, "192.0.2.1", &["db.example"]);
        assert!(believes(VerifyFull, &ours.der, &address, "192.0.2.1"));
        let both = issued(&ours, "db.example", &["other.example"]);
        assert!(!believes(VerifyFull, &ours.der, &both, "db.example"));
    }

    #[test]
    fn a_certificate_that_is_its_own_authority_is_known_while_it_holds() {
        use ServerTlsMode::{VerifyCa, VerifyFull};
        for own in [authority("db.example").der, {
            let key = KeyPair::generate().unwrap();
            params("db.example", &[]).self_signed(&key).unwrap().der().clone()
        }] {
            assert!(believes(VerifyFull, &own, &own, "db.example"));
            assert!(!believes(VerifyFull, &own, &own, "other.example"));
            assert!(believes(VerifyCa, &own, &own, "other.example"));
            let later = UnixTime::since_unix_epoch(Duration::from_secs(1 << 40));
            assert!(!believes_at(VerifyCa, std::slice::from_ref(&own), &own, "db.example", later));
            assert!(!believes(VerifyCa, &own, &authority("db.example").der, "db.example"));
        }
    }
}
