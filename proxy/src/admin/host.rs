//! The Host header, checked against DNS rebinding: a page whose name was made to resolve to this machine still sends
//! its own name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The host and the port of an authority (RFC 3986, section 3.2) without user information.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Authority {
    host: Host,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Ip(IpAddr),
    Name(String),
}

/// The port of a URL of scheme http that names none.
const HTTP: u16 = 80;

impl Authority {
    /// Reads `name`, `name:port`, `1.2.3.4:port` or `[::1]:port`. Anything else is `None`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (ip, rest) = rest.split_once(']')?;
                let port = match rest {
                    "" => None,
                    _ => Some(rest.strip_prefix(':')?),
                };
                (Host::Ip(ip.parse::<Ipv6Addr>().ok()?.to_canonical()), port)
            }
            None => {
                let (host, port) = match text.split_once(':') {
                    Some((host, port)) => (host, Some(port)),
                    None => (text, None),
                };
                (parse_host(host)?, port)
            }
        };
        let port = match port {
            Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => Some(port.parse().ok()?),
            Some(_) => return None,
            None => None,
        };
        Some(Self { host, port })
    }

    /// Whether this names the local end of a connection, by address, as `localhost` or by one of the given names.
    pub(super) fn is_ours(&self, local: SocketAddr, names: &[Self]) -> bool {
        let port_fits = self.port.unwrap_or(HTTP) == local.port();
        let host_fits = match &self.host {
            Host::Ip(ip) => {
                *ip == local.ip().to_canonical()
                    || *ip == IpAddr::V4(Ipv4Addr::LOCALHOST)
                    || *ip == IpAddr::V6(Ipv6Addr::LOCALHOST)
            }
            Host::Name(name) => name == "localhost" || names.iter().any(|known| known.host == self.host),
        };
        port_fits && host_fits
    }
}

fn parse_host(host: &str) -> Option<Host> {
    if let Ok(ip) = host.parse::<Ipv4Addr>() {
        return Some(Host::Ip(ip.into()));
    }
    let label = |label: &str| {
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let is_name = host.len() <= 253 && host.split('.').all(label);
    is_name.then(|| Host::Name(host.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ours(host: &str, local: &str, names: &[&str]) -> bool {
        let names: Vec<_> = names.iter().map(|name| Authority::parse(name).unwrap()).collect();
        Authority::parse(host).is_some_and(|host| host.is_ours(local.parse().unwrap(), &names))
    }

    #[test]
    fn the_address_of_the_connection_and_its_usual_names_are_ours() {
        for host in ["127.0.0.1:9901", "localhost:9901", "LocalHost:9901", "[::1]:9901"] {
            assert!(ours(host, "127.0.0.1:9901", &[]), "{host}");
        }
        assert!(ours("10.1.2.3:9901", "10.1.2.3:9901", &[]));
        assert!(ours("10.1.2.3:9901", "[::ffff:10.1.2.3]:9901", &[]));
        assert!(ours("localhost", "127.0.0.1:80", &[]));
    }

    #[test]
    fn other_names_ports_and_forms_are_not() {
        for host in [
            "evil.example:9901",
            "localhost.evil.example:9901",
            "localhost.:9901",
            "127.0.0.1",
            "127.0.0.1:80",
            "localhost:9902",
            "user@localhost:9901",
            "127.0.0.1:9901:9901",
            "127.0.0.1:+9901",
            "127.1:9901",
            "0x7f000001:9901",
            "[::1]9901",
            "[::1",
            "::1",
            "10.1.2.3:9901",
            "localhost:",
            " localhost:9901",
            "localhost:9901/",
            "",
        ] {
            assert!(!ours(host, "127.0.0.1:9901", &[]), "{host}");
        }
    }

    #[test]
    fn the_name_that_was_bound_is_ours() {
        assert!(ours("sidecar.example:9901", "10.0.0.1:9901", &["Sidecar.example"]));
        assert!(!ours("sidecar.example:1", "10.0.0.1:9901", &["sidecar.example"]));
        assert!(!ours("other.example:9901", "10.0.0.1:9901", &["sidecar.example"]));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC*") {
            if let Some(authority) = Authority::parse(&text) {
                let _ = authority.is_ours("127.0.0.1:1".parse().unwrap(), &[]);
            }
        }

        #[test]
        fn text_that_looks_like_an_authority_does_not_panic(text in "[\\[\\]:.a-f0-9@-]{0,24}") {
            let _ = Authority::parse(&text);
        }

        #[test]
        fn only_loopback_is_ours_on_loopback(a: u8, b: u8, c: u8, d: u8, port: u16) {
            let host = format!("{a}.{b}.{c}.{d}:{port}");
            let expected = (a, b, c, d, port) == (127, 0, 0, 1, 9901);
            prop_assert_eq!(ours(&host, "127.0.0.1:9901", &[]), expected);
        }
    }
}
