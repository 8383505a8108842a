//! The threads of the server: one for UDP, one that accepts, one for each connection, one for replies that leave late.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::zone::{self, Query};
use super::{Behaviour, Shared};

const SERVFAIL: u8 = 2;
const FORMERR: u8 = 1;
const NOTIMP: u8 = 4;
const REFUSED: u8 = 5;

/// The way back to a client.
enum Way {
    Udp(SocketAddr),
    Tcp(Arc<Mutex<TcpStream>>),
}

impl Way {
    fn is_udp(&self) -> bool {
        matches!(self, Self::Udp(_))
    }

    /// A client that is gone is no failure of the server.
    fn send(&self, shared: &Shared, reply: &[u8]) {
        match self {
            Self::Udp(client) => {
                let _ = shared.udp.send_to(reply, client);
            }
            Self::Tcp(stream) => {
                let length = u16::try_from(reply.len()).unwrap();
                let _ = stream.lock().unwrap().write_all(&[&length.to_be_bytes(), reply].concat());
            }
        }
    }
}

/// A reply that leaves later.
struct Late {
    due: Instant,
    order: u64,
    way: Way,
    reply: Vec<u8>,
}

impl PartialEq for Late {
    fn eq(&self, other: &Self) -> bool {
        (self.due, self.order) == (other.due, other.order)
    }
}
impl Eq for Late {}
impl PartialOrd for Late {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Late {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.order).cmp(&(other.due, other.order))
    }
}

/// Replies that leave later, the next one first.
#[derive(Default)]
pub(super) struct Later {
    queue: Mutex<(u64, BinaryHeap<Reverse<Late>>)>,
    changed: Condvar,
}

impl Later {
    fn add(&self, due: Instant, way: Way, reply: Vec<u8>) {
        let mut queue = self.queue.lock().unwrap();
        queue.0 += 1;
        let order = queue.0;
        queue.1.push(Reverse(Late { due, order, way, reply }));
        drop(queue);
        self.changed.notify_one();
    }

    pub(super) fn wake(&self) {
        // With the lock, so that a thread between looking and waiting does not miss it.
        drop(self.queue.lock().unwrap());
        self.changed.notify_one();
    }

    fn run(&self, shared: &Shared) {
        let mut queue = self.queue.lock().unwrap();
        while !shared.stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            match queue.1.peek() {
                Some(Reverse(late)) if late.due <= now => {
                    let Some(Reverse(late)) = queue.1.pop() else { continue };
                    drop(queue);
                    late.way.send(shared, &late.reply);
                    queue = self.queue.lock().unwrap();
                }
                Some(Reverse(late)) => {
                    let rest = late.due - now;
                    queue = self.changed.wait_timeout(queue, rest).unwrap().0;
                }
                None => queue = self.changed.wait(queue).unwrap(),
            }
        }
    }
}

pub(super) fn threads(shared: &Arc<Shared>, tcp: TcpListener) -> Vec<JoinHandle<()>> {
    vec![
        spawn("dns udp", shared, udp),
        spawn("dns tcp", shared, move |shared| accept(shared, &tcp)),
        spawn("dns late", shared, |shared| shared.later.run(shared)),
    ]
}

fn spawn(
    name: &str,
    shared: &Arc<Shared>,
    work: impl FnOnce(&Arc<Shared>) + Send + 'static,
) -> JoinHandle<()> {
    let shared = Arc::clone(shared);
    std::thread::Builder::new().name(name.to_owned()).spawn(move || work(&shared)).unwrap()
}

fn udp(shared: &Arc<Shared>) {
    let mut room = vec![0; 65_535];
    // Any fixed seed does: what is lost only has to be spread.
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    loop {
        let received = shared.udp.recv_from(&mut room);
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        // An ICMP error for an earlier reply is reported here.
        let Ok((length, client)) = received else { continue };
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        shared.udp_queries.fetch_add(1, Ordering::Relaxed);
        shared.treat(&room[..length], Way::Udp(client), random);
    }
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    for number in 0.. {
        let accepted = listener.accept();
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        let Ok((stream, _)) = accepted else {
            // Out of file descriptors: connections have to end first.
            std::thread::park_timeout(Duration::from_millis(10));
            continue;
        };
        let Ok(kept) = stream.try_clone() else { continue };
        shared.connections.lock().unwrap().insert(number, kept);
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            // The end of the stream, in whatever way, is the end of the connection.
            let _ = connection(&shared, stream);
            shared.connections.lock().unwrap().remove(&number);
        });
    }
}

fn connection(shared: &Arc<Shared>, mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let back = Arc::new(Mutex::new(stream.try_clone()?));
    loop {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut query)?;
        shared.tcp_queries.fetch_add(1, Ordering::Relaxed);
        shared.treat(&query, Way::Tcp(Arc::clone(&back)), 0);
    }
}

impl Shared {
    fn treat(&self, message: &[u8], way: Way, random: u64) {
        let Some(query) = Query::read(message) else { return };
        *self.counts.lock().unwrap().entry((query.name.clone(), query.record_type)).or_default() += 1;
        message.clone_into(&mut self.last.lock().unwrap());
        let (behaviour, since) = *self.behaviour.lock().unwrap();
        let limit = if way.is_udp() { query.udp_size } else { 65_535 };
        let right = || self.right(&query, limit);
        let down = |period: Duration| since.elapsed().as_nanos() / period.as_nanos().max(1) % 2 == 1;
        let reply = match behaviour {
            Behaviour::BlackHole => return,
            Behaviour::Loss(percent) if way.is_udp() && (random >> 11) % 100 < u64::from(percent) => return,
            Behaviour::Flap { period } if down(period) => return,
            Behaviour::FlapServFail { period } if down(period) => query.refusal(SERVFAIL),
            Behaviour::Good
            | Behaviour::Loss(_)
            | Behaviour::Flap { .. }
            | Behaviour::FlapServFail { .. } => right(),
            Behaviour::ServFail => query.refusal(SERVFAIL),
            Behaviour::Refused => query.refusal(REFUSED),
            Behaviour::NotImp => query.refusal(NOTIMP),
            Behaviour::FormErr => query.bare(FORMERR),
            Behaviour::Delay(delay) => {
                let due = Instant::now() + delay;
                return self.later.add(due, way, right());
            }
            Behaviour::Truncate if way.is_udp() => query.truncated(),
            Behaviour::Truncate => right(),
            Behaviour::WrongId => {
                let mut reply = right();
                reply[0] ^= 0x5a;
                reply
            }
            Behaviour::WrongName => {
                let mut reply = right();
                // The first letter of the name; the root has none and gets a reply that is right.
                if let Some(byte) = reply.get_mut(13).filter(|byte| byte.is_ascii_alphanumeric()) {
                    *byte = if *byte == b'x' { b'y' } else { b'x' };
                }
                reply
            }
            Behaviour::Garbage => [&message[..2], &[0xff; 29][..]].concat(),
        };
        way.send(self, &reply);
    }

    fn right(&self, query: &Query<'_>, limit: usize) -> Vec<u8> {
        let reply = zone::answer(query, self.ttl.load(Ordering::Relaxed), self.epoch.load(Ordering::Relaxed));
        if reply.len() > limit { query.truncated() } else { reply }
    }
}
