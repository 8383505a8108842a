//! The edge: where queries come in, over UDP and TCP on one port.

mod answer;
mod datagram;
mod tcp;
mod udp;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use qudag_filter_api::{Address, BuildError, Chains, ConfigError, ConfigPath, Env, Host, HostPort, Period};
use qudag_filter_common::{Drain, Front, ListenerSpec, Socket, Terminal};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::local_zones::dark;
use crate::service;
use crate::upstream::own::{Listening, reaches};
use crate::upstream::{UpstreamState, terminal};
use crate::wire::{MIN_UDP, OWN_UDP};
use crate::{Dns, DnsFilters, DnsSettings};

use answer::Shared;
use udp::Group;

/// RFC 9715 section 3.2 (R3): no larger datagrams.
const MAX_UDP_REPLY: u16 = 1400;

/// Where DNS is answered, over UDP and TCP on one port, and what clients may use up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DnsListener {
    /// The address and port; port 0 takes a free one.
    pub bind: HostPort,
    /// How long a TCP connection may be idle, and how long a client may take to read a reply.
    pub tcp_idle: Period,
    /// How many TCP connections there may be.
    #[schemars(range(min = 1))]
    pub max_tcp_connections: u32,
    /// How many queries may be under way; those beyond are answered with SERVFAIL.
    #[schemars(range(min = 1))]
    pub max_in_flight: u32,
    /// The largest UDP reply in bytes, 512 to 1400. A larger reply is announced as truncated.
    #[schemars(range(min = 512, max = 1400))]
    pub max_udp_reply: u16,
}

impl Default for DnsListener {
    fn default() -> Self {
        Self {
            bind: SocketAddr::from(([127, 0, 0, 1], 5300)).into(),
            tcp_idle: Period::secs(10),
            max_tcp_connections: 256,
            max_in_flight: 16_384,
            max_udp_reply: OWN_UDP,
        }
    }
}

impl ListenerSpec for DnsListener {
    type Filters = DnsFilters;
    type Upstream = UpstreamState;

    fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        if !(MIN_UDP..=MAX_UDP_REPLY).contains(&self.max_udp_reply) {
            let hint = "512 to 1400; 1232 fits every path";
            errors.push(at.key("max_udp_reply").error("out of range").hint(hint));
        }
        if self.tcp_idle.0.is_zero() {
            let hint = "10s, for instance; RFC 7766 wants seconds";
            errors.push(at.key("tcp_idle").error("no time at all").hint(hint));
        }
        for (key, value) in
            [("max_tcp_connections", self.max_tcp_connections), ("max_in_flight", self.max_in_flight)]
        {
            if value == 0 {
                errors.push(at.key(key).error("nobody could be served").hint("1 or more"));
            }
        }
        errors
    }

    fn binds(&self) -> Vec<(String, Address)> {
        vec![("dns".to_owned(), Address::Tcp(self.bind.clone()))]
    }

    fn settings(&self, env: &Env) -> DnsSettings {
        let count = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
        DnsSettings {
            tcp_idle: self.tcp_idle.0,
            max_tcp_connections: count(self.max_tcp_connections),
            max_in_flight: count(self.max_in_flight),
            max_udp_reply: self.max_udp_reply.into(),
            service: service::zone(&env.service),
        }
    }

    fn terminal(
        &self,
        filters: &DnsFilters,
        _settings: &Arc<DnsSettings>,
        env: &Env,
        previous: Option<&Arc<UpstreamState>>,
    ) -> Result<Terminal<Self>, BuildError> {
        let upstream = filters.dns_upstream.clone();
        if let Some(bind) = self.bind.socket_addr().filter(|bind| bind.port() != 0) {
            let own = |addr: &SocketAddr| reaches(*addr, bind);
            let ours = upstream
                .named()
                .find_map(|(list, _, server)| Some((list, server.address().socket_addr().filter(own)?)));
            if let Some((list, own)) = ours {
                let why = format!("{own} is where the sidecar itself listens; it would ask itself for ever");
                return Err(BuildError::new(format!("filters.dns.dns_upstream.{list}"), why));
            }
        }
        let state = previous.cloned().unwrap_or_default();
        let servers = terminal(upstream, Arc::clone(&state), Arc::clone(&env.resolve))?;
        Ok((dark::guard(servers), state))
    }

    fn bind(
        _name: String,
        address: Address,
        chains: Chains<Dns>,
        env: Env,
    ) -> BoxFuture<'static, io::Result<Box<dyn Front>>> {
        Box::pin(async move {
            let Address::Tcp(address) = address else {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "DNS needs an address and a port"));
            };
            let (udp, tcp, addr) = sockets(&address, &env).await?;
            let front =
                DnsFront { udp, tcp, addr, listening: Listening::at(addr), shared: Shared::new(chains) };
            Ok(Box::new(front) as Box<dyn Front>)
        })
    }
}

/// Both sockets on one port.
async fn sockets(address: &HostPort, env: &Env) -> io::Result<(Group, Socket, SocketAddr)> {
    let ips = match &address.host {
        Host::Ip(ip) => vec![*ip],
        Host::Name(name) => env.resolve.resolve(name).await?,
    };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for ip in ips {
        // With port 0 the port that is free for TCP may be taken for UDP.
        for _ in 0..16 {
            let named = |what: &str, why: io::Error| io::Error::new(why.kind(), format!("{what}: {why}"));
            // TCP first: its port is nobody else's, whereas UDP sockets share theirs with those of another sidecar.
            let wanted = Address::Tcp(SocketAddr::new(ip, address.port).into());
            let tcp = match Socket::bind(&wanted, env.resolve.as_ref()).await {
                Ok(tcp) => tcp,
                Err(why) => {
                    last = named("TCP", why);
                    break;
                }
            };
            let Address::Tcp(addr) = tcp.address() else { break };
            let Some(addr) = addr.socket_addr() else { break };
            match Group::bind(addr) {
                Ok(udp) => return Ok((udp, tcp, addr)),
                Err(why) => last = named("UDP", why),
            }
            if address.port != 0 || last.kind() != io::ErrorKind::AddrInUse {
                break;
            }
        }
    }
    Err(last)
}

struct DnsFront {
    udp: Group,
    tcp: Socket,
    addr: SocketAddr,
    listening: Listening,
    shared: Arc<Shared>,
}

impl Front for DnsFront {
    fn address(&self) -> Address {
        Address::Tcp(self.addr.into())
    }

    fn serve(self: Box<Self>, drain: Drain) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let Self { udp, tcp, listening, shared, .. } = *self;
            let connections = {
                let (shared, drain) = (Arc::clone(&shared), drain.clone());
                tcp.serve(drain.clone(), move |stream| {
                    tcp::connection(stream, Arc::clone(&shared), drain.clone())
                })
            };
            tokio::join!(udp.serve(shared, drain), connections);
            drop(listening);
        })
    }
}
