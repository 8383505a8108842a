//! Requests as the node reads them: `{"id": UUID, "method": string, "params": any}`.
//!
//! The node closes the connection without a word when it cannot read a request. The same rules are applied here first, so that the
//! client is told what is wrong, and so that a client's mistake does not count as the node's failure.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;
use uuid::Uuid;

/// The id of an error that belongs to no readable id. The node's own client requires a UUID in every reply.
pub const NO_ID: &str = "\"00000000-0000-0000-0000-000000000000\"";

/// The longest id that is sent back.
const MAX_ID: usize = 128;

/// JSON-RPC 2.0: the request is not JSON.
pub const PARSE_ERROR: i32 = -32700;
/// JSON-RPC 2.0: the request is JSON, and no request.
pub const INVALID_REQUEST: i32 = -32600;

/// A readable request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The id, as JSON text.
    pub id: String,
    /// The method.
    pub method: String,
}

/// A request that the node would not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Unreadable {
    /// The id as JSON text, [`NO_ID`] if there is none.
    pub id: String,
    /// [`PARSE_ERROR`] or [`INVALID_REQUEST`].
    pub code: i32,
    /// What is wrong.
    pub why: String,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    method: Option<&'a RawValue>,
    #[serde(default)]
    params: Params,
}

/// Whether there are parameters. `null` is one.
#[derive(Default)]
struct Params(bool);

impl<'de> Deserialize<'de> for Params {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Checked::deserialize(deserializer)?;
        Ok(Self(true))
    }
}

/// Reads a request.
///
/// # Errors
/// When the node would not read it.
pub fn parse(body: &[u8]) -> Result<Request, Unreadable> {
    let envelope: Envelope<'_> = serde_json::from_slice(body).map_err(|why| Unreadable {
        id: NO_ID.to_owned(),
        code: if why.classify() == Category::Data { INVALID_REQUEST } else { PARSE_ERROR },
        why: why.to_string(),
    })?;
    let id = envelope.id.map(RawValue::get);
    let invalid = |why: &str| Unreadable {
        id: id.filter(|id| id.len() <= MAX_ID).unwrap_or(NO_ID).to_owned(),
        code: INVALID_REQUEST,
        why: why.to_owned(),
    };
    let uuid =
        id.and_then(|id| serde_json::from_str::<String>(id).ok()).and_then(|id| Uuid::try_parse(&id).ok());
    let (Some(id), Some(_)) = (id, uuid) else { return Err(invalid("`id` is not a UUID")) };
    let method = envelope.method.and_then(|method| serde_json::from_str(method.get()).ok());
    let Some(method) = method else { return Err(invalid("`method` is not a string")) };
    if !envelope.params.0 {
        return Err(invalid("no `params`"));
    }
    Ok(Request { id: id.to_owned(), method })
}

/// Any JSON value that the node's parser takes: not too deep, and with numbers in range. Nothing of it is kept.
struct Checked;

impl<'de> Deserialize<'de> for Checked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Checked {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self, A::Error> {
        while list.next_element::<Self>()?.is_some() {}
        Ok(self)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        while map.next_entry::<Self, Self>()?.is_some() {}
        Ok(self)
    }
}

/// A method, of those that the node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// `get_status`
    GetStatus,
    /// `list_peers`
    ListPeers,
    /// `get_peer_info`
    GetPeerInfo,
    /// `get_network_stats`
    GetNetworkStats,
    /// `test_network`: dials every peer, and takes long.
    TestNetwork,
    /// `add_peer`
    AddPeer,
    /// `remove_peer`
    RemovePeer,
    /// `ban_peer`
    BanPeer,
    /// `unban_peer`
    UnbanPeer,
    /// `stop`
    Stop,
    /// Any other; the node says what it thinks of it.
    Other,
}

impl Method {
    /// All that the node has.
    pub const ALL: [Self; 10] = [
        Self::GetStatus,
        Self::ListPeers,
        Self::GetPeerInfo,
        Self::GetNetworkStats,
        Self::TestNetwork,
        Self::AddPeer,
        Self::RemovePeer,
        Self::BanPeer,
        Self::UnbanPeer,
        Self::Stop,
    ];

    /// The method of a name.
    pub fn of(name: &str) -> Self {
        Self::ALL.into_iter().find(|method| method.label() == name).unwrap_or(Self::Other)
    }

    /// The name, `other` for [`Method::Other`]. A metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::GetStatus => "get_status",
            Self::ListPeers => "list_peers",
            Self::GetPeerInfo => "get_peer_info",
            Self::GetNetworkStats => "get_network_stats",
            Self::TestNetwork => "test_network",
            Self::AddPeer => "add_peer",
            Self::RemovePeer => "remove_peer",
            Self::BanPeer => "ban_peer",
            Self::UnbanPeer => "unban_peer",
            Self::Stop => "stop",
            Self::Other => "other",
        }
    }

    /// Whether the node is the same afterwards.
    pub fn is_read_only(self) -> bool {
        self.is_repeatable() || self == Self::TestNetwork
    }

    /// Whether a second call does no harm. `test_network` is not among them: it costs the node a dial to each peer.
    pub fn is_repeatable(self) -> bool {
        matches!(self, Self::GetStatus | Self::ListPeers | Self::GetPeerInfo | Self::GetNetworkStats)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    const ID: &str = "\"123e4567-e89b-12d3-a456-426614174000\"";

    /// What the node parses requests into (`qudag_protocol::rpc_server`).
    #[derive(Deserialize)]
    struct NodeRequest {
        id: String,
        method: String,
        #[serde(rename = "params")]
        _params: Value,
    }

    fn node_reads(body: &[u8]) -> Option<NodeRequest> {
        serde_json::from_slice(body).ok().filter(|request: &NodeRequest| Uuid::try_parse(&request.id).is_ok())
    }

    #[test]
    fn what_the_node_reads_is_read() {
        for body in [
            format!(r#"{{"id":{ID},"method":"get_status","params":null}}"#),
            format!(
                r#" {{"x":[1],"params":{{"a":[1.5e3,true,"\u00e9"]}},"method":"get\u005fstatus","id":{ID}}} "#
            ),
            format!(r#"[{ID},"get_status",{{}}]"#),
        ] {
            let expected = Request { id: ID.to_owned(), method: "get_status".to_owned() };
            assert_eq!(parse(body.as_bytes()).unwrap(), expected, "{body}");
            assert!(node_reads(body.as_bytes()).is_some());
        }
    }

    #[test]
    fn what_the_node_does_not_read_is_explained() {
        let deep = format!(r#"{{"id":{ID},"method":"m","params":{}1{}}}"#, "[".repeat(200), "]".repeat(200));
        for (body, id, code) in [
            ("", NO_ID, PARSE_ERROR),
            ("nonsense", NO_ID, PARSE_ERROR),
            ("{", NO_ID, PARSE_ERROR),
            ("{} x", NO_ID, PARSE_ERROR),
            ("\"text\"", NO_ID, INVALID_REQUEST),
            ("{}", NO_ID, INVALID_REQUEST),
            (r#"{"id":7,"method":"m","params":1}"#, "7", INVALID_REQUEST),
            (&format!(r#"{{"id":{ID}}}"#), ID, INVALID_REQUEST),
            (&format!(r#"{{"id":{ID},"method":7,"params":1}}"#), ID, INVALID_REQUEST),
            (&format!(r#"{{"id":{ID},"method":"m"}}"#), ID, INVALID_REQUEST),
            (&format!(r#"{{"id":{ID},"id":{ID},"method":"m","params":1}}"#), NO_ID, INVALID_REQUEST),
            (&format!(r#"{{"id":{ID},"method":"m","params":1e999}}"#), NO_ID, PARSE_ERROR),
            (&format!(r#"{{"id":"{}","method":"m","params":1}}"#, "x".repeat(200)), NO_ID, INVALID_REQUEST),
            (&deep, NO_ID, PARSE_ERROR),
        ] {
            let error = parse(body.as_bytes()).unwrap_err();
            assert_eq!((error.id.as_str(), error.code), (id, code), "{body}: {error}");
            assert!(node_reads(body.as_bytes()).is_none(), "{body}");
        }
    }

    #[test]
    fn labels_and_methods_belong_together() {
        for method in Method::ALL {
            assert_eq!(Method::of(method.label()), method);
        }
        assert_eq!(Method::of("Get_Status"), Method::Other);
        assert_eq!(Method::of("other"), Method::Other);
        let read_only = Method::ALL.into_iter().filter(|method| method.is_read_only()).count();
        assert_eq!(read_only, 5);
        assert!(!Method::Other.is_read_only() && !Method::TestNetwork.is_repeatable());
    }

    fn json() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            Just("true".to_owned()),
            Just(ID.to_owned()),
            Just("1e400".to_owned()),
            any::<f64>().prop_map(|number| number.to_string()),
            "\"[a-z\\\\\"u0-9]{0,8}\"",
        ];
        leaf.prop_recursive(3, 12, 4, |inner| {
            let key = prop_oneof![Just("id"), Just("method"), Just("params"), Just("x")];
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4)
                    .prop_map(|list| format!("[{}]", list.join(","))),
                proptest::collection::vec((key, inner), 0..5).prop_map(|entries| {
                    let entries: Vec<_> =
                        entries.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
                    format!("{{{}}}", entries.join(", "))
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_node_and_the_sidecar_agree(
            body in prop_oneof![
                json().prop_map(String::into_bytes),
                json().prop_map(|params| format!(r#"{{"id":{ID},"method":"m","params":{params}}}"#).into_bytes()),
                proptest::collection::vec(any::<u8>(), 0..100),
            ],
        ) {
            let (ours, theirs) = (parse(&body), node_reads(&body));
            prop_assert_eq!(ours.is_ok(), theirs.is_some());
            if let (Ok(ours), Some(theirs)) = (ours, theirs) {
                prop_assert_eq!(ours.method, theirs.method);
                prop_assert_eq!(serde_json::from_str::<String>(&ours.id).unwrap(), theirs.id);
            }
        }
    }
}
