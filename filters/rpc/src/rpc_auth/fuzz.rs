//! The entry for fuzzing.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::credentials::{Credentials, credentials};
use crate::request::parse;

/// A request as the node takes it apart (`qudag_protocol::rpc_server`).
#[derive(Deserialize)]
struct Sent<'a> {
    #[serde(rename = "id")]
    _id: IgnoredAny,
    #[serde(rename = "method")]
    _method: IgnoredAny,
    #[serde(borrow)]
    params: &'a RawValue,
}

/// The names in an object, as often as they are there.
struct Names(Vec<String>);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Names;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Names, A::Error> {
                let mut names = Vec::new();
                while let Some((name, IgnoredAny)) = map.next_entry()? {
                    names.push(name);
                }
                Ok(Names(names))
            }
        }

        deserializer.deserialize_map(Object)
    }
}

/// Of any request that is passed on, the credentials are what the node reads, and there are none only where one is there twice.
///
/// # Panics
/// When that is not so.
pub fn fuzz_credentials(body: &[u8]) {
    let found = credentials(body);
    if parse(body).is_err() {
        return;
    }
    let params = serde_json::from_slice::<Sent<'_>>(body).map_or("", |sent| sent.params.get());
    let node = serde_json::from_str::<Value>(params).ok();
    assert!(node.is_some(), "the node cannot read it");
    let names = serde_json::from_str::<Names>(params).map_or_else(|_| Vec::new(), |names| names.0);
    let is_twice = |name: &str| names.iter().filter(|other| *other == name).count() > 1;
    let keys = ["auth_token", "client_id", "signature"];
    assert_eq!(found.is_none(), keys.into_iter().any(is_twice));
    let Some(Credentials { token, client, signature }) = found else { return };
    for (name, found) in keys.into_iter().zip([token, client, signature]) {
        let read = node.as_ref().and_then(|params| params.get(name)?.as_str());
        assert_eq!(found.as_deref(), read, "{name}");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn credentials_are_what_the_node_reads(
            params in proptest::collection::vec(
                (
                    "auth_token|client_id|signature|client\\\\u005fid|x",
                    "\"[a-z]{0,3}\"|\"\\\\u00[4-6]1\"|\"\\\\ud800\"|null|1|1e999|\\[\"a\"\\]",
                ),
                0..5,
            ),
            list: bool,
        ) {
            let params: Vec<_> = params.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
            let (id, params) = ("\"00000000-0000-4000-8000-000000000001\"", params.join(","));
            let body = if list {
                format!("[{id},\"m\",{{{params}}}]")
            } else {
                format!("{{\"id\":{id},\"method\":\"m\",\"params\":{{{params}}}}}")
            };
            super::fuzz_credentials(body.as_bytes());
        }
    }
}
