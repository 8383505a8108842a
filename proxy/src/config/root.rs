//! The typed root of the configuration. The documentation of each field is also the description in the schema.

use std::borrow::Cow;
use std::net::Ipv4Addr;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use qudag_filter_api::{Address, Host, HostPort, Period, Secret};
use qudag_filter_crypto::{CryptoFilters, CryptoListener};
use qudag_filter_db::redis::{RedisFilters, RedisListener};
use qudag_filter_db::{DbFilters, PostgresListener};
use qudag_filter_dns::{DnsFilters, DnsListener};
use qudag_filter_http::{HttpFilters, HttpListener};
use qudag_filter_peer::{PeerFilters, PeerListener};
use qudag_filter_rpc::{RpcFilters, RpcListener};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, Unexpected};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::bypass::BypassConfig;
use crate::telemetry::logs::LogFormat;
use crate::telemetry::{FlowLog, Flows};

/// The configuration of a sidecar.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The version of this format: 1.
    pub version: Version,
    /// The unmodified node next to the sidecar.
    pub node: NodeConfig,
    /// Where traffic is received. A kind without a listener is not served.
    pub listeners: Listeners,
    /// The filters of each kind of traffic, in the order in which they run.
    pub filters: Filters,
    /// The admin API. Changes take a restart.
    pub admin: AdminConfig,
    /// What switches filters besides this file.
    pub flags: FlagsConfig,
    /// The names that a bypass moves from the sidecar to the node itself, and how that is verified.
    pub bypass: BypassConfig,
    /// Logs.
    pub telemetry: TelemetryConfig,
    /// Threads and time limits of the process.
    pub runtime: RuntimeConfig,
}

/// The version of the format; there is one so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Version;

impl Version {
    /// The number.
    pub const NUMBER: u64 = 1;
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u64::deserialize(deserializer)? {
            Self::NUMBER => Ok(Self),
            other => Err(D::Error::invalid_value(Unexpected::Unsigned(other), &"version 1")),
        }
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(Self::NUMBER)
    }
}

impl JsonSchema for Version {
    fn schema_name() -> Cow<'static, str> {
        "Version".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"const": Self::NUMBER})
    }
}

/// The unmodified node next to the sidecar.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NodeConfig {
    /// Its name in logs and in the status.
    pub name: String,
    /// Its libp2p listener.
    pub p2p: HostPort,
    /// Its framed JSON RPC, over TCP or a Unix socket.
    pub rpc: Address,
    /// Its HTTP server.
    pub http: HostPort,
}

fn loopback(port: u16) -> HostPort {
    HostPort { host: Host::Ip(Ipv4Addr::LOCALHOST.into()), port }
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            name: "node".to_owned(),
            p2p: loopback(8000),
            rpc: Address::Tcp(loopback(9090)),
            http: loopback(8080),
        }
    }
}

/// Where traffic is received.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Listeners {
    /// DNS queries, over UDP and TCP.
    pub dns: Option<DnsListener>,
    /// Streams from and to peers.
    pub peer: Option<PeerListener>,
    /// Framed JSON RPC.
    pub rpc: Option<RpcListener>,
    /// HTTP/1.1 and HTTP/2.
    pub http: Option<HttpListener>,
    /// PostgreSQL sessions.
    pub postgres: Option<PostgresListener>,
    /// Redis and Valkey sessions.
    pub redis: Option<RedisListener>,
    /// Cryptography for programs on this machine.
    pub crypto: Option<CryptoListener>,
}

/// The filters of each kind of traffic.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Filters {
    /// The filters of DNS queries.
    pub dns: DnsFilters,
    /// The filters of streams from and to peers.
    pub peer: PeerFilters,
    /// The filters of RPC calls.
    pub rpc: RpcFilters,
    /// The filters of HTTP requests.
    pub http: HttpFilters,
    /// The filters of database sessions.
    pub db: DbFilters,
    /// The filters of Redis and Valkey sessions.
    pub redis: RedisFilters,
    /// The filters of cryptographic operations.
    pub crypto: CryptoFilters,
}

/// The admin API.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AdminConfig {
    /// Where it listens. Over a Unix socket the client's user decides what is allowed; over TCP its token does.
    pub bind: Address,
    /// The token that allows everything. Where it is left out on a loopback address, a new one is made at each start and kept in
    /// the state folder, where the command line finds it.
    pub token: Option<Secret>,
    /// A token that allows reading only.
    pub read_token: Option<Secret>,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self { bind: Address::Tcp(loopback(9901)), token: None, read_token: None }
    }
}

/// What switches filters besides this file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FlagsConfig {
    /// A file that switches filters off while it exists: all of them when it is empty or says `all`, else those that it names, one
    /// `NAME` or `KIND.NAME` a line.
    pub kill_file: Option<PathBuf>,
}

/// What the sidecar says about itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// The log.
    pub log: LogConfig,
    /// Which queries, calls, streams and sessions get a line in the log when they end.
    pub flows: FlowsConfig,
}

/// The log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// How a line looks. Changes take a restart.
    pub format: LogFormat,
    /// From which level on: `error`, `warn`, `info`, `debug` or `trace`, for parts of the program too: `info,flow=warn`.
    pub level: String,
    /// The file; standard error where it is left out. The signal USR1 opens it anew, for log rotation. Changes take a restart.
    pub file: Option<PathBuf>,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::default(), level: "info".to_owned(), file: None }
    }
}

/// Which flows of each kind of traffic get a line in the log when they end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FlowsConfig {
    /// DNS queries.
    pub dns: FlowLog,
    /// Streams from and to peers.
    pub peer: FlowLog,
    /// RPC calls.
    pub rpc: FlowLog,
    /// HTTP requests.
    pub http: FlowLog,
    /// Database sessions.
    pub db: FlowLog,
    /// Redis and Valkey sessions.
    pub redis: FlowLog,
    /// Requests for cryptographic operations.
    pub crypto: FlowLog,
}

impl Default for FlowsConfig {
    fn default() -> Self {
        let all = FlowLog::All;
        let errors = FlowLog::Errors;
        Self { dns: errors, peer: all, rpc: all, http: all, db: all, redis: all, crypto: errors }
    }
}

impl FlowsConfig {
    /// The choice for each kind of traffic.
    pub fn kinds(&self) -> [(&'static str, FlowLog); 7] {
        [
            ("dns", self.dns),
            ("peer", self.peer),
            ("rpc", self.rpc),
            ("http", self.http),
            ("db", self.db),
            ("redis", self.redis),
            ("crypto", self.crypto),
        ]
    }

    /// The same by name.
    pub fn table(&self) -> Flows {
        self.kinds().into_iter().map(|(kind, choice)| (kind.to_owned(), choice)).collect()
    }
}

/// Threads and time limits of the process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RuntimeConfig {
    /// How many threads carry traffic, and as many more at most that carry tunnels; one a processor where it is left out. Changes take a
    /// restart.
    pub workers: Option<NonZeroUsize>,
    /// How long work under way may take to end when the sidecar stops, or when a listener is removed.
    pub drain_timeout: Period,
    /// Whether a crash leaves the process's memory in a file or with the system's collector; passwords and keys are in it. Changes take a
    /// restart.
    pub core_dumps: bool,
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        Self { workers: None, drain_timeout: Period::secs(30), core_dumps: false }
    }
}
