//! `listeners.peer.capture` in the configuration.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::str::FromStr;

use qudag_filter_api::{BuildError, ConfigError, ConfigPath, Host, HostPort};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use socket2::{Domain, Protocol, Socket, Type};

/// The most entries of a list that becomes rules.
const MOST: usize = 64;
/// The longest name of a user or group (useradd(8)).
const LONGEST_NAME: usize = 32;

/// Connections of the local node that rules of the packet filter hand over, wherever the node meant to connect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Capture {
    /// How connections are handed over.
    pub mode: CaptureMode,
    /// Where they are handed over to, at most one address for IPv4 and one for IPv6. A family without an address is not captured.
    pub bind: Vec<HostPort>,
    /// The TCP ports of peers: connections to them are captured. Ports such as 4001, and ranges such as "8000-8010".
    pub ports: Vec<PortRange>,
    /// Whose connections are captured; those of everybody in the network namespace where nobody is named.
    pub owner: Owner,
    /// What happens to a connection to an address that no route has.
    pub unmatched: Unmatched,
    /// What the packets of the sidecar's own sockets are marked with, so that no rule captures them. The number after it marks what is
    /// handed over with `tproxy`.
    pub mark: Mark,
    /// Whether connections to addresses of this host are captured too.
    pub loopback: bool,
    /// TCP ports that are never captured, besides those of the admin API and of the tunnel: those by which the host is managed.
    pub protect: Vec<PortRange>,
    /// Whether the sidecar itself installs the rules when it starts, and removes them while everything is bypassed and when it ends.
    pub manage_rules: bool,
}

impl Default for Capture {
    fn default() -> Self {
        Self {
            mode: CaptureMode::Redirect,
            bind: Vec::new(),
            ports: Vec::new(),
            owner: Owner::default(),
            unmatched: Unmatched::Direct,
            mark: Mark(0x7164),
            loopback: false,
            protect: vec![PortRange { first: 22, last: 22 }],
            manage_rules: false,
        }
    }
}

/// How connections are handed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CaptureMode {
    /// The rules rewrite the destination (NAT).
    #[default]
    Redirect,
    /// The rules route packets to this host as they are.
    Tproxy,
}

impl CaptureMode {
    /// The word in the configuration.
    pub fn label(self) -> &'static str {
        match self {
            Self::Redirect => "redirect",
            Self::Tproxy => "tproxy",
        }
    }
}

/// What happens to a connection to an address that no route has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unmatched {
    /// It goes where the node meant it to go.
    #[default]
    Direct,
    /// It is reset.
    Refuse,
}

impl Unmatched {
    /// The word in the configuration.
    pub fn label(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Refuse => "refuse",
        }
    }
}

/// Whose connections are captured: those that fit one entry of any list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Owner {
    /// Users, by name or number.
    pub users: Vec<String>,
    /// Groups, by name or number.
    pub groups: Vec<String>,
    /// Control groups (version 2) as paths below their root, "system.slice/qudag.service" for instance; with all groups below them.
    /// They have to exist when the rules are installed.
    pub cgroups: Vec<String>,
}

impl Owner {
    /// Whether nobody is named.
    pub fn is_anybody(&self) -> bool {
        self.users.is_empty() && self.groups.is_empty() && self.cgroups.is_empty()
    }
}

impl Capture {
    /// Makes sure that own packets can be marked: without that the rules would capture them as well.
    ///
    /// # Errors
    /// When the process may not do it.
    pub(crate) fn may_mark(&self) -> Result<(), BuildError> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP));
        let marked = socket.and_then(|socket| socket.set_mark(self.mark.0));
        marked.map_err(|why| {
            let why = match why.kind() {
                io::ErrorKind::PermissionDenied => "own packets cannot be marked, which keeps them from being captured: the \
                    capability CAP_NET_ADMIN is missing (systemd: AmbientCapabilities=CAP_NET_ADMIN; containers: cap_add: \
                    [NET_ADMIN], and a user that has it)"
                    .to_owned(),
                _ => format!("own packets cannot be marked: {why}"),
            };
            BuildError::new("listeners.peer.capture.mark", why)
        })
    }

    /// Every problem of these settings alone. What they would cut off is seen where the whole configuration is known.
    pub(crate) fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        if self.bind.is_empty() {
            let error = at.key("bind").error("nobody would take captured connections");
            errors.push(error.hint("`bind: [\"127.0.0.1:4180\", \"[::1]:4180\"]`, for instance"));
        }
        let mut families = Vec::new();
        for (index, bind) in self.bind.iter().enumerate() {
            let at = at.key("bind").index(index);
            let Host::Ip(ip) = bind.host else {
                errors.push(at.error("not an IP address").hint("rules know no names: 127.0.0.1 or [::1]"));
                continue;
            };
            if bind.port == 0 {
                errors.push(
                    at.error("the rules have to know the port").hint("a port that is free, such as 4180"),
                );
            }
            let family = ip.to_canonical().is_ipv4();
            if families.contains(&family) {
                let family = if family { "IPv4" } else { "IPv6" };
                errors.push(at.error(format!("{family} has an address already")).hint("one for each family"));
            }
            families.push(family);
        }
        if self.ports.is_empty() {
            let error = at.key("ports").error("nothing would be captured");
            errors.push(error.hint("the TCP ports of peers, `ports: [4001]` for instance"));
        }
        for (key, list) in [("ports", &self.ports), ("protect", &self.protect)] {
            if list.len() > MOST {
                errors.push(at.key(key).error(format!("more than {MOST} entries")).hint("use ranges"));
            }
        }
        let owner = at.key("owner");
        for (key, names) in [("users", &self.owner.users), ("groups", &self.owner.groups)] {
            for (index, name) in names.iter().enumerate().filter(|(_, name)| !is_account(name)) {
                let hint = "a number, or a name of up to 32 letters, digits, `_`, `-` and `.`";
                errors.push(owner.key(key).index(index).error(format!("{name:?} is no account")).hint(hint));
            }
        }
        for (index, path) in self.owner.cgroups.iter().enumerate().filter(|(_, path)| !is_cgroup(path)) {
            let error = owner.key("cgroups").index(index).error(format!("{path:?} is no control group"));
            errors.push(error.hint("a path below /sys/fs/cgroup, such as system.slice/qudag.service"));
        }
        for (key, names) in
            [("users", &self.owner.users), ("groups", &self.owner.groups), ("cgroups", &self.owner.cgroups)]
        {
            if names.len() > MOST {
                errors.push(owner.key(key).error(format!("more than {MOST} entries")).hint("name fewer"));
            }
        }
        if self.mark.0 == 0 || self.mark.0 == u32::MAX {
            let error = at.key("mark").error(format!("{} is out of range", self.mark));
            errors.push(error.hint("1 to 0xfffffffe, and not what other rules of this host use"));
        }
        errors
    }
}

/// Whether rules can hold this name or number of a user or group.
fn is_account(name: &str) -> bool {
    let number = name.parse::<u32>().is_ok() && !name.starts_with('+');
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    let starts = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    number || (starts && name.len() <= LONGEST_NAME && name.bytes().all(plain))
}

/// Whether rules can hold this path of a control group.
fn is_cgroup(path: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.@:".contains(&byte);
    let part = |part: &str| !part.is_empty() && part != "." && part != ".." && part.bytes().all(plain);
    path.len() <= 512 && path.split('/').count() <= 16 && path.split('/').all(part)
}

/// A port, or several in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    /// The first one.
    pub first: u16,
    /// The last one.
    pub last: u16,
}

impl PortRange {
    /// Whether it has a port.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// What is left of it without a port, which it contains.
    pub fn without(self, port: u16) -> Vec<Self> {
        let below = port.checked_sub(1).filter(|last| *last >= self.first);
        let above = port.checked_add(1).filter(|first| *first <= self.last);
        let below = below.map(|last| Self { first: self.first, last });
        below.into_iter().chain(above.map(|first| Self { first, last: self.last })).collect()
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl FromStr for PortRange {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| match text.trim().parse::<u16>() {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(format!("{:?} is not a port", text.trim())),
        };
        let range = Self { first: port(first)?, last: port(last)? };
        if range.first > range.last { Err("the range ends before it begins".to_owned()) } else { Ok(range) }
    }
}

impl<'de> Deserialize<'de> for PortRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Range;
        impl Visitor<'_> for Range {
            type Value = PortRange;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port from 1 to 65535, or a range such as 8000-8010")
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<PortRange, E> {
                self.visit_str(&number.to_string())
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<PortRange, E> {
                self.visit_str(&number.to_string())
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<PortRange, E> {
                text.parse().map_err(|why| {
                    E::custom(format_args!("{why} in {text:?}, expected a port or a range such as 8000-8010"))
                })
            }
        }
        deserializer.deserialize_any(Range)
    }
}

impl Serialize for PortRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.first == self.last {
            serializer.serialize_u16(self.first)
        } else {
            serializer.collect_str(self)
        }
    }
}

impl JsonSchema for PortRange {
    fn schema_name() -> Cow<'static, str> {
        "PortRange".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A port, or a range of ports.",
            "anyOf": [
                { "type": "integer", "minimum": 1, "maximum": 65535 },
                { "type": "string", "pattern": r"^\s*[0-9]{1,5}\s*(-\s*[0-9]{1,5}\s*)?$" }
            ],
            "examples": [4001, "8000-8010"]
        })
    }
}

/// A mark of packets (`SO_MARK`, socket(7)); written in hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mark(pub u32);

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl FromStr for Mark {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let number = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            // A sign is no digit.
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                u32::from_str_radix(digits, 16)
            }
            _ => text.parse(),
        };
        number.map(Self).map_err(|_| "not a number of 32 bits".to_owned())
    }
}

impl<'de> Deserialize<'de> for Mark {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Mark;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of 32 bits, such as 0x7164")
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Mark, E> {
                self.visit_str(&number.to_string())
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Mark, E> {
                self.visit_str(&number.to_string())
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Mark, E> {
                text.parse()
                    .map_err(|why| E::custom(format_args!("{why} in {text:?}, expected 0x7164 or the like")))
            }
        }
        deserializer.deserialize_any(Number)
    }
}

impl Serialize for Mark {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for Mark {
    fn schema_name() -> Cow<'static, str> {
        "Mark".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A number of 32 bits, decimal or hexadecimal.",
            "anyOf": [
                { "type": "integer", "minimum": 1, "maximum": 4_294_967_294_u32 },
                { "type": "string", "pattern": r"^\s*(0[xX][0-9a-fA-F]{1,8}|[0-9]{1,10})\s*$" }
            ],
            "examples": ["0x7164"]
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use qudag_filter_common::testing::wrong_places;

    use super::*;

    fn wrong(settings: &str) -> Vec<String> {
        wrong_places(settings, Capture::check)
    }

    #[test]
    fn every_mistake_has_its_place() {
        let with = |more: &str| {
            wrong(&format!(
                r#"{{"bind": ["127.0.0.1:4180", "[::1]:4180"], "ports": [4001, "8000-8010"]{more}}}"#
            ))
        };
        assert!(with("").is_empty());
        assert_eq!(wrong("{}"), ["bind", "ports"]);
        for (more, at) in [
            (r#", "mark": 0"#, "mark"),
            (r#", "mark": "0xffffffff""#, "mark"),
            (r#", "owner": {"users": ["node", "1000", ""]}"#, "owner.users.2"),
            (r#", "owner": {"users": ["a b"]}"#, "owner.users.0"),
            (r#", "owner": {"groups": ["x\" accept"]}"#, "owner.groups.0"),
            (r#", "owner": {"cgroups": ["a/../b"]}"#, "owner.cgroups.0"),
            (r#", "owner": {"cgroups": ["/a"]}"#, "owner.cgroups.0"),
        ] {
            assert_eq!(with(more), [at], "{more}");
        }
        let bind = |bind: &str| wrong(&format!(r#"{{"bind": [{bind}], "ports": [4001]}}"#));
        assert_eq!(bind(r#""127.0.0.1:0""#), ["bind.0"]);
        assert_eq!(bind(r#""localhost:4180""#), ["bind.0"]);
        assert_eq!(bind(r#""127.0.0.1:1", "10.0.0.1:2""#), ["bind.1"]);
    }

    #[test]
    fn ports_and_marks_are_read_as_people_write_them() {
        let ports = |text: &str| serde_json::from_str::<PortRange>(text);
        assert_eq!(ports("4001").unwrap(), PortRange { first: 4001, last: 4001 });
        assert_eq!(ports("\"8000 - 8010\"").unwrap(), PortRange { first: 8000, last: 8010 });
        for text in ["0", "65536", "-1", "\"9-8\"", "\"1-2-3\"", "\"ssh\"", "true"] {
            assert!(ports(text).is_err(), "{text}");
        }
        let mark = |text: &str| serde_json::from_str::<Mark>(text);
        for text in ["29028", "\"29028\"", "\"0x7164\"", "\"0X7164\""] {
            assert_eq!(mark(text).unwrap(), Mark(0x7164), "{text}");
        }
        assert_eq!(serde_json::to_string(&Mark(0x7164)).unwrap(), "\"0x7164\"");
        for text in ["-1", "4294967296", "\"0x\"", "\"0x+1\"", "\"red\""] {
            assert!(mark(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn ranges_are_written_as_they_are_read(a in 1..=u16::MAX, b in 1..=u16::MAX) {
            let range = PortRange { first: a.min(b), last: a.max(b) };
            let text = serde_json::to_string(&range).unwrap();
            prop_assert_eq!(serde_json::from_str::<PortRange>(&text).unwrap(), range);
        }

        #[test]
        fn a_port_is_taken_out_and_no_other(a in 1..=u16::MAX, b in 1..=u16::MAX, pick: u16, probe: u16) {
            let range = PortRange { first: a.min(b), last: a.max(b) };
            let port = pick.clamp(range.first, range.last);
            let left = range.without(port);
            let has = left.iter().any(|part| part.contains(probe));
            prop_assert_eq!(has, range.contains(probe) && probe != port);
        }

        /// What could end a word of a rule is refused.
        #[test]
        fn names_hold_nothing_that_rules_understand(name in "\\PC{0,40}") {
            if is_account(&name) || is_cgroup(&name) {
                let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.@:/".contains(&byte);
                prop_assert!(name.bytes().all(plain));
            }
        }
    }
}
