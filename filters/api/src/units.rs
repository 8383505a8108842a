//! Values as people write them: durations, sizes, percentages, addresses, secrets.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// Reads a value from a string with its `FromStr`, and writes it with its `Display`.
macro_rules! as_string {
    ($type:ty, $expecting:literal, $schema:tt) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl Visitor<'_> for Text {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(|why| {
                            E::custom(format_args!("{why} in {text:?}, expected {}", $expecting))
                        })
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

/// A length of time, written with its unit: `500ms`, `5s`, `1h 30m`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Period(pub Duration);

impl Period {
    /// A period of whole milliseconds.
    pub const fn millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }
    /// A period of whole seconds.
    pub const fn secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl FromStr for Period {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text).map(Self).map_err(|why| why.to_string())
    }
}

as_string!(Period, "a duration with its unit, such as 500ms, 5s or 1h", {
    "type": "string",
    "description": "A duration with its unit.",
    "pattern": r"^\s*([0-9]+\s*[a-zA-Z]+\s*)+$",
    "examples": ["500ms", "5s", "1h 30m"]
});

/// A number of bytes, written with its unit: `512B`, `64KiB`, `8MiB`, `1GiB`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

const BYTE_UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl ByteSize {
    /// So many KiB.
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }
    /// So many MiB.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }
    /// The number of bytes as a length in memory.
    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |unit: u64| self.0 >= unit && self.0.is_multiple_of(unit);
        match BYTE_UNITS.iter().find(|(_, unit)| fits(*unit)) {
            Some((name, unit)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl FromStr for ByteSize {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim();
        let factor = BYTE_UNITS
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(unit))
            .map(|(_, factor)| *factor)
            .ok_or_else(|| format!("unknown unit {unit:?}"))?;
        let number: u64 = number.parse().map_err(|_| "not a number".to_owned())?;
        number.checked_mul(factor).map(Self).ok_or_else(|| "too large".to_owned())
    }
}

as_string!(ByteSize, "a size with its unit, such as 512B, 64KiB, 8MiB or 1GiB", {
    "type": "string",
    "description": "A size in bytes with its unit.",
    "pattern": r"^\s*[0-9]+\s*(B|[kK][iI][bB]|[mM][iI][bB]|[gG][iI][bB])\s*$",
    "examples": ["512B", "64KiB", "8MiB"]
});

/// A percentage from 0 to 100 in steps of 0.01.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(u16);

impl Percent {
    /// 100 %.
    pub const ALL: Self = Self(10_000);
    /// 0 %.
    pub const NONE: Self = Self(0);

    /// A percentage, if it lies between 0 and 100. Rounded to 0.01.
    pub fn new(percent: f64) -> Option<Self> {
        // In range after the check.
        (0.0..=100.0).contains(&percent).then(|| Self((percent * 100.0).round() as u16))
    }

    /// The percentage as a number from 0 to 100.
    pub fn get(self) -> f64 {
        f64::from(self.0) / 100.0
    }

    /// Whether a bucket of `0..10_000` lies below this percentage. A flow that is in at one percentage is in at
    /// every higher one.
    pub fn covers(self, bucket: u16) -> bool {
        bucket < self.0
    }
}

impl Default for Percent {
    fn default() -> Self {
        Self::ALL
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

impl FromStr for Percent {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.trim().trim_end_matches('%').trim_end();
        let number: f64 = number.parse().map_err(|_| format!("{text:?} is not a percentage"))?;
        Self::new(number).ok_or_else(|| format!("{text} is not between 0 and 100"))
    }
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Percent;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a percentage from 0 to 100")
            }
            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Percent, E> {
                Percent::new(number)
                    .ok_or_else(|| E::custom(format_args!("{number} is out of range, expected 0 to 100")))
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Percent, E> {
                self.visit_f64(number as f64)
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Percent, E> {
                self.visit_f64(number as f64)
            }
        }
        deserializer.deserialize_f64(Number)
    }
}

impl Serialize for Percent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_multiple_of(100) {
            serializer.serialize_u16(self.0 / 100)
        } else {
            serializer.serialize_f64(self.get())
        }
    }
}

impl JsonSchema for Percent {
    fn schema_name() -> Cow<'static, str> {
        "Percent".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "number", "minimum": 0, "maximum": 100})
    }
}

/// An IP address or a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// An address.
    Ip(IpAddr),
    /// A name, lower-cased, to be resolved when it is used.
    Name(String),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl FromStr for Host {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(ip) = text.parse::<Ipv4Addr>() {
            return Ok(Self::Ip(ip.into()));
        }
        if let Ok(ip) = text.trim_start_matches('[').trim_end_matches(']').parse::<Ipv6Addr>() {
            return Ok(Self::Ip(ip.into()));
        }
        // RFC 1123 section 2.1, with the underscore that service names use.
        let name = text.trim_end_matches('.');
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let looks_like_an_ip = name.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        if name.len() > 253 || looks_like_an_ip || !name.split('.').all(label) {
            return Err("not a host name or an IP address".to_owned());
        }
        Ok(Self::Name(name.to_ascii_lowercase()))
    }
}

/// A host and a port: `127.0.0.1:53`, `[::1]:53`, `node.example:8000`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// The host.
    pub host: Host,
    /// The port; 0 lets the operating system choose, where something is bound.
    pub port: u16,
}

impl HostPort {
    /// The socket address, if the host is an IP address.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Ip(ip) => Some(SocketAddr::new(ip, self.port)),
            Host::Name(_) => None,
        }
    }
}

impl From<SocketAddr> for HostPort {
    fn from(addr: SocketAddr) -> Self {
        Self { host: Host::Ip(addr.ip()), port: addr.port() }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            host => write!(f, "{host}:{}", self.port),
        }
    }
}

impl FromStr for HostPort {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (host, port) = text.rsplit_once(':').ok_or("no port")?;
        if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
            return Err("an IPv6 address without brackets".to_owned());
        }
        let port = port.parse().map_err(|_| "not a port".to_owned())?;
        Ok(Self { host: host.parse()?, port })
    }
}

as_string!(HostPort, "HOST:PORT, such as 127.0.0.1:8080, [::1]:8080 or node.example:8080", {
    "type": "string",
    "description": "An IPv4 address, an IPv6 address in brackets or a name, and a port.",
    "pattern": r"^.+:[0-9]{1,5}$",
    "examples": ["127.0.0.1:8080", "[::1]:8080", "node.example:8080"]
});

/// Where a stream service listens or is reached: HOST:PORT or `unix:PATH`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// TCP.
    Tcp(HostPort),
    /// A Unix domain socket.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Address {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some("") => Err("no path".to_owned()),
            Some(path) => Ok(Self::Unix(path.into())),
            None => text.parse().map(Self::Tcp),
        }
    }
}

as_string!(Address, "HOST:PORT or unix:PATH", {
    "type": "string",
    "description": "HOST:PORT, or unix:PATH for a Unix domain socket.",
    "pattern": r"^(unix:.+|.+:[0-9]{1,5})$",
    "examples": ["127.0.0.1:9190", "[::1]:9190", "unix:/run/qudag/rpc.sock"]
});

/// A secret by reference. The value is read when it is needed and is never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Secret {
    /// The contents of a file, without the white space around it.
    File(PathBuf),
    /// The value of an environment variable.
    Env(String),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "secret in file {}", path.display()),
            Self::Env(name) => write!(f, "secret in environment variable {name}"),
        }
    }
}

impl Secret {
    /// The value.
    ///
    /// # Errors
    /// When the file cannot be read, the variable is not set, or the value is empty.
    pub fn read(&self) -> Result<String, String> {
        let value = match self {
            Self::File(path) => std::fs::read_to_string(path)
                .map_err(|why| format!("cannot read the secret in {}: {why}", path.display()))?,
            Self::Env(name) => {
                std::env::var(name).map_err(|_| format!("environment variable {name} is not set"))?
            }
        };
        match value.trim() {
            "" => Err(format!("{self:?} is empty")),
            value => Ok(value.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip<T: FromStr<Err = String> + fmt::Display>(text: &str) -> String {
        text.parse::<T>().unwrap_or_else(|why| panic!("{text}: {why}")).to_string()
    }

    #[test]
    fn values_read_as_they_are_written() {
        for text in ["127.0.0.1:53", "[::1]:53", "node.example:8000", "unix:/run/x.sock"] {
            assert_eq!(round_trip::<Address>(text), text);
        }
        for text in ["300s", "500ms", "1h 30m"] {
            let period: Period = text.parse().unwrap();
            assert_eq!(period.to_string().parse::<Period>().unwrap(), period);
        }
        assert_eq!(round_trip::<ByteSize>("64kib"), "64KiB");
        assert_eq!(round_trip::<ByteSize>("1000B"), "1000B");
        assert_eq!(round_trip::<Percent>("12.5%"), "12.5");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", ":53", "::1:53", "host", "host:99999", "-x:1", "a b:1", "1.2.3:4", "unix:"] {
            assert!(text.parse::<Address>().is_err(), "{text:?}");
        }
        for text in ["", "5", "-1s", "5 lightyears"] {
            assert!(text.parse::<Period>().is_err(), "{text:?}");
        }
        for text in ["", "5", "1.5MiB", "99999999999GiB", "5MB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text:?}");
        }
        for text in ["-1", "100.1", "NaN", "x"] {
            assert!(text.parse::<Percent>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn percentages_grow_without_moving_anybody() {
        let (ten, fifty) = (Percent::new(10.0).unwrap(), Percent::new(50.0).unwrap());
        for bucket in 0..10_000 {
            assert!(!ten.covers(bucket) || fifty.covers(bucket));
            assert!(Percent::ALL.covers(bucket) && !Percent::NONE.covers(bucket));
        }
    }

    #[test]
    fn secrets_are_never_shown() {
        let file = std::env::temp_dir().join(format!("secret-{}", std::process::id()));
        std::fs::write(&file, " hunter2\n").unwrap();
        let secret = Secret::File(file.clone());
        assert_eq!(secret.read().unwrap(), "hunter2");
        assert!(!format!("{secret:?}{}", serde_json::to_string(&secret).unwrap()).contains("hunter2"));
        std::fs::remove_file(&file).unwrap();
        assert!(secret.read().is_err());
    }
}
