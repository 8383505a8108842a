//! The sidecar's own replies, in the node's shape: `{"id", "result": null, "error": {"code", "message", "data"}}`.

use bytes::Bytes;
use qudag_filter_api::FilterError;
use serde_json::json;

use crate::request::{INVALID_REQUEST, Unreadable};

/// The node's code for a call that lacks permission.
const FORBIDDEN: i32 = -32001;
/// Over the rate; `data.retry_after_ms` says when to come back.
const RATE_LIMITED: i32 = -32005;
/// The node cannot be reached, did not answer, or is not asked at the moment.
const UNAVAILABLE: i32 = -32006;
/// The node did not answer in time.
const TIMEOUT: i32 = -32007;
/// JSON-RPC 2.0.
const INTERNAL_ERROR: i32 = -32603;

fn code(error: &FilterError) -> i32 {
    match error {
        FilterError::Malformed(_) | FilterError::ClientGone => INVALID_REQUEST,
        FilterError::Refused(_) => FORBIDDEN,
        FilterError::RateLimited { .. } => RATE_LIMITED,
        FilterError::BreakerOpen { .. }
        | FilterError::Overloaded(_)
        | FilterError::Shed { .. }
        | FilterError::Unavailable { .. }
        | FilterError::Connect { .. }
        | FilterError::Resolve { .. }
        | FilterError::Upstream(_)
        | FilterError::Draining => UNAVAILABLE,
        FilterError::Timeout { .. } => TIMEOUT,
        FilterError::Internal(_) => INTERNAL_ERROR,
    }
}

/// The reply to a call that failed. `id` is JSON text.
pub(crate) fn reply(id: &str, error: &FilterError) -> Bytes {
    // Rounded up, so that nobody comes too early.
    let after =
        error.retry_after().map(|after| after.as_millis() + u128::from(after.subsec_nanos() % 1_000_000 > 0));
    let after = after.map(|after| u64::try_from(after).unwrap_or(u64::MAX));
    let mut data = json!({"by": "qudag-sidecar", "reason": error.label()});
    if let (Some(after), Some(data)) = (after, data.as_object_mut()) {
        data.insert("retry_after_ms".to_owned(), after.into());
    }
    frame(id, code(error), &error.public(), data)
}

/// The reply to a request that cannot be read.
pub(crate) fn unreadable(error: &Unreadable) -> Bytes {
    frame(&error.id, error.code, &error.why, json!({"by": "qudag-sidecar", "reason": "malformed"}))
}

fn frame(id: &str, code: i32, message: &str, data: serde_json::Value) -> Bytes {
    let error = json!({"code": code, "message": message, "data": data});
    format!(r#"{{"id":{id},"result":null,"error":{error}}}"#).into()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::Value;

    use super::*;
    use crate::request::{NO_ID, PARSE_ERROR};

    #[test]
    fn refusals_have_the_shape_of_the_nodes_errors() {
        let parsed = |bytes: Bytes| serde_json::from_slice::<Value>(&bytes).unwrap();
        let limited = FilterError::RateLimited { retry_after: Duration::from_micros(1500) };
        assert_eq!(
            parsed(reply(NO_ID, &limited)),
            json!({
                "id": "00000000-0000-0000-0000-000000000000",
                "result": null,
                "error": {
                    "code": -32005,
                    "message": limited.to_string(),
                    "data": {"by": "qudag-sidecar", "reason": "rate_limited", "retry_after_ms": 2},
                },
            })
        );
        let error = Unreadable { id: "7".into(), code: PARSE_ERROR, why: "a \"quote\"".into() };
        let reply = parsed(unreadable(&error));
        assert_eq!((&reply["id"], &reply["error"]["code"]), (&json!(7), &json!(-32700)));
        assert_eq!(reply["error"]["message"], "a \"quote\"");
    }
}
