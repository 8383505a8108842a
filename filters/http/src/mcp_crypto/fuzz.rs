//! The entry for fuzzing.

use http::StatusCode;
use serde_json::Value;

use super::call::{Door, Reply, asked};
use super::{McpCrypto, Mode, answer};

/// Any body is a call of the tool or none, and no call is taken for none. Each is answered in the form of the way that it came in.
///
/// # Panics
/// When that is not so.
pub fn fuzz_mcp(body: &[u8]) {
    let answering = McpCrypto::default();
    let blocking = McpCrypto { mode: Mode::Block, ..McpCrypto::default() };
    let read = serde_json::from_str(&String::from_utf8_lossy(body)).unwrap_or(Value::Null);
    for door in [Door::Call, Door::Rpc] {
        let Some(asked) = asked(door, body, &answering.tools) else {
            assert!(!is_call(door, &read, &answering.tools), "it reaches the node");
            continue;
        };
        check(door, &read, &answer(&answering, &asked));
        let blocked = answer(&blocking, &asked);
        assert!(blocked.body.get("result").is_none(), "a result of what is blocked");
        check(door, &read, &blocked);
    }
}

/// What the node would take for a call.
fn is_call(door: Door, read: &Value, tools: &[String]) -> bool {
    let is_tool = |name: Option<&Value>| {
        name.and_then(Value::as_str).is_some_and(|name| tools.iter().any(|tool| tool == name))
    };
    let in_rpc = |request: &Value| {
        let method = request.get("method").and_then(Value::as_str);
        method == Some("tools/call") && is_tool(request.pointer("/params/name"))
    };
    match (door, read) {
        (Door::Call, call) => is_tool(call.get("name")),
        (Door::Rpc, Value::Array(batch)) => batch.iter().any(in_rpc),
        (Door::Rpc, request) => in_rpc(request),
    }
}

/// A reply has a result or an error, and says which.
fn check(door: Door, read: &Value, Reply { status, body }: &Reply) {
    let is_done = body.get("result").is_some();
    assert_ne!(is_done, body.get("error").is_some());
    match door {
        Door::Call => {
            assert_eq!(body.get("success"), Some(&is_done.into()));
            let failed = [StatusCode::FORBIDDEN, StatusCode::BAD_REQUEST].contains(status);
            assert!(if is_done { *status == StatusCode::OK } else { failed });
        }
        Door::Rpc => {
            assert_eq!(*status, StatusCode::OK);
            assert_eq!(body.get("jsonrpc"), Some(&"2.0".into()));
            assert_eq!(body.get("id"), Some(read.get("id").unwrap_or(&Value::Null)));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn value() -> impl Strategy<Value = Value> {
        let text = "crypto|qudag_crypto|tools/call|verify|hash|fingerprint|blake3|[A-Za-z0-9+/=]{0,8}";
        let leaf =
            prop_oneof![text.prop_map(Value::from), Just(Value::Null), any::<i8>().prop_map(Value::from)];
        let key = "name|method|params|arguments|id|operation|data|message|signature|publicKey|format";
        leaf.prop_recursive(4, 24, 5, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                proptest::collection::hash_map(key, inner, 0..6).prop_map(|object| json!(object)),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_body_is_a_call_or_none(params in value(), bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            fuzz_mcp(&bytes);
            fuzz_mcp(params.to_string().as_bytes());
            let request = json!({"id": 1, "method": "tools/call", "params": params});
            fuzz_mcp(request.to_string().as_bytes());
            fuzz_mcp(json!([{}, request]).to_string().as_bytes());
            let call = json!({"name": "crypto", "arguments": params});
            fuzz_mcp(call.to_string().as_bytes());
        }
    }
}
