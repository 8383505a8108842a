//! Whom encrypted servers are verified with.
//!
//! The system's authorities (rustls-native-certs) and not a list that is compiled in: they are kept up to date by the system, and hold
//! what an operator has added.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use super::super::server::Protocol;

/// The names of the protocols in a handshake (RFC 7301): the IANA registry has them from RFC 7858, RFC 9113 and RFC 9250.
const DOT: &[u8] = b"dot";
const H2: &[u8] = b"h2";
const DOQ: &[u8] = b"doq";
/// Certificates in files larger than this are not read.
const MAX_FILE: u64 = 8 << 20;

/// What connections are set up with.
#[derive(Clone)]
pub(in super::super) struct Tls {
    /// A number for the authorities: equal authorities have equal ones.
    pub(in super::super) fingerprint: u64,
    pub(super) dot: Arc<ClientConfig>,
    pub(super) https: Arc<ClientConfig>,
    pub(super) quic: quinn::ClientConfig,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

impl Tls {
    /// With the authorities of a file, or those of the system.
    ///
    /// # Errors
    /// When there are none.
    pub(in super::super) fn new(file: Option<&Path>) -> io::Result<Self> {
        let certificates = match file {
            Some(file) => authorities(file).map_err(|why| named(&file.display(), &why))?,
            None => system()?,
        };
        let mut roots = RootCertStore::empty();
        // Some systems keep certificates that no longer conform; one that is left out verifies nobody.
        let (added, _) = roots.add_parsable_certificates(certificates.iter().cloned());
        if added == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "none of the certificates can be used"));
        }
        let fingerprint = certificates.iter().fold(0_u64, |sum, certificate| {
            let mut hasher = std::hash::DefaultHasher::new();
            std::hash::Hash::hash(certificate.as_ref(), &mut hasher);
            // Without regard to their order.
            sum.wrapping_add(std::hash::Hasher::finish(&hasher))
        });
        let roots = Arc::new(roots);
        let with = |name: &[u8]| config(&roots, name).map_err(io::Error::other);
        let quic = quinn::crypto::rustls::QuicClientConfig::try_from(with(DOQ)?).map_err(io::Error::other)?;
        Ok(Self {
            fingerprint,
            dot: Arc::new(with(DOT)?),
            https: Arc::new(with(H2)?),
            quic: super::quic::config(Arc::new(quic)),
        })
    }

    /// The configuration for a protocol over TCP.
    pub(super) fn over_tcp(&self, protocol: Protocol) -> Arc<ClientConfig> {
        match protocol {
            Protocol::Https => Arc::clone(&self.https),
            _ => Arc::clone(&self.dot),
        }
    }
}

fn config(roots: &Arc<RootCertStore>, name: &[u8]) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(Arc::clone(roots))
        .with_no_client_auth();
    config.alpn_protocols = vec![name.to_vec()];
    Ok(config)
}

/// The certificates of a file in PEM, at least one.
///
/// # Errors
/// When the file cannot be read, or has none.
pub(in super::super) fn authorities(file: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    use io::Read;
    let mut text = Vec::new();
    std::fs::File::open(file)?.take(MAX_FILE).read_to_end(&mut text)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let certificates = certificates.map_err(|why| invalid(format!("not PEM: {why}")))?;
    match certificates.is_empty() {
        true => Err(invalid("no certificate in it".to_owned())),
        false => Ok(certificates),
    }
}

fn system() -> io::Result<Vec<CertificateDer<'static>>> {
    let found = rustls_native_certs::load_native_certs();
    if !found.certs.is_empty() {
        return Ok(found.certs);
    }
    let why = found.errors.first().map_or_else(
        || "the system has no certificate authorities; install ca-certificates or name a ca_file".to_owned(),
        |why| format!("the system's certificate authorities cannot be read: {why}"),
    );
    Err(io::Error::new(io::ErrorKind::NotFound, why))
}

fn named(what: &dyn fmt::Display, why: &io::Error) -> io::Error {
    io::Error::new(why.kind(), format!("{what}: {why}"))
}
