//! Certificates, and whom to believe.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest;
use metrics::counter;
use qudag_filter_api::BuildError;
use qudag_filter_common::{Followed, Source, certificates, read_file, system_certificates};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, ServerConfig};
use tracing::{info, warn};
use zeroize::Zeroizing;

use super::binding::end_point;
use super::settings::{ClientTlsSettings, ServerTlsMode, ServerTlsSettings};
use super::verify::Believer;

/// PostgreSQL's name in a handshake, in the IANA registry of RFC 7301.
pub(super) const ALPN: &[u8] = b"postgresql";

/// The protocol within TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Within {
    /// PostgreSQL, which is asked for and named in the handshake.
    Postgres,
    /// Redis, which has no name.
    Redis,
}

impl Within {
    fn name(self) -> &'static str {
        match self {
            Self::Postgres => "PostgreSQL",
            Self::Redis => "Redis",
        }
    }

    fn alpn(self) -> Vec<Vec<u8>> {
        match self {
            Self::Postgres => vec![ALPN.to_vec()],
            Self::Redis => Vec::new(),
        }
    }

    /// An error about a key of its listener.
    fn wrong(self, key: &'static str, why: &io::Error) -> BuildError {
        let listener = match self {
            Self::Postgres => "postgres",
            Self::Redis => "redis",
        };
        BuildError::new(format!("listeners.{listener}.{key}"), why.to_string())
    }
}
/// Larger keys are not read.
const MAX_KEY: u64 = 1 << 20;

/// Why a stream is not encrypted that has to be.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The handshake took too long.
    #[error("no TLS handshake in time")]
    Timeout,
    /// The stream failed, or the other side does not speak TLS as it has to.
    #[error("TLS failed: {0}")]
    Io(#[from] io::Error),
    /// Bytes that are not encrypted arrived where only encrypted ones may, so that somebody may have put them there (CVE-2021-23214).
    #[error("received unencrypted data after SSL request")]
    Unencrypted,
    /// A client that begins with TLS does not say which protocol is in it, as it has to (`postgresql` by ALPN).
    #[error("received direct SSL connection request without ALPN protocol negotiation extension")]
    Alpn,
    /// The server has no TLS, and has to.
    #[error("server does not support SSL, but SSL was required")]
    NotOffered,
    /// The server answers the SSLRequest with something else.
    #[error("received invalid response to SSL negotiation: {0:#04x}")]
    Answer(u8),
}

/// Counts a reading of a file.
pub(super) fn count_reload(file: &'static str, outcome: &'static str) {
    counter!("qudag_sidecar_db_auth_reloads_total", "file" => file, "outcome" => outcome).increment(1);
}

/// An error with the file that it is about.
fn of_file(file: &Path, why: &io::Error) -> io::Error {
    io::Error::new(why.kind(), format!("{}: {why}", file.display()))
}

/// The first private key of a file in PEM.
///
/// # Errors
/// When the file cannot be read, or has none.
pub(super) fn private_key(file: &Path) -> io::Result<PrivateKeyDer<'static>> {
    let text = Zeroizing::new(read_file(file, MAX_KEY)?);
    // What is in the file is not repeated in the error.
    PrivateKeyDer::from_pem_slice(&text)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "no private key in PEM in it"))
}

/// What handshakes with clients are made with.
///
/// # Errors
/// When the key is not the certificate's, or of a kind that cannot be used.
pub(super) fn server_config(
    within: Within,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = within.alpn();
    // As PostgreSQL: sessions are long, and libpq resumes none. Clients of Redis keep their connections as well.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

/// A certificate with its key.
#[derive(Debug)]
pub(super) struct Accepting {
    pub(super) config: Arc<ServerConfig>,
    pub(super) end_point: Option<Arc<[u8]>>,
    /// Of certificates and key.
    fingerprint: [u8; 32],
}

impl PartialEq for Accepting {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
    }
}

/// The files of a certificate and its key.
struct KeyPair(ClientTlsSettings, Within);

impl Source for KeyPair {
    type Contents = Accepting;

    fn files(&self) -> Vec<PathBuf> {
        vec![self.0.certificate.clone(), self.0.key.clone()]
    }

    fn read(&self) -> io::Result<Accepting> {
        let ClientTlsSettings { certificate, key: file } = &self.0;
        let chain = certificates(certificate).map_err(|why| of_file(certificate, &why))?;
        let key = private_key(file).map_err(|why| of_file(file, &why))?;
        let mut hashed = digest::Context::new(&digest::SHA256);
        chain.iter().for_each(|certificate| hashed.update(certificate));
        hashed.update(key.secret_der());
        let mut fingerprint = [0; 32];
        fingerprint.iter_mut().zip(hashed.finish().as_ref()).for_each(|(to, from)| *to = *from);
        let end_point = chain.first().and_then(|certificate| end_point(certificate));
        let config =
            server_config(self.1, chain, key).map_err(|why| of_file(certificate, &io::Error::other(why)))?;
        Ok(Accepting { config: Arc::new(config), end_point, fingerprint })
    }

    fn loaded(&self, _: &Accepting) {
        count_reload("certificate", "ok");
        let certificate = self.0.certificate.display();
        info!(%certificate, "the certificate for {} clients was loaded", self.1.name());
    }

    fn failed(&self, why: &io::Error) {
        count_reload("certificate", "error");
        let name = self.1.name();
        warn!("the new certificate for {name} clients cannot be used, the old one goes on: {why}");
    }
}

/// The clients' side: a certificate and its key, which are followed in their files.
#[derive(Debug)]
pub struct ServerTls(Followed<Accepting>);

impl ServerTls {
    /// Reads the files and follows them from now on, in a task of the current runtime.
    ///
    /// # Errors
    /// When they cannot be used.
    pub fn open(settings: &ClientTlsSettings, within: Within) -> Result<Self, BuildError> {
        let opened = Followed::open(KeyPair(settings.clone(), within));
        opened.map(Self).map_err(|why| within.wrong("tls", &why))
    }

    pub(super) fn current(&self) -> Arc<Accepting> {
        Arc::clone(&self.0.contents())
    }
}

/// Whom to believe.
struct Authorities {
    within: Within,
    mode: ServerTlsMode,
    file: PathBuf,
}

/// What handshakes with the server are made with.
#[derive(Debug)]
struct Connecting {
    config: Arc<ClientConfig>,
    authorities: Vec<CertificateDer<'static>>,
}

impl PartialEq for Connecting {
    fn eq(&self, other: &Self) -> bool {
        self.authorities == other.authorities
    }
}

impl Source for Authorities {
    type Contents = Connecting;

    fn files(&self) -> Vec<PathBuf> {
        vec![self.file.clone()]
    }

    fn read(&self) -> io::Result<Connecting> {
        let authorities = certificates(&self.file).map_err(|why| of_file(&self.file, &why))?;
        let config =
            client_config(self.within, self.mode, &authorities).map_err(|why| of_file(&self.file, &why))?;
        Ok(Connecting { config: Arc::new(config), authorities })
    }

    fn loaded(&self, _: &Connecting) {
        count_reload("authorities", "ok");
        info!(file = %self.file.display(), "the authorities of the {} server were loaded", self.within.name());
    }

    fn failed(&self, why: &io::Error) {
        count_reload("authorities", "error");
        let name = self.within.name();
        warn!("the new authorities of the {name} server cannot be used, the old ones go on: {why}");
    }
}

/// What handshakes with the server are made with.
///
/// # Errors
/// When none of the authorities can be used.
fn client_config(
    within: Within,
    mode: ServerTlsMode,
    authorities: &[CertificateDer<'static>],
) -> io::Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let believer = Believer::new(mode, authorities, &provider)?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(believer))
        .with_no_client_auth();
    config.alpn_protocols = within.alpn();
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// Whether the authorities of a file can be used.
///
/// # Errors
/// Why not.
pub(super) fn check_authorities(mode: ServerTlsMode, file: &Path) -> io::Result<()> {
    client_config(Within::Postgres, mode, &certificates(file)?).map(drop)
}

#[derive(Debug)]
enum Whom {
    Fixed(Arc<ClientConfig>),
    Followed(Followed<Connecting>),
}

/// The server's side: whether there is TLS, and whom to believe. The authorities are followed in their file.
#[derive(Debug)]
pub struct ClientTls {
    mode: ServerTlsMode,
    whom: Whom,
}

impl ClientTls {
    /// Reads the file and follows it from now on, in a task of the current runtime.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn open(settings: &ServerTlsSettings, within: Within) -> Result<Self, BuildError> {
        let ServerTlsSettings { mode, ca } = settings;
        let open = || {
            Ok(match (mode, ca) {
                (ServerTlsMode::VerifyCa | ServerTlsMode::VerifyFull, Some(file)) => {
                    Whom::Followed(Followed::open(Authorities { within, mode: *mode, file: file.clone() })?)
                }
                (ServerTlsMode::VerifyCa | ServerTlsMode::VerifyFull, None) => {
                    Whom::Fixed(Arc::new(client_config(within, *mode, &system_certificates()?)?))
                }
                _ => Whom::Fixed(Arc::new(client_config(within, *mode, &[])?)),
            })
        };
        let whom = open().map_err(|why: io::Error| within.wrong("server_tls", &why))?;
        Ok(Self { mode: *mode, whom })
    }

    /// How connections are encrypted.
    pub fn mode(&self) -> ServerTlsMode {
        self.mode
    }

    pub(super) fn current(&self) -> Arc<ClientConfig> {
        match &self.whom {
            Whom::Fixed(config) => Arc::clone(config),
            Whom::Followed(followed) => Arc::clone(&followed.contents().config),
        }
    }
}
