//! The names that a bypass moves, and how its effect is verified.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use qudag_filter_api::{ConfigError, ConfigPath, HostPort, Period, Secret};
use qudag_filter_dns::update::Algorithm;
use qudag_filter_dns::wire::Name;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::root::Config;

/// Rollback is to be over within five minutes in the worst case; draining is its longest part.
const LONGEST_DRAIN: Duration = Duration::from_secs(90);

/// The names that a bypass moves from the sidecar to the node itself, and how that is verified.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BypassConfig {
    /// The zone of those names that `listeners.dns` answers for itself, before any filter, with times to live of 5 seconds.
    pub zone: Option<String>,
    /// The names, each in `zone` or in `update.zone`.
    pub names: Vec<BypassName>,
    /// A zone of other servers in which the names are moved by dynamic updates (RFC 2136).
    pub update: Option<UpdateConfig>,
    /// What `bypass on` and `bypass off` verify.
    pub verify: VerifyConfig,
}

/// A name that a bypass moves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BypassName {
    /// The name that clients use.
    pub name: String,
    /// Where it leads in normal operation: the sidecar's addresses, IPv4 and IPv6.
    pub sidecar: Vec<IpAddr>,
    /// Where it leads while everything is bypassed: the node's own addresses.
    pub node: Vec<IpAddr>,
    /// The port on which both serve, to verify that they can be reached.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
}

/// A zone of other servers in which the names are moved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateConfig {
    /// The zone.
    pub zone: String,
    /// The servers that take updates, asked in this order until one takes it.
    pub servers: Vec<HostPort>,
    /// The servers that must show every change; those of `servers` where it is left out.
    #[serde(default)]
    pub authoritatives: Vec<HostPort>,
    /// What updates are signed with (RFC 8945).
    pub key: KeyConfig,
    /// How long a server may take to answer, over UDP and then again over TCP, at most 5s.
    #[serde(default = "one_second")]
    pub timeout: Period,
    /// How often it is made sure that the names still lead where they should, 1s to 1h.
    #[serde(default = "half_a_minute")]
    pub refresh: Period,
}

/// A key that the servers know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyConfig {
    /// Its name.
    pub name: String,
    /// `hmac-sha256` or `hmac-sha512`.
    #[serde(default)]
    pub algorithm: Algorithm,
    /// The secret in base64, read anew for each update.
    pub secret: Secret,
}

fn one_second() -> Period {
    Period::secs(1)
}

fn half_a_minute() -> Period {
    Period::secs(30)
}

/// What `bypass on` and `bypass off` verify.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct VerifyConfig {
    /// Whether the names must resolve as they should by the resolver of this host, which is the node's.
    pub resolver: bool,
    /// How long calls, requests and sessions through the sidecar may go on after `bypass on`, at most 90s.
    pub drain_timeout: Period,
}

impl Default for VerifyConfig {
    fn default() -> Self {
        Self { resolver: true, drain_timeout: Period::secs(90) }
    }
}

/// Every problem of the section.
pub(super) fn check(config: &Config) -> Vec<ConfigError> {
    let bypass = &config.bypass;
    let at = ConfigPath::root().key("bypass");
    let mut errors = Vec::new();
    let mut zone = |at: ConfigPath, text: &str| match Name::from_text(text) {
        Ok(name) => Some(name),
        Err(why) => {
            errors.push(at.error(why.to_string()).hint("a domain name, such as svc.internal"));
            None
        }
    };
    let served = bypass.zone.as_deref().and_then(|text| zone(at.key("zone"), text));
    let updated = bypass.update.as_ref().and_then(|update| zone(at.key("update").key("zone"), &update.zone));
    if let Some(update) = &bypass.update {
        let _ = zone(at.key("update").key("key").key("name"), &update.key.name);
    }
    if bypass.zone.is_some() && config.listeners.dns.is_none() {
        errors.push(
            at.key("zone").error("nobody serves it").hint("add `listeners.dns`, or use `bypass.update`"),
        );
    }
    if (bypass.zone.is_some() || bypass.update.is_some()) && bypass.names.is_empty() {
        errors
            .push(at.key("names").error("there is no name to move").hint("add names, or leave `bypass` out"));
    }
    let mut seen = BTreeSet::new();
    for (number, moved) in bypass.names.iter().enumerate() {
        let at = at.key("names").index(number);
        match Name::from_text(&moved.name) {
            Err(why) => errors.push(at.key("name").error(why.to_string()).hint("a domain name")),
            Ok(name) => {
                let within = |zone: &Option<Name>| zone.as_ref().is_some_and(|zone| name.is_within(zone));
                if !within(&served) && !within(&updated) {
                    let why = "the name is neither in `bypass.zone` nor in `bypass.update.zone`";
                    errors.push(at.key("name").error(why).hint("nobody would answer for it"));
                }
                if !seen.insert(name) {
                    errors.push(at.key("name").error("this name is there already").hint("name it once"));
                }
            }
        }
        for (key, addresses) in [("sidecar", &moved.sidecar), ("node", &moved.node)] {
            if addresses.is_empty() {
                errors.push(at.key(key).error("no address").hint("at least one IPv4 or IPv6 address"));
            }
        }
        if moved.port == Some(0) {
            errors
                .push(at.key("port").error("port 0 cannot be dialled").hint("the port on which both serve"));
        }
    }
    if let Some(update) = &bypass.update {
        let at = at.key("update");
        if update.servers.is_empty() {
            errors.push(at.key("servers").error("no server").hint("192.0.2.53:53, for instance"));
        }
        let mut period = |key: &str, value: Period, range: std::ops::RangeInclusive<u64>, hint: &str| {
            let (low, high) = (Duration::from_millis(*range.start()), Duration::from_millis(*range.end()));
            if !(low..=high).contains(&value.0) {
                errors.push(at.key(key).error("out of range").hint(hint));
            }
        };
        period("timeout", update.timeout, 10..=5000, "10ms to 5s");
        period("refresh", update.refresh, 1000..=3_600_000, "1s to 1h");
        // A variable may be set for the sidecar alone.
        let elsewhere = matches!(&update.key.secret, Secret::Env(name) if std::env::var_os(name).is_none());
        if let Err(why) = secret(&update.key)
            && !elsewhere
        {
            errors.push(
                at.key("key")
                    .key("secret")
                    .error(why)
                    .hint("a key in base64, as `keymgr -t` and tsig-keygen print"),
            );
        }
    }
    if bypass.verify.drain_timeout.0 > LONGEST_DRAIN {
        errors.push(at.key("verify").key("drain_timeout").error("longer than 90s").hint("0s to 90s"));
    }
    errors
}

/// The bytes of a key's secret.
///
/// # Errors
/// When it cannot be read, or is not base64.
pub fn secret(key: &KeyConfig) -> Result<Vec<u8>, String> {
    let text = key.secret.read()?;
    data_encoding::BASE64.decode(text.as_bytes()).map_err(|_| format!("{:?} is not base64", key.secret))
}
