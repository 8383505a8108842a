//! Queries in datagrams.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use metrics::counter;
use qudag_filter_common::Drain;
use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::answer::{Received, Shared};
use crate::Transport;

/// How many datagrams one system call receives.
const BATCH: usize = 8;
/// Room for one of them: the kernel may join several of one sender (`UDP_GRO`).
const ROOM: usize = 65_535;
/// What is asked of the kernel for bursts; it gives what `net.core.rmem_max` allows.
const RECEIVE_BUFFER: usize = 4 << 20;
/// How many more batches are received at most when the drain has started: a flood must not hold it up.
const LAST_BATCHES: usize = 64;

/// A UDP socket that knows which of the host's addresses each datagram was sent to, and answers from there: a client
/// that asked one address takes no reply from another.
pub(super) struct Datagrams {
    socket: Arc<Sending>,
}

struct Sending {
    socket: UdpSocket,
    state: UdpSocketState,
}

/// The way back to a client.
#[derive(Clone, Copy)]
struct Route {
    client: SocketAddr,
    from: Option<IpAddr>,
}

impl Datagrams {
    pub(super) fn bind(addr: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
        if addr.is_ipv6() && addr.ip().is_unspecified() {
            socket.set_only_v6(false)?;
        }
        // Only bursts suffer when it stays small.
        let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        let socket = UdpSocket::from_std(socket.into())?;
        Ok(Self { socket: Arc::new(Sending { socket, state }) })
    }

    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.socket.local_addr()
    }

    /// Receives until the drain starts, then what has arrived by then. Each query that needs the chain becomes a task of the
    /// drain.
    pub(super) async fn serve(self, shared: Arc<Shared>, drain: Drain) {
        let mut room = vec![0_u8; BATCH * ROOM];
        let mut last_batches = LAST_BATCHES;
        while last_batches > 0 {
            let mut meta = [RecvMeta::default(); BATCH];
            let mut buffers: Vec<_> = room.chunks_exact_mut(ROOM).map(IoSliceMut::new).collect();
            let received = tokio::select! {
                biased;
                () = drain.stopping() => {
                    last_batches -= 1;
                    match self.socket.try_receive(&mut buffers, &mut meta) {
                        Err(why) if why.kind() == io::ErrorKind::WouldBlock => return,
                        received => received,
                    }
                }
                received = self.socket.receive(&mut buffers, &mut meta) => received,
            };
            let count = match received {
                Ok(count) => count,
                Err(why) => {
                    tracing::warn!(error = %why, "cannot receive DNS queries");
                    counter!("qudag_sidecar_dns_receive_errors_total").increment(1);
                    tokio::select! {
                        () = drain.stopping() => return,
                        () = tokio::time::sleep(Duration::from_millis(50)) => continue,
                    }
                }
            };
            for (meta, buffer) in meta.iter().zip(room.chunks_exact(ROOM)).take(count) {
                let route = Route { client: meta.addr, from: meta.dst_ip };
                let joined = buffer.get(..meta.len).unwrap_or_default();
                // An empty datagram has no stride.
                for message in joined.chunks(meta.stride.max(1)) {
                    self.take(message, route, &shared, &drain);
                }
            }
        }
    }

    fn take(&self, message: &[u8], route: Route, shared: &Shared, drain: &Drain) {
        // The kernel shows IPv4 clients of an IPv6 socket as mapped addresses, and wants them back like that.
        let client = SocketAddr::new(route.client.ip().to_canonical(), route.client.port());
        match shared.receive(Bytes::copy_from_slice(message), client, Transport::Udp) {
            Received::Nothing => {}
            Received::Reply(reply) => self.socket.try_send(&reply, route),
            Received::Query(asking) => {
                let (socket, ending) = (Arc::clone(&self.socket), drain.clone());
                drain.spawn(async move {
                    tokio::select! {
                        biased;
                        reply = asking.answer() => socket.send(&reply, route).await,
                        () = ending.aborted() => {}
                    }
                });
            }
        }
    }
}

impl Sending {
    async fn receive(&self, buffers: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> io::Result<usize> {
        let receive = || self.state.recv(UdpSockRef::from(&self.socket), buffers, meta);
        self.socket.async_io(Interest::READABLE, receive).await
    }

    /// Without waiting, and without asking the runtime, which may not have looked at the socket since something arrived.
    fn try_receive(&self, buffers: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> io::Result<usize> {
        self.state.recv(UdpSockRef::from(&self.socket), buffers, meta)
    }

    async fn send(&self, reply: &[u8], route: Route) {
        let sent = self.socket.async_io(Interest::WRITABLE, || self.transmit(reply, route)).await;
        Self::note(sent);
    }

    /// Without waiting: the loop that receives must not be held up by errors that it answers.
    fn try_send(&self, reply: &[u8], route: Route) {
        Self::note(self.socket.try_io(Interest::WRITABLE, || self.transmit(reply, route)));
    }

    fn transmit(&self, reply: &[u8], route: Route) -> io::Result<()> {
        let transmit = Transmit {
            destination: route.client,
            ecn: None,
            contents: reply,
            segment_size: None,
            src_ip: route.from,
        };
        self.state.try_send(UdpSockRef::from(&self.socket), &transmit)
    }

    fn note(sent: io::Result<()>) {
        if let Err(why) = sent {
            counter!("qudag_sidecar_dns_send_errors_total").increment(1);
            tracing::debug!(error = %why, "cannot send a DNS reply");
        }
    }
}
