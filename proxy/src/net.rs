//! Addresses of other programs.

use std::io;
use std::net::SocketAddr;

use qudag_filter_api::{Host, HostPort, Resolve};

/// The addresses of a host and port, names resolved.
///
/// # Errors
/// When the name cannot be resolved.
pub async fn socket_addrs(address: &HostPort, resolve: &dyn Resolve) -> io::Result<Vec<SocketAddr>> {
    let ips = match &address.host {
        Host::Ip(ip) => vec![*ip],
        Host::Name(name) => resolve.resolve(name).await?,
    };
    Ok(ips.into_iter().map(|ip| SocketAddr::new(ip, address.port)).collect())
}
