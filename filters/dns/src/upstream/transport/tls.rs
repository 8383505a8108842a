//! Whom encrypted servers are verified with.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use qudag_filter_common::{certificates, system_certificates};
use rustls::{ClientConfig, RootCertStore};

use super::super::server::Protocol;

/// The names of the protocols in a handshake (RFC 7301): the IANA registry has them from RFC 7858, RFC 9113 and RFC 9250.
const DOT: &[u8] = b"dot";
const H2: &[u8] = b"h2";
const DOQ: &[u8] = b"doq";

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
            Some(file) => certificates(file).map_err(|why| named(&file.display(), &why))?,
            None => system_certificates()?,
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

fn named(what: &dyn fmt::Display, why: &io::Error) -> io::Error {
    io::Error::new(why.kind(), format!("{what}: {why}"))
}
