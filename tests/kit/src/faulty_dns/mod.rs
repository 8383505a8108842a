//! A DNS server in this process that answers any name at all and misbehaves on command.
//!
//! What it answers follows from the name alone (see [`zone`]), so that a test can say beforehand what is right. How
//! it behaves is set live. It serves UDP and TCP on one port of 127.0.0.1 from plain threads, so it is as good a server
//! in a benchmark as in a test with paused time.

mod serve;
pub mod zone;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hickory_proto::rr::RecordType;
use rustix::net::sockopt;

pub use zone::{address_of, address_v6_of};

/// How a server treats queries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Behaviour {
    /// Right answers.
    #[default]
    Good,
    /// SERVFAIL to everything.
    ServFail,
    /// REFUSED to everything.
    Refused,
    /// FORMERR to everything, a header without a question.
    FormErr,
    /// NOTIMP to everything.
    NotImp,
    /// Takes queries and connections and never says a word.
    BlackHole,
    /// So many of a hundred UDP queries get no answer. TCP is not touched: there the kernel would send again.
    Loss(u8),
    /// Right answers, this much later.
    Delay(Duration),
    /// Right answers for a period, then silence for a period, and so on, beginning when it is set.
    Flap {
        /// How long each of the two lasts.
        period: Duration,
    },
    /// SERVFAIL instead of silence, else as [`Flap`](Self::Flap).
    FlapServFail {
        /// How long each of the two lasts.
        period: Duration,
    },
    /// Empty replies with TC over UDP; right answers over TCP.
    Truncate,
    /// Right answers with another id.
    WrongId,
    /// Right answers with another name in the question.
    WrongName,
    /// Bytes that are no DNS message, though the id is right.
    Garbage,
}

/// The running server. It ends when it is dropped.
pub struct FaultyDns {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    addr: SocketAddr,
    udp: UdpSocket,
    behaviour: Mutex<(Behaviour, Instant)>,
    ttl: AtomicU32,
    epoch: AtomicU8,
    stop: AtomicBool,
    udp_queries: AtomicU64,
    tcp_queries: AtomicU64,
    counts: Mutex<HashMap<(Vec<u8>, u16), u64>>,
    last: Mutex<Vec<u8>>,
    connections: Mutex<HashMap<u64, TcpStream>>,
    later: serve::Later,
}

impl FaultyDns {
    /// Starts a server that behaves well and gives records a TTL of 300 s.
    ///
    /// # Panics
    /// When nothing can be bound.
    pub fn start() -> Self {
        for _ in 0..100 {
            let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            // The same number may be taken for TCP.
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()) {
                return Self::on(udp, tcp);
            }
        }
        panic!("no port of 127.0.0.1 is free for both UDP and TCP");
    }

    /// Starts a server where another one was, for instance one that has been dropped.
    ///
    /// # Panics
    /// When the address is taken.
    pub fn start_at(addr: SocketAddr) -> Self {
        Self::on(UdpSocket::bind(addr).unwrap(), TcpListener::bind(addr).unwrap())
    }

    fn on(udp: UdpSocket, tcp: TcpListener) -> Self {
        const BUFFER: usize = 8 << 20;
        // Beyond the system's limit with root's rights, up to it without.
        let _ = sockopt::set_socket_recv_buffer_size_force(&udp, BUFFER)
            .or_else(|_| sockopt::set_socket_recv_buffer_size(&udp, BUFFER));
        let shared = Arc::new(Shared {
            addr: udp.local_addr().unwrap(),
            udp,
            behaviour: Mutex::new((Behaviour::Good, Instant::now())),
            ttl: AtomicU32::new(300),
            epoch: AtomicU8::new(0),
            stop: AtomicBool::new(false),
            udp_queries: AtomicU64::new(0),
            tcp_queries: AtomicU64::new(0),
            counts: Mutex::default(),
            last: Mutex::default(),
            connections: Mutex::default(),
            later: serve::Later::default(),
        });
        let threads = serve::threads(&shared, tcp);
        Self { shared, threads }
    }

    /// Where it listens, UDP and TCP.
    pub fn addr(&self) -> SocketAddr {
        self.shared.addr
    }

    /// Changes how it behaves, from the next query on.
    pub fn behave(&self, behaviour: Behaviour) {
        *self.shared.behaviour.lock().unwrap() = (behaviour, Instant::now());
    }

    /// Changes the TTL of all records, in seconds; SOA records have it as their minimum too.
    pub fn set_ttl(&self, seconds: u32) {
        self.shared.ttl.store(seconds, Ordering::Relaxed);
    }

    /// Changes every address, so that old answers can be told from new ones; see [`address_of`]. It begins with 0.
    pub fn set_epoch(&self, epoch: u8) {
        self.shared.epoch.store(epoch, Ordering::Relaxed);
    }

    /// How many queries for a name (in any case, with or without the last dot) and type it has seen, answered or not.
    pub fn queries(&self, name: &str, record_type: RecordType) -> u64 {
        let key = (zone::wire_name(name), u16::from(record_type));
        self.shared.counts.lock().unwrap().get(&key).copied().unwrap_or(0)
    }

    /// How many queries of any kind it has seen.
    pub fn total(&self) -> u64 {
        self.udp_total() + self.tcp_total()
    }

    /// How many of them came by UDP.
    pub fn udp_total(&self) -> u64 {
        self.shared.udp_queries.load(Ordering::Relaxed)
    }

    /// How many of them came by TCP.
    pub fn tcp_total(&self) -> u64 {
        self.shared.tcp_queries.load(Ordering::Relaxed)
    }

    /// The bytes of the last query; empty when none came yet.
    pub fn last_query(&self) -> Vec<u8> {
        self.shared.last.lock().unwrap().clone()
    }

    /// Forgets what it has counted.
    pub fn forget(&self) {
        self.shared.counts.lock().unwrap().clear();
        self.shared.udp_queries.store(0, Ordering::Relaxed);
        self.shared.tcp_queries.store(0, Ordering::Relaxed);
    }

    /// How many TCP connections are open.
    pub fn connections(&self) -> usize {
        self.shared.connections.lock().unwrap().len()
    }

    /// Ends every TCP connection.
    pub fn drop_connections(&self) {
        for stream in self.shared.connections.lock().unwrap().values() {
            // It may have ended by itself.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

impl Drop for FaultyDns {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.later.wake();
        // Each thread waits in a system call; something has to arrive.
        let _ = self.shared.udp.send_to(&[], self.shared.addr);
        let _ = TcpStream::connect(self.shared.addr);
        for thread in self.threads.drain(..) {
            // Its panic has been printed.
            let _ = thread.join();
        }
        self.drop_connections();
        // Threads of connections hold the sockets, whose port is to be free after this.
        let asked = Instant::now();
        while Arc::strong_count(&self.shared) > 1 && asked.elapsed() < Duration::from_secs(5) {
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }
}

#[cfg(test)]
mod tests;
