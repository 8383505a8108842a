//! Real handshakes over loopback, with certificates of authorities made for the test.

mod files;
mod handshakes;
mod issuing;
mod reload;
mod wire;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
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
