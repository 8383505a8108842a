//! What `filters.dns.dns_upstream` says.

use std::path::PathBuf;

use qudag_filter_api::{ConfigError, ConfigPath, Host, Period};
use qudag_filter_common::certificates;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Server;
use super::rules::{BreakerLimits, HedgeLimits, List};
use crate::dns_cache::parse_type;
use crate::wire::{Name, rtype};

/// The longest that a query may take.
const MAX_TIMEOUT: Period = Period::secs(10);
/// The shortest and the longest time between probes.
const INTERVALS: (Period, Period) = (Period::millis(100), Period::secs(3600));
/// The most queries that may be asked for.
const MAX_QUERIES: u32 = 65_536;
/// The most servers in a list.
const MAX_SERVERS: usize = 16;

/// The servers that are asked what the filters cannot answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DnsUpstream {
    /// The servers in the order in which they are asked. Without any, those of /etc/resolv.conf.
    pub servers: Vec<Server>,
    /// Servers that are asked when none of `servers` is healthy or gave an answer.
    pub alternative: Vec<Server>,
    /// Servers that are asked last, when all others failed.
    pub direct: Vec<Server>,
    /// How long a query may take in all, at most 10s.
    pub timeout: Period,
    /// How long one server may take before it counts as silent, and before the next list is asked.
    pub attempt_timeout: Period,
    /// When the next server is asked as well; the first good answer counts.
    pub hedge: Hedge,
    /// When a server is left alone, and when it is used again.
    pub breaker: Breaker,
    /// What servers are asked that are in trouble or not in use.
    pub probe: Probe,
    /// Whether names are sent over UDP in random case, which the reply must repeat (0x20).
    pub case_randomization: bool,
    /// How many queries may be under way in all.
    #[schemars(range(min = 1, max = 65536))]
    pub max_in_flight: u32,
    /// How many queries one server may have to answer at a time; the next server is asked beyond, or else a query waits for a place.
    #[schemars(range(min = 1, max = 65536))]
    pub max_in_flight_per_server: u32,
    /// How many queries may wait for their turn, and for a place at each server, until their time is over; those beyond fail at once.
    #[schemars(range(max = 65536))]
    pub max_queued: u32,
    /// The certificate authorities (PEM) that tls, https and quic servers are verified with, instead of the system's.
    pub ca_file: Option<PathBuf>,
}

/// When the next server is asked as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Hedge {
    /// Not before this time, even where a server is usually faster.
    pub min: Period,
    /// After this time, even where a server is usually slower.
    pub max: Period,
}

/// When a server is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Breaker {
    /// Failures in a row that open it.
    #[schemars(range(min = 1))]
    pub failures: u32,
    /// Successes in a row, of probes for instance, that close it.
    #[schemars(range(min = 1))]
    pub successes: u32,
}

/// What servers are asked that are in trouble or not in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Probe {
    /// A name that exists.
    pub name: String,
    /// The record type.
    #[serde(rename = "type")]
    pub rtype: String,
    /// The time between two probes of one server; 100ms to 1h.
    pub interval: Period,
}

impl Default for DnsUpstream {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            alternative: Vec::new(),
            direct: Vec::new(),
            timeout: Period::millis(1500),
            attempt_timeout: Period::millis(400),
            hedge: Hedge::default(),
            breaker: Breaker::default(),
            probe: Probe::default(),
            case_randomization: true,
            max_in_flight: 2048,
            max_in_flight_per_server: 512,
            max_queued: 4096,
            ca_file: None,
        }
    }
}

impl Default for Hedge {
    fn default() -> Self {
        Self { min: Period::millis(20), max: Period::millis(50) }
    }
}

impl Default for Breaker {
    fn default() -> Self {
        Self { failures: 3, successes: 2 }
    }
}

impl Default for Probe {
    fn default() -> Self {
        Self { name: ".".to_owned(), rtype: "NS".to_owned(), interval: Period::secs(1) }
    }
}

impl Probe {
    /// The question, if there is such a name and type.
    pub(super) fn question(&self) -> Option<(Name, u16)> {
        let name = Name::from_text(&self.name).ok()?;
        let rtype = parse_type(&self.rtype)?;
        let plain = !matches!(rtype, 0 | rtype::OPT | rtype::IXFR | rtype::AXFR | rtype::ANY);
        plain.then_some((name, rtype))
    }
}

impl DnsUpstream {
    /// The lists in the order in which they are asked.
    pub(super) fn lists(&self) -> [(List, &[Server]); 3] {
        [
            (List::Servers, self.servers.as_slice()),
            (List::Alternative, self.alternative.as_slice()),
            (List::Direct, self.direct.as_slice()),
        ]
    }

    /// Every server that is named, with the key and index where it stands.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, usize, &Server)> {
        self.lists().into_iter().flat_map(|(list, servers)| {
            servers.iter().enumerate().map(move |(index, server)| (list.label(), index, server))
        })
    }

    pub(super) fn hedge_limits(&self) -> HedgeLimits {
        HedgeLimits { min: self.hedge.min.0, max: self.hedge.max.0, attempt: self.attempt_timeout.0 }
    }

    pub(super) fn breaker_limits(&self) -> BreakerLimits {
        BreakerLimits { failures: self.breaker.failures, successes: self.breaker.successes }
    }

    /// Every problem of these settings. Reads `ca_file`.
    pub fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let mut errors = self.check_servers(at);
        let mut range = |path: ConfigPath, good: bool, hint: &str| {
            if !good {
                errors.push(path.error("out of range").hint(hint));
            }
        };
        let zero = Period::default();
        range(at.key("timeout"), self.timeout > zero && self.timeout <= MAX_TIMEOUT, "1ms to 10s");
        range(
            at.key("attempt_timeout"),
            self.attempt_timeout > zero && self.attempt_timeout <= self.timeout,
            "1ms to `timeout`",
        );
        let hedge = at.key("hedge");
        range(hedge.key("min"), self.hedge.min > zero, "1ms or more; 20ms suits most networks");
        range(
            hedge.key("max"),
            self.hedge.max >= self.hedge.min && self.hedge.max <= self.timeout,
            "from `min` to `timeout`; 50ms suits most networks",
        );
        let breaker = at.key("breaker");
        let few = 1..=1000;
        range(breaker.key("failures"), few.contains(&self.breaker.failures), "1 to 1000");
        range(breaker.key("successes"), few.contains(&self.breaker.successes), "1 to 1000");
        let (shortest, longest) = INTERVALS;
        let interval = self.probe.interval;
        range(at.key("probe").key("interval"), interval >= shortest && interval <= longest, "100ms to 1h");
        let many = 1..=MAX_QUERIES;
        range(at.key("max_in_flight"), many.contains(&self.max_in_flight), "1 to 65536");
        range(
            at.key("max_in_flight_per_server"),
            many.contains(&self.max_in_flight_per_server),
            "1 to 65536; each may need up to three file descriptors",
        );
        range(at.key("max_queued"), self.max_queued <= MAX_QUERIES, "0 to 65536");

        let probe = at.key("probe");
        if let Err(why) = Name::from_text(&self.probe.name) {
            errors.push(probe.key("name").error(why.to_string()).hint("a name that exists; the root is `.`"));
        } else if self.probe.question().is_none() {
            let hint = "a record type such as NS, SOA, A or TYPE65";
            errors.push(probe.key("type").error("not a type that can be asked for").hint(hint));
        }
        if let Some(file) = &self.ca_file
            && let Err(why) = certificates(file)
        {
            let hint = "a file with certificates in PEM, or leave the key out for the system's authorities";
            errors.push(at.key("ca_file").error(format!("{}: {why}", file.display())).hint(hint));
        }
        errors
    }

    fn check_servers(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        let mut seen = std::collections::HashMap::new();
        for (list, index, server) in self.named() {
            let at = at.key(list).index(index);
            let unspecified = matches!(server.address().host, Host::Ip(ip) if ip.is_unspecified());
            if unspecified || server.address().port == 0 {
                let hint = "such as 9.9.9.9, 127.0.0.1:5353 or tls://9.9.9.9#dns.quad9.net";
                errors.push(at.error("not the address of a server").hint(hint));
            } else if index == MAX_SERVERS {
                errors.push(at.error("too many servers").hint(format!("at most {MAX_SERVERS} in a list")));
            } else if let Some(earlier) = seen.insert(server, list) {
                let hint = match earlier == list {
                    true => "name each server once".to_owned(),
                    false => format!("it is in `{earlier}` already"),
                };
                errors.push(at.error("named twice").hint(hint));
            }
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(json: &str) -> Vec<String> {
        let settings: DnsUpstream = serde_json::from_str(json).unwrap();
        let errors = settings.check(&ConfigPath::root());
        assert!(errors.iter().all(|error| error.hint.is_some()), "{errors:?}");
        errors.into_iter().map(|error| error.at.to_string()).collect()
    }

    #[test]
    fn the_defaults_are_right() {
        assert_eq!(DnsUpstream::default().check(&ConfigPath::root()), []);
        assert_eq!(wrong(r#"{"servers": ["9.9.9.9", "tls://9.9.9.9"], "direct": ["1.1.1.1"]}"#), [""; 0]);
    }

    #[test]
    fn what_is_out_of_range_is_named_with_a_hint() {
        for (json, at) in [
            (r#"{"servers": ["9.9.9.9", "9.9.9.9:53"]}"#, "servers.1"),
            (r#"{"servers": ["0.0.0.0"]}"#, "servers.0"),
            (r#"{"alternative": ["tcp://9.9.9.9:0"]}"#, "alternative.0"),
            (r#"{"servers": ["9.9.9.9"], "direct": ["1.1.1.1", "9.9.9.9"]}"#, "direct.1"),
            (r#"{"timeout": "11s"}"#, "timeout"),
            (r#"{"attempt_timeout": "2s"}"#, "attempt_timeout"),
            (r#"{"attempt_timeout": "0s"}"#, "attempt_timeout"),
            (r#"{"hedge": {"min": "0s"}}"#, "hedge.min"),
            (r#"{"hedge": {"min": "60ms"}}"#, "hedge.max"),
            (r#"{"hedge": {"max": "2s"}}"#, "hedge.max"),
            (r#"{"breaker": {"failures": 0}}"#, "breaker.failures"),
            (r#"{"breaker": {"successes": 0}}"#, "breaker.successes"),
            (r#"{"probe": {"interval": "1ms"}}"#, "probe.interval"),
            (r#"{"probe": {"name": "a..b"}}"#, "probe.name"),
            (r#"{"probe": {"type": "AXFR"}}"#, "probe.type"),
            (r#"{"probe": {"type": "NOSUCH"}}"#, "probe.type"),
            (r#"{"max_in_flight": 0}"#, "max_in_flight"),
            (r#"{"max_in_flight_per_server": 70000}"#, "max_in_flight_per_server"),
            (r#"{"max_queued": 70000}"#, "max_queued"),
            (r#"{"ca_file": "/nonexistent/ca.pem"}"#, "ca_file"),
            (r#"{"ca_file": "/dev/null"}"#, "ca_file"),
        ] {
            assert_eq!(wrong(json), [at], "{json}");
        }
        let many: Vec<_> = (0..17).map(|i| format!("192.0.2.{}", i + 1)).collect();
        assert_eq!(wrong(&format!(r#"{{"servers": {many:?}}}"#)), ["servers.16"]);
    }
}
