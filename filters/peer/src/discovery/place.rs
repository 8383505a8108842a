//! Where the local node hears what is announced, and nobody else does.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use super::mdns::PORT;

/// The group of multicast DNS.
const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);

/// Where announcements go, and from which address. libp2p takes the address from which an announcement comes for the one to dial, whatever
/// the announcement says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The address that the node dials.
    pub(super) source: Ipv4Addr,
    to: To,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    /// Everybody on this host: the group, on the loopback interface. Its packets never leave the host, and every socket on
    /// the port hears them: more than one program may have it.
    Host,
    /// The host of the node, on the same link, and nobody else there.
    Node(Ipv4Addr),
}

/// Whether an address is one of this host.
fn is_here(ip: IpAddr) -> bool {
    ip.is_loopback() || std::net::UdpSocket::bind((ip, 0)).is_ok()
}

/// The address that this host has towards another one.
fn towards(node: Ipv4Addr) -> Option<Ipv4Addr> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // Sends nothing.
    socket.connect((node, PORT)).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    }
}

impl Place {
    /// For a listener at `listen` and a node at `node`.
    ///
    /// # Errors
    /// Why the node cannot be told.
    pub(super) fn find(listen: SocketAddr, node: IpAddr) -> Result<Self, &'static str> {
        let listen = match listen.ip().to_canonical() {
            IpAddr::V4(ip) => ip,
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv4Addr::UNSPECIFIED,
            IpAddr::V6(_) => {
                return Err("nodes discover over IPv4 only, and the listener has an address of IPv6");
            }
        };
        let node = node.to_canonical();
        if is_here(node) {
            let source = if listen.is_unspecified() { Ipv4Addr::LOCALHOST } else { listen };
            return Ok(Self { source, to: To::Host });
        }
        let IpAddr::V4(node) = node else {
            return Err("nodes discover over IPv4 only, and the node has an address of IPv6");
        };
        if listen.is_loopback() {
            return Err("the listener is on loopback, where a node on another host does not reach it");
        }
        let source = if listen.is_unspecified() {
            towards(node).ok_or("there is no way to the node")?
        } else {
            listen
        };
        Ok(Self { source, to: To::Node(node) })
    }

    /// Sends messages.
    pub(super) fn send(&self, messages: &[Vec<u8>]) -> io::Result<()> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.bind(&SocketAddrV4::new(self.source, 0).into())?;
        let to = match self.to {
            To::Host => {
                // The kernel delivers to a group on an interface where somebody is a member of it.
                socket.join_multicast_v4(&GROUP, &Ipv4Addr::LOCALHOST)?;
                socket.set_multicast_if_v4(&Ipv4Addr::LOCALHOST)?;
                socket.set_multicast_ttl_v4(0)?;
                GROUP
            }
            To::Node(node) => {
                socket.set_ttl_v4(1)?;
                node
            }
        };
        for message in messages {
            socket.send_to(message, &SocketAddrV4::new(to, PORT).into())?;
        }
        Ok(())
    }

    /// A socket that hears what the node asks. It shares the port with other programs, and takes from them nothing that is sent to one of them
    /// alone, since it is bound to the group.
    pub(super) fn listen(&self) -> io::Result<UdpSocket> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SocketAddrV4::new(GROUP, PORT).into())?;
        let interface = match self.to {
            // What the node sends elsewhere is heard as well: it is a member of the group there, and membership is the host's.
            To::Host => Ipv4Addr::LOCALHOST,
            To::Node(node) => towards(node).unwrap_or(self.source),
        };
        socket.join_multicast_v4(&GROUP, &interface)?;
        UdpSocket::from_std(socket.into())
    }

    /// Whether the same socket hears what is asked at both.
    pub(super) fn hears_as(&self, other: &Self) -> bool {
        self.to == other.to
    }

    /// Whether a question from `from` may be the node's.
    pub(super) fn is_from_node(&self, from: IpAddr) -> bool {
        match self.to {
            To::Host => is_here(from),
            To::Node(node) => from == node,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(listen: &str, node: &str) -> Result<Place, &'static str> {
        Place::find(listen.parse().unwrap(), node.parse().unwrap())
    }

    #[test]
    fn a_node_on_this_host_is_told_on_loopback() {
        let here = |source: &str| Ok(Place { source: source.parse().unwrap(), to: To::Host });
        assert_eq!(find("127.0.0.1:1", "127.0.0.1"), here("127.0.0.1"));
        assert_eq!(find("127.0.0.7:1", "::1"), here("127.0.0.7"));
        assert_eq!(find("0.0.0.0:1", "127.0.0.1"), here("127.0.0.1"));
        assert_eq!(find("[::]:1", "::ffff:127.0.0.1"), here("127.0.0.1"));
        assert!(find("[::1]:1", "127.0.0.1").is_err());
    }

    #[test]
    fn a_node_elsewhere_is_told_alone() {
        let node = "192.0.2.1";
        assert_eq!(
            find("198.51.100.1:1", node),
            Ok(Place { source: "198.51.100.1".parse().unwrap(), to: To::Node(node.parse().unwrap()) })
        );
        assert!(find("127.0.0.1:1", node).is_err());
        assert!(find("198.51.100.1:1", "2001:db8::1").is_err());
    }

    #[tokio::test]
    async fn what_is_sent_on_this_host_is_heard_on_it() {
        let place = find("127.0.0.1:1", "127.0.0.1").unwrap();
        let socket = place.listen().unwrap();
        let message = fastrand::u128(..).to_be_bytes().to_vec();
        place.send(std::slice::from_ref(&message)).unwrap();
        let mut heard = vec![0; 9000];
        // Other tests, and other programs of this host, may be heard as well.
        let ours = async {
            loop {
                let (length, from) = socket.recv_from(&mut heard).await.unwrap();
                if heard[..length] == message[..] {
                    return from;
                }
            }
        };
        let from = tokio::time::timeout(std::time::Duration::from_secs(10), ours).await.unwrap();
        assert_eq!(from.ip(), Ipv4Addr::LOCALHOST);
        assert!(place.is_from_node(from.ip()) && !place.is_from_node("192.0.2.1".parse().unwrap()));
    }
}
