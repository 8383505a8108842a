//! What a right configuration gives.

use super::{load_with, loaded};
use crate::config::{Config, show};

#[test]
fn defaults_are_as_documented() {
    let config = loaded("version: 1\n").config;
    assert_eq!(config, Config::default());
    assert_eq!(config.node.name, "node");
    assert_eq!(config.node.p2p.to_string(), "127.0.0.1:8000");
    assert_eq!(config.node.rpc.to_string(), "127.0.0.1:9090");
    assert_eq!(config.node.http.to_string(), "127.0.0.1:8080");
    assert_eq!(config.admin.bind.to_string(), "127.0.0.1:9901");
    assert_eq!(config.telemetry.log.level, "info");
    assert_eq!(config.runtime.drain_timeout.to_string(), "30s");
    assert!(config.listeners.dns.is_none() && config.listeners.postgres.is_none());
}

#[test]
fn variables_override_the_file() {
    let loaded = load_with(
        "version: 1\nnode: { name: from-file }\n",
        &[("FILTERS__DNS__DNS_CACHE__MAX_TTL", "60s"), ("NODE__NAME", "from-env"), ("LISTENERS__RPC", "{}")],
    )
    .unwrap();
    assert_eq!(loaded.config.node.name, "from-env");
    assert_eq!(loaded.config.filters.dns.dns_cache.settings.max_ttl.to_string(), "1m");
    assert!(loaded.config.listeners.rpc.is_some());
    assert_eq!(loaded.origin(&["node", "name"]), "env QUDAG_SIDECAR__NODE__NAME");
}

#[test]
fn a_variable_can_correct_the_file() {
    assert!(load_with("version: 1\nnode: { name: 5 }\n", &[("NODE__NAME", "right")]).is_ok());
    assert!(load_with("", &[("VERSION", "1")]).is_ok());
}

#[test]
fn every_value_has_an_origin() {
    let loaded = load_with(
        "version: 1\nfilters:\n  dns:\n    dns_cache:\n      enabled: true\n",
        &[("FILTERS__DNS__DNS_CACHE__ROLLOUT", "50")],
    )
    .unwrap();
    let slot = |key| ["filters", "dns", "dns_cache", key];
    assert_eq!(loaded.origin(&slot("enabled")), "/x/test.yaml:5");
    assert_eq!(loaded.origin(&slot("rollout")), "env QUDAG_SIDECAR__FILTERS__DNS__DNS_CACHE__ROLLOUT");
    assert_eq!(loaded.origin(&slot("max_ttl")), "default");
    assert_eq!(loaded.mentioned(&slot("max_ttl")), None);

    let shown = show(&loaded, true);
    let line = |key: &str| {
        let under = shown.find("dns_cache:").unwrap();
        shown[under..].lines().find(|line| line.trim_start().starts_with(key)).unwrap().to_owned()
    };
    assert!(line("enabled:").ends_with("# /x/test.yaml:5"), "{shown}");
    assert!(line("rollout:").ends_with("DNS_CACHE__ROLLOUT"), "{shown}");
    assert!(line("max_ttl:").ends_with("# default"), "{shown}");
    for line in shown.lines().filter(|line| !line.trim_end().ends_with(':') && !line.contains(": []")) {
        assert!(line.contains('#') || line.trim() == "-", "no origin: {line}");
    }
}

#[test]
fn what_is_shown_gives_the_same_configuration() {
    for text in [
        "version: 1\n",
        "version: 1\nadmin: { token: { file: /run/secret }, read_token: { env: READ } }\n",
        "version: 1\nnode: { name: \"off\", p2p: \"[::1]:8000\", http: node.example:80, rpc: \"unix:/a b/c: d#e\" }\n",
        "version: 1\nnode: { name: \"1.5 # é\\\"'\" }\nruntime: { workers: 3, drain_timeout: 1m 1s 1ms }\n",
        "version: 1\nlisteners: { peer: { inbound: [\"[::]:7000\"], outbound: [{ bind: \"127.0.0.1:1\", to: \"b.example:1\" }] }, rpc: {} }\n",
        "version: 1\nfilters: { rpc: { retry: { rollout: 12.5 } } }\ntelemetry: { flows: { dns: off }, log: { format: json, file: \"~\" } }\n",
        crate::config::QUICKSTART,
    ] {
        let first = loaded(text);
        for with_origin in [false, true] {
            let shown = show(&first, with_origin);
            let again = loaded(&shown);
            assert_eq!(again.config, first.config, "{shown}");
        }
        let shown = show(&first, false);
        assert_eq!(show(&loaded(&shown), false), shown);
    }
}

#[test]
fn the_fingerprint_is_that_of_the_text() {
    let fingerprint = |text: &str| loaded(text).fingerprint;
    assert_eq!(fingerprint("version: 1\n"), fingerprint("version: 1\n"));
    assert_ne!(fingerprint("version: 1\n"), fingerprint("version: 1 # changed\n"));
    assert_eq!(fingerprint("version: 1\n").len(), 64);
}
