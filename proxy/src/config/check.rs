//! What is wrong with a configuration as a whole: what no part can see alone.

use std::net::IpAddr;

use qudag_filter_api::{Address, ChainSpec, ConfigError, ConfigPath, Host, HostPort};
use qudag_filter_common::ListenerSpec;
use serde::Serialize;

use super::root::Config;

/// The most threads that make sense anywhere.
const MOST_WORKERS: usize = 1024;

/// Every problem of every part, and those between the parts.
pub(super) fn check(config: &Config) -> Vec<ConfigError> {
    let mut errors = Vec::new();
    let root = ConfigPath::root();
    let (listeners, filters) = (root.key("listeners"), root.key("filters"));
    let mut bound = Vec::new();
    {
        let mut listener = |key, part: Option<Part>| {
            if let Some(part) = part {
                errors.extend(part.errors);
                bound.extend(part.bound.into_iter().map(|(at, address)| (key, at, address)));
            }
        };
        let all = &config.listeners;
        listener("dns", all.dns.as_ref().map(|part| Part::of(part, &listeners.key("dns"))));
        listener("peer", all.peer.as_ref().map(|part| Part::of(part, &listeners.key("peer"))));
        listener("rpc", all.rpc.as_ref().map(|part| Part::of(part, &listeners.key("rpc"))));
        listener("http", all.http.as_ref().map(|part| Part::of(part, &listeners.key("http"))));
        listener("postgres", all.postgres.as_ref().map(|part| Part::of(part, &listeners.key("postgres"))));
        listener("redis", all.redis.as_ref().map(|part| Part::of(part, &listeners.key("redis"))));
        listener("crypto", all.crypto.as_ref().map(|part| Part::of(part, &listeners.key("crypto"))));
    }
    errors.extend(config.filters.dns.check(&filters.key("dns")));
    errors.extend(config.filters.peer.check(&filters.key("peer")));
    errors.extend(config.filters.rpc.check(&filters.key("rpc")));
    errors.extend(config.filters.http.check(&filters.key("http")));
    errors.extend(config.filters.db.check(&filters.key("db")));
    errors.extend(config.filters.redis.check(&filters.key("redis")));
    errors.extend(config.filters.crypto.check(&filters.key("crypto")));
    errors.extend(node(config));
    errors.extend(own(config));
    errors.extend(super::bypass::check(config));
    errors.extend(crate::redirect::check(config));
    errors.extend(loops(config));
    errors.extend(addresses(config, bound));
    errors
}

/// What a listener's settings say.
struct Part {
    errors: Vec<ConfigError>,
    bound: Vec<(ConfigPath, Address)>,
}

impl Part {
    fn of<L: ListenerSpec>(settings: &L, at: &ConfigPath) -> Self {
        let place = |address: &Address| place_of(settings, &address.to_string(), at);
        let bound = settings.binds().into_iter().map(|(_, address)| (place(&address), address)).collect();
        Self { errors: settings.check(at), bound }
    }
}

/// The key of some settings whose value is `text`; `at` itself if there is none.
fn place_of(settings: &impl Serialize, text: &str, at: &ConfigPath) -> ConfigPath {
    fn find(value: &serde_json::Value, text: &str, at: &ConfigPath) -> Option<ConfigPath> {
        match value {
            serde_json::Value::String(found) => (found == text).then(|| at.clone()),
            serde_json::Value::Array(items) => {
                items.iter().enumerate().find_map(|(index, item)| find(item, text, &at.index(index)))
            }
            // `bind` before whatever may have the same value.
            serde_json::Value::Object(map) => map
                .get("bind")
                .and_then(|value| find(value, text, &at.key("bind")))
                .or_else(|| map.iter().find_map(|(key, value)| find(value, text, &at.key(key)))),
            _ => None,
        }
    }
    let found = serde_json::to_value(settings).ok().and_then(|value| find(&value, text, at));
    found.unwrap_or_else(|| at.clone())
}

/// Upstreams that lead back to the listener.
fn loops(config: &Config) -> Vec<ConfigError> {
    let root = ConfigPath::root();
    let mut errors = Vec::new();
    let own = |at: ConfigPath, to: &dyn std::fmt::Display, listener: &str| {
        at.error(format!("{to} is {listener}: the sidecar would ask itself")).hint("name another server")
    };
    if let Some(listener) = &config.listeners.dns {
        let at = root.key("filters").key("dns").key("dns_upstream");
        for (list, index, server) in config.filters.dns.dns_upstream.named() {
            let address = Address::Tcp(server.address().clone());
            if listener.binds().iter().any(|(_, bind)| overlap(bind, &address)) {
                errors.push(own(at.key(list).index(index), server, "listeners.dns"));
            }
        }
    }
    if let Some(listener) = &config.listeners.postgres
        && listener.bind != listener.server
        && overlap(&listener.bind, &listener.server)
    {
        let at = root.key("listeners").key("postgres").key("server");
        errors.push(own(at, &listener.server, "listeners.postgres.bind"));
    }
    if let Some(listener) = &config.listeners.redis
        && listener.bind != listener.server
        && overlap(&listener.bind, &listener.server)
    {
        let at = root.key("listeners").key("redis").key("server");
        errors.push(own(at, &listener.server, "listeners.redis.bind"));
    }
    if let Some(listener) = &config.listeners.postgres
        && config.filters.db.db_pool.enabled
        && !listener.auth.knows_users()
    {
        let at = root.key("listeners").key("postgres").key("auth");
        let error = at.error("with `filters.db.db_pool` the sidecar lets clients in, and knows no users");
        errors.push(error.hint(
            "`users`, a file as PgBouncer's auth_file; `query_user`, to ask the server; or `method: trust`",
        ));
    }
    let replicas = &config.filters.db.read_replicas;
    if replicas.enabled && replicas.settings.servers.is_empty() {
        let at = root.key("filters").key("db").key("read_replicas").key("servers");
        errors.push(at.error("no server").hint("the replicas' addresses, or `enabled: false`"));
    }
    let cache = &config.filters.db.db_query_cache;
    if cache.enabled && cache.settings.rules.is_empty() {
        let at = root.key("filters").key("db").key("db_query_cache").key("rules");
        errors.push(at.error("no rule").hint("the queries to keep, or `enabled: false`"));
    }
    errors
}

fn node(config: &Config) -> Vec<ConfigError> {
    let at = ConfigPath::root().key("node");
    let mut errors = Vec::new();
    let name = &config.node.name;
    if name.is_empty() || name.len() > 64 || name.chars().any(char::is_control) {
        errors.push(at.key("name").error("not a name").hint("1 to 64 characters"));
    }
    let tcp = Address::Tcp;
    let (p2p, http) = (tcp(config.node.p2p.clone()), tcp(config.node.http.clone()));
    for (key, address) in [("p2p", &p2p), ("rpc", &config.node.rpc), ("http", &http)] {
        if matches!(address, Address::Tcp(HostPort { port: 0, .. })) {
            errors.push(
                at.key(key).error("port 0 cannot be dialled").hint("the port on which the node listens"),
            );
        }
    }
    errors
}

/// The root's own settings.
fn own(config: &Config) -> Vec<ConfigError> {
    let root = ConfigPath::root();
    let mut errors = Vec::new();
    let admin = &config.admin;
    if let Address::Tcp(bind) = &admin.bind
        && admin.token.is_none()
        && !is_loopback(&bind.host)
    {
        errors.push(
            root.key("admin")
                .key("bind")
                .error(format!("{bind} can be reached from other hosts, but there is no `admin.token`"))
                .hint("add `token: { file: PATH }`, or bind 127.0.0.1 or unix:PATH"),
        );
    }
    let level = &config.telemetry.log.level;
    if !level.split(',').all(is_directive) {
        errors.push(
            root.key("telemetry")
                .key("log")
                .key("level")
                .error(format!("{level:?} is not a level"))
                .hint("error, warn, info, debug or trace, and for parts: `info,flow=warn`"),
        );
    }
    let runtime = root.key("runtime");
    if config.runtime.workers.is_some_and(|workers| workers.get() > MOST_WORKERS) {
        errors.push(
            runtime
                .key("workers")
                .error(format!("more than {MOST_WORKERS} threads"))
                .hint("leave it out for one thread a processor"),
        );
    }
    if config.runtime.drain_timeout.0 > std::time::Duration::from_secs(3600) {
        errors.push(runtime.key("drain_timeout").error("longer than 1h").hint("30s, for instance"));
    }
    for (key, path) in
        [("telemetry.log.file", &config.telemetry.log.file), ("flags.kill_file", &config.flags.kill_file)]
    {
        if path.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            let at = key.split('.').fold(root.clone(), |at, key| at.key(key));
            errors.push(at.error("an empty path").hint("give a path or remove the key"));
        }
    }
    errors
}

/// Addresses that cannot be bound together, and upstreams that lead back.
fn addresses(config: &Config, bound: Vec<(&'static str, ConfigPath, Address)>) -> Vec<ConfigError> {
    let mut errors = Vec::new();
    let node = [
        ("node.p2p", Address::Tcp(config.node.p2p.clone())),
        ("node.rpc", config.node.rpc.clone()),
        ("node.http", Address::Tcp(config.node.http.clone())),
    ];
    let admin_at = ConfigPath::root().key("admin").key("bind");
    let all: Vec<_> =
        bound.into_iter().chain(std::iter::once(("admin", admin_at, config.admin.bind.clone()))).collect();
    for (index, (kind, at, address)) in all.iter().enumerate() {
        // Within a kind, its own check has looked.
        let earlier =
            all.iter().take(index).find(|(other, _, taken)| other != kind && overlap(taken, address));
        if let Some((_, first, taken)) = earlier {
            errors.push(
                at.error(format!("{address} is taken: {first} is {taken}"))
                    .hint("choose another port or address"),
            );
        }
        if let Some((key, taken)) = node.iter().find(|(_, taken)| overlap(taken, address)) {
            let hint = "the sidecar needs an address of its own; clients use it instead of the node's";
            errors
                .push(at.error(format!("{address} is where the node listens: {key} is {taken}")).hint(hint));
        }
    }
    errors
}

/// `LEVEL` or `TARGET=LEVEL`. A filter would take any other word for a target, and so hide a misspelt level.
fn is_directive(directive: &str) -> bool {
    let (target, level) = directive.split_once('=').unwrap_or(("all", directive));
    let path = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b':';
    let levels = ["off", "error", "warn", "info", "debug", "trace"];
    !target.is_empty() && target.bytes().all(path) && levels.contains(&level)
}

fn is_loopback(host: &Host) -> bool {
    match host {
        Host::Ip(ip) => ip.to_canonical().is_loopback(),
        Host::Name(name) => name == "localhost",
    }
}

/// Whether two addresses cannot both be bound on one host, or one is reached through the other.
fn overlap(a: &Address, b: &Address) -> bool {
    match (a, b) {
        (Address::Unix(a), Address::Unix(b)) => a == b,
        (Address::Tcp(a), Address::Tcp(b)) => a.port != 0 && a.port == b.port && same_host(&a.host, &b.host),
        _ => false,
    }
}

fn same_host(a: &Host, b: &Host) -> bool {
    // What is bound to every address takes the port from each local one; an address of another host is not known
    // to be one, so only loopback counts.
    let everywhere = |ip: &IpAddr| ip.is_unspecified();
    let local = |host: &Host| is_loopback(host) || matches!(host, Host::Ip(ip) if everywhere(ip));
    match (a, b) {
        (Host::Ip(a), Host::Ip(b)) if a.to_canonical() == b.to_canonical() => true,
        (Host::Ip(ip), other) | (other, Host::Ip(ip)) if everywhere(ip) => local(other),
        (Host::Name(a), Host::Name(b)) => a == b,
        (Host::Name(name), Host::Ip(ip)) | (Host::Ip(ip), Host::Name(name)) => {
            name == "localhost" && ip.to_canonical().is_loopback()
        }
        _ => false,
    }
}

/// The fields that differ although only a restart can change them.
pub fn restart_only_changes(old: &Config, new: &Config) -> Vec<ConfigError> {
    let mut errors = Vec::new();
    let mut fixed = |path: &str, same: bool| {
        if !same {
            let at = path.split('.').fold(ConfigPath::root(), |at, key| at.key(key));
            let hint = "restart the sidecar, or put the old value back";
            errors.push(at.error("cannot be changed while the sidecar runs").hint(hint));
        }
    };
    fixed("admin.bind", old.admin.bind == new.admin.bind);
    fixed("admin.token", old.admin.token == new.admin.token);
    fixed("admin.read_token", old.admin.read_token == new.admin.read_token);
    fixed("telemetry.log.format", old.telemetry.log.format == new.telemetry.log.format);
    fixed("telemetry.log.file", old.telemetry.log.file == new.telemetry.log.file);
    fixed("runtime.workers", old.runtime.workers == new.runtime.workers);
    fixed("runtime.core_dumps", old.runtime.core_dumps == new.runtime.core_dumps);
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(a: &str, b: &str) -> bool {
        let (a, b) = (a.parse().unwrap(), b.parse().unwrap());
        assert_eq!(overlap(&a, &b), overlap(&b, &a), "{a} {b}");
        overlap(&a, &b)
    }

    #[test]
    fn overlapping_addresses_are_found() {
        for (a, b) in [
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:1", "127.0.0.1:1"),
            ("[::]:1", "[::1]:1"),
            ("[::]:1", "0.0.0.0:1"),
            ("[::ffff:127.0.0.1]:1", "127.0.0.1:1"),
            ("localhost:1", "127.0.0.1:1"),
            ("localhost:1", "0.0.0.0:1"),
            ("node.example:1", "NODE.example:1"),
            ("unix:/a", "unix:/a"),
        ] {
            assert!(same(a, b), "{a} {b}");
        }
        for (a, b) in [
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("127.0.0.1:1", "127.0.0.1:2"),
            ("127.0.0.1:1", "127.0.0.2:1"),
            ("127.0.0.1:1", "[::1]:1"),
            ("0.0.0.0:1", "node.example:1"),
            ("0.0.0.0:1", "192.0.2.1:1"),
            ("a.example:1", "b.example:1"),
            ("unix:/a", "unix:/b"),
            ("unix:/a", "127.0.0.1:1"),
        ] {
            assert!(!same(a, b), "{a} {b}");
        }
    }

    #[test]
    fn levels_are_told_from_misspellings() {
        for right in ["info", "off", "info,flow=warn", "warn,qudag_filter_dns::upstream=trace"] {
            assert!(right.split(',').all(is_directive), "{right}");
        }
        for wrong in ["", "loud", "info,", "=info", "flow=loud", "a b=info", "info;debug"] {
            assert!(!wrong.split(',').all(is_directive), "{wrong}");
        }
    }

    #[test]
    fn only_fields_that_need_a_restart_are_named() {
        let old = Config::default();
        let mut new = old.clone();
        new.telemetry.log.level = "debug".to_owned();
        new.runtime.drain_timeout = qudag_filter_api::Period::secs(1);
        new.node.name = "other".to_owned();
        assert_eq!(restart_only_changes(&old, &new), []);

        new.admin.bind = "127.0.0.1:1".parse().unwrap();
        new.admin.token = Some(qudag_filter_api::Secret::Env("T".to_owned()));
        new.admin.read_token = Some(qudag_filter_api::Secret::Env("R".to_owned()));
        new.telemetry.log.file = Some("/x".into());
        new.telemetry.log.format = crate::telemetry::logs::LogFormat::Json;
        new.runtime.workers = std::num::NonZeroUsize::new(3);
        new.runtime.core_dumps = true;
        let named: Vec<_> =
            restart_only_changes(&old, &new).iter().map(|error| error.at.to_string()).collect();
        assert_eq!(
            named,
            [
                "admin.bind",
                "admin.token",
                "admin.read_token",
                "telemetry.log.format",
                "telemetry.log.file",
                "runtime.workers",
                "runtime.core_dumps"
            ]
        );
    }
}
