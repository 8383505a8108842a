//! Two sidecars in one process, a wire that can be cut between them, and nodes behind them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use qudag_filter_api::{Address, Node};
use qudag_filter_common::testing::{self, PATIENCE, metric, nowhere, until};
use qudag_filter_peer::PeerListener;
use qudag_filter_peer::identity::pki::{Authority, init};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;

pub(crate) type Sidecar = testing::Sidecar<PeerListener>;

/// A node that sends a greeting, and then does as the first byte says: `s` sends for ever, everything else is echoed.
pub(crate) async fn node(greeting: char) -> SocketAddr {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    // A thousand at once: a connection that finds no room waits for ever for the greeting.
    let listener = socket.listen(4096).unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(serve(tcp, greeting));
        }
    });
    address
}

async fn serve(mut tcp: TcpStream, greeting: char) -> io::Result<()> {
    tcp.write_all(&[greeting as u8]).await?;
    let mut first = [0];
    if tcp.read(&mut first).await? == 0 {
        return tcp.shutdown().await;
    }
    if first == [b's'] {
        loop {
            tcp.write_all(&[0; 16_384]).await?;
        }
    }
    tcp.write_all(&first).await?;
    let (mut read, mut write) = tcp.split();
    tokio::io::copy(&mut read, &mut write).await?;
    write.shutdown().await
}

/// Passes datagrams on, until it is cut.
pub(crate) struct Wire {
    pub(crate) address: SocketAddr,
    cut: Arc<AtomicBool>,
}

impl Wire {
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let near = if server.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
        Self::between(near.parse().unwrap(), server).await
    }

    /// From an address of this host.
    pub(crate) async fn between(near: SocketAddr, server: SocketAddr) -> Self {
        let front = Arc::new(UdpSocket::bind(near).await.unwrap());
        let (address, cut) = (front.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
        let is_cut = Arc::clone(&cut);
        tokio::spawn(async move {
            let mut backs = HashMap::<SocketAddr, Arc<UdpSocket>>::new();
            let mut datagram = vec![0; 65_536];
            while let Ok((length, client)) = front.recv_from(&mut datagram).await {
                if let Entry::Vacant(new) = backs.entry(client) {
                    let back = if server.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
                    let back = Arc::new(UdpSocket::bind(back).await.unwrap());
                    back.connect(server).await.unwrap();
                    new.insert(Arc::clone(&back));
                    let (front, is_cut) = (Arc::clone(&front), Arc::clone(&is_cut));
                    tokio::spawn(async move {
                        let mut datagram = vec![0; 65_536];
                        loop {
                            // A server that is not there refuses, which says nothing of the next datagram.
                            let Ok(length) = back.recv(&mut datagram).await else { continue };
                            if !is_cut.load(Ordering::SeqCst) {
                                let _ = front.send_to(&datagram[..length], client).await;
                            }
                        }
                    });
                }
                if !is_cut.load(Ordering::SeqCst) {
                    let _ = backs[&client].send(&datagram[..length]).await;
                }
            }
        });
        Self { address, cut }
    }

    pub(crate) fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::SeqCst);
    }
}

/// Sidecar A, whose only route leads to sidecar B, and through it to a node that greets with `t`. What goes past the tunnel is greeted
/// with `d`.
pub(crate) struct Pair {
    pub(crate) name: &'static str,
    pub(crate) a: Sidecar,
    pub(crate) b: Sidecar,
    pub(crate) wire: Wire,
    pub(crate) files: tempfile::TempDir,
    listeners: Value,
    pub(crate) listeners_b: Value,
}

/// How a pair is unusual.
#[derive(Default)]
pub(crate) struct Unusual {
    /// Of the filter.
    pub(crate) pooling: Value,
    /// Of the route's `sidecar`.
    pub(crate) sidecar: Value,
    /// Instead of A's name.
    pub(crate) allow: Option<&'static str>,
    /// Instead of the node behind B.
    pub(crate) node: Option<SocketAddr>,
    /// From the beginning.
    pub(crate) cut: bool,
    /// The days from now on which the certificates of A and B begin to hold, for a day.
    pub(crate) begin: [i32; 2],
}

const DAY: Duration = Duration::from_secs(86_400);

pub(crate) fn peer(test: &str, side: &str) -> String {
    format!("spiffe://test/{test}-{side}")
}

fn merged(mut one: Value, other: &Value) -> Value {
    for (key, value) in other.as_object().into_iter().flatten() {
        one[key] = value.clone();
    }
    one
}

pub(crate) fn pooling(settings: &Value) -> Value {
    json!({ "connection_pooling": merged(json!({ "enabled": true }), settings) })
}

impl Pair {
    pub(crate) async fn start(name: &'static str, unusual: Unusual) -> Self {
        let files = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        init(files.path(), "test", 100 * DAY, now - 10 * DAY).unwrap();
        let authority = Authority::open(files.path(), now).unwrap();
        for (side, days) in ["a", "b"].into_iter().zip(unusual.begin) {
            let later = now + DAY * days.max(0).unsigned_abs();
            let now = if days < 0 { now - DAY * days.unsigned_abs() } else { later };
            let uri = peer(name, side).parse().unwrap();
            let out = files.path().join(side);
            std::fs::create_dir(&out).unwrap();
            authority.issue(side, Some(uri), DAY, &out, now).unwrap();
        }
        let (inside, direct) = (node('t').await, node('d').await);
        let behind = Node { p2p: unusual.node.unwrap_or(inside).into(), ..nowhere() };
        let allow = unusual.allow.map_or_else(|| peer(name, "a"), str::to_owned);
        let listeners = json!({ "quic": "127.0.0.1:0", "identity": identity(&files, "b"), "allow": [allow] });
        let b = Sidecar::start(behind, listeners.clone(), json!({})).await;
        let listeners_b = listeners;
        let wire = Wire::to(quic(&b)).await;
        wire.cut(unusual.cut);
        let sidecar = json!({ "to": [wire.address.to_string()], "name": peer(name, "b") });
        let route = json!({
            "name": name, "bind": "127.0.0.1:0", "to": direct.to_string(),
            "sidecar": merged(sidecar, &unusual.sidecar),
        });
        // Everything runs in one process, which may be slow for a while.
        let listeners =
            json!({ "outbound": [route], "identity": identity(&files, "a"), "connect_timeout": "10s" });
        let a = Sidecar::start(nowhere(), listeners.clone(), pooling(&unusual.pooling)).await;
        Self { name, a, b, wire, files, listeners, listeners_b }
    }

    /// Other settings of A's filters.
    pub(crate) fn reload(&mut self, filters: Value) {
        self.a.reload(self.listeners.clone(), filters);
    }

    /// Other addresses of B's sidecar.
    pub(crate) fn moves(&mut self, to: &str) {
        self.listeners["outbound"][0]["sidecar"]["to"] = json!([to]);
        self.reload(pooling(&json!({})));
    }

    /// A without its route.
    pub(crate) fn forget_route(&mut self) {
        self.listeners["outbound"] = json!([]);
        self.reload(pooling(&json!({})));
    }

    /// A certificate of a side that holds from now on.
    pub(crate) fn renew(&self, side: &str) {
        let now = SystemTime::now();
        let authority = Authority::open(self.files.path(), now).unwrap();
        let certificate = self.files.path().join(side).join(format!("{side}.pem"));
        authority.renew(&certificate, 2 * DAY, now).unwrap();
    }

    /// Waits until new connections take the tunnel.
    pub(crate) async fn returns(&self) {
        let deadline = std::time::Instant::now() + 2 * PATIENCE;
        while self.greeted().await.unwrap().1 != 't' {
            assert!(std::time::Instant::now() < deadline, "never back");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the first connection is up.
    pub(crate) async fn warm(&self) {
        until("a connection is up", || self.dials("ok") >= 1.0).await;
    }

    pub(crate) fn dials(&self, outcome: &str) -> f64 {
        let peer = format!("peer=\"{}\"", peer(self.name, "b"));
        metric("qudag_sidecar_peer_dials_total", &[&peer, &format!("outcome=\"{outcome}\"")])
    }

    pub(crate) fn fallbacks(&self, reason: &str) -> f64 {
        let labels = [format!("target=\"{}\"", self.name), format!("reason=\"{reason}\"")];
        metric("qudag_sidecar_peer_fallbacks_total", &[&labels[0], &labels[1]])
    }

    /// Connections of the pool in a state.
    pub(crate) fn connections(&self, state: &str) -> usize {
        let pools = self.a.upstream.as_ref().unwrap().statuses();
        pools.iter().flat_map(|pool| &pool.connections).filter(|it| it.state == state).count()
    }

    /// Streams on all connections.
    pub(crate) fn streams(&self) -> u32 {
        let pools = self.a.upstream.as_ref().unwrap().statuses();
        pools.iter().flat_map(|pool| &pool.connections).map(|it| it.streams).sum()
    }

    /// A new connection of a client, with what it was greeted with.
    pub(crate) async fn greeted(&self) -> io::Result<(TcpStream, char)> {
        greeted(self.a.tcp()).await
    }
}

pub(crate) fn identity(files: &tempfile::TempDir, side: &str) -> Value {
    let file = |name: &str| -> PathBuf { files.path().join(side).join(name) };
    json!({
        "certificate": file(&format!("{side}.pem")), "key": file(&format!("{side}.key")), "authorities": file("ca.pem"),
    })
}

pub(crate) fn quic(sidecar: &Sidecar) -> SocketAddr {
    match &sidecar.addresses[0] {
        Address::Tcp(address) => address.socket_addr().unwrap(),
        Address::Unix(_) => panic!("not UDP"),
    }
}

pub(crate) fn is_reset<T>(result: &io::Result<T>) -> bool {
    result.as_ref().is_err_and(|why| why.kind() == io::ErrorKind::ConnectionReset)
}

/// Connects and reads the greeting.
pub(crate) async fn greeted(address: SocketAddr) -> io::Result<(TcpStream, char)> {
    let work = async {
        let mut tcp = TcpStream::connect(address).await?;
        let byte = tcp.read_u8().await?;
        Ok((tcp, char::from(byte)))
    };
    timeout(PATIENCE, work).await.expect("an answer in time")
}

/// Sends bytes and expects them back.
pub(crate) async fn echo(tcp: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    let work = async {
        tcp.write_all(bytes).await?;
        let mut back = vec![0; bytes.len()];
        tcp.read_exact(&mut back).await?;
        assert!(back == bytes, "other bytes came back");
        Ok(())
    };
    timeout(PATIENCE, work).await.expect("an echo in time")
}

pub(crate) fn noise(length: u32) -> Vec<u8> {
    (0..length).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}
