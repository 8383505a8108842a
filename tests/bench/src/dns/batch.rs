//! Many datagrams in one system call, so that what is measured is the server and not the generator.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg};

/// Datagrams in one system call.
pub(super) const BATCH: usize = 64;
/// Room for one of them.
const ROOM: usize = 4096;

/// Buffers for receiving and sending.
pub(super) struct Batch {
    incoming: MultiHeaders<SockaddrIn>,
    outgoing: MultiHeaders<SockaddrIn>,
    room: Vec<u8>,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            incoming: MultiHeaders::preallocate(BATCH, None),
            outgoing: MultiHeaders::preallocate(BATCH, None),
            room: vec![0; BATCH * ROOM],
        }
    }
}

impl Batch {
    /// Hands what has arrived to `take`, with where it came from; how many there were. Does not wait, unless `wait`
    /// says so, and then for the first one only.
    ///
    /// # Errors
    /// When the socket is broken. A server that is gone is not an error.
    pub(super) fn receive(
        &mut self,
        socket: &UdpSocket,
        wait: bool,
        mut take: impl FnMut(&[u8], Option<SockaddrIn>),
    ) -> io::Result<usize> {
        let mut slices: Vec<[IoSliceMut<'_>; 1]> =
            self.room.chunks_exact_mut(ROOM).map(|room| [IoSliceMut::new(room)]).collect();
        let flags = if wait { MsgFlags::MSG_WAITFORONE } else { MsgFlags::MSG_DONTWAIT };
        let received = match recvmmsg(socket.as_raw_fd(), &mut self.incoming, slices.iter_mut(), flags, None)
        {
            Ok(received) => received,
            // The kernel reports here that an earlier datagram met no socket.
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNREFUSED) => return Ok(0),
            Err(why) => return Err(why.into()),
        };
        let mut count = 0;
        for message in received {
            count += 1;
            take(message.iovs().next().unwrap_or_default(), message.address);
        }
        Ok(count)
    }

    /// Sends datagrams, each to its address or, without one, to the peer of the socket; how many the kernel took.
    ///
    /// # Errors
    /// When the socket is broken.
    pub(super) fn send<P: AsRef<[u8]>>(
        &mut self,
        socket: &UdpSocket,
        packets: &[P],
        to: &[Option<SockaddrIn>],
    ) -> io::Result<usize> {
        let slices: Vec<[IoSlice<'_>; 1]> =
            packets.iter().take(BATCH).map(|packet| [IoSlice::new(packet.as_ref())]).collect();
        if slices.is_empty() {
            return Ok(0);
        }
        let flags = MsgFlags::MSG_DONTWAIT;
        match sendmmsg(socket.as_raw_fd(), &mut self.outgoing, &slices, to, [], flags) {
            Ok(sent) => Ok(sent.count()),
            Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::EINTR | Errno::ECONNREFUSED) => Ok(0),
            Err(why) => Err(why.into()),
        }
    }
}
