//! The body of a POST: bounded in size and time, JSON, and nothing but the keys that the route knows.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::error::ApiError;

/// The longest body.
pub(super) const LIMIT: usize = 64 * 1024;
/// How long a client may take to send it.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// How much of a body goes into the audit log.
const LOGGED: usize = 1024;

/// The start of the body as it came, for the audit log.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked(pub(super) Arc<OnceLock<String>>);

/// What a POST asks for. An empty body is `{}`.
pub(super) struct Wish<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Wish<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        is_json(request.headers())?;
        let asked = request.extensions().get::<Asked>().cloned();
        let read = tokio::time::timeout(READ_TIMEOUT, read(request)).await;
        let body = read.map_err(|_| {
            ApiError::new(StatusCode::REQUEST_TIMEOUT, format!("no complete body within {READ_TIMEOUT:?}"))
        })??;
        if let Some(asked) = asked {
            let start = body.get(..LOGGED).unwrap_or(&body);
            let _ = asked.0.set(String::from_utf8_lossy(start).into_owned());
        }
        let text: &[u8] = if body.is_empty() { b"{}" } else { &body };
        // A list would be taken for the fields in their order.
        if !text.trim_ascii_start().starts_with(b"{") {
            return Err(ApiError::bad_request("the body is not a JSON object"));
        }
        serde_json::from_slice(text)
            .map(Self)
            .map_err(|why| ApiError::bad_request(format!("the body is not what this route takes: {why}")))
    }
}

/// A page of another site can send a POST with the content types of a form, and not with this one.
fn is_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    let is_json = match (types.next().map(|value| value.to_str()), types.next()) {
        (Some(Ok(value)), None) => {
            let (essence, parameters) = value.split_once(';').unwrap_or((value, "charset=utf-8"));
            essence.trim().eq_ignore_ascii_case("application/json")
                && parameters.trim().eq_ignore_ascii_case("charset=utf-8")
        }
        _ => false,
    };
    if is_json && !headers.contains_key(header::CONTENT_ENCODING) {
        return Ok(());
    }
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "a POST needs the content type application/json")
        .hint("curl: -H 'content-type: application/json'"))
}

async fn read(request: Request<Body>) -> Result<Vec<u8>, ApiError> {
    let too_long =
        || ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is longer than {LIMIT} bytes"));
    let announced = http_body::Body::size_hint(request.body()).lower();
    if announced > LIMIT as u64 {
        return Err(too_long());
    }
    match Limited::new(request.into_body(), LIMIT).collect().await {
        Ok(body) => Ok(body.to_bytes().into()),
        Err(why) if why.is::<LengthLimitError>() => Err(too_long()),
        Err(_) => Err(ApiError::bad_request("the body broke off")),
    }
}
