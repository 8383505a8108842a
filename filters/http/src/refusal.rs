//! The sidecar's own replies: an error of the chain as a problem document (RFC 9457).

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full};
use qudag_filter_api::FilterError;
use serde_json::json;

use crate::Body;

/// The status that says what an error means to the client.
pub(crate) fn status(error: &FilterError) -> StatusCode {
    match error {
        FilterError::Malformed(_) | FilterError::ClientGone => StatusCode::BAD_REQUEST,
        FilterError::Refused(_) => StatusCode::FORBIDDEN,
        FilterError::RateLimited { .. } => StatusCode::TOO_MANY_REQUESTS,
        FilterError::BreakerOpen { .. }
        | FilterError::Overloaded(_)
        | FilterError::Shed { .. }
        | FilterError::Unavailable { .. }
        | FilterError::Draining => StatusCode::SERVICE_UNAVAILABLE,
        FilterError::Timeout { .. } => StatusCode::GATEWAY_TIMEOUT,
        FilterError::Connect { .. } | FilterError::Resolve { .. } | FilterError::Upstream(_) => {
            StatusCode::BAD_GATEWAY
        }
        FilterError::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The reply to a request that failed with `error`.
pub(crate) fn reply(error: &FilterError) -> Response<Body> {
    let mut reply = problem(status(error), &error.public());
    if let Some(after) = error.retry_after() {
        // RFC 9110 section 10.2.3: whole seconds. Rounded up, so that nobody comes too early.
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        reply.headers_mut().insert(RETRY_AFTER, seconds.max(1).into());
    }
    if matches!(error, FilterError::Draining) {
        reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    reply
}

/// A reply with a status of its own.
pub(crate) fn problem(status: StatusCode, detail: &str) -> Response<Body> {
    let document = json!({
        "type": "about:blank",
        "title": status.canonical_reason().unwrap_or_default(),
        "status": status.as_u16(),
        "detail": detail,
    });
    let document = Bytes::from(document.to_string());
    let length = document.len();
    let mut reply = Response::new(Body::new(Full::new(document).map_err(|never| match never {})));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    reply.headers_mut().insert(CONTENT_LENGTH, length.into());
    reply
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_refusal_says_when_to_come_back() {
        for (error, status, after) in [
            (FilterError::Malformed("x".into()), 400, None),
            (FilterError::RateLimited { retry_after: Duration::from_millis(1) }, 429, Some("1")),
            (FilterError::BreakerOpen { retry_after: Duration::from_millis(1001) }, 503, Some("2")),
            (FilterError::Timeout { after: Duration::from_secs(1) }, 504, None),
            (FilterError::Upstream("x".into()), 502, None),
            (FilterError::Draining, 503, None),
        ] {
            let reply = super::reply(&error);
            assert_eq!(reply.status(), status);
            assert_eq!(reply.headers().get(RETRY_AFTER).map(|value| value.to_str().unwrap()), after);
            let length = reply.headers()[CONTENT_LENGTH].to_str().unwrap().to_owned();
            let body = reply.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body.len().to_string(), length);
            let document: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(document["status"], status);
            assert_eq!(document["detail"], error.public());
        }
    }
}
