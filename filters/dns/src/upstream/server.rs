//! An upstream server as the configuration names it.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use qudag_filter_api::{Host, HostPort};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A server: an IP address or a name, with a port where that is not 53.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Server(pub HostPort);

/// The port of DNS.
const PORT: u16 = 53;

impl From<IpAddr> for Server {
    fn from(ip: IpAddr) -> Self {
        Self(HostPort { host: Host::Ip(ip), port: PORT })
    }
}

impl FromStr for Server {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return Ok(ip.into());
        }
        match text.contains(':') {
            true => text.parse().map(Self),
            false => Ok(Self(HostPort { host: text.parse()?, port: PORT })),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Server {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Server {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(|why| {
            serde::de::Error::custom(format_args!(
                "{why} in {text:?}, expected a DNS server, such as 9.9.9.9, [2620:fe::fe]:53 or dns.example:5353"
            ))
        })
    }
}

impl JsonSchema for Server {
    fn schema_name() -> Cow<'static, str> {
        "Server".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "An IPv4 address, an IPv6 address or a name, with a port where it is not 53.",
            "examples": ["9.9.9.9", "[2620:fe::fe]:53", "dns.example:5353"]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_53_unless_it_is_written() {
        for (text, shown) in [
            ("9.9.9.9", "9.9.9.9:53"),
            ("9.9.9.9:5353", "9.9.9.9:5353"),
            ("2620:fe::fe", "[2620:fe::fe]:53"),
            ("[2620:fe::fe]", "[2620:fe::fe]:53"),
            ("[::1]:5353", "[::1]:5353"),
            ("Dns.Example", "dns.example:53"),
            ("dns.example:5353", "dns.example:5353"),
        ] {
            let json = format!("{text:?}");
            let server: Server = serde_json::from_str(&json).unwrap();
            assert_eq!(server.to_string(), shown);
            assert_eq!(shown.parse::<Server>().unwrap(), server);
        }
        for text in ["", "9.9.9", "9.9.9.9:x", "a b", "9.9.9.9:99999", ":53"] {
            let error = serde_json::from_str::<Server>(&format!("{text:?}")).unwrap_err().to_string();
            assert!(error.contains("expected a DNS server"), "{error}");
        }
    }
}
