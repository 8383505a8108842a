//! Where the server is, as people write it.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use qudag_filter_api::{Address, Host, HostPort};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

const PORT: u16 = 6379;
const EXPECTED: &str = "redis://HOST:PORT/DATABASE, rediss://HOST:PORT/DATABASE or unix:PATH?db=DATABASE";

/// A Redis or Valkey server: `redis://HOST:PORT/DATABASE`, the same with `rediss` for TLS, or `unix:PATH?db=DATABASE`. Port and database
/// may be left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisUrl {
    /// The server.
    pub address: Address,
    /// Whether the connection is encrypted.
    pub tls: bool,
    /// The number of the database.
    pub database: u16,
}

impl Default for RedisUrl {
    fn default() -> Self {
        let host = Host::Ip(std::net::Ipv4Addr::LOCALHOST.into());
        Self { address: Address::Tcp(HostPort { host, port: PORT }), tls: false, database: 0 }
    }
}

impl FromStr for RedisUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let database = |text: &str| text.parse().map_err(|_| format!("{text:?} is not a database number"));
        if let Some(rest) = text.strip_prefix("unix:") {
            let (path, number) = rest.split_once("?db=").unwrap_or((rest, "0"));
            if path.is_empty() {
                return Err("no path".to_owned());
            }
            let address = Address::Unix(PathBuf::from(path));
            return Ok(Self { address, tls: false, database: database(number)? });
        }
        let (tls, rest) = match (text.strip_prefix("redis://"), text.strip_prefix("rediss://")) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            _ => return Err("no scheme".to_owned()),
        };
        if rest.contains('@') {
            // It would be printed with the settings.
            return Err(
                "credentials do not belong in the address, but into `username` and `password`".to_owned()
            );
        }
        let (server, number) = rest.split_once('/').unwrap_or((rest, ""));
        let has_port = server.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
        let server = match has_port {
            true => server.parse()?,
            false => format!("{server}:{PORT}").parse()?,
        };
        let number = if number.is_empty() { "0" } else { number };
        Ok(Self { address: Address::Tcp(server), tls, database: database(number)? })
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Address::Unix(path) => write!(f, "unix:{}?db={}", path.display(), self.database),
            Address::Tcp(server) => {
                write!(f, "redis{}://{server}/{}", if self.tls { "s" } else { "" }, self.database)
            }
        }
    }
}

impl<'de> Deserialize<'de> for RedisUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = RedisUrl;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(EXPECTED)
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<RedisUrl, E> {
                // Without the text, which may hold a password.
                text.parse().map_err(|why| E::custom(format_args!("{why}, expected {EXPECTED}")))
            }
        }
        deserializer.deserialize_str(Text).map_err(D::Error::custom)
    }
}

impl Serialize for RedisUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for RedisUrl {
    fn schema_name() -> Cow<'static, str> {
        "RedisUrl".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A Redis or Valkey server; rediss is TLS.",
            "pattern": r"^(rediss?://[^@/]+(/[0-9]*)?|unix:.+)$",
            "examples": ["redis://127.0.0.1:6379/0", "rediss://cache.example:6380/1", "unix:/run/redis/redis.sock?db=0"]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for (text, shown) in [
            ("redis://127.0.0.1", "redis://127.0.0.1:6379/0"),
            ("redis://127.0.0.1:7000/3", "redis://127.0.0.1:7000/3"),
            ("rediss://cache.example/", "rediss://cache.example:6379/0"),
            ("rediss://[::1]:6380", "rediss://[::1]:6380/0"),
            ("redis://[::1]/2", "redis://[::1]:6379/2"),
            ("unix:/run/redis.sock", "unix:/run/redis.sock?db=0"),
            ("unix:/run/redis.sock?db=4", "unix:/run/redis.sock?db=4"),
        ] {
            let url: RedisUrl = text.parse().unwrap_or_else(|why| panic!("{text}: {why}"));
            assert_eq!(url.to_string(), shown);
            assert_eq!(shown.parse(), Ok(url));
        }
        assert_eq!("redis://127.0.0.1:6379/0".parse(), Ok(RedisUrl::default()));
        for text in [
            "127.0.0.1:6379",
            "http://a",
            "redis://",
            "redis://a:b",
            "redis://a/b",
            "redis://a/70000",
            "unix:",
            "unix:/a?db=x",
        ] {
            assert!(text.parse::<RedisUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_password_in_an_address_is_refused_and_not_repeated() {
        let why = serde_json::from_str::<RedisUrl>(r#""redis://u:hunter2@a/0""#).unwrap_err().to_string();
        assert!(why.contains("password") && !why.contains("hunter2"), "{why}");
    }
}
