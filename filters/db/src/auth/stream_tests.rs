use std::fs;

use qudag_filter_api::HostPort;
use qudag_filter_common::testing::PATIENCE;
use rcgen::{CertificateParams, KeyPair};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::net::UnixStream;

use super::super::settings::{ClientTlsSettings, ServerTlsSettings};
use super::super::tls::Within;
use super::*;

fn pair() -> (Stream, Stream) {
    let (one, other) = UnixStream::pair().unwrap();
    (Stream::Unix(one.try_into().unwrap()), Stream::Unix(other.try_into().unwrap()))
}

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

fn localhost() -> Address {
    Address::Tcp(HostPort { host: Host::Name("localhost".into()), port: 5432 })
}

/// A certificate for `localhost` in a folder.
fn certified(folder: &TempDir) -> (ServerTls, ClientTlsSettings) {
    let key = KeyPair::generate().unwrap();
    let made = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    let [certificate, file] = ["a.pem", "a.key"].map(|name| folder.path().join(name));
    fs::write(&certificate, made.pem()).unwrap();
    fs::write(&file, key.serialize_pem()).unwrap();
    let settings = ClientTlsSettings { certificate, key: file };
    (ServerTls::open(&settings, Within::Postgres).unwrap(), settings)
}

fn believing(mode: ServerTlsMode, settings: &ClientTlsSettings) -> ClientTls {
    let ca = (mode >= ServerTlsMode::VerifyCa).then(|| settings.certificate.clone());
    ClientTls::open(&ServerTlsSettings { mode, ca }, Within::Postgres).unwrap()
}

/// A client that begins with TLS, with these protocols.
fn direct(settings: &ClientTlsSettings, protocols: &[&[u8]]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(qudag_filter_common::certificates(&settings.certificate).unwrap().remove(0)).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

async fn echo(mut stream: SecureStream) {
    let (mut bytes, mut total) = ([0; 4096], 0);
    while let Ok(read) = stream.read(&mut bytes).await {
        if read == 0 {
            break;
        }
        total += read;
        stream.write_all(&bytes[..read]).await.unwrap();
        stream.flush().await.unwrap();
    }
    assert!(total > 0);
}

#[tokio::test]
async fn both_sides_agree_on_what_they_are_bound_to() {
    let folder = tempfile::tempdir().unwrap();
    let (tls, settings) = certified(&folder);
    for mode in
        [ServerTlsMode::Prefer, ServerTlsMode::Require, ServerTlsMode::VerifyCa, ServerTlsMode::VerifyFull]
    {
        let (client, mut server) = pair();
        let accepting = async {
            let mut request = [0; 8];
            server.read_exact(&mut request).await.unwrap();
            assert_eq!(request, [0, 0, 0, 8, 4, 210, 22, 47]);
            server.write_all(b"S").await.unwrap();
            accept_tls(server, BytesMut::new(), Begun::Requested, &tls, soon()).await.unwrap()
        };
        let believing = believing(mode, &settings);
        let (mut client, server) = tokio::join!(
            async { connect_tls(client, &localhost(), &believing, soon()).await.unwrap() },
            accepting
        );
        assert!(client.is_encrypted() && server.is_encrypted());
        let bound = client.tls_server_end_point().unwrap().to_vec();
        assert_eq!((bound.len(), server.tls_server_end_point()), (32, Some(&bound[..])));
        let echoing = tokio::spawn(echo(server));
        let [one, other] = [vec![1; 70_000], vec![2; 50_000]];
        let (mut reader, mut writer) = tokio::io::split(client);
        let writing = tokio::spawn(async move {
            // In two parts at a time.
            let mut sent = 0;
            while sent < one.len() {
                sent +=
                    writer.write_vectored(&[IoSlice::new(&one[sent..]), IoSlice::new(&[])]).await.unwrap();
            }
            writer.write_all(&other).await.unwrap();
            writer.flush().await.unwrap();
            writer
        });
        let mut back = vec![0; 120_000];
        reader.read_exact(&mut back).await.unwrap();
        assert!(back[..70_000].iter().all(|byte| *byte == 1) && back[70_000..].iter().all(|byte| *byte == 2));
        client = reader.unsplit(writing.await.unwrap());
        client.shutdown().await.unwrap();
        echoing.await.unwrap();
    }
}

#[tokio::test]
async fn what_a_server_may_answer() {
    let folder = tempfile::tempdir().unwrap();
    let (_tls, settings) = certified(&folder);
    let answered = async |mode, answer: &'static [u8], time: Duration| {
        let (client, mut server) = pair();
        server.write_all(answer).await.unwrap();
        let believing = believing(mode, &settings);
        let connected = connect_tls(client, &localhost(), &believing, Instant::now() + time).await;
        (connected, server)
    };
    assert!(matches!(answered(ServerTlsMode::Prefer, b"N", PATIENCE).await.0, Ok(SecureStream::Plain(_))));
    for mode in [ServerTlsMode::Require, ServerTlsMode::VerifyCa, ServerTlsMode::VerifyFull] {
        assert!(matches!(answered(mode, b"N", PATIENCE).await.0, Err(TlsError::NotOffered)));
    }
    assert!(matches!(answered(ServerTlsMode::Prefer, b"E", PATIENCE).await.0, Err(TlsError::Answer(b'E'))));
    // Somebody's ErrorResponse behind the `S` is no part of what the server says (CVE-2021-23222).
    assert!(matches!(
        answered(ServerTlsMode::Prefer, b"SE\0\0\0\x09SFATAL", PATIENCE).await.0,
        Err(TlsError::Io(_))
    ));
    assert!(matches!(answered(ServerTlsMode::Prefer, b"", PATIENCE / 100).await.0, Err(TlsError::Timeout)));
    let (plain, mut server) = answered(ServerTlsMode::Disable, b"", PATIENCE).await;
    drop(plain);
    assert_eq!(server.read(&mut [0]).await.unwrap(), 0, "nothing was asked for");
}

#[tokio::test]
async fn direct_tls_names_its_protocol_and_its_first_bytes_may_have_been_read() {
    let folder = tempfile::tempdir().unwrap();
    let (tls, settings) = certified(&folder);
    for (protocols, read_before, right) in [
        (&[ALPN][..], 1, true),
        (&[ALPN], 2, true),
        (&[ALPN], 100, true),
        (&[b"http/1.1", ALPN], 10_000, true),
        (&[b"http/1.1"], 1, false),
        (&[], 1, false),
    ] {
        let (client, mut server) = pair();
        let name = ServerName::try_from("localhost").unwrap();
        let connector = direct(&settings, protocols);
        let connecting = tokio::spawn(async move {
            let mut client = connector.connect(name, client).await?;
            client.write_all(b"hello").await?;
            client.flush().await?;
            client.read(&mut [0]).await
        });
        let mut read = BytesMut::with_capacity(read_before);
        server.read_buf(&mut read).await.unwrap();
        let accepted = accept_tls(server, read, Begun::Direct, &tls, soon()).await;
        if right {
            let mut hello = [0; 5];
            let mut stream = accepted.unwrap();
            stream.read_exact(&mut hello).await.unwrap();
            assert_eq!(&hello, b"hello");
            stream.write_all(b"x").await.unwrap();
            stream.flush().await.unwrap();
            assert_eq!(connecting.await.unwrap().unwrap(), 1);
        } else {
            assert!(matches!(accepted, Err(TlsError::Alpn | TlsError::Io(_))), "{protocols:?}");
            let ended = connecting.await.unwrap();
            assert!(!matches!(ended, Ok(1..)));
        }
    }
}

#[tokio::test]
async fn nothing_unencrypted_gets_into_a_session() {
    let folder = tempfile::tempdir().unwrap();
    let (tls, _) = certified(&folder);
    let (_client, server) = pair();
    // CVE-2021-23214: a StartupMessage of somebody else, read with the SSLRequest.
    let injected = BytesMut::from(&b"\0\0\0\x08\0\x03\0\0"[..]);
    let refused = accept_tls(server, injected.clone(), Begun::Requested, &tls, soon()).await;
    assert!(matches!(refused, Err(TlsError::Unencrypted)));
    // The same, not read yet; and what is no handshake although it begins as one. The client is told by an alert.
    for (begun, before, behind) in [
        (Begun::Requested, &b""[..], &injected[..]),
        (Begun::Direct, b"\x16\x03\x01\0\x04\x01\0\0\0", b""),
        (Begun::Direct, b"\x16", b"\x03\x01\0\x04\x01\0\0\0"),
    ] {
        let (mut client, server) = pair();
        client.write_all(behind).await.unwrap();
        let refused = accept_tls(server, before.into(), begun, &tls, soon()).await;
        assert!(matches!(refused, Err(TlsError::Io(_))), "{refused:?}");
        assert_eq!(client.read_u8().await.unwrap(), 21, "the content type of an alert: {begun:?} {before:?}");
    }
    let (_client, server) = pair();
    let late = Instant::now() + PATIENCE / 1000;
    let refused = accept_tls(server, b"\x16"[..].into(), Begun::Direct, &tls, late).await;
    assert!(matches!(refused, Err(TlsError::Timeout)));
}
