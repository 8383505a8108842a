//! What a bypass does besides switching filters off: it moves names from the sidecar to the node itself, in the zone that the sidecar
//! serves and in those of other servers, and verifies that this had its effect.

mod publish;
mod serial;
mod verify;
pub mod withdraw;

use std::net::IpAddr;

use qudag_filter_api::Service;

pub use publish::{NameStatus, Published, Publisher};
pub use serial::Serials;
pub use verify::{Check, Report, Step, StepState, Verification};

use qudag_filter_dns::wire::Name;

use crate::config::{BypassConfig, BypassName, Config};

/// Where a name should lead.
pub(crate) fn wanted(name: &BypassName, direct: bool) -> &[IpAddr] {
    if direct { &name.node } else { &name.sidecar }
}

/// The configuration with the names that are moved in a zone of other servers among those that are never served stale: where they led
/// before is where they must not lead. Names of the sidecar's own zone are answered before any cache.
pub(crate) fn with_fresh_names(config: &Config) -> Config {
    let mut config = config.clone();
    let zone = config.bypass.update.as_ref().and_then(|update| Name::from_text(&update.zone).ok());
    let Some(zone) = zone else { return config };
    let is_moved = |name: &&BypassName| Name::from_text(&name.name).is_ok_and(|name| name.is_within(&zone));
    let moved = config.bypass.names.iter().filter(is_moved).map(|name| name.name.clone());
    config.filters.dns.dns_cache.settings.fresh_only.extend(moved);
    config
}

/// What the DNS listener serves: the names with the addresses that hold now, under a serial number of their own.
pub(crate) fn service(config: &BypassConfig, direct: bool, serials: &Serials) -> Service {
    let Some(zone) = &config.zone else { return Service::default() };
    let names: Vec<_> =
        config.names.iter().map(|name| (name.name.clone(), wanted(name, direct).to_vec())).collect();
    let serial = serials.of(&format!("{zone} {names:?}"));
    Service { zone: Some(zone.clone()), serial, names }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_other_servers_move_are_never_stale() {
        let secret = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(secret.path(), "c2VjcmV0\n").unwrap();
        let yaml = r#"
version: 1
listeners: { dns: { bind: "127.0.0.1:0" } }
filters:
  dns:
    dns_cache: { fresh_only: [mine.example] }
bypass:
  zone: svc.internal
  names:
    - { name: rpc.svc.internal, sidecar: [192.0.2.10], node: [192.0.2.11] }
    - { name: RPC.node-a.example, sidecar: [192.0.2.10], node: [192.0.2.11] }
  update:
    zone: node-a.example
    servers: ["192.0.2.53:53"]
    key: { name: sidecar-a, secret: { file: SECRET } }
"#;
        let yaml = yaml.replace("SECRET", secret.path().to_str().unwrap());
        let mut config = crate::config::parse(&yaml).unwrap_or_else(|why| panic!("{:?}", why.lines())).config;
        let fresh = |config: &Config| with_fresh_names(config).filters.dns.dns_cache.settings.fresh_only;
        assert_eq!(fresh(&config), ["mine.example", "RPC.node-a.example"]);
        config.bypass.update = None;
        assert_eq!(fresh(&config), ["mine.example"]);
    }
}
