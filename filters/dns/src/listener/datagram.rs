//! UDP sockets that take and give many datagrams with one system call.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SetSockOpt, SockaddrStorage, recvmmsg,
    sendmmsg, sendmsg, sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};

/// How many datagrams one system call takes.
pub(super) const BATCH: usize = 32;
/// Room for one of them. A query has less than 300 bytes and a few options; one that is longer than this is none.
const ROOM: usize = 4096;
/// What is asked of the kernel for bursts; it gives what `net.core.rmem_max` allows.
const RECEIVE_BUFFER: usize = 4 << 20;
/// How long a thread waits for a datagram before it looks whether it shall end. Five of these a second cost nothing, and waiting for
/// something else as well would cost a system call a batch.
const NAP: Duration = Duration::from_millis(200);

/// A UDP socket, one of several on the same address. It knows which of the host's addresses each datagram was sent to, and
/// answers from there: a client that asked one address takes no reply from another.
#[derive(Debug)]
pub(super) struct Datagrams {
    socket: Socket,
    /// Bound to all addresses, so that each datagram has to say to which it came.
    any: bool,
}

/// The way back to a client.
#[derive(Clone, Copy)]
pub(super) struct Route {
    to: SockaddrStorage,
    from: Option<From>,
}

/// The address that a client asked.
#[derive(Clone, Copy)]
enum From {
    V4(libc::in_pktinfo),
    V6(libc::in6_pktinfo),
}

impl Route {
    /// The client. The kernel shows IPv4 clients of an IPv6 socket as mapped addresses, and wants them back like that.
    pub(super) fn client(&self) -> Option<SocketAddr> {
        let v4 = || self.to.as_sockaddr_in().map(|addr| SocketAddrV4::from(*addr).into());
        let v6 = || self.to.as_sockaddr_in6().map(|addr| SocketAddrV6::from(*addr).into());
        let addr: SocketAddr = v4().or_else(v6)?;
        Some(SocketAddr::new(addr.ip().to_canonical(), addr.port()))
    }

    fn control(&self) -> Option<ControlMessage<'_>> {
        Some(match self.from.as_ref()? {
            From::V4(info) => ControlMessage::Ipv4PacketInfo(info),
            From::V6(info) => ControlMessage::Ipv6PacketInfo(info),
        })
    }
}

impl Datagrams {
    /// A socket on an address that others of this user may share; each of them gets a share of the clients.
    pub(super) fn bind(addr: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
        let any = addr.ip().is_unspecified();
        if any && addr.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_port(true)?;
        // Only bursts suffer when it stays small.
        let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
        socket.set_read_timeout(Some(NAP))?;
        if any && addr.is_ipv6() {
            sockopt::Ipv6RecvPacketInfo.set(&socket, &true)?;
        } else if any {
            sockopt::Ipv4PacketInfo.set(&socket, &true)?;
        }
        socket.bind(&addr.into())?;
        Ok(Self { socket, any })
    }

    fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Sends one reply, unless the kernel has no room for it.
    pub(super) fn send(&self, reply: &[u8], route: &Route) -> io::Result<()> {
        let control = route.control();
        sendmsg(
            self.fd(),
            &[IoSlice::new(reply)],
            control.as_slice(),
            MsgFlags::MSG_DONTWAIT,
            Some(&route.to),
        )?;
        Ok(())
    }
}

/// A thread's buffers for what it receives.
pub(super) struct Inbox {
    headers: MultiHeaders<SockaddrStorage>,
    room: Vec<u8>,
    lengths: [usize; BATCH],
    routes: [Option<Route>; BATCH],
}

impl Inbox {
    pub(super) fn new(socket: &Datagrams) -> Self {
        let control = socket.any.then(|| cmsg_space!(libc::in6_pktinfo));
        Self {
            headers: MultiHeaders::preallocate(BATCH, control),
            room: vec![0; BATCH * ROOM],
            lengths: [0; BATCH],
            routes: [None; BATCH],
        }
    }

    /// Waits a moment for a datagram if `wait`, and takes what else is there. Returns how many.
    pub(super) fn receive(&mut self, socket: &Datagrams, wait: bool) -> io::Result<usize> {
        let mut chunks = self.room.chunks_exact_mut(ROOM);
        let mut slices: [_; BATCH] =
            std::array::from_fn(|_| [IoSliceMut::new(chunks.next().unwrap_or_default())]);
        let flags = if wait { MsgFlags::MSG_WAITFORONE } else { MsgFlags::MSG_DONTWAIT };
        let received = match recvmmsg(socket.fd(), &mut self.headers, slices.iter_mut(), flags, None) {
            Ok(received) => received,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(0),
            Err(why) => return Err(why.into()),
        };
        let mut count = 0;
        for ((message, length), route) in received.zip(&mut self.lengths).zip(&mut self.routes) {
            count += 1;
            // Cut off, so longer than any query.
            let whole = !message.flags.contains(MsgFlags::MSG_TRUNC);
            *length = if whole { message.bytes } else { 0 };
            *route = message.address.map(|to| Route { to, from: None });
            if socket.any
                && let Some(route) = route
            {
                route.from = message.cmsgs().into_iter().flatten().find_map(|control| match control {
                    ControlMessageOwned::Ipv4PacketInfo(info) => Some(From::V4(libc::in_pktinfo {
                        // The kernel routes by itself.
                        ipi_ifindex: 0,
                        ..info
                    })),
                    ControlMessageOwned::Ipv6PacketInfo(info) => Some(From::V6(info)),
                    _ => None,
                });
            }
        }
        Ok(count)
    }

    /// The datagrams of the last batch of so many.
    pub(super) fn datagrams(&self, count: usize) -> impl Iterator<Item = (&[u8], Route)> {
        let datagrams = self.room.chunks_exact(ROOM).zip(&self.lengths).zip(&self.routes).take(count);
        datagrams.filter_map(|((room, length), route)| Some((room.get(..*length)?, (*route)?)))
    }
}

/// A thread's buffers for what it sends: replies, one behind the other.
pub(super) struct Outbox {
    headers: MultiHeaders<SockaddrStorage>,
    /// The replies; what is appended belongs to the next one that is [closed](Outbox::close).
    pub(super) bytes: Vec<u8>,
    replies: Vec<(usize, Route)>,
}

impl Outbox {
    pub(super) fn new() -> Self {
        Self {
            headers: MultiHeaders::preallocate(BATCH, None),
            bytes: Vec::with_capacity(BATCH * 512),
            replies: Vec::with_capacity(BATCH),
        }
    }

    /// What was appended since the last time is a reply.
    pub(super) fn close(&mut self, route: Route) {
        self.replies.push((self.bytes.len(), route));
    }

    /// Sends all replies and forgets them. Returns how many could not be sent, and why the last one could not.
    pub(super) fn send(&mut self, socket: &Datagrams) -> (usize, Option<io::Error>) {
        let mut failed = (0, None);
        let mut start = 0;
        let mut replies = self.replies.drain(..).map(|(end, route)| {
            let reply = self.bytes.get(start..end).unwrap_or_default();
            start = end;
            (reply, route)
        });
        if socket.any {
            for (reply, route) in replies {
                if let Err(why) = socket.send(reply, &route) {
                    failed = (failed.0 + 1, Some(why));
                }
            }
        } else {
            loop {
                let mut to = [None; BATCH];
                let mut slices = [[IoSlice::new(&[])]; BATCH];
                let mut count = 0;
                for ((to, slice), (reply, route)) in to.iter_mut().zip(&mut slices).zip(replies.by_ref()) {
                    *to = Some(route.to);
                    *slice = [IoSlice::new(reply)];
                    count += 1;
                }
                if count == 0 {
                    break;
                }
                let (lost, why) = send_all(socket, &mut self.headers, &slices, &to, count);
                failed = (failed.0 + lost, why.or(failed.1));
                if count < BATCH {
                    break;
                }
            }
        }
        self.bytes.clear();
        failed
    }
}

/// Sends the first `count` of the slices. The kernel stops at the first that fails, and says why only when it is asked again.
fn send_all<'a>(
    socket: &Datagrams,
    headers: &mut MultiHeaders<SockaddrStorage>,
    slices: &[[IoSlice<'a>; 1]],
    to: &[Option<SockaddrStorage>],
    count: usize,
) -> (usize, Option<io::Error>) {
    let (mut sent, mut lost, mut last) = (0, 0, None);
    while let (Some(slices), Some(to)) = (slices.get(sent..count), to.get(sent..count))
        && !slices.is_empty()
    {
        let none: [ControlMessage<'_>; 0] = [];
        match sendmmsg(socket.fd(), headers, slices, to, none, MsgFlags::MSG_DONTWAIT) {
            Ok(done) => sent += done.count().max(1),
            Err(Errno::EINTR) => {}
            Err(why) => {
                (sent, lost, last) = (sent + 1, lost + 1, Some(why.into()));
            }
        }
    }
    (lost, last)
}
