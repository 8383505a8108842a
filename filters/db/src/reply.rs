//! What the sidecar itself says to a client: PostgreSQL's ErrorResponse at connect, where every error is FATAL.

use std::time::Duration;

use qudag_filter_api::FilterError;

/// `protocol_violation` (PostgreSQL documentation, appendix A).
const PROTOCOL_VIOLATION: &str = "08P01";
/// `connection_failure`.
const CONNECTION_FAILURE: &str = "08006";
/// `invalid_authorization_specification`.
const NOT_ALLOWED: &str = "28000";
/// `too_many_connections`.
const TOO_MANY_CONNECTIONS: &str = "53300";
/// `configuration_limit_exceeded`.
const LIMIT_EXCEEDED: &str = "53400";
/// `admin_shutdown`.
const ADMIN_SHUTDOWN: &str = "57P01";
/// `cannot_connect_now`.
const CANNOT_CONNECT_NOW: &str = "57P03";
/// `internal_error`.
const INTERNAL_ERROR: &str = "XX000";

/// The SQLSTATE of an error.
pub(crate) fn sqlstate(error: &FilterError) -> &'static str {
    match error {
        FilterError::Malformed(_) => PROTOCOL_VIOLATION,
        FilterError::Refused(_) => NOT_ALLOWED,
        FilterError::RateLimited { .. } => LIMIT_EXCEEDED,
        FilterError::BreakerOpen { .. } | FilterError::Unavailable { .. } => CANNOT_CONNECT_NOW,
        FilterError::Overloaded(_) | FilterError::Shed { .. } => TOO_MANY_CONNECTIONS,
        FilterError::Timeout { .. }
        | FilterError::Connect { .. }
        | FilterError::Resolve { .. }
        | FilterError::Upstream(_)
        | FilterError::ClientGone => CONNECTION_FAILURE,
        FilterError::Draining => ADMIN_SHUTDOWN,
        FilterError::Internal(_) => INTERNAL_ERROR,
    }
}

/// The ErrorResponse for an error: type `E`, an Int32 length, and fields that a zero byte ends.
pub(crate) fn error_response(error: &FilterError) -> Vec<u8> {
    let mut fields = Vec::with_capacity(128);
    let mut field = |code: u8, text: &str| {
        fields.push(code);
        fields.extend(text.bytes().filter(|byte| *byte != 0));
        fields.push(0);
    };
    field(b'S', "FATAL");
    field(b'V', "FATAL");
    field(b'C', sqlstate(error));
    field(b'M', &format!("qudag-sidecar: {}", error.public()));
    if let Some(after) = error.retry_after() {
        field(b'H', &format!("retry-after: {}", seconds(after)));
    }
    fields.push(0);
    let length = u32::try_from(fields.len() + 4).unwrap_or(u32::MAX);
    [b"E", &length.to_be_bytes()[..], &fields].concat()
}

/// SQLSTATE, message and HINT of an error within a pooled session. By the HINT it is told from the server's own.
pub(crate) fn refusal(error: &FilterError) -> (&'static str, String, String) {
    let sqlstate = match error {
        // Nothing was sent to the server: it cannot be used at the moment, which is no failure of a connection that the client has.
        FilterError::Timeout { .. } | FilterError::Connect { .. } | FilterError::Resolve { .. } => {
            CANNOT_CONNECT_NOW
        }
        error => sqlstate(error),
    };
    let hint = match error.retry_after() {
        Some(after) => format!("qudag-sidecar: retry after {} ms", after.as_micros().div_ceil(1000).max(1)),
        None => "said by qudag-sidecar, not by the server".to_owned(),
    };
    (sqlstate, format!("qudag-sidecar: {}", error.public()), hint)
}

/// Seconds with milliseconds, rounded up, so that whoever waits so long is not early.
fn seconds(after: Duration) -> String {
    let millis = after.as_micros().div_ceil(1000);
    format!("{}.{:03} s", millis / 1000, millis % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_response_has_its_fields_and_length() {
        let error = FilterError::RateLimited { retry_after: Duration::from_micros(1_500_001) };
        let bytes = error_response(&error);
        assert_eq!(bytes[0], b'E');
        assert_eq!(u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize, bytes.len() - 1);
        assert!(bytes.ends_with(b"\0\0"));
        let text = String::from_utf8(bytes[5..].to_vec()).unwrap();
        let fields: Vec<_> = text.trim_end_matches('\0').split('\0').collect();
        assert_eq!(fields[..3], ["SFATAL", "VFATAL", "C53400"]);
        assert!(fields[3].starts_with("Mqudag-sidecar: rate limit reached"), "{fields:?}");
        assert_eq!(fields[4], "Hretry-after: 1.501 s");
    }

    #[test]
    fn zero_bytes_in_a_message_do_not_break_the_frame() {
        let bytes = error_response(&FilterError::Upstream("a\0b".into()));
        assert_eq!(
            bytes.iter().filter(|byte| **byte == 0).count(),
            3 + 4 + 1,
            "three in the length, one a field, one at the end"
        );
    }
}
