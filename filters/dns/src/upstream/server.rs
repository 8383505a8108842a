//! An upstream server as the configuration names it.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use qudag_filter_api::{Host, HostPort};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How a server is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Datagrams, and TCP for what does not fit into one (RFC 1035 section 4.2).
    Udp,
    /// TCP only (RFC 7766).
    Tcp,
    /// DNS over TLS (RFC 7858).
    Tls,
    /// DNS over HTTPS (RFC 8484).
    Https,
    /// DNS over QUIC (RFC 9250).
    Quic,
}

impl Protocol {
    /// The scheme in the notation.
    pub fn label(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Https => "https",
            Self::Quic => "quic",
        }
    }

    /// The port where none is written.
    fn port(self) -> u16 {
        match self {
            Self::Udp | Self::Tcp => 53,
            Self::Tls | Self::Quic => 853,
            Self::Https => 443,
        }
    }

    /// Whether nobody on the way can read along.
    pub fn is_encrypted(self) -> bool {
        matches!(self, Self::Tls | Self::Https | Self::Quic)
    }
}

/// Where DoH servers answer, unless another path is written.
const PATH: &str = "/dns-query";

/// A server: `9.9.9.9`, `dns.example:5353`, `tcp://9.9.9.9`, `tls://9.9.9.9#dns.quad9.net`, `https://dns.quad9.net/dns-query`,
/// `quic://dns.example`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Server {
    protocol: Protocol,
    address: HostPort,
    /// The name in the server's certificate, where it is not the host.
    certified: Option<String>,
    /// Where the resource is; empty but for HTTPS.
    path: String,
}

impl Server {
    /// How it is spoken to.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Where it is.
    pub fn address(&self) -> &HostPort {
        &self.address
    }

    /// The name or address that its certificate must have.
    pub(super) fn certified_name(&self) -> String {
        self.certified.clone().unwrap_or_else(|| self.address.host.to_string())
    }

    /// The address of the resource of a DNS-over-HTTPS server.
    pub(super) fn uri(&self) -> String {
        let host = match (&self.certified, &self.address.host) {
            (Some(name), _) => name.clone(),
            (None, Host::Ip(IpAddr::V6(ip))) => format!("[{ip}]"),
            (None, host) => host.to_string(),
        };
        match self.address.port {
            443 => format!("https://{host}{}", self.path),
            port => format!("https://{host}:{port}{}", self.path),
        }
    }
}

impl From<IpAddr> for Server {
    fn from(ip: IpAddr) -> Self {
        let protocol = Protocol::Udp;
        let address = HostPort { host: Host::Ip(ip), port: protocol.port() };
        Self { protocol, address, certified: None, path: String::new() }
    }
}

impl FromStr for Server {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (protocol, rest) = match text.split_once("://") {
            None => (Protocol::Udp, text),
            Some(("udp", rest)) => (Protocol::Udp, rest),
            Some(("tcp", rest)) => (Protocol::Tcp, rest),
            Some(("tls", rest)) => (Protocol::Tls, rest),
            Some(("https", rest)) => (Protocol::Https, rest),
            Some(("quic", rest)) => (Protocol::Quic, rest),
            Some((scheme, _)) => return Err(format!("{scheme} is not udp, tcp, tls, https or quic")),
        };
        let (rest, certified) = match rest.split_once('#') {
            Some(_) if !protocol.is_encrypted() => {
                return Err("a certificate's name makes sense with tls, https and quic only".to_owned());
            }
            Some((rest, name)) => (rest, Some(certified_name(name)?)),
            None => (rest, None),
        };
        let (rest, path) = match rest.find('/').map(|at| rest.split_at(at)) {
            Some(_) if protocol != Protocol::Https => {
                return Err("a path makes sense with https only".to_owned());
            }
            Some((rest, path)) => (rest, path_of(path)?),
            None if protocol == Protocol::Https => (rest, PATH.to_owned()),
            None => (rest, String::new()),
        };
        let address = address(rest, protocol.port())?;
        // The name in a certificate is a host name, whatever the address may be.
        let certified = certified.filter(|name| *name != address.host.to_string());
        Ok(Self { protocol, address, certified, path })
    }
}

fn address(text: &str, port: u16) -> Result<HostPort, String> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(HostPort { host: Host::Ip(ip), port });
    }
    match text.contains(':') {
        true => text.parse(),
        false => Ok(HostPort { host: text.parse()?, port }),
    }
}

fn certified_name(text: &str) -> Result<String, String> {
    let host: Host = text.parse().map_err(|why| format!("{why} behind #"))?;
    Ok(host.to_string())
}

fn path_of(path: &str) -> Result<String, String> {
    let plain = path.bytes().all(|byte| byte.is_ascii_graphic() && !b"{}?".contains(&byte));
    match plain {
        true if path == "/" => Ok(PATH.to_owned()),
        true => Ok(path.to_owned()),
        false => Err("a path has no spaces, templates or queries".to_owned()),
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.protocol != Protocol::Udp {
            write!(f, "{}://", self.protocol.label())?;
        }
        write!(f, "{}{}", self.address, self.path)?;
        match &self.certified {
            Some(name) => write!(f, "#{name}"),
            None => Ok(()),
        }
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
                "{why} in {text:?}, expected a DNS server, such as 9.9.9.9, [2620:fe::fe]:53, dns.example:5353, tcp://9.9.9.9, \
                 tls://9.9.9.9#dns.quad9.net, https://dns.quad9.net/dns-query or quic://dns.example"
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
            "description": "An IPv4 address, an IPv6 address or a name, with a port where it is not the protocol's own. tcp://, tls://, \
                https:// or quic:// before it choose the protocol, UDP without; #NAME behind it is the name in the certificate.",
            "examples": [
                "9.9.9.9", "[2620:fe::fe]:53", "dns.example:5353", "tcp://9.9.9.9", "tls://9.9.9.9#dns.quad9.net",
                "https://dns.quad9.net/dns-query", "quic://dns.example"
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn protocol_port_and_path_have_their_defaults() {
        for (text, shown) in [
            ("9.9.9.9", "9.9.9.9:53"),
            ("9.9.9.9:5353", "9.9.9.9:5353"),
            ("2620:fe::fe", "[2620:fe::fe]:53"),
            ("[2620:fe::fe]", "[2620:fe::fe]:53"),
            ("[::1]:5353", "[::1]:5353"),
            ("Dns.Example", "dns.example:53"),
            ("dns.example:5353", "dns.example:5353"),
            ("udp://9.9.9.9", "9.9.9.9:53"),
            ("tcp://9.9.9.9", "tcp://9.9.9.9:53"),
            ("tls://9.9.9.9#dns.quad9.net", "tls://9.9.9.9:853#dns.quad9.net"),
            ("tls://dns.quad9.net#dns.quad9.net", "tls://dns.quad9.net:853"),
            ("https://dns.quad9.net", "https://dns.quad9.net:443/dns-query"),
            ("https://dns.quad9.net/", "https://dns.quad9.net:443/dns-query"),
            ("https://9.9.9.9/dns#dns.quad9.net", "https://9.9.9.9:443/dns#dns.quad9.net"),
            ("quic://[2620:fe::fe]:8853", "quic://[2620:fe::fe]:8853"),
        ] {
            let json = format!("{text:?}");
            let server: Server = serde_json::from_str(&json).unwrap();
            assert_eq!(server.to_string(), shown);
            assert_eq!(shown.parse::<Server>().unwrap(), server);
        }
        for text in [
            "",
            "9.9.9",
            "9.9.9.9:x",
            "a b",
            "9.9.9.9:99999",
            ":53",
            "ftp://9.9.9.9",
            "9.9.9.9#name",
            "tls://9.9.9.9/path",
            "tls://9.9.9.9#",
            "tls://9.9.9.9#a b",
            "https://dns.example/dns-query{?dns}",
            "https://",
        ] {
            let error = serde_json::from_str::<Server>(&format!("{text:?}")).unwrap_err().to_string();
            assert!(error.contains("expected a DNS server"), "{error}");
        }
    }

    #[test]
    fn a_certificate_is_for_the_host_unless_another_name_is_written() {
        let server = |text: &str| text.parse::<Server>().unwrap();
        assert_eq!(server("tls://9.9.9.9#dns.quad9.net").certified_name(), "dns.quad9.net");
        assert_eq!(server("tls://9.9.9.9").certified_name(), "9.9.9.9");
        assert_eq!(server("https://dns.example/q").uri(), "https://dns.example/q");
        assert_eq!(server("https://[::1]:8443#dns.example").uri(), "https://dns.example:8443/dns-query");
        assert_eq!(server("https://[::1]:8443").uri(), "https://[::1]:8443/dns-query");
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(text in "((udp|tcp|tls|https|quic)://)?[a-z0-9.:\\[\\]]{1,12}(/[a-z]{0,4})?(#[a-z.]{1,6})?") {
            if let Ok(server) = text.parse::<Server>() {
                prop_assert_eq!(server.to_string().parse::<Server>(), Ok(server));
            }
        }
    }
}
