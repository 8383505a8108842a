//! Asks the local node who it is, again and again: it is somebody else after each start.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use metrics::counter;
use qudag_core::backoff::Backoff;
use qudag_filter_api::{Host, HostPort, Resolve};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use crate::libp2p::{NodeFailure, PeerId, ask};

/// For one question, with all addresses of the node.
const LIMIT: Duration = Duration::from_secs(5);
/// After so many failures in a row nothing is known any more.
const FAILURES: u32 = 2;

/// What is known of the local node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// Who it is and where it answered.
    pub(super) node: Option<(PeerId, SocketAddr)>,
    /// Why it could not be asked the last time.
    pub(super) failure: Option<String>,
}

/// Connects to a node.
pub(super) async fn connect(
    node: &HostPort,
    resolve: &dyn Resolve,
) -> Result<(TcpStream, SocketAddr), NodeFailure> {
    let ips = match &node.host {
        Host::Ip(ip) => vec![*ip],
        Host::Name(name) => resolve.resolve(name).await?,
    };
    let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
    for ip in ips {
        // A node that listens everywhere is asked at home.
        let ip = match ip {
            IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
            ip => ip,
        };
        let address = SocketAddr::new(ip, node.port);
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok((stream, address)),
            Err(why) => last = why,
        }
    }
    Err(last.into())
}

async fn once(node: &HostPort, resolve: &dyn Resolve) -> Result<(PeerId, SocketAddr), NodeFailure> {
    let asking = async {
        let (stream, address) = connect(node, resolve).await?;
        Ok((ask(stream).await?, address))
    };
    timeout(LIMIT, asking).await.unwrap_or(Err(NodeFailure::Timeout))
}

/// Between two questions, whatever wakes who asks.
const LEAST: Duration = Duration::from_millis(250);

/// Asks for ever, every `pause` and when woken, and tells what came of it.
pub(super) async fn learn(
    node: HostPort,
    resolve: Arc<dyn Resolve>,
    pause: Duration,
    told: watch::Sender<Known>,
    wake: Arc<Notify>,
) {
    let backoff = Backoff { min: Duration::from_millis(500).min(pause), max: pause };
    let mut failures = 0;
    loop {
        let answer = once(&node, &*resolve).await;
        let outcome = answer.as_ref().map_or_else(NodeFailure::label, |_| "ok");
        counter!("qudag_sidecar_peer_node_lookups_total", "outcome" => outcome).increment(1);
        match answer {
            Ok((id, address)) => {
                failures = 0;
                let known = Known { node: Some((id, address)), failure: None };
                if *told.borrow() != known
                    && let Some((id, address)) = &known.node
                {
                    tracing::info!(%id, %address, "the local node has told who it is");
                }
                told.send_if_modified(|before| std::mem::replace(before, known.clone()) != known);
                rest(pause, &wake).await;
            }
            Err(why) => {
                failures += 1;
                told.send_modify(|known| {
                    known.failure = Some(why.to_string());
                    if failures >= FAILURES && known.node.take().is_some() {
                        tracing::warn!(%why, "the local node does not tell any more who it is");
                    }
                });
                rest(backoff.wait(failures - 1, fastrand::u64(..)), &wake).await;
            }
        }
    }
}

async fn rest(pause: Duration, wake: &Notify) {
    sleep(LEAST).await;
    // Fails when nobody has woken, which is as well.
    let _ = timeout(pause.saturating_sub(LEAST), wake.notified()).await;
}
