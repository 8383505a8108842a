//! `tls-server-end-point` (RFC 5929 section 4.1).

use std::sync::Arc;

use aws_lc_rs::digest::{Algorithm, SHA224, SHA256, SHA384, SHA512, digest};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::signature_algorithm::SignatureAlgorithm;

/// The hash of a certificate in DER: that of its signature, but SHA-256 where this is MD5 or SHA-1. `None` where the signature has no single hash
/// (Ed25519) or an unknown one; PostgreSQL has no channel binding with such certificates either.
pub(super) fn end_point(certificate: &[u8]) -> Option<Arc<[u8]>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let algorithm = &parsed.signature_algorithm;
    let oid = match SignatureAlgorithm::try_from(algorithm) {
        // RFC 4055: the hash is a parameter.
        Ok(SignatureAlgorithm::RSASSA_PSS(parameters)) => parameters.hash_algorithm_oid().to_id_string(),
        _ => algorithm.algorithm.to_id_string(),
    };
    hash_of(&oid).map(|hash| digest(hash, certificate).as_ref().into())
}

/// The hash of a signature algorithm, or a hash by itself.
fn hash_of(oid: &str) -> Option<&'static Algorithm> {
    Some(match oid {
        // RSA (RFC 8017 appendix C), ECDSA (RFC 3279, RFC 5758), DSA (RFC 3279, RFC 5758), the hashes themselves (RFC 3279, RFC 4055).
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.10045.4.1"
        | "1.2.840.10040.4.3"
        | "1.2.840.113549.2.5"
        | "1.3.14.3.2.26" => &SHA256,
        "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.3.2"
        | "2.16.840.1.101.3.4.3.2"
        | "2.16.840.1.101.3.4.2.1" => &SHA256,
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" | "2.16.840.1.101.3.4.2.2" => &SHA384,
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" | "2.16.840.1.101.3.4.2.3" => &SHA512,
        "1.2.840.113549.1.1.14"
        | "1.2.840.10045.4.3.1"
        | "2.16.840.1.101.3.4.3.1"
        | "2.16.840.1.101.3.4.2.4" => &SHA224,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SignatureAlgorithm};

    use super::*;

    fn certificate(algorithm: &'static SignatureAlgorithm) -> Vec<u8> {
        let key = KeyPair::generate_for(algorithm).unwrap();
        CertificateParams::new(vec!["db.example".to_owned()])
            .unwrap()
            .self_signed(&key)
            .unwrap()
            .der()
            .to_vec()
    }

    #[test]
    fn the_hash_is_that_of_the_signature() {
        for (algorithm, hash) in [
            (&rcgen::PKCS_ECDSA_P256_SHA256, Some(&SHA256)),
            (&rcgen::PKCS_ECDSA_P384_SHA384, Some(&SHA384)),
            (&rcgen::PKCS_ED25519, None),
        ] {
            let certificate = certificate(algorithm);
            let expected = hash.map(|hash| digest(hash, &certificate).as_ref().to_vec());
            assert_eq!(end_point(&certificate).map(|hash| hash.to_vec()), expected);
        }
        assert_eq!(end_point(b"no certificate"), None);
    }

    #[test]
    fn old_hashes_are_replaced() {
        assert_eq!(hash_of("1.2.840.113549.1.1.5"), Some(&SHA256));
        assert_eq!(hash_of("1.2.840.113549.1.1.4"), Some(&SHA256));
        assert_eq!(hash_of("1.2.840.113549.1.1.13"), Some(&SHA512));
        assert_eq!(hash_of("1.3.101.112"), None);
    }
}
