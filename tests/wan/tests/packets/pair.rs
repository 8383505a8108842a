//! Two namespaces with a link, and sockets in them.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use qudag_kit::Namespace;
use qudag_wan::{Counters, Direction, Settings, Wan};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;

/// How long anything may take on a machine that is busy with other tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Which version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ip {
    V4,
    V6,
}

pub(crate) struct Pair {
    pub(crate) wan: Wan,
    pub(crate) left: Namespace,
    pub(crate) right: Namespace,
}

impl Pair {
    pub(crate) fn new(settings: &str) -> Self {
        Self::with(Settings::both(settings.parse().unwrap()))
    }

    pub(crate) fn with(settings: Settings) -> Self {
        let (left, right) = (Namespace::new(), Namespace::new());
        let ends = ["10.90.0.1/24,fd90::1/64", "10.90.0.2/24,fd90::2/64"];
        let wan = Wan::connect(&left, ends[0], &right, ends[1], settings).unwrap();
        Self { wan, left, right }
    }

    /// A socket on the left and one on the right, each connected to the other, which lose nothing by themselves.
    pub(crate) fn udp(&self, ip: Ip) -> (UdpSocket, UdpSocket) {
        let bind = |namespace: &Namespace, address: &str| {
            let socket = namespace.inside(|| UdpSocket::bind(address)).unwrap().unwrap();
            set_socket_recv_buffer_size_force(&socket, 64 << 20).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        };
        let [left, right] = match ip {
            Ip::V4 => ["10.90.0.1:0", "10.90.0.2:0"],
            Ip::V6 => ["[fd90::1]:0", "[fd90::2]:0"],
        };
        let (left, right) = (bind(&self.left, left), bind(&self.right, right));
        left.connect(right.local_addr().unwrap()).unwrap();
        right.connect(left.local_addr().unwrap()).unwrap();
        (left, right)
    }

    /// A connection from the left to the right.
    pub(crate) fn tcp(&self, ip: Ip) -> (TcpStream, TcpStream) {
        let address = if ip == Ip::V4 { "10.90.0.2:0" } else { "[fd90::2]:0" };
        let listener = self.right.inside(|| TcpListener::bind(address)).unwrap().unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let left = self.left.inside(|| TcpStream::connect_timeout(&address, PATIENCE)).unwrap().unwrap();
        let (right, _) = listener.accept().unwrap();
        for stream in [&left, &right] {
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.set_write_timeout(Some(PATIENCE)).unwrap();
        }
        (left, right)
    }

    pub(crate) fn to_right(&self) -> Counters {
        self.wan.counters(Direction::ToRight).unwrap()
    }

    pub(crate) fn to_left(&self) -> Counters {
        self.wan.counters(Direction::ToLeft).unwrap()
    }

    /// Waits until the link has seen so many packets towards the right and holds none any more.
    pub(crate) fn wait_for(&self, received: u64) -> Counters {
        let start = Instant::now();
        loop {
            let counters = self.to_right();
            if counters.received.packets >= received
                && counters.waiting.packets + counters.flying.packets == 0
            {
                return counters;
            }
            assert!(start.elapsed() < PATIENCE, "{received} packets expected: {counters:?}");
            std::thread::yield_now();
        }
    }
}

/// Sends so many numbered datagrams, some at a time and no faster than the link takes them.
pub(crate) fn send_numbers(pair: &Pair, socket: &UdpSocket, count: u32, bytes: usize) {
    let before = pair.to_right().received.packets;
    let mut datagram = vec![0; bytes];
    for number in 0..count {
        datagram[..4].copy_from_slice(&number.to_be_bytes());
        socket.send(&datagram).unwrap();
        // The device keeps 10,000 packets while its thread does not run.
        if number % 1000 == 999 {
            let start = Instant::now();
            while pair.to_right().received.packets < before + u64::from(number) {
                assert!(start.elapsed() < PATIENCE, "the link does not take packets");
                std::thread::yield_now();
            }
        }
    }
}

/// The numbers that lie in the socket, in their order.
pub(crate) fn numbers(socket: &UdpSocket) -> Vec<u32> {
    socket.set_nonblocking(true).unwrap();
    let mut buffer = [0; 2048];
    let mut numbers = Vec::new();
    loop {
        match socket.recv(&mut buffer) {
            Ok(_) => numbers.push(u32::from_be_bytes(buffer[..4].try_into().unwrap())),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return numbers,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Whether a packet comes within this time.
pub(crate) fn comes(socket: &UdpSocket, time: Duration) -> bool {
    socket.set_read_timeout(Some(time)).unwrap();
    match socket.recv(&mut [0; 2048]) {
        Ok(_) => true,
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => false,
        Err(error) => panic!("{error}"),
    }
}
