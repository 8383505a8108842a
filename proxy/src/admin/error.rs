//! Refusals of the admin API, as JSON: `{"error": …, "hint"?: …, "problems"?: […]}`.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::control::ControlError;

/// How long a client should wait before it asks a stopping sidecar again, in seconds.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// A refusal.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ApiError {
    #[serde(skip)]
    status: StatusCode,
    error: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<String>,
}

/// Left on a response for the audit log: why it was refused.
#[derive(Clone, Debug)]
pub(super) struct Why(pub(super) String);

impl ApiError {
    pub(super) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into(), hint: None, problems: Vec::new() }
    }

    pub(super) fn bad_request(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    pub(super) fn forbidden(error: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, error)
    }

    pub(super) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "no such route").hint(
            "paths are exact: no trailing slash, no escapes; see `qudag-sidecar --help` for what can be done",
        )
    }

    #[must_use]
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl From<ControlError> for ApiError {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::NotFound(what) => Self::new(StatusCode::NOT_FOUND, what),
            ControlError::Invalid(what) => Self::bad_request(what),
            ControlError::Unavailable(what) => Self::new(StatusCode::SERVICE_UNAVAILABLE, what),
            ControlError::Refused { generation, problems } => Self {
                status: StatusCode::UNPROCESSABLE_ENTITY,
                error: format!("configuration refused, generation {generation} goes on"),
                hint: Some(
                    "correct the file and reload; `qudag-sidecar validate FILE` shows every place".to_owned(),
                ),
                problems,
            },
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status;
        let why = std::iter::once(self.error.as_str())
            .chain(self.problems.iter().map(String::as_str))
            .collect::<Vec<_>>()
            .join("; ");
        let mut response = (status, Json(self)).into_response();
        response.extensions_mut().insert(Why(why));
        let headers = response.headers_mut();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        if status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer realm=\"qudag-sidecar\"");
            headers.insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}
