//! A sidecar that does nothing but resolve names, and what it is asked.

use std::net::SocketAddr;

use qudag_kit::TestSidecar;
use qudag_kit::dns_wire::{Ask, Edns, rtype};

/// A sidecar with a cache in front of these servers, in this order, and its address for DNS.
pub async fn sidecar(servers: &[SocketAddr]) -> (TestSidecar, SocketAddr) {
    let servers: Vec<_> = servers.iter().map(|server| format!("\"{server}\"")).collect();
    let yaml = format!(
        "listeners: {{ dns: {{ bind: \"127.0.0.1:0\" }} }}\nfilters:\n  dns:\n    dns_cache: {{ enabled: true }}\n    \
         dns_upstream: {{ servers: [{}] }}\n",
        servers.join(", ")
    );
    let sidecar = TestSidecar::start(&yaml).await;
    let door = sidecar.listener("dns").await;
    (sidecar, door)
}

/// A question for the IPv4 addresses of a name, from a client with EDNS.
pub fn ask(name: &str) -> Ask {
    Ask::new(name, rtype::A).edns(Edns::size(1232))
}
