//! Many DNS queries at once over one UDP socket.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

#[derive(Default)]
struct Waiting {
    by_id: HashMap<u16, oneshot::Sender<Vec<u8>>>,
    last: u16,
}

/// A UDP socket on which any number of queries up to 65,536 are under way; each reply finds its query by the id.
pub struct Pipe {
    socket: Arc<UdpSocket>,
    waiting: Arc<Mutex<Waiting>>,
    _reader: AbortOnDropHandle<()>,
}

/// Takes the id back when the query is over, however it ends.
struct Ticket<'a> {
    waiting: &'a Mutex<Waiting>,
    id: u16,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).by_id.remove(&self.id);
    }
}

impl Pipe {
    /// A socket of its own, from a port that the kernel chooses, to one server.
    ///
    /// # Panics
    /// When there is no socket to be had.
    pub async fn to(server: SocketAddr) -> Self {
        let any: IpAddr =
            if server.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let socket = Arc::new(UdpSocket::bind((any, 0)).await.unwrap());
        socket.connect(server).await.unwrap();
        let waiting = Arc::<Mutex<Waiting>>::default();
        let reader = tokio::spawn(read(Arc::clone(&socket), Arc::clone(&waiting)));
        Self { socket, waiting, _reader: AbortOnDropHandle::new(reader) }
    }

    /// Sends a query under an id of its own and returns the reply.
    ///
    /// # Errors
    /// When none comes within `patience`.
    ///
    /// # Panics
    /// When 65,536 queries are under way already, or the query is shorter than an id.
    pub async fn ask(&self, query: &[u8], patience: Duration) -> Result<Vec<u8>, String> {
        let (sender, reply) = oneshot::channel();
        let ticket = self.ticket(sender);
        let mut query = query.to_vec();
        query[..2].copy_from_slice(&ticket.id.to_be_bytes());
        // An error here is about an earlier datagram, which was refused; the query counts as lost when it is not answered.
        if self.socket.send(&query).await.is_err() {
            let _ = self.socket.send(&query).await;
        }
        match tokio::time::timeout(patience, reply).await {
            Ok(Ok(reply)) => Ok(reply),
            _ => Err("no answer".to_owned()),
        }
    }

    fn ticket(&self, sender: oneshot::Sender<Vec<u8>>) -> Ticket<'_> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(waiting.by_id.len() < usize::from(u16::MAX), "no id is free");
        loop {
            waiting.last = waiting.last.wrapping_add(1);
            let id = waiting.last;
            if let std::collections::hash_map::Entry::Vacant(free) = waiting.by_id.entry(id) {
                free.insert(sender);
                return Ticket { waiting: &self.waiting, id };
            }
        }
    }
}

async fn read(socket: Arc<UdpSocket>, waiting: Arc<Mutex<Waiting>>) {
    let mut room = vec![0; 65_535];
    loop {
        // Errors are about datagrams that were refused; whoever waits for an answer to one gives up by itself.
        let Ok(length) = socket.recv(&mut room).await else {
            tokio::task::yield_now().await;
            continue;
        };
        let Some(id) = room.first_chunk::<2>().filter(|_| length >= 2) else { continue };
        let id = u16::from_be_bytes(*id);
        let asked = waiting.lock().unwrap_or_else(PoisonError::into_inner).by_id.remove(&id);
        if let Some(asked) = asked {
            let _ = asked.send(room[..length].to_vec());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn replies_find_their_queries_in_any_order() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let pipe = Pipe::to(server.local_addr().unwrap()).await;
        let patience = Duration::from_secs(5);
        let asked = async { tokio::join!(pipe.ask(b"..one", patience), pipe.ask(b"..two", patience)) };
        let answered = async {
            let mut room = [0; 100];
            let (length, client) = server.recv_from(&mut room).await.unwrap();
            let first = room[..length].to_vec();
            let (length, _) = server.recv_from(&mut room).await.unwrap();
            server.send_to(&room[..length], client).await.unwrap();
            server.send_to(&first, client).await.unwrap();
        };
        let ((one, two), ()) = tokio::join!(asked, answered);
        assert_eq!((&one.unwrap()[2..], &two.unwrap()[2..]), (&b"one"[..], &b"two"[..]));
        let none = pipe.ask(b"..none", Duration::from_millis(20)).await;
        assert_eq!(none.unwrap_err(), "no answer");
        assert!(pipe.waiting.lock().unwrap().by_id.is_empty());
    }
}
