//! One sidecar in front of Unbound, a TCP echo peer, the real RPC server, the malformed HTTP node, and PostgreSQL where
//! it is asked for.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

use qudag_kit::node::Host;
use qudag_kit::rpc::Server;
use qudag_kit::{EchoPeer, HostedNode, HttpNode, Postgres, TestSidecar, Unbound};
use tempfile::TempDir;

/// What Unbound knows. `pinned.test.` is in the hosts file too, with the address 192.0.2.50.
pub const RECORDS: &[&str] = &[
    "a.test. 60 IN A 192.0.2.1",
    "two.test. 60 IN A 192.0.2.2",
    "two.test. 60 IN A 192.0.2.3",
    "six.test. 60 IN AAAA 2001:db8::1",
    "mail.test. 60 IN MX 10 a.test.",
    "text.test. 60 IN TXT \"some words\"",
    "kept.test. 300 IN A 192.0.2.77",
    "short.test. 1 IN A 192.0.2.4",
    "pinned.test. 60 IN A 192.0.2.99",
];

/// Every filter that is in nobody's way, by its full name.
pub const FILTERS: &[&str] = &[
    "dns.hosts",
    "dns.local_zones",
    "dns.rate_limit",
    "dns.dns_cache",
    "dns.dns_shared_cache",
    "peer.peer_discovery",
    "peer.route_table",
    "peer.circuit_breaker",
    "peer.memory_pooling",
    "peer.retry",
    "rpc.rate_limit",
    "rpc.circuit_breaker",
    "rpc.retry",
    "http.rate_limit",
    "http.mcp_crypto",
    "http.circuit_breaker",
    "http.retry",
    "http.connection_pooling",
    "db.rate_limit",
    "db.circuit_breaker",
];

/// Which filters the configuration switches on, and settings that a test varies.
#[derive(Clone, Debug, Default)]
pub struct Filters {
    on: Vec<&'static str>,
    max_ttl: Option<u32>,
    extra: String,
}

impl Filters {
    /// All off.
    pub fn none() -> Self {
        Self::default()
    }

    /// All on.
    pub fn all() -> Self {
        Self { on: FILTERS.to_vec(), ..Self::default() }
    }

    /// These on.
    pub fn only(on: &[&'static str]) -> Self {
        Self { on: on.to_vec(), ..Self::default() }
    }

    /// With another `max_ttl` of the DNS cache, in seconds.
    #[must_use]
    pub fn max_ttl(mut self, seconds: u32) -> Self {
        self.max_ttl = Some(seconds);
        self
    }

    /// With more lines at the end of the configuration.
    #[must_use]
    pub fn and(mut self, yaml: &str) -> Self {
        self.extra.push_str(yaml);
        self.extra.push('\n');
        self
    }
}

/// The programs behind the sidecar, and where the sidecar's configuration finds them.
pub struct World {
    /// The name server.
    pub unbound: Unbound,
    /// The peer behind both peer listeners.
    pub peer: EchoPeer,
    /// The node with the RPC server.
    pub node: HostedNode,
    /// The HTTP server.
    pub http: HttpNode,
    /// The database, where there is one.
    pub postgres: Option<Postgres>,
    dir: TempDir,
}

impl World {
    /// Starts the programs, without a database.
    pub async fn start() -> Self {
        Self::build(None).await
    }

    /// Starts the programs, with a database.
    pub async fn with_postgres() -> Self {
        Self::build(Some(Postgres::start().await)).await
    }

    async fn build(postgres: Option<Postgres>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("hosts"), "192.0.2.50 pinned.test\n").unwrap();
        let rpc_unix = dir.path().join("rpc.sock");
        let host = Host { rpc_unix: Some(&rpc_unix), rpc_tcp: Some(0), ..Host::default() };
        Self {
            unbound: Unbound::start(RECORDS).await,
            peer: EchoPeer::start().await,
            node: HostedNode::start(&host).await,
            http: HttpNode::start().await,
            postgres,
            dir,
        }
    }

    /// The Unix socket of the RPC server, which has no limit of calls a minute.
    pub fn rpc_unix(&self) -> PathBuf {
        self.dir.path().join("rpc.sock")
    }

    /// The RPC server without the sidecar.
    pub fn rpc_direct(&self) -> Server {
        Server::Unix(self.rpc_unix())
    }

    /// The hosts file.
    pub fn hosts(&self) -> PathBuf {
        self.dir.path().join("hosts")
    }

    /// A configuration with a listener of each kind.
    pub fn yaml(&self, filters: &Filters) -> String {
        let mut yaml = format!(
            "version: 1\nnode:\n  name: node-a\n  p2p: \"{peer}\"\n  rpc: \"unix:{rpc}\"\n  http: \"{http}\"\n\
             listeners:\n  dns: {{ bind: \"127.0.0.1:0\" }}\n  peer:\n    outbound:\n      - {{ name: echo, bind: \
             \"127.0.0.1:0\", to: \"{peer}\" }}\n    inbound: [\"127.0.0.1:0\"]\n  rpc: {{ bind: \"127.0.0.1:0\" \
             }}\n  http: {{ bind: \"127.0.0.1:0\" }}\n",
            peer = self.peer.addr(),
            rpc = self.rpc_unix().display(),
            http = self.http.addr(),
        );
        if let Some(postgres) = &self.postgres {
            let server = postgres.addr();
            writeln!(yaml, "  postgres: {{ bind: \"127.0.0.1:0\", server: \"{server}\" }}").unwrap();
        }
        yaml.push_str("filters:\n");
        for kind in ["dns", "peer", "rpc", "http", "db"] {
            writeln!(yaml, "  {kind}:").unwrap();
            for filter in FILTERS.iter().filter(|name| name.starts_with(&format!("{kind}."))) {
                let name = filter.split_once('.').unwrap().1;
                let enabled = filters.on.contains(filter);
                let settings = self.settings(filter, filters);
                writeln!(yaml, "    {name}: {{ enabled: {enabled}{settings} }}").unwrap();
            }
            if kind == "dns" {
                let server = self.unbound.addr();
                // Queries are counted: on a busy machine none is to be sent twice because the answer takes its time.
                let hedge = "hedge: { min: 1s, max: 1s }, attempt_timeout: 1s";
                writeln!(yaml, "    dns_upstream: {{ servers: [\"{server}\"], {hedge} }}").unwrap();
            }
        }
        yaml.push_str(&filters.extra);
        yaml
    }

    fn settings(&self, filter: &str, filters: &Filters) -> String {
        match filter {
            "dns.hosts" => format!(", file: \"{}\"", self.hosts().display()),
            "dns.local_zones" => {
                ", zones: [{ zone: local.test, records: [\"a 60 A 192.0.2.60\"] }]".to_owned()
            }
            // Where nobody listens: the filter must not be in anybody's way.
            "dns.dns_shared_cache" => {
                format!(", url: \"unix:{}\"", self.hosts().with_file_name("no.sock").display())
            }
            "dns.dns_cache" => filters.max_ttl.map_or(String::new(), |ttl| format!(", max_ttl: {ttl}s")),
            // Wide enough for every load that the tests make: what is tested is that the filter lets it pass.
            _ if filter.ends_with(".rate_limit") => {
                ", per_client: { rate: 1000000, burst: 1000000 }".to_owned()
            }
            _ => String::new(),
        }
    }

    /// A sidecar in front of everything.
    pub async fn sidecar(&self, filters: &Filters) -> TestSidecar {
        TestSidecar::start(&self.yaml(filters)).await
    }
}

/// Where a sidecar listens.
#[derive(Clone, Copy, Debug)]
pub struct Doors {
    /// DNS, UDP and TCP.
    pub dns: SocketAddr,
    /// The outbound peer listener.
    pub outbound: SocketAddr,
    /// The inbound peer listener.
    pub inbound: SocketAddr,
    /// RPC.
    pub rpc: SocketAddr,
    /// HTTP.
    pub http: SocketAddr,
}

impl Doors {
    /// The real addresses of a sidecar of [`World::sidecar`].
    ///
    /// # Panics
    /// When a listener is missing.
    pub async fn of(sidecar: &TestSidecar) -> Self {
        let status = sidecar.status().await;
        let all = |kind: &str| -> Vec<(String, SocketAddr)> {
            let listeners = status["listeners"].as_array().unwrap().iter();
            let found = listeners.filter(|listener| listener["kind"] == kind);
            let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
            found.map(|it| (text(&it["name"]), text(&it["addr"]).parse().unwrap())).collect()
        };
        let one = |kind: &str| all(kind).first().unwrap_or_else(|| panic!("no {kind} in {status:#}")).1;
        let peers = all("peer");
        let is_echo = |(name, _): &&(String, SocketAddr)| name.contains("echo");
        let outbound = peers.iter().find(is_echo).unwrap_or_else(|| panic!("no outbound in {peers:?}")).1;
        let inbound =
            peers.iter().find(|peer| !is_echo(peer)).unwrap_or_else(|| panic!("no inbound: {peers:?}")).1;
        Self { dns: one("dns"), outbound, inbound, rpc: one("rpc"), http: one("http") }
    }
}
