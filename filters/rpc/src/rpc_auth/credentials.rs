//! What a request says of who sends it.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

/// A request as far as it matters here. As a list it has its parts in this order.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(rename = "id", default)]
    _id: IgnoredAny,
    #[serde(rename = "method", default)]
    _method: IgnoredAny,
    #[serde(borrow)]
    params: &'a RawValue,
}

#[derive(Deserialize)]
struct Params<'a> {
    #[serde(borrow, default)]
    auth_token: Option<&'a RawValue>,
    #[serde(borrow, default)]
    client_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    signature: Option<&'a RawValue>,
}

/// The credentials in a request. What is there and no string counts as not there, as it does for the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Credentials<'a> {
    pub(super) token: Option<Cow<'a, str>>,
    pub(super) client: Option<Cow<'a, str>>,
    pub(super) signature: Option<Cow<'a, str>>,
}

/// Reads the credentials of a request that [`crate::request::parse`] has taken; `None` where one of them is there twice: the node takes the last, others may take
/// the first.
pub(super) fn credentials(body: &[u8]) -> Option<Credentials<'_>> {
    let params = serde_json::from_slice::<Envelope<'_>>(body).ok()?.params.get();
    // As a list they have no names, and a list would be read as if it had.
    if !params.trim_start().starts_with('{') {
        return Some(Credentials::default());
    }
    let Params { auth_token, client_id, signature } = serde_json::from_str(params).ok()?;
    Some(Credentials { token: text(auth_token), client: text(client_id), signature: text(signature) })
}

fn text(value: Option<&RawValue>) -> Option<Cow<'_, str>> {
    /// Borrowed where nothing in it is escaped.
    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

    serde_json::from_str::<Text<'_>>(value?.get()).ok().map(|text| text.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const ID: &str = "00000000-0000-4000-8000-000000000001";

    fn of(params: &str) -> Option<(Option<String>, Option<String>, Option<String>)> {
        let body = format!(r#"{{"id":"{ID}","method":"m","params":{params}}}"#);
        credentials(body.as_bytes()).map(|found| {
            let owned = |text: Option<Cow<'_, str>>| text.map(Cow::into_owned);
            (owned(found.token), owned(found.client), owned(found.signature))
        })
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn credentials_are_read_where_the_node_reads_them() {
        assert_eq!(
            of(r#"{"client_id":"\u0061","x":{"signature":7},"signature":"b","auth_token":"c"}"#),
            Some((some("c"), some("a"), some("b")))
        );
        assert_eq!(of(r#"{"client_id":7,"signature":null,"auth_token":["c"]}"#), Some((None, None, None)));
        for none in ["null", "[]", r#"["a","b","c"]"#, r#""auth_token""#, " {}"] {
            assert_eq!(of(none), Some((None, None, None)), "{none}");
        }
        let list = format!(r#"["{ID}","m",{{"auth_token":"c"}}]"#);
        assert_eq!(credentials(list.as_bytes()).unwrap().token.as_deref(), Some("c"));
    }

    #[test]
    fn what_is_there_twice_is_no_credential() {
        for key in ["client_id", "signature", "auth_token"] {
            assert_eq!(of(&format!(r#"{{"{key}":"a","{key}":"b"}}"#)), None, "{key}");
        }
        assert!(of(r#"{"other":1,"other":2}"#).is_some());
    }

    proptest! {
        /// Whatever is read here, the node reads as well (`Value::get` and `Value::as_str`).
        #[test]
        fn the_node_reads_the_same(
            client in "\\PC{0,8}",
            token in prop_oneof!["\\PC{0,8}".prop_map(Value::from), Just(json!(1)), Just(Value::Null), Just(json!(["x"]))],
            indented: bool,
        ) {
            let body = json!({"id": ID, "method": "m", "params": {"client_id": client, "auth_token": token}});
            let bytes = if indented { serde_json::to_vec_pretty(&body) } else { serde_json::to_vec(&body) }.unwrap();
            let found = credentials(&bytes).unwrap();
            prop_assert_eq!(found.client.as_deref(), Some(client.as_str()));
            prop_assert_eq!(found.token.as_deref(), body["params"]["auth_token"].as_str());
        }
    }
}
