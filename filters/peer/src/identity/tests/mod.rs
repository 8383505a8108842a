//! Real handshakes over loopback, with certificates of authorities made for the test.

mod files;
mod handshakes;
mod issuing;
mod reload;
mod wire;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, Endpoint, ServerConfig};

use super::pki::{self, Authority};
use super::*;

const DAY: Duration = Duration::from_secs(86_400);

/// A folder with an authority in it.
struct Ca {
    dir: tempfile::TempDir,
    /// The time of everything that is issued.
    now: SystemTime,
}

impl Ca {
    fn new() -> Self {
        Self::at(SystemTime::now())
    }

    /// An authority that lives at another time, for ten days.
    fn at(now: SystemTime) -> Self {
        let dir = tempfile::tempdir().unwrap();
        pki::init(dir.path(), "test.example", 10 * DAY, now).unwrap();
        Self { dir, now }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn authority(&self) -> Authority {
        Authority::open(self.path(), self.now).unwrap()
    }

    /// Issues a certificate for a day.
    fn issue(&self, name: &str) -> IdentitySettings {
        let made = self.authority().issue(name, None, DAY, self.path(), self.now).unwrap();
        IdentitySettings { certificate: made.certificate, key: made.key, authorities: made.authorities }
    }

    fn identity(&self, name: &str) -> Arc<Identity> {
        Identity::open(&self.issue(name)).unwrap()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}

fn name(last: &str) -> PeerName {
    format!("spiffe://test.example/{last}").parse().unwrap()
}

fn only(last: &str) -> Allowed {
    let one = name(last);
    Arc::new(move |name: &PeerName| *name == one)
}

fn listen(identity: &Identity, allowed: Allowed) -> Endpoint {
    let config = ServerConfig::with_crypto(identity.server(allowed));
    Endpoint::server(config, SocketAddr::from(([127, 0, 0, 1], 0))).unwrap()
}

/// The log of this thread, from now on.
struct Log {
    lines: Arc<Mutex<Vec<u8>>>,
    _recording: tracing::subscriber::DefaultGuard,
}

impl Log {
    fn start() -> Self {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = Sink(Arc::clone(&lines));
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || sink.clone()).finish();
        Self { lines, _recording: tracing::subscriber::set_default(subscriber) }
    }

    /// How many lines have all these parts.
    fn count(&self, parts: &[&str]) -> usize {
        let lines = self.lines.lock().unwrap().clone();
        let lines = String::from_utf8(lines).unwrap();
        lines.lines().filter(|line| parts.iter().all(|part| line.contains(part))).count()
    }
}

#[derive(Clone)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What a side has in the end: the name of the other one, or why there is none.
type Side = Result<Option<PeerName>, HandshakeOutcome>;

/// A handshake at a server that confirms what it accepts by a stream. The server's side stands first.
async fn meet(server: &Endpoint, client: Arc<QuicClientConfig>) -> (Side, Side) {
    let endpoint = Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let connecting =
        endpoint.connect_with(ClientConfig::new(client), server.local_addr().unwrap(), SERVER_NAME).unwrap();
    let theirs = async {
        let connection = connecting.await.map_err(|why| HandshakeOutcome::of(&why))?;
        // A client is done before the server has seen its certificate.
        connection.accept_uni().await.map_err(|why| HandshakeOutcome::of(&why))?;
        Ok::<_, HandshakeOutcome>(connection)
    };
    let ours = async {
        let connecting = server.accept().await.unwrap().accept().map_err(|why| HandshakeOutcome::of(&why))?;
        let connection = connecting.await.map_err(|why| HandshakeOutcome::of(&why))?;
        connection.open_uni().await.unwrap().write_all(b"!").await.unwrap();
        Ok::<_, HandshakeOutcome>(connection)
    };
    let (ours, theirs) = tokio::time::timeout(Duration::from_secs(20), async { tokio::join!(ours, theirs) })
        .await
        .expect("the handshake hangs");
    let named =
        |side: &Result<Connection, HandshakeOutcome>| side.as_ref().map(peer_name).map_err(|why| *why);
    (named(&ours), named(&theirs))
}
