//! Who this sidecar is, and whom it believes: certificates and keys of the tunnel, read from files that are watched.
//!
//! A sidecar has one name, the URI in its certificate ([`PeerName`]), a SPIFFE ID for instance. Handshakes are TLS 1.3 with a
//! certificate on both sides, the protocol `qst/1`, and X25519MLKEM768 as the only key exchange; there is no early data and no
//! resumption. Each side verifies the other one's chain against the configured authorities and then its name; names of hosts are
//! not looked at.

mod certificate;
mod error;
mod follow;
mod load;
mod name;
mod outcome;
pub mod pki;
mod reset;
mod settings;
#[cfg(test)]
mod tests;
mod tls;

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use quinn::EndpointConfig;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::HashedConnectionIdGenerator;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

pub use certificate::{Facts, NoName, Standing};
pub use error::{IdentityError, Part, Problem};
pub use name::{NotAName, PeerName, peer_name};
pub use outcome::{HandshakeOutcome, Refusal};
pub use settings::IdentitySettings;
pub use tls::{ALPN, Allowed};

use follow::Shared;

/// What to give quinn as the name of a server: it wants one, and nobody reads it. It is not sent either.
pub const SERVER_NAME: &str = "sidecar.invalid";

/// The identity of this sidecar. Its files are followed until it is dropped.
pub struct Identity {
    shared: Arc<Shared>,
    _follower: AbortOnDropHandle<()>,
}

impl fmt::Debug for Identity {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("name", &self.name()).finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads the files, and follows them from now on in a task of the current runtime. A certificate whose time is over is taken
    /// with a warning: the others will refuse it, until its file is replaced.
    ///
    /// # Errors
    /// When a file cannot be read or used, the key is not the certificate's, or there is no runtime.
    pub fn open(settings: &IdentitySettings) -> Result<Arc<Self>, IdentityError> {
        let (shared, follower) = follow::open(settings)?;
        Ok(Arc::new(Self { shared, _follower: follower }))
    }

    /// The name in the own certificate.
    pub fn name(&self) -> PeerName {
        self.shared.current.load().name.clone()
    }

    /// For a server that lets clients in whose name is allowed. Holds what the files had at the time of the call; after
    /// [`changes`](Self::changes) has told of new contents another call gives the new one.
    ///
    /// `allowed` is asked in every handshake, so that a list that changes needs no new configuration. It must not block.
    pub fn server(&self, allowed: Allowed) -> Arc<QuicServerConfig> {
        self.shared.current.load().tls.server(allowed)
    }

    /// For a client of the server with a name. Connect with [`SERVER_NAME`]. As for [`server`](Self::server), a new one is needed
    /// after a change of the files.
    pub fn client(&self, expected: PeerName) -> Arc<QuicClientConfig> {
        self.shared.current.load().tls.client(expected)
    }

    /// How often the files have been loaded since the first time. Changes whenever new contents are in use.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Until when the own certificate holds.
    pub fn expires(&self) -> SystemTime {
        self.shared.current.load().facts.not_after
    }

    /// For an endpoint that a restarted process has to know the old connections of, well enough to end them (RFC 9000 section 10.3); and
    /// what makes its connection IDs.
    pub fn endpoint_config(&self) -> (EndpointConfig, HashedConnectionIdGenerator) {
        reset::endpoint_config(&self.shared)
    }

    /// What the own certificate says.
    pub fn facts(&self) -> Facts {
        self.shared.current.load().facts.clone()
    }
}
