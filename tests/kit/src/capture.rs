//! Every IP packet that a namespace sends and receives, as `tcpdump -i any` sees them, without the program.

use std::fs::File;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::net::sockopt::{Timeout, set_socket_recv_buffer_size_force, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, eth, recv, socket_with};

use crate::Namespace;
use crate::wait::{PATIENCE, eventually};

/// UDP in an IP header.
pub const UDP: u8 = 17;

/// A capture under way; it ends on drop.
pub struct Capture {
    packets: Arc<Mutex<Vec<Packet>>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// A packet of IP.
#[derive(Clone, Debug)]
pub struct Packet {
    /// When it was seen.
    pub at: SystemTime,
    /// All of it.
    pub bytes: Vec<u8>,
}

impl Packet {
    /// Where the header of the next protocol begins, and which protocol it is; no extension headers of IPv6 are looked through.
    fn next(&self) -> Option<(usize, u8)> {
        match self.bytes.first()? >> 4 {
            4 => Some((usize::from(self.bytes[0] & 15) * 4, *self.bytes.get(9)?)),
            6 => Some((40, *self.bytes.get(6)?)),
            _ => None,
        }
    }

    /// The protocol within IP.
    pub fn protocol(&self) -> Option<u8> {
        self.next().map(|(_, protocol)| protocol)
    }

    /// Source and destination.
    pub fn ends(&self) -> Option<[IpAddr; 2]> {
        let v4 = |at: usize| Some(IpAddr::from(*self.bytes.get(at..)?.first_chunk::<4>()?));
        let v6 = |at: usize| Some(IpAddr::from(*self.bytes.get(at..)?.first_chunk::<16>()?));
        match self.bytes.first()? >> 4 {
            4 => Some([v4(12)?, v4(16)?]),
            6 => Some([v6(8)?, v6(24)?]),
            _ => None,
        }
    }

    /// The ports and the payload of a datagram of UDP.
    pub fn datagram(&self) -> Option<([u16; 2], &[u8])> {
        let (at, _) = self.next().filter(|(_, protocol)| *protocol == UDP)?;
        let port = |at: usize| Some(u16::from_be_bytes(*self.bytes.get(at..)?.first_chunk::<2>()?));
        Some(([port(at)?, port(at + 2)?], self.bytes.get(at + 8..)?))
    }

    /// Whether these bytes are in it.
    pub fn contains(&self, what: &[u8]) -> bool {
        self.bytes.windows(what.len()).any(|window| window == what)
    }
}

impl Capture {
    /// Captures from now on.
    ///
    /// # Errors
    /// When the system allows no such socket, as it does to root only.
    pub fn start(place: &Namespace) -> io::Result<Self> {
        let socket = place.inside(|| {
            let socket =
                socket_with(AddressFamily::PACKET, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(eth::ALL))?;
            set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_millis(20)))?;
            set_socket_recv_buffer_size_force(&socket, 32 << 20)?;
            io::Result::Ok(socket)
        })??;
        let (packets, over) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (into, until) = (Arc::clone(&packets), Arc::clone(&over));
        let thread = thread::spawn(move || read(&socket, &into, &until));
        Ok(Self { packets, over, thread: Some(thread) })
    }

    /// What was captured so far between two addresses, in either direction.
    pub fn between(&self, one: IpAddr, other: IpAddr) -> Vec<Packet> {
        let packets = self.packets.lock().unwrap();
        let here =
            |packet: &&Packet| packet.ends().is_some_and(|ends| ends == [one, other] || ends == [other, one]);
        packets.iter().filter(here).cloned().collect()
    }

    /// Waits until a packet with these bytes was captured.
    ///
    /// # Panics
    /// When none comes.
    pub async fn wait_for(&self, what: &[u8]) {
        let seen = async || {
            let packets = self.packets.lock().unwrap();
            packets.iter().any(|packet| packet.contains(what)).then_some(())
        };
        eventually(PATIENCE, &format!("a packet with {what:?}"), seen).await;
    }

    /// Forgets what was captured.
    pub fn clear(&self) {
        self.packets.lock().unwrap().clear();
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn read(socket: &OwnedFd, packets: &Mutex<Vec<Packet>>, over: &AtomicBool) {
    let mut buffer = vec![0; 1 << 16];
    while !over.load(Ordering::Relaxed) {
        // Nothing within the time, or nothing any more.
        let Ok((length, _)) = recv(socket, &mut buffer[..], RecvFlags::empty()) else { continue };
        packets.lock().unwrap().push(Packet { at: SystemTime::now(), bytes: buffer[..length].to_vec() });
    }
}

/// Writes packets to a file that tcpdump and Wireshark read: pcap with LINKTYPE_RAW.
///
/// # Errors
/// When it cannot be written.
pub fn write_pcap(file: &Path, packets: &[Packet]) -> io::Result<()> {
    let mut out = io::BufWriter::new(File::create(file)?);
    for number in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 1 << 16, 101] {
        out.write_all(&number.to_le_bytes())?;
    }
    for packet in packets {
        let at = packet.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let length = packet.bytes.len() as u32;
        for number in [at.as_secs() as u32, at.subsec_micros(), length, length] {
            out.write_all(&number.to_le_bytes())?;
        }
        out.write_all(&packet.bytes)?;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[tokio::test]
    async fn a_datagram_is_seen_on_both_sides_with_its_ports() {
        crate::needs_namespaces!();
        if !crate::program::is_root() {
            crate::skip!("a capture needs root");
        }
        let (one, two) = (Namespace::new(), Namespace::new());
        one.connect("10.91.0.1/24", &two, "10.91.0.2/24");
        let captures = [Capture::start(&one).unwrap(), Capture::start(&two).unwrap()];
        let socket = one.inside(|| UdpSocket::bind("10.91.0.1:700")).unwrap().unwrap();
        socket.send_to(b"seen by all", "10.91.0.2:800").unwrap();
        for capture in &captures {
            capture.wait_for(b"seen by all").await;
            let packets = capture.between("10.91.0.1".parse().unwrap(), "10.91.0.2".parse().unwrap());
            let datagram = packets.iter().find_map(Packet::datagram).unwrap();
            assert_eq!(datagram, ([700, 800], &b"seen by all"[..]));
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        let packets = captures[0].between("10.91.0.1".parse().unwrap(), "10.91.0.2".parse().unwrap());
        write_pcap(file.path(), &packets[..1]).unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap().len(), 24 + 16 + packets[0].bytes.len());
    }
}
