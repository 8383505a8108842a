//! Calls of the tool, and replies in the shape of the node's: plain, and in JSON-RPC 2.0.

use http::StatusCode;
use serde_json::{Value, json};

use super::operations::Outcome;

/// JSON-RPC 2.0.
const INVALID_REQUEST: i32 = -32600;
const INVALID_PARAMS: i32 = -32602;
/// A code of the server's own: the sidecar does not do this.
const BLOCKED: i32 = -32001;

/// A way in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Door {
    /// `POST /mcp/tools/call`: `{name, arguments}`, answered with `{success, result}` or `{success, error}`.
    Call,
    /// `POST /mcp/rpc`: JSON-RPC with the method `tools/call`.
    Rpc,
}

/// A call of the tool.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Asked {
    door: Door,
    /// The id of the JSON-RPC request.
    id: Value,
    tool: String,
    pub(super) arguments: Value,
    /// It stands among others in one request, which the node does not know either.
    pub(super) in_batch: bool,
}

/// What a client gets.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) body: Value,
}

/// The call of one of `tools` that a body is; `None` where it is anything else. What the node makes of a body that is no UTF-8, or that says something twice, is made of it
/// here too.
pub(super) fn asked(door: Door, body: &[u8], tools: &[String]) -> Option<Asked> {
    let body: Value = serde_json::from_str(&String::from_utf8_lossy(body)).ok()?;
    match (door, body) {
        (Door::Rpc, Value::Array(batch)) => {
            let called = batch.into_iter().find_map(|one| in_rpc(one, tools));
            called.map(|asked| Asked { id: Value::Null, in_batch: true, ..asked })
        }
        (Door::Rpc, body) => in_rpc(body, tools),
        (Door::Call, body) => call(door, Value::Null, body, tools),
    }
}

fn in_rpc(mut request: Value, tools: &[String]) -> Option<Asked> {
    if request.get("method").and_then(Value::as_str) != Some("tools/call") {
        return None;
    }
    let mut take = |key| request.get_mut(key).map(Value::take).unwrap_or_default();
    let (id, params) = (take("id"), take("params"));
    call(Door::Rpc, id, params, tools)
}

fn call(door: Door, id: Value, mut params: Value, tools: &[String]) -> Option<Asked> {
    let tool =
        params.get("name").and_then(Value::as_str).filter(|name| tools.iter().any(|tool| tool == name))?;
    let tool = tool.to_owned();
    let arguments = params.get_mut("arguments").map(Value::take).unwrap_or_default();
    Some(Asked { door, id, tool, arguments, in_batch: false })
}

impl Asked {
    /// The reply that says what came of it.
    pub(super) fn reply(&self, outcome: Outcome) -> Reply {
        match self.door {
            Door::Call => plain(outcome),
            Door::Rpc => Reply { status: StatusCode::OK, body: self.in_rpc(outcome) },
        }
    }

    fn in_rpc(&self, outcome: Outcome) -> Value {
        let error = |code, why| {
            let error = json!({"code": code, "message": why, "data": {"by": "qudag-sidecar"}});
            json!({"jsonrpc": "2.0", "id": self.id, "error": error})
        };
        match outcome {
            Outcome::Done(result) => {
                // The node's three fields, and those of the MCP specification of 2025-06-18.
                let text = result.to_string();
                let result = json!({
                    "success": true,
                    "tool": self.tool,
                    "output": text,
                    "content": [{"type": "text", "text": text}],
                    "structuredContent": result,
                    "isError": false,
                });
                json!({"jsonrpc": "2.0", "id": self.id, "result": result})
            }
            Outcome::Blocked(why) => error(BLOCKED, why),
            Outcome::Malformed(why) if self.in_batch => error(INVALID_REQUEST, why),
            Outcome::Malformed(why) => error(INVALID_PARAMS, why),
        }
    }
}

fn plain(outcome: Outcome) -> Reply {
    let failed = |status, why| Reply { status, body: json!({"success": false, "error": why}) };
    match outcome {
        Outcome::Done(result) => {
            Reply { status: StatusCode::OK, body: json!({"success": true, "result": result}) }
        }
        Outcome::Blocked(why) => failed(StatusCode::FORBIDDEN, why),
        Outcome::Malformed(why) => failed(StatusCode::BAD_REQUEST, why),
    }
}
