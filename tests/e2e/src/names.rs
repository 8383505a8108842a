//! A name server for the programs of one network namespace: one name, whose addresses a test moves.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use qudag_kit::Namespace;

/// The addresses of IPv4, in a question and in an answer (RFC 1035 section 3.2.2).
const A: [u8; 2] = [0, 1];

/// The server, on the namespace's loopback; programs that are started in the namespace from now on ask it. Ends when it is dropped.
pub struct NameServer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// What `ip netns exec` puts in the place of `/etc`.
    files: PathBuf,
}

#[derive(Default)]
struct Shared {
    addresses: Mutex<Vec<Ipv4Addr>>,
    silent: AtomicBool,
    asked: AtomicU64,
    over: AtomicBool,
}

impl NameServer {
    /// Every name has these addresses, for `ttl` seconds.
    ///
    /// # Panics
    /// When the port is taken or `/etc/netns` cannot be written.
    pub fn start(place: &Namespace, ttl: u32, addresses: &[&str]) -> Self {
        let socket = place.inside(|| UdpSocket::bind("127.0.0.1:53")).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let files = PathBuf::from("/etc/netns").join(place.name());
        fs::create_dir_all(&files).unwrap();
        fs::write(files.join("resolv.conf"), "nameserver 127.0.0.1\noptions timeout:1\n").unwrap();
        let shared = Arc::<Shared>::default();
        let thread = Some(std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || serve(&socket, ttl, &shared)
        }));
        let server = Self { shared, thread, files };
        server.moves(addresses);
        server
    }

    /// Gives the name other addresses.
    ///
    /// # Panics
    /// When they are none.
    pub fn moves(&self, addresses: &[&str]) {
        *self.shared.addresses.lock().unwrap() = addresses.iter().map(|it| it.parse().unwrap()).collect();
    }

    /// Gives a name an address in the hosts file, as programs see it that are started after the first time.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn hosts(&self, name: &str, address: &str) {
        fs::write(self.files.join("hosts"), format!("127.0.0.1 localhost\n{address} {name}\n")).unwrap();
    }

    /// Whether it answers nobody.
    pub fn silent(&self, silent: bool) {
        self.shared.silent.store(silent, Ordering::SeqCst);
    }

    /// How many questions for addresses of IPv4 have come.
    pub fn asked(&self) -> u64 {
        self.shared.asked.load(Ordering::SeqCst)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = fs::remove_dir_all(&self.files);
    }
}

fn serve(socket: &UdpSocket, ttl: u32, shared: &Shared) {
    let mut query = [0; 512];
    while !shared.over.load(Ordering::SeqCst) {
        let Ok((length, from)) = socket.recv_from(&mut query) else { continue };
        let query = &query[..length];
        // The question: a name that ends with an empty label, type and class.
        let Some(end) = query.get(12..).and_then(|rest| rest.iter().position(|byte| *byte == 0)) else {
            continue;
        };
        let Some(question) = query.get(12..12 + end + 5) else { continue };
        let is_v4 = question[end + 1..end + 3] == A;
        shared.asked.fetch_add(u64::from(is_v4), Ordering::SeqCst);
        if shared.silent.load(Ordering::SeqCst) {
            continue;
        }
        let addresses = if is_v4 { shared.addresses.lock().unwrap().clone() } else { Vec::new() };
        let count = u8::try_from(addresses.len()).unwrap();
        // A response with authority and recursion, one question, so many answers.
        let mut answer = [&query[..2], &[0x85, 0x80, 0, 1, 0, count, 0, 0, 0, 0], question].concat();
        for address in addresses {
            // The name is the one at offset 12.
            answer.extend([[0xc0, 12], A, [0, 1]].concat());
            answer.extend(ttl.to_be_bytes());
            answer.extend([0, 4]);
            answer.extend(address.octets());
        }
        let _ = socket.send_to(&answer, from);
    }
}
