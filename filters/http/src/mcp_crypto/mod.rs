//! `mcp_crypto`: the node's MCP tool for cryptography is a mock, which calls every signature valid. Its calls are answered for real or refused.

mod arguments;
mod call;
mod fuzz;
mod operations;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::header::{ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::{BodyExt, Full};
use metrics::counter;
use qudag_filter_api::{
    BuildError, ByteSize, ConfigError, ConfigPath, Env, FilterError, FilterSpec, Svc, service_fn,
};
use qudag_filter_common::mldsa::Algorithm;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tower::ServiceExt;

use crate::refusal::problem;
use crate::{Body, Http, HttpCall};
use call::{Asked, Door, Reply, asked};
pub use fuzz::fuzz_mcp;

/// What a body may be at most, and at least: a call with a key and a signature in base64 has 7 KiB.
const MAX_BODY: ByteSize = ByteSize::mib(8);
const MIN_BODY: ByteSize = ByteSize::kib(16);
/// The most names of the tool.
const MAX_TOOLS: usize = 16;

/// `mcp_crypto`: calls of the node's tool for cryptography, `POST /mcp/tools/call` and `tools/call` in `POST /mcp/rpc`, do not reach the node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct McpCrypto {
    /// What becomes of calls.
    pub mode: Mode,
    /// The names that the tool has.
    pub tools: Vec<String>,
    /// What a call means that says `ml-dsa`, as the tool's description has it, or nothing.
    pub alg: Algorithm,
    /// The largest body of a request to these two paths; a larger one is refused with 413, because nobody has looked into it.
    pub max_body: ByteSize,
}

/// What becomes of calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Signatures are verified and data is hashed; everything else is refused.
    #[default]
    Answer,
    /// All are refused.
    Block,
}

impl Default for McpCrypto {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            tools: vec!["crypto".to_owned(), "qudag_crypto".to_owned()],
            alg: Algorithm::default(),
            max_body: ByteSize::mib(1),
        }
    }
}

impl FilterSpec for McpCrypto {
    type Kind = Http;
    type State = ();
    const NAME: &'static str = "mcp_crypto";

    fn check(&self, at: &ConfigPath) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        if self.tools.is_empty() || self.tools.len() > MAX_TOOLS || self.tools.iter().any(String::is_empty) {
            let hint = format!("1 to {MAX_TOOLS} names, such as [crypto]");
            errors.push(at.key("tools").error("no names of a tool").hint(hint));
        }
        if !(MIN_BODY..=MAX_BODY).contains(&self.max_body) {
            let hint = format!("from {MIN_BODY} to {MAX_BODY}");
            errors.push(at.key("max_body").error("out of range").hint(hint));
        }
        errors
    }

    fn state(&self, _: &Env, previous: Option<(&Self, Arc<()>)>) -> Result<Arc<()>, BuildError> {
        Ok(previous.map(|(_, state)| state).unwrap_or_default())
    }

    fn wrap(&self, _: Arc<()>, inner: Svc<Http>) -> Svc<Http> {
        let settings = Arc::new(self.clone());
        service_fn::<Http, _, _>(move |call: HttpCall| {
            let (settings, inner) = (Arc::clone(&settings), inner.clone());
            async move {
                match door(&call.request) {
                    Some(door) => Box::pin(look(settings, door, call, inner)).await,
                    None => inner.oneshot(call).await,
                }
            }
        })
    }
}

/// Which way in a request takes. The node compares the path as it is, and so does this.
fn door(request: &Request<Body>) -> Option<Door> {
    match (request.method(), request.uri().path()) {
        (&Method::POST, "/mcp/tools/call") => Some(Door::Call),
        (&Method::POST, "/mcp/rpc") => Some(Door::Rpc),
        _ => None,
    }
}

/// Reads a request whole, and passes it on as it is unless it calls the tool.
async fn look(
    settings: Arc<McpCrypto>,
    door: Door,
    call: HttpCall,
    inner: Svc<Http>,
) -> Result<Response<Body>, FilterError> {
    let HttpCall { request, client } = call;
    let (parts, body) = request.into_parts();
    let Some(bytes) = whole(body, settings.max_body.bytes()).await? else {
        let why = format!("a request to this path is read whole and may have {} at most", settings.max_body);
        return Ok(problem(StatusCode::PAYLOAD_TOO_LARGE, &why));
    };
    let Some(asked) = asked(door, &bytes, &settings.tools) else {
        let request = Request::from_parts(parts, full(bytes));
        return inner.oneshot(HttpCall { request, client }).await;
    };
    // A megabyte takes milliseconds to hash.
    let answer = tokio::task::spawn_blocking(move || answer(&settings, &asked)).await;
    let reply = answer.map_err(|why| FilterError::Internal(why.to_string().into()))?;
    Ok(response(reply))
}

fn answer(settings: &McpCrypto, asked: &Asked) -> Reply {
    let outcome = match settings.mode {
        Mode::Answer => operations::perform(asked, settings.alg),
        Mode::Block => operations::block(),
    };
    let (operation, label) = (operations::label(asked), outcome.label());
    counter!("qudag_sidecar_mcp_crypto_total", "operation" => operation, "outcome" => label).increment(1);
    asked.reply(outcome)
}

/// A body's bytes; `None` when they are more than `most`.
async fn whole(mut body: Body, most: usize) -> Result<Option<Bytes>, FilterError> {
    if body.size_hint().lower() > most as u64 {
        return Ok(None);
    }
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        if bytes.len() + data.len() > most {
            return Ok(None);
        }
        bytes.extend_from_slice(&data);
    }
    Ok(Some(bytes.freeze()))
}

fn full(bytes: Bytes) -> Body {
    Body::new(Full::new(bytes).map_err(|never| match never {}))
}

/// A reply with the fields that the node's own has.
fn response(Reply { status, body }: Reply) -> Response<Body> {
    let body = Bytes::from(body.to_string());
    let length = body.len();
    let mut response = Response::new(full(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CONTENT_LENGTH, length.into());
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}
