//! Who is let in, who is not, and what is said of it.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
use rustls::version::TLS13;
use rustls::{DigitallySignedStruct, SignatureScheme};

use super::HandshakeOutcome::{Refused, RefusedByPeer};
use super::*;

#[tokio::test]
async fn sidecars_of_one_authority_know_each_other() {
    let ca = Ca::new();
    let (a, b) = (ca.identity("a"), ca.identity("b"));
    assert_eq!((a.name(), b.name()), (name("a"), name("b")));
    let server = listen(&a, only("b"));
    let met = meet(&server, b.client(name("a"))).await;
    assert_eq!(met, (Ok(Some(name("b"))), Ok(Some(name("a")))));
}

#[tokio::test]
async fn any_uri_is_a_name_and_several_may_be_allowed() {
    let ca = Ca::new();
    let urn: PeerName = "urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6".parse().unwrap();
    let made = ca.authority().issue("b", Some(urn.clone()), DAY, ca.path(), ca.now).unwrap();
    let settings =
        IdentitySettings { certificate: made.certificate, key: made.key, authorities: made.authorities };
    let (a, b) = (ca.identity("a"), Identity::open(&settings).unwrap());
    let server = listen(&a, Arc::new(|_: &PeerName| true));
    assert_eq!(meet(&server, b.client(name("a"))).await, (Ok(Some(urn)), Ok(Some(name("a")))));
    assert_eq!(meet(&server, a.client(name("a"))).await, (Ok(Some(name("a"))), Ok(Some(name("a")))));
}

#[tokio::test]
async fn a_list_that_changes_counts_from_the_next_handshake_on() {
    let ca = Ca::new();
    let (a, b) = (ca.identity("a"), ca.identity("b"));
    let open = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let asked = Arc::clone(&open);
    let server = listen(&a, Arc::new(move |_: &PeerName| asked.load(std::sync::atomic::Ordering::SeqCst)));
    assert_eq!(meet(&server, b.client(name("a"))).await.0, Err(Refused(Refusal::WrongName)));
    open.store(true, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(meet(&server, b.client(name("a"))).await.0, Ok(Some(name("b"))));
}

#[tokio::test]
async fn a_wrong_name_is_refused_on_either_side() {
    let ca = Ca::new();
    let (a, b) = (ca.identity("a"), ca.identity("b"));
    let server = listen(&a, only("c"));
    let met = meet(&server, b.client(name("a"))).await;
    assert_eq!(met, (Err(Refused(Refusal::WrongName)), Err(RefusedByPeer(Refusal::WrongName))));
    assert_eq!((met.0.unwrap_err().label(), met.1.unwrap_err().label()), ("wrong_name", "peer_wrong_name"));

    let server = listen(&a, only("b"));
    let met = meet(&server, b.client(name("c"))).await;
    assert_eq!(met, (Err(RefusedByPeer(Refusal::WrongName)), Err(Refused(Refusal::WrongName))));
}

#[tokio::test]
async fn another_authority_is_refused_on_either_side() {
    // Of the same name, and with the same names in its certificates.
    let (ours, other) = (Ca::new(), Ca::new());
    let (a, b) = (ours.identity("a"), other.identity("b"));
    let unknown = Refusal::UnknownAuthority;
    let server = listen(&a, only("b"));
    assert_eq!(
        meet(&server, b.client(name("a"))).await,
        (Err(RefusedByPeer(unknown)), Err(Refused(unknown)))
    );

    // A client that believes the server, and is not believed.
    let both = [ours.file("ca.pem"), other.file("ca.pem")].map(|file| std::fs::read_to_string(file).unwrap());
    std::fs::write(other.file("both.pem"), both.concat()).unwrap();
    let settings = IdentitySettings {
        certificate: other.file("b.pem"),
        key: other.file("b.key"),
        authorities: other.file("both.pem"),
    };
    let b = Identity::open(&settings).unwrap();
    assert_eq!(
        meet(&server, b.client(name("a"))).await,
        (Err(Refused(unknown)), Err(RefusedByPeer(unknown)))
    );
}

#[tokio::test]
async fn a_certificate_whose_time_is_over_or_not_come_is_refused_on_either_side() {
    for distance in [-3_i32, 3] {
        let now = SystemTime::now();
        let then = if distance < 0 { now - 3 * DAY } else { now + 3 * DAY };
        let ca = Ca::at(now - 5 * DAY);
        let good = ca.authority().issue("a", None, 10 * DAY, ca.path(), now).unwrap();
        let good =
            IdentitySettings { certificate: good.certificate, key: good.key, authorities: good.authorities };
        let bad = ca.authority().issue("b", None, DAY, ca.path(), then).unwrap();
        let bad =
            IdentitySettings { certificate: bad.certificate, key: bad.key, authorities: bad.authorities };
        // It is opened nevertheless: the file can be replaced while it runs.
        let (a, b) = (Identity::open(&good).unwrap(), Identity::open(&bad).unwrap());
        assert_eq!(b.expires() < SystemTime::now(), distance < 0);
        let expired = Refusal::Expired;
        let server = listen(&a, only("b"));
        let met = meet(&server, b.client(name("a"))).await;
        assert_eq!(met, (Err(Refused(expired)), Err(RefusedByPeer(expired))), "{distance}");
        let server = listen(&b, only("a"));
        let met = meet(&server, a.client(name("b"))).await;
        assert_eq!(met, (Err(RefusedByPeer(expired)), Err(Refused(expired))), "{distance}");
    }
}

/// A client that believes everybody.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A client that is not one of ours: its key exchanges, its protocol, and a certificate if it has one.
fn stranger(
    groups: &[&'static dyn rustls::crypto::SupportedKxGroup],
    protocol: &[u8],
    own: Option<&IdentitySettings>,
) -> Arc<QuicClientConfig> {
    let provider = rustls::crypto::CryptoProvider { kx_groups: groups.to_vec(), ..default_provider() };
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous));
    let mut config = match own {
        Some(own) => {
            let certificate = CertificateDer::from_pem_file(&own.certificate).unwrap();
            let key = PrivateKeyDer::from_pem_file(&own.key).unwrap();
            config.with_client_auth_cert(vec![certificate], key).unwrap()
        }
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![protocol.to_vec()];
    Arc::new(config.try_into().unwrap())
}

#[tokio::test]
async fn a_stranger_gets_nothing() {
    let ca = Ca::new();
    let (a, own) = (ca.identity("a"), ca.issue("b"));
    let server = listen(&a, only("b"));
    let hybrid: &[_] = &[kx_group::X25519MLKEM768];
    // Other clients than ours are let in when all is right: each of the others is wrong in one thing only.
    let met = meet(&server, stranger(hybrid, ALPN, Some(&own))).await;
    assert_eq!(met, (Ok(Some(name("b"))), Ok(Some(name("a")))));

    let cases = [
        (stranger(hybrid, ALPN, None), Refusal::NoCertificate, "no_certificate"),
        (stranger(hybrid, b"h3", Some(&own)), Refusal::WrongProtocol, "wrong_protocol"),
        (
            stranger(&[kx_group::X25519], ALPN, Some(&own)),
            Refusal::NoCommonKeyExchange,
            "no_common_key_exchange",
        ),
        (
            stranger(&[kx_group::SECP256R1, kx_group::SECP384R1, kx_group::MLKEM768], ALPN, Some(&own)),
            Refusal::NoCommonKeyExchange,
            "no_common_key_exchange",
        ),
    ];
    for (client, why, label) in cases {
        let met = meet(&server, client).await;
        assert_eq!(met, (Err(Refused(why)), Err(RefusedByPeer(why))));
        assert_eq!(met.0.unwrap_err().label(), label);
    }
    assert!(meet(&server, stranger(hybrid, ALPN, Some(&own))).await.0.is_ok(), "the server goes on");
}

#[tokio::test]
async fn a_client_that_prefers_a_classical_key_exchange_is_asked_for_the_other_one() {
    let ca = Ca::new();
    let (a, own) = (ca.identity("a"), ca.issue("b"));
    let server = listen(&a, only("b"));
    let client = stranger(&[kx_group::X25519, kx_group::X25519MLKEM768], ALPN, Some(&own));
    assert_eq!(meet(&server, client).await.0, Ok(Some(name("b"))));
}

#[tokio::test]
async fn a_server_with_classical_key_exchanges_only_is_left() {
    let ca = Ca::new();
    let (own, b) = (ca.issue("a"), ca.identity("b"));
    let certificate = CertificateDer::from_pem_file(&own.certificate).unwrap();
    let key = PrivateKeyDer::from_pem_file(&own.key).unwrap();
    let provider = rustls::crypto::CryptoProvider { kx_groups: vec![kx_group::X25519], ..default_provider() };
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    config.alpn_protocols = vec![ALPN.to_vec()];
    let config = quinn::crypto::rustls::QuicServerConfig::try_from(config).unwrap();
    let server =
        Endpoint::server(ServerConfig::with_crypto(Arc::new(config)), SocketAddr::from(([127, 0, 0, 1], 0)))
            .unwrap();
    let met = meet(&server, b.client(name("a"))).await;
    assert_eq!(met.1, Err(RefusedByPeer(Refusal::NoCommonKeyExchange)));
}

#[tokio::test]
async fn certificates_with_ml_dsa_are_taken() {
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PKCS_ML_DSA_65, SanType,
    };
    let dir = tempfile::tempdir().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate_for(&PKCS_ML_DSA_65).unwrap()).unwrap();
    std::fs::write(dir.path().join("ca.pem"), ca.pem()).unwrap();
    let identity = |last: &str| {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(name(last).as_str().try_into().unwrap())];
        let key = KeyPair::generate_for(&PKCS_ML_DSA_65).unwrap();
        let settings = IdentitySettings {
            certificate: dir.path().join(format!("{last}.pem")),
            key: dir.path().join(format!("{last}.key")),
            authorities: dir.path().join("ca.pem"),
        };
        std::fs::write(&settings.certificate, params.signed_by(&key, &ca).unwrap().pem()).unwrap();
        std::fs::write(&settings.key, key.serialize_pem()).unwrap();
        Identity::open(&settings).unwrap()
    };
    let (a, b) = (identity("a"), identity("b"));
    assert_eq!(a.facts().key_type, "ML-DSA-65");
    let met = meet(&listen(&a, only("b")), b.client(name("a"))).await;
    assert_eq!(met, (Ok(Some(name("b"))), Ok(Some(name("a")))));
}

#[tokio::test]
async fn what_is_printed_of_an_identity_has_no_key() {
    let ca = Ca::new();
    let identity = ca.identity("a");
    let text = format!("{identity:?} {:?}", identity.facts());
    let key = std::fs::read_to_string(ca.file("a.key")).unwrap();
    let key = key.lines().nth(1).unwrap();
    assert!(text.contains("spiffe://test.example/a") && !text.contains(&key[..16]), "{text}");
    // The bytes as a list of numbers.
    let der = PrivateKeyDer::from_pem_file(ca.file("a.key")).unwrap();
    let numbers = format!("{:?}", &der.secret_der()[36..44]);
    assert!(!text.contains(numbers.trim_matches(['[', ']'])), "{text}");
}
