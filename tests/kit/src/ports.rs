//! Ports for programs that cannot choose one themselves.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};

static NEXT: AtomicU16 = AtomicU16::new(0);

/// An address of 127.0.0.1 whose port is free for TCP and UDP.
///
/// It lies below the range from which the kernel takes ports for connections and for port 0, and test processes start their
/// search in different places, so that nobody takes it before the program binds it.
///
/// # Panics
/// When no port is free.
pub fn free() -> SocketAddr {
    let start = (std::process::id() % 2000) as u16 * 10;
    for _ in 0..20_000 {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 10_000 + (start + number % 20_000) % 20_000));
        if UdpSocket::bind(addr).is_ok() && TcpListener::bind(addr).is_ok() {
            return addr;
        }
    }
    panic!("no port of 127.0.0.1 is free");
}
