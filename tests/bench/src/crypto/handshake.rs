//! What a handshake of the tunnel takes: QUIC with TLS 1.3, X25519MLKEM768 and a certificate on both sides.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use qudag_filter_peer::identity::pki::{self, Authority};
use qudag_filter_peer::identity::{Identity, IdentitySettings, PeerName, SERVER_NAME};
use quinn::{ClientConfig, Endpoint, ServerConfig};
use rustix::time::{ClockId, clock_gettime};

use crate::Failure;
use crate::measure::{Plan, median};
use crate::row::Row;

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const LIFETIME: Duration = Duration::from_secs(86_400);
/// Handshakes of a turn.
const TURN: u32 = 50;
/// Processor time of both sides, in microseconds.
const MOST: f64 = 1500.0;

/// The row: both sides are in this process and on this thread, packets pass through the loopback.
pub(super) fn rows(plan: Plan) -> Result<Vec<Row>, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut turns = runtime.block_on(async {
        let folder = tempfile::tempdir()?;
        let now = SystemTime::now();
        pki::init(folder.path(), "bench.example", LIFETIME, now)?;
        let authority = Authority::open(folder.path(), now)?;
        let (near, far) =
            (identity(&authority, "near", folder.path())?, identity(&authority, "far", folder.path())?);
        let expected = near.name();
        let allowed = Arc::new(move |name: &PeerName| *name == expected);
        let server = Endpoint::server(ServerConfig::with_crypto(far.server(allowed)), ANY_PORT)?;
        let client = Endpoint::client(ANY_PORT)?;
        let mut turns = Vec::new();
        for _ in 0..=plan.rounds * 5 {
            let start = processor_time();
            for _ in 0..TURN {
                let config = ClientConfig::new(near.client(far.name()));
                handshake(&client, config, &server).await?;
            }
            turns.push((processor_time() - start).as_secs_f64() * 1e6 / f64::from(TURN));
        }
        Ok::<_, Failure>(turns)
    })?;
    // The first one fills the caches.
    turns.remove(0);
    let title = "crypto, handshake of the tunnel with X25519MLKEM768: CPU of both sides";
    Ok(vec![Row::alone(title, median(turns), "µs").at_most(MOST)])
}

fn identity(authority: &Authority, name: &str, folder: &Path) -> Result<Arc<Identity>, Failure> {
    let issued = authority.issue(name, None, LIFETIME, folder, SystemTime::now())?;
    let (certificate, key, authorities) = (issued.certificate, issued.key, issued.authorities);
    Ok(Identity::open(&IdentitySettings { certificate, key, authorities })?)
}

/// Connects; done when both sides believe each other.
async fn handshake(client: &Endpoint, config: ClientConfig, server: &Endpoint) -> Result<(), Failure> {
    let connecting = client.connect_with(config, server.local_addr()?, SERVER_NAME)?;
    let accepted = async { Ok::<_, Failure>(server.accept().await.ok_or("the endpoint is closed")?.await?) };
    let (ours, theirs) = tokio::try_join!(async { Ok(connecting.await?) }, accepted)?;
    drop((ours, theirs));
    Ok(())
}

/// What this thread has used.
fn processor_time() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap_or_default()
}
