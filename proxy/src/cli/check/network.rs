//! What the sidecar listens on and what it leads to.

use std::io;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use qudag_filter_api::{Address, Host, HostPort, Resolve};
use qudag_filter_common::{ListenerSpec, connect};
use qudag_filter_dns::{Server, try_server};
use serde_json::Value;

use super::{Check, Running};
use crate::config::Config;
use crate::resolve::SystemResolver;

/// How long an upstream may take.
const TIMEOUT: Duration = Duration::from_secs(2);
const DATABASE: &str = "postgres";

/// Whether each address is held by the running sidecar or free.
pub(super) fn listeners(config: &Config, running: Option<&Running>) -> Vec<Check> {
    let listeners = &config.listeners;
    let mut wanted: Vec<(&str, String, Address)> = Vec::new();
    let mut add = |kind, binds: Option<Vec<(String, Address)>>| {
        wanted.extend(binds.into_iter().flatten().map(|(name, address)| (kind, name, address)));
    };
    add("dns", listeners.dns.as_ref().map(ListenerSpec::binds));
    add("peer", listeners.peer.as_ref().map(ListenerSpec::binds));
    add("rpc", listeners.rpc.as_ref().map(ListenerSpec::binds));
    add("http", listeners.http.as_ref().map(ListenerSpec::binds));
    add("db", listeners.postgres.as_ref().map(ListenerSpec::binds));
    add("redis", listeners.redis.as_ref().map(ListenerSpec::binds));
    add("crypto", listeners.crypto.as_ref().map(ListenerSpec::binds));
    add("admin", Some(vec![("admin".to_owned(), config.admin.bind.clone())]));
    wanted.into_iter().map(|(kind, name, address)| listener(kind, &name, &address, running)).collect()
}

fn listener(kind: &str, name: &str, address: &Address, running: Option<&Running>) -> Check {
    const GROUP: &str = "listeners";
    let label = if kind == name { kind.to_owned() } else { format!("{kind} {name}") };
    if let Some(held) = running.and_then(|running| held(running, kind, name)) {
        return Check::ok(GROUP, label, format!("{held} is the running sidecar's"));
    }
    match free(kind, address) {
        Ok(()) => Check::ok(GROUP, label, format!("{address} is free")),
        Err(why) => {
            let hint = match why.kind() {
                io::ErrorKind::AddrInUse => {
                    "another program listens there: choose another port, or 0 for a free one"
                }
                io::ErrorKind::PermissionDenied => {
                    "ports below 1024 need the capability CAP_NET_BIND_SERVICE"
                }
                io::ErrorKind::AddrNotAvailable => "this host has no such address",
                _ => "choose another address",
            };
            Check::failed(GROUP, label, format!("{address}: {why}")).hint(hint)
        }
    }
}

/// The real address, if the running sidecar has this listener. It has an admin API, or it would not have answered.
fn held(running: &Running, kind: &str, name: &str) -> Option<String> {
    if kind == "admin" {
        return Some(running.admin.clone());
    }
    let is =
        |listener: &&Value, key: &str, value: &str| listener.get(key).and_then(Value::as_str) == Some(value);
    let listeners = running.status.get("listeners")?.as_array()?;
    let found = listeners.iter().find(|listener| is(listener, "kind", kind) && is(listener, "name", name))?;
    found.get("addr")?.as_str().map(str::to_owned)
}

fn free(kind: &str, address: &Address) -> io::Result<()> {
    match address {
        Address::Tcp(HostPort { host: Host::Ip(ip), port }) => {
            drop(TcpListener::bind((*ip, *port))?);
            if kind == "dns" {
                drop(UdpSocket::bind((*ip, *port))?);
            }
            Ok(())
        }
        // Bound by its addresses, which a resolver gives at the start.
        Address::Tcp(HostPort { host: Host::Name(_), .. }) => Ok(()),
        Address::Unix(path) => match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
            Err(_) => match path.parent() {
                Some(folder) if !folder.as_os_str().is_empty() && !folder.is_dir() => {
                    Err(io::Error::new(io::ErrorKind::NotFound, format!("{} is no folder", folder.display())))
                }
                _ => Ok(()),
            },
        },
    }
}

/// Whether the node, the database and the peers answer; those of kinds that are served. `chosen` says that the user wrote the
/// configuration.
pub(super) async fn upstreams(config: &Config, chosen: bool, resolve: &SystemResolver) -> Vec<Check> {
    const GROUP: &str = "upstreams";
    let (listeners, node) = (&config.listeners, &config.node);
    let mut needed: Vec<(String, Address, &str)> = Vec::new();
    let start = "start the node, or correct its address under `node`";
    if listeners.peer.as_ref().is_some_and(|peer| !peer.inbound.is_empty()) {
        needed.push(("node p2p".to_owned(), Address::Tcp(node.p2p.clone()), start));
    }
    if listeners.rpc.is_some() {
        needed.push(("node rpc".to_owned(), node.rpc.clone(), start));
    }
    if listeners.http.is_some() {
        needed.push(("node http".to_owned(), Address::Tcp(node.http.clone()), start));
    }
    if let Some(postgres) = &listeners.postgres {
        let hint = "start the database, correct `listeners.postgres.server`, or leave the listener out";
        needed.push((DATABASE.to_owned(), postgres.server.clone(), hint));
    }
    if let Some(redis) = &listeners.redis {
        let hint = "start the server, correct `listeners.redis.server`, or leave the listener out";
        needed.push(("redis".to_owned(), redis.server.clone(), hint));
    }
    let mut checks = Vec::new();
    for (name, address, hint) in needed {
        checks.push(match connect(&address, resolve, TIMEOUT).await {
            Ok(_) => Check::ok(GROUP, name, format!("{address} accepts connections")),
            // The built-in defaults serve a database in case there is one.
            Err(why) if name == DATABASE && !chosen => Check::advice(GROUP, name, why.to_string()).hint(hint),
            Err(why) => Check::failed(GROUP, name, why.to_string()).hint(hint),
        });
    }
    // A peer that is away is no fault of this side.
    for peer in listeners.peer.iter().flat_map(|peer| &peer.outbound) {
        let (name, address) = (format!("peer {}", peer.to), Address::Tcp(peer.to.clone()));
        checks.push(match connect(&address, resolve, TIMEOUT).await {
            Ok(_) => Check::ok(GROUP, name, "accepts connections"),
            Err(why) => Check::advice(GROUP, name, why.to_string()).hint("is the peer's sidecar running?"),
        });
    }
    checks
}

/// Whether the DNS servers answer. One that does is enough.
pub(super) async fn names(config: &Config) -> Vec<Check> {
    const GROUP: &str = "name servers";
    if config.listeners.dns.is_none() {
        return Vec::new();
    }
    let upstream = &config.filters.dns.dns_upstream;
    let mut servers: Vec<Server> = upstream.named().map(|(_, _, server)| server.clone()).collect();
    if upstream.servers.is_empty() {
        let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        servers.splice(..0, name_servers(&text).map(Server::from));
    }
    let resolve: Arc<dyn Resolve> = Arc::new(SystemResolver::new());
    let mut answers = Vec::new();
    for server in servers {
        let asking = try_server(upstream, &server, Arc::clone(&resolve));
        let answered = tokio::time::timeout(TIMEOUT, asking).await;
        answers.push((server, answered.unwrap_or_else(|_| Err("no answer".to_owned()))));
    }
    if answers.is_empty() {
        return vec![
            Check::failed(GROUP, "any", "none is configured, and /etc/resolv.conf names none")
                .hint("name two under `filters.dns.dns_upstream.servers`"),
        ];
    }
    let one_answers = answers.iter().any(|(_, answer)| answer.is_ok());
    let check = |(server, answer): (Server, Result<Duration, String>)| match answer {
        Ok(took) => Check::ok(GROUP, server.to_string(), format!("answers in {} ms", took.as_millis())),
        Err(why) if one_answers => Check::advice(GROUP, server.to_string(), why),
        Err(why) => Check::failed(GROUP, server.to_string(), why)
            .hint("is there a network? others can be named under `filters.dns.dns_upstream.servers`"),
    };
    answers.into_iter().map(check).collect()
}

/// The addresses of the `nameserver` lines (resolv.conf(5)).
fn name_servers(text: &str) -> impl Iterator<Item = IpAddr> {
    text.lines().filter_map(|line| line.strip_prefix("nameserver")?.split_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::*;

    #[tokio::test]
    async fn a_name_server_that_replies_is_told_from_one_that_does_not() {
        let server = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address: Server = server.local_addr().unwrap().to_string().parse().unwrap();
        let replies = tokio::spawn(async move {
            let mut query = [0; 512];
            let (length, client) = server.recv_from(&mut query).await.unwrap();
            server.send_to(b"garbage", client).await.unwrap();
            // REFUSED is an answer: somebody is there.
            query[2] |= 0x80;
            query[3] = 5;
            server.send_to(&query[..length], client).await.unwrap();
        });
        let resolve: Arc<dyn Resolve> = Arc::new(SystemResolver::new());
        let settings = qudag_filter_dns::DnsUpstream::default();
        let ask = || tokio::time::timeout(TIMEOUT, try_server(&settings, &address, Arc::clone(&resolve)));
        ask().await.unwrap().unwrap();
        replies.await.unwrap();
        // Nobody is there any more: refused by ICMP.
        assert!(ask().await.unwrap().is_err());
    }

    #[test]
    fn the_name_servers_of_the_host_are_found() {
        let text = "# nameserver 1.1.1.1\nsearch x\nnameserver 192.0.2.1\nnameserver\t::1 \nnameserver fe80::1%eth0\nnameserver\n";
        let found: Vec<_> = name_servers(text).map(|ip| ip.to_string()).collect();
        assert_eq!(found, ["192.0.2.1", "::1"]);
    }

    #[test]
    fn a_listener_of_the_running_sidecar_is_ours_and_anothers_is_not() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::Tcp(taken.local_addr().unwrap().into());
        let status =
            serde_json::json!({"listeners": [{"kind": "rpc", "name": "rpc", "addr": address.to_string()}]});
        let running = Running { status, admin: "unix:/x".to_owned() };
        assert_eq!(listener("rpc", "rpc", &address, Some(&running)).outcome, Outcome::Ok);
        assert!(listener("admin", "admin", &address, Some(&running)).detail.starts_with("unix:/x "));
        assert_eq!(listener("rpc", "rpc", &address, None).outcome, Outcome::Failed);
        assert_eq!(listener("http", "http", &address, Some(&running)).outcome, Outcome::Failed);
        let unix = Address::Unix("/nonexistent/folder/socket".into());
        assert_eq!(listener("rpc", "rpc", &unix, None).outcome, Outcome::Failed);
    }
}
