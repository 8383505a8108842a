//! Errors as JSON: `{"error": {"code", "message", "at"?}}`.

use std::time::Duration;

use bytes::Bytes;
use hyper::header::{ALLOW, CONNECTION, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use qudag_core::offload::Code;
use qudag_filter_api::FilterError;
use serde_json::json;

use crate::server::refusal;

/// Why a request has no answer.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    /// The same for programs; a label.
    pub(super) code: &'static str,
    message: String,
    /// The place in the body.
    at: Option<String>,
    retry_after: Option<Duration>,
    /// The method that would be right.
    allow: Option<&'static str>,
    /// Nothing more can be read on this connection.
    close: bool,
}

impl Problem {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), at: None, retry_after: None, allow: None, close: false }
    }

    /// A request that cannot be read.
    pub(super) fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Code::Malformed.name(), message)
    }

    /// An error of the chain.
    pub(super) fn of(error: &FilterError) -> Self {
        let code = refusal::code(error);
        let status = match code {
            Code::Malformed => StatusCode::BAD_REQUEST,
            Code::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Code::Refused => StatusCode::FORBIDDEN,
            Code::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Code::Overloaded | Code::Draining => StatusCode::SERVICE_UNAVAILABLE,
            Code::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let problem =
            Self { retry_after: error.retry_after(), ..Self::new(status, code.name(), error.public()) };
        if code == Code::Draining { problem.closing() } else { problem }
    }

    /// With the place in the body.
    pub(super) fn at(self, place: impl Into<String>) -> Self {
        Self { at: Some(place.into()), ..self }
    }

    /// With the method that would be right.
    pub(super) fn allowing(self, method: &'static str) -> Self {
        Self { allow: Some(method), ..self }
    }

    /// As the last one of its connection.
    pub(super) fn closing(self) -> Self {
        Self { close: true, ..self }
    }

    pub(super) fn body(&self) -> Bytes {
        let mut error = json!({"code": self.code, "message": self.message});
        if let (Some(at), Some(error)) = (&self.at, error.as_object_mut()) {
            error.insert("at".to_owned(), at.as_str().into());
        }
        json!({"error": error}).to_string().into()
    }

    /// Whole seconds (RFC 9110 section 10.2.3), rounded up, so that nobody comes too early.
    pub(super) fn retry_after_seconds(&self) -> Option<u64> {
        let again = matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        let after = self.retry_after.unwrap_or_default();
        again.then(|| (after.as_secs() + u64::from(after.subsec_nanos() > 0)).max(1))
    }

    pub(super) fn response(&self) -> Response<Bytes> {
        let mut response = Response::new(self.body());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after_seconds() {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        if let Some(method) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(method));
        }
        if self.close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
