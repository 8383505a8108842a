//! The socket of the tunnel's listener.
//!
//! All connections of a listener share its socket, so that one that drains keeps the address until its last stream has ended. A new
//! listener at the same address goes in by the same door: it takes the new connections, and the old one finishes its own.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use quinn::{Endpoint, EndpointConfig, Runtime, ServerConfig, TokioRuntime};
use quinn_proto::HashedConnectionIdGenerator;
use tokio::time::{Instant, sleep};

use super::stray::Listening;
use super::transport;

/// How long an address that was this process's own lately may take to become free: the last packets of its connections are waited for.
const FREE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(10);

/// The doors of this process, those that were closed included.
static DOORS: Mutex<BTreeMap<SocketAddr, Weak<Door>>> = Mutex::new(BTreeMap::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An endpoint that connections come to.
pub(super) struct Door {
    pub(super) endpoint: Endpoint,
    /// Whether a listener takes new connections.
    open: Mutex<bool>,
}

/// What an endpoint begins with: its configuration, and what makes its connection IDs.
pub(super) type Beginning = (EndpointConfig, HashedConnectionIdGenerator);

/// What a listener has before it serves.
pub(super) enum Entrance {
    /// A socket of its own.
    Socket(UdpSocket),
    /// The door of a listener that drains.
    Door(Arc<Door>),
}

/// A socket at the address, or the door of the listener that still has it but takes no new connections.
///
/// # Errors
/// When the operating system refuses the address.
pub(super) async fn at(address: SocketAddr) -> io::Result<Entrance> {
    let deadline = Instant::now() + FREE;
    loop {
        let known = lock(&DOORS).get(&address).cloned();
        if let Some(door) = known.as_ref().and_then(Weak::upgrade).filter(|door| !*lock(&door.open)) {
            return Ok(Entrance::Door(door));
        }
        match transport::socket(address, None) {
            Ok(socket) => return Ok(Entrance::Socket(socket)),
            Err(why) if why.kind() == io::ErrorKind::AddrInUse && known.is_some() => {
                if Instant::now() >= deadline {
                    return Err(why);
                }
                sleep(LOOK).await;
            }
            Err(why) => return Err(why),
        }
    }
}

impl Entrance {
    /// Where it is.
    ///
    /// # Errors
    /// When the operating system does not know.
    pub(super) fn address(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Socket(socket) => socket.local_addr(),
            Self::Door(door) => door.endpoint.local_addr(),
        }
    }

    /// Opens it for connections.
    ///
    /// # Errors
    /// When the operating system refuses an option of the socket.
    pub(super) fn open(self, beginning: Beginning, server: ServerConfig) -> io::Result<Arc<Door>> {
        let door = match self {
            Self::Door(door) => door,
            Self::Socket(socket) => {
                let address = socket.local_addr()?;
                let (config, ids) = beginning;
                let runtime = Arc::new(TokioRuntime);
                let socket = Arc::new(Listening::new(runtime.wrap_udp_socket(socket)?, ids));
                let endpoint = Endpoint::new_with_abstract_socket(config, None, socket, runtime)?;
                let door = Arc::new(Door { endpoint, open: Mutex::new(false) });
                lock(&DOORS).insert(address, Arc::downgrade(&door));
                door
            }
        };
        let mut open = lock(&door.open);
        *open = true;
        door.endpoint.set_server_config(Some(server));
        drop(open);
        Ok(door)
    }
}

impl Door {
    /// Takes no more connections. Those that are there keep it.
    pub(super) fn close(&self) {
        let mut open = lock(&self.open);
        *open = false;
        self.endpoint.set_server_config(None);
    }
}
