//! Where this process itself answers DNS, so that it does not ask itself.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{PoisonError, RwLock};

use qudag_filter_common::canonical;

static LISTENING: RwLock<Vec<SocketAddr>> = RwLock::new(Vec::new());

/// An address of ours, until it is dropped.
#[derive(Debug)]
pub(crate) struct Listening(SocketAddr);

impl Listening {
    /// Remembers where a listener really is.
    pub(crate) fn at(addr: SocketAddr) -> Self {
        let addr = canonical(addr);
        LISTENING.write().unwrap_or_else(PoisonError::into_inner).push(addr);
        Self(addr)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let mut listening = LISTENING.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = listening.iter().position(|addr| *addr == self.0) {
            listening.swap_remove(at);
        }
    }
}

/// Whether a query to this address would come back to us.
pub(crate) fn is_own(addr: SocketAddr) -> bool {
    let listening = LISTENING.read().unwrap_or_else(PoisonError::into_inner);
    listening.iter().any(|own| reaches(addr, *own))
}

/// Whether a datagram to `addr` is received by a socket that is bound to `bound`.
pub(crate) fn reaches(addr: SocketAddr, bound: SocketAddr) -> bool {
    let (addr, bound) = (canonical(addr), canonical(bound));
    if addr.port() != bound.port() {
        return false;
    }
    // A socket that is bound to all IPv6 addresses takes IPv4 as well; the reverse is not so.
    let all = bound.ip().is_unspecified() && (bound.is_ipv6() || addr.is_ipv4());
    addr.ip() == bound.ip() || all && is_local(addr.ip())
}

/// Whether an address is one of this host's: only those can be bound.
fn is_local(ip: IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified() || UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_addresses_are_known_while_we_listen_there() {
        let addr = |text: &str| text.parse::<SocketAddr>().unwrap();
        let listening = Listening::at(addr("127.0.0.1:1053"));
        assert!(is_own(addr("127.0.0.1:1053")) && is_own(addr("[::ffff:127.0.0.1]:1053")));
        assert!(!is_own(addr("127.0.0.2:1053")) && !is_own(addr("127.0.0.1:1054")));
        drop(listening);
        assert!(!is_own(addr("127.0.0.1:1053")));
    }

    #[test]
    fn a_socket_on_all_addresses_is_reached_on_every_local_one() {
        let reaches = |to: &str, bound: &str| reaches(to.parse().unwrap(), bound.parse().unwrap());
        assert!(reaches("127.0.0.9:53", "0.0.0.0:53"));
        assert!(reaches("127.0.0.9:53", "[::]:53"));
        assert!(reaches("[::1]:53", "[::]:53"));
        assert!(!reaches("[::1]:53", "0.0.0.0:53"));
        // A documentation address, which no host has.
        assert!(!reaches("192.0.2.1:53", "0.0.0.0:53"));
        assert!(!reaches("127.0.0.1:53", "0.0.0.0:54"));
    }
}
