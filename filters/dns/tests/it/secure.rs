//! Servers behind TLS, HTTPS and QUIC, with a certificate for `dns.test` of an authority of their own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use hickory_proto::op::Message;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::support::{Does, Seen, reply, serve_stream};

/// A server that speaks an encrypted protocol.
pub(crate) struct Secure {
    pub(crate) addr: SocketAddr,
    scheme: &'static str,
    directory: tempfile::TempDir,
    state: Arc<Mutex<Seen>>,
    /// The messages as they came.
    messages: Arc<Mutex<Vec<Vec<u8>>>>,
    _tasks: JoinSet<()>,
}

impl Secure {
    pub(crate) async fn start(scheme: &'static str, does: Does) -> Self {
        Self::with(scheme, does, "dns.test", 200).await
    }

    /// With a certificate for a name; HTTP replies have a status.
    pub(crate) async fn with(scheme: &'static str, does: Does, name: &str, status: u16) -> Self {
        let certified = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca.pem"), certified.cert.pem()).unwrap();
        let alpn: &[u8] = match scheme {
            "tls" => b"dot",
            "https" => b"h2",
            _ => b"doq",
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let certificate = CertificateDer::from_pem_slice(certified.cert.pem().as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(certified.signing_key.serialize_pem().as_bytes()).unwrap();
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        config.alpn_protocols = vec![alpn.to_vec()];

        let (state, messages) = (Seen::new(does), Arc::default());
        let mut tasks = JoinSet::new();
        let shared = Shared { state: Arc::clone(&state), messages: Arc::clone(&messages), status };
        let addr = if scheme == "quic" {
            let config = quinn::crypto::rustls::QuicServerConfig::try_from(config).unwrap();
            let config = quinn::ServerConfig::with_crypto(Arc::new(config));
            let endpoint = quinn::Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
            let addr = endpoint.local_addr().unwrap();
            tasks.spawn(quic(endpoint, shared));
            addr
        } else {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let addr = listener.local_addr().unwrap();
            tasks.spawn(tls(listener, TlsAcceptor::from(Arc::new(config)), scheme, shared));
            addr
        };
        Self { addr, scheme, directory, state, messages, _tasks: tasks }
    }

    /// As the configuration names it.
    pub(crate) fn named(&self) -> String {
        let path = if self.scheme == "https" { "/dns-query" } else { "" };
        format!("{}://{}{path}#dns.test", self.scheme, self.addr)
    }

    pub(crate) fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    pub(crate) fn now(&self, does: Does) {
        self.state.lock().unwrap().does = does;
    }

    pub(crate) fn connections(&self) -> usize {
        self.state.lock().unwrap().connections
    }

    pub(crate) fn asked(&self) -> usize {
        self.state.lock().unwrap().tcp.len()
    }

    pub(crate) fn messages(&self) -> Vec<Vec<u8>> {
        self.messages.lock().unwrap().clone()
    }

    pub(crate) fn last(&self) -> Message {
        self.state.lock().unwrap().tcp.last().unwrap().clone()
    }
}

#[derive(Clone)]
struct Shared {
    state: Arc<Mutex<Seen>>,
    messages: Arc<Mutex<Vec<Vec<u8>>>>,
    status: u16,
}

impl Shared {
    /// The reply to a message, when its time has come; waits for ever where there is none.
    async fn reply(&self, message: Vec<u8>) -> Vec<u8> {
        let query = Message::from_vec(&message).unwrap();
        self.messages.lock().unwrap().push(message);
        let does = {
            let mut seen = self.state.lock().unwrap();
            seen.tcp.push(query.clone());
            seen.does
        };
        if let Does::Late(by) = does {
            tokio::time::sleep(by).await;
        }
        match reply(&query, does, true) {
            Some(reply) => reply,
            None => std::future::pending().await,
        }
    }
}

async fn tls(listener: TcpListener, acceptor: TlsAcceptor, scheme: &'static str, shared: Shared) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (acceptor, shared) = (acceptor.clone(), shared.clone());
        connections.spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            if scheme == "tls" {
                let _ended = serve_stream(stream, Arc::clone(&shared.state)).await;
                return;
            }
            shared.state.lock().unwrap().connections += 1;
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let shared = shared.clone();
                async move {
                    assert_eq!((request.method().as_str(), request.uri().path()), ("POST", "/dns-query"));
                    assert_eq!(request.headers()["content-type"], "application/dns-message");
                    let message = request.into_body().collect().await?.to_bytes();
                    let reply = shared.reply(message.to_vec()).await;
                    let response = http::Response::builder()
                        .status(shared.status)
                        .header("content-type", "application/dns-message");
                    Ok::<_, hyper::Error>(response.body(Full::new(Bytes::from(reply))).unwrap())
                }
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ended = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn quic(endpoint: quinn::Endpoint, shared: Shared) {
    let mut connections = JoinSet::new();
    while let Some(incoming) = endpoint.accept().await {
        let shared = shared.clone();
        connections.spawn(async move {
            let Ok(connection) = incoming.await else { return };
            shared.state.lock().unwrap().connections += 1;
            let mut streams = JoinSet::new();
            while let Ok((mut send, mut receive)) = connection.accept_bi().await {
                let shared = shared.clone();
                streams.spawn(async move {
                    // A query and the end of the stream (RFC 9250 section 4.2).
                    let frame = receive.read_to_end(600).await.unwrap();
                    assert_eq!(usize::from(u16::from_be_bytes([frame[0], frame[1]])), frame.len() - 2);
                    let reply = shared.reply(frame[2..].to_vec()).await;
                    let frame = [&(reply.len() as u16).to_be_bytes(), reply.as_slice()].concat();
                    let _gone = send.write_all(&frame).await;
                    let _gone = send.finish();
                });
            }
        });
    }
}
