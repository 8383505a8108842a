//! TLS of the tunnel: version 1.3, both sides with a certificate, one key exchange.
//!
//! Chains are verified by rustls-webpki, as rustls does everywhere. What is added is the last step: who the other side is. Names of
//! hosts are not looked at, as a sidecar's address says nothing about who it is.

use std::fmt;
use std::sync::Arc;

use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, VerifierBuilderError, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, DistinguishedName, Error,
    RootCertStore, ServerConfig, SignatureScheme, WantsVerifier,
};

use super::certificate::Facts;
use super::name::PeerName;

/// The name of the tunnel's protocol in handshakes (RFC 7301).
pub const ALPN: &[u8] = b"qst/1";

/// Which names the other side may have.
pub type Allowed = Arc<dyn Fn(&PeerName) -> bool + Send + Sync>;

/// The cryptography of the tunnel: what rustls has for TLS 1.3, but X25519MLKEM768 alone for key exchange
/// (draft-ietf-tls-ecdhe-mlkem). A handshake that succeeds is proof that it was used.
pub(super) fn provider() -> CryptoProvider {
    let mut provider = default_provider();
    provider.kx_groups = vec![kx_group::X25519MLKEM768];
    provider.cipher_suites.retain(|suite| suite.tls13().is_some());
    provider
}

/// What handshakes are made with.
pub(super) struct Tls {
    parts: Parts,
    /// Configurations that let nobody in. They prove that configurations can be made of these parts, and stand in for one that
    /// cannot.
    closed: (Arc<QuicServerConfig>, Arc<QuicClientConfig>),
}

struct Parts {
    server: ConfigBuilder<ServerConfig, WantsVerifier>,
    client: ConfigBuilder<ClientConfig, WantsVerifier>,
    own: Arc<SingleCertAndKey>,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    /// Verifies the chains of clients.
    chains: Arc<dyn ClientCertVerifier>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    #[error(transparent)]
    Rustls(#[from] Error),
    #[error(transparent)]
    Authorities(#[from] VerifierBuilderError),
    #[error(transparent)]
    Quic(#[from] NoInitialCipherSuite),
}

impl Tls {
    /// With the own certificate and the authorities of others.
    ///
    /// # Errors
    /// When there are no authorities.
    pub(super) fn new(own: Arc<CertifiedKey>, roots: Arc<RootCertStore>) -> Result<Self, TlsError> {
        let provider = Arc::new(provider());
        let chains = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            // A client has one certificate, and need not be told whom this server believes.
            .clear_root_hint_subjects()
            .build()?;
        let parts = Parts {
            server: ServerConfig::builder_with_provider(Arc::clone(&provider))
                .with_protocol_versions(&[&TLS13])?,
            client: ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_protocol_versions(&[&TLS13])?,
            own: Arc::new(SingleCertAndKey::from(own)),
            roots,
            provider,
            chains,
        };
        let nobody: Allowed = Arc::new(|_: &PeerName| false);
        let server = parts.server(Arc::clone(&nobody)).try_into()?;
        let client = parts.client(nobody).try_into()?;
        Ok(Self { parts, closed: (Arc::new(server), Arc::new(client)) })
    }

    /// For a server whose clients have allowed names.
    pub(super) fn server(&self, allowed: Allowed) -> Arc<QuicServerConfig> {
        let made = QuicServerConfig::try_from(self.parts.server(allowed));
        made.map_or_else(|_| Arc::clone(&self.closed.0), Arc::new)
    }

    /// For a client of a server that has one name.
    pub(super) fn client(&self, expected: PeerName) -> Arc<QuicClientConfig> {
        let config = self.parts.client(Arc::new(move |name: &PeerName| *name == expected));
        QuicClientConfig::try_from(config).map_or_else(|_| Arc::clone(&self.closed.1), Arc::new)
    }
}

#[cfg(test)]
impl Tls {
    /// What is inside of the configurations for quinn.
    pub(super) fn raw(&self, allowed: Allowed) -> (ServerConfig, ClientConfig) {
        (self.parts.server(Arc::clone(&allowed)), self.parts.client(allowed))
    }
}

impl Parts {
    fn server(&self, allowed: Allowed) -> ServerConfig {
        let verifier = Clients { chains: Arc::clone(&self.chains), allowed };
        let own: Arc<SingleCertAndKey> = Arc::clone(&self.own);
        let mut config =
            self.server.clone().with_client_cert_verifier(Arc::new(verifier)).with_cert_resolver(own);
        config.alpn_protocols = vec![ALPN.to_vec()];
        // A ticket would let a client in again whose certificate or name has been refused since; early data can be replayed.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.max_early_data_size = 0;
        config
    }

    fn client(&self, allowed: Allowed) -> ClientConfig {
        let verifier =
            Servers { roots: Arc::clone(&self.roots), provider: Arc::clone(&self.provider), allowed };
        let own: Arc<SingleCertAndKey> = Arc::clone(&self.own);
        let config = self.client.clone().dangerous().with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = config.with_client_cert_resolver(own);
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        // Nobody on the way is told whom this connection is for.
        config.enable_sni = false;
        config
    }
}

/// Whether a certificate's name is allowed.
fn check_name(certificate: &CertificateDer<'_>, allowed: &Allowed) -> Result<(), Error> {
    let facts = Facts::of(certificate).map_err(|_| Error::from(CertificateError::BadEncoding))?;
    // Becomes the alert access_denied: a valid certificate of somebody who is not let in (RFC 8446 section 6.2).
    let denied = || Error::from(CertificateError::ApplicationVerificationFailure);
    let name = facts.name().map_err(|why| {
        tracing::debug!(target: "peer", subject = facts.subject, "a certificate was refused: {why}");
        denied()
    })?;
    if allowed(&name) {
        return Ok(());
    }
    tracing::debug!(target: "peer", %name, "a certificate was refused: the name is not allowed here");
    Err(denied())
}

/// What verifying a chain has found. A signature that is wrong is that of another authority with the name of one of ours: two that
/// were made with the same name, for instance. It says nothing about who has the key; that is proved apart, later.
fn of_chain(error: Error) -> Error {
    match error {
        Error::InvalidCertificate(CertificateError::BadSignature) => CertificateError::UnknownIssuer.into(),
        error => error,
    }
}

/// Whether a chain leads to one of the authorities, however its time stands.
pub(super) fn is_from(chain: &[CertificateDer<'_>], roots: &RootCertStore) -> bool {
    let Some((own, intermediates)) = chain.split_first() else { return false };
    let algorithms = default_provider().signature_verification_algorithms.all;
    let verified = ParsedCertificate::try_from(own).and_then(|own| {
        verify_server_cert_signed_by_trust_anchor(&own, roots, intermediates, UnixTime::now(), algorithms)
    });
    !matches!(verified.map_err(of_chain), Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)))
}

/// Verifies clients.
struct Clients {
    chains: Arc<dyn ClientCertVerifier>,
    allowed: Allowed,
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").field("chains", &self.chains).finish_non_exhaustive()
    }
}

impl ClientCertVerifier for Clients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chains.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chains.verify_client_cert(end_entity, intermediates, now).map_err(of_chain)?;
        check_name(end_entity, &self.allowed)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

/// Verifies servers.
struct Servers {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    allowed: Allowed,
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Servers").field("roots", &self.roots).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms)
            .map_err(of_chain)?;
        check_name(end_entity, &self.allowed)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
